"""The library between SQLite and the disk (faults.c): how it is built and controlled."""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")


def find_compiler() -> list[str] | None:
    """Return the command of a C compiler (the package ziglang has one too), or None."""
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def build(folder: Path) -> Path | None:
    """Build the shared library; return None without Linux or a compiler."""
    command = find_compiler()
    if command is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "faults.so"
    subprocess.run(
        [*command, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"], check=True
    )
    return library


class Disk:
    """The disk of a world, as its service sees it."""

    def __init__(self, library: Path, database: Path) -> None:
        self._library = library
        self._database = database = (
            database.resolve()
        )  # The kernel names open files by resolved paths.
        self._control = database.with_name("faults")
        self._writes = database.with_name("writes")
        self.set_fault("none")

    def set_fault(self, fault: str) -> None:
        """Set the fault from now on, one of those listed in faults.c."""
        new = self._control.with_suffix(".new")
        new.write_text(fault)
        new.replace(self._control)

    def variables(self) -> dict[str, str]:
        """Return the environment variables that a service on this disk needs."""
        return {
            "LD_PRELOAD": str(self._library),
            "CHAOS_PREFIX": str(self._database),
            "CHAOS_FAULTS": str(self._control),
            "CHAOS_WRITES": str(self._writes),
        }

    def list_unsynced(self) -> dict[str, list[tuple[int, int]]]:
        """Return offset and length of the writes to each file that no sync followed.

        A service that died before its first write has left no list of them.
        """
        writes: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        lines = self._writes.read_text("utf-8").splitlines() if self._writes.exists() else []
        for line in lines:
            what, name, offset, length = line.split()
            if what == "w":
                writes[name].append((int(offset), int(length)))
            elif what == "s":
                writes[name].clear()
        return {name: ranges for name, ranges in writes.items() if ranges}

    def tear(self, rng: random.Random) -> int:
        """Change the files of a dead service as a power failure may; return the bytes changed.

        Only bytes that no completed sync covers are changed: each sector is kept, zeroed or filled
        with garbage.
        """
        torn = 0
        for name, ranges in self.list_unsynced().items():
            path = self._database.with_name(name)
            if not path.exists() or name.endswith("-shm"):
                continue
            with path.open("rb+") as file:
                for offset, length in ranges:
                    torn += _tear(file.fileno(), offset, length, rng)
        return torn


SECTOR = 512


def _tear(fd: int, offset: int, length: int, rng: random.Random) -> int:
    torn, end = 0, offset + length
    while offset < end:
        size = min(SECTOR - offset % SECTOR, end - offset)
        change = rng.choice(("none", "zeros", "garbage"))
        if change != "none":
            os.pwrite(fd, bytes(size) if change == "zeros" else rng.randbytes(size), offset)
            torn += size
        offset += size
    return torn
