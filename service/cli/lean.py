"""Packages without what their `__init__` drags in: a process that stops often starts often."""

import importlib.util
import sys
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """A package whose `__init__` runs when a name that it defines is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer(name: str) -> None:
    """From now on an import of `name.module` loads that module and no more of the package."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed"
    package = importlib.util.module_from_spec(spec)
    package.__class__ = _Deferred
    sys.modules[name] = package
