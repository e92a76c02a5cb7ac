"""Programs that tests run and pip does not install: nginx, Caddy, PgBouncer, Go and others."""

import os
import shutil
from typing import NoReturn

import pytest

from service.settings import ENVIRONMENT

PATH = os.pathsep.join((os.defpath, "/usr/sbin", "/sbin"))  # Where a daemon lies; a user lacks it.


def find(*names: str, package: str = "") -> str:
    """Return the path of the first of these names that is installed; else `do_without`."""
    paths = (shutil.which(name) or shutil.which(name, path=PATH) for name in names)
    path = next(filter(None, paths), None)
    return path or do_without(f"not installed: apt-get install {package or names[0]}")


def do_without(reason: str) -> NoReturn:
    """Skip the test, but fail it in CI, where `.ci/run` installs what tests need."""
    if ENVIRONMENT.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
