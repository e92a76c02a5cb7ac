"""The parts of uvicorn that serve. Its package imports its own command line, and click, with them.

That took a twelfth of a start. So the package is made without running it, until somebody asks for
more of it than its modules.
"""

import importlib.util
import sys
from typing import Any


def _defer(name: str) -> None:
    """Make a package importable of which only the modules are imported; run it when it is used."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def load(attribute: str) -> Any:
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = load  # PEP 562: asked for what the module does not have.
    sys.modules[name] = package


if "uvicorn" not in sys.modules:
    _defer("uvicorn")

from uvicorn.config import Config  # noqa: E402
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl  # noqa: E402
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol  # noqa: E402
from uvicorn.server import Server  # noqa: E402

sys.modules["uvicorn"].__dict__["Config"] = Config  # Its lifespans ask the package for it.
__all__ = [
    "HIGH_WATER_LIMIT",
    "STATUS_LINE",
    "Config",
    "FlowControl",
    "HttpToolsProtocol",
    "Server",
]
