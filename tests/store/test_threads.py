"""Rows are decoded on several threads at once, from the first row of a process on."""

import subprocess
import sys

import pytest

RUNS = 8  # Without preparation, four in ten crash.
_SCRIPT = """
import sys, threading
from service.delivery import signing
from service.model.key import Key
from service.store import rows
from service.store.vault import Vault

vault = Vault(["k" * 32])
sealed = signing.seal(vault, signing.new_secrets(bytes), "sub_1")
row = {"id": "key_" + "0" * 32, "tenant": "t", "name": "n", "scopes": "[]", "revoked_at": None}
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)

def decode():
    barrier.wait()
    signing.unseal(vault, sealed, "sub_1")
    rows.decode_rows(Key, [row])

threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("run", range(RUNS))
def test_the_first_rows_of_a_process_may_be_decoded_on_many_threads(run: int) -> None:
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
