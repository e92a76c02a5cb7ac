"""The shim between SQLite and the disk: built where a C compiler is found, told what to do."""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")


def compiler() -> list[str] | None:
    """A C compiler: the machine's, or the one that the package ziglang brings; None without."""
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def build(folder: Path) -> Path | None:
    """The shim as a shared library; None where nothing can build it."""
    command = compiler()
    if command is None or not sys.platform.startswith("linux"):
        return None
    made = folder / "faults.so"
    subprocess.run(
        [*command, "-shared", "-fPIC", "-O2", "-o", str(made), str(SOURCE), "-ldl"], check=True
    )
    return made


class Disk:
    """The disk of one world, as its service sees it."""

    def __init__(self, shim: Path, database: Path) -> None:
        self._shim = shim
        self._database = database = database.resolve()  # As the kernel calls an open file.
        self._control = database.with_name("faults")
        self._writes = database.with_name("writes")
        self.say("none")

    def say(self, fault: str) -> None:
        """What goes wrong from now on; faults.c lists the words."""
        fresh = self._control.with_suffix(".new")
        fresh.write_text(fault)
        fresh.replace(self._control)

    def variables(self) -> dict[str, str]:
        """What a service is started with."""
        return {
            "LD_PRELOAD": str(self._shim),
            "CHAOS_PREFIX": str(self._database),
            "CHAOS_FAULTS": str(self._control),
            "CHAOS_WRITES": str(self._writes),
        }

    def unsynced(self) -> dict[str, list[tuple[int, int]]]:
        """What was written to each file and not synced after that: offset and length."""
        found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for line in self._writes.read_text("utf-8").splitlines():
            what, name, offset, length = line.split()
            if what == "w":
                found[name].append((int(offset), int(length)))
            elif what == "s":
                found[name].clear()
        return {name: ranges for name, ranges in found.items() if ranges}

    def tear(self, lots: random.Random) -> int:
        """Do to the files of a dead service what a power failure may: how many bytes were torn.

        Only bytes that no completed sync covers are touched, each sector by lot: kept, zeroed or
        made garbage.
        """
        torn = 0
        for name, ranges in self.unsynced().items():
            path = self._database.with_name(name)
            if not path.exists() or name.endswith("-shm"):
                continue
            with path.open("rb+") as file:
                for offset, length in ranges:
                    torn += _tear(file.fileno(), offset, length, lots)
        return torn


SECTOR = 512


def _tear(fd: int, offset: int, length: int, lots: random.Random) -> int:
    torn, end = 0, offset + length
    while offset < end:
        size = min(SECTOR - offset % SECTOR, end - offset)
        fate = lots.choice(("kept", "zeroed", "garbage"))
        if fate != "kept":
            os.pwrite(fd, bytes(size) if fate == "zeroed" else lots.randbytes(size), offset)
            torn += size
        offset += size
    return torn
