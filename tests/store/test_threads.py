"""Structs that several threads decode are prepared before: two at once would crash the process."""

import subprocess
import sys

# msgspec prepares a struct at its first use; from then on the struct refers to what was prepared.
_SCRIPT = """
import gc
import msgspec
from service.delivery import signing
from service.model.attempt import Attempt
from service.store import rows

class Unprepared(msgspec.Struct):
    field: str

for struct in (Unprepared, signing.Secrets, signing.Previous, Attempt, *rows.STRUCTS):
    if "StructInfo" not in {type(each).__name__ for each in gc.get_referents(struct)}:
        print(struct.__name__)
"""


def test_structs_that_threads_decode_are_prepared_when_their_modules_are_imported() -> None:
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.split() == ["Unprepared"]
