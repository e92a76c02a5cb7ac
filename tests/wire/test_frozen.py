"""A process that the platform freezes for a while goes on where it was."""

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests import engine
from tests.cli.test_serve import END_SECONDS, KEYS, start, started
from tests.ports import free_port

FROZEN_SECONDS = 3  # The sandbox calls back after 2 s.


@pytest.mark.parametrize("database_engine", engine.ENGINES, indirect=True)
@pytest.mark.parametrize("worker", ["embedded", "off"])
def test_a_process_that_was_frozen_goes_on(tmp_path: Path, worker: str) -> None:
    """Upstream calls back while the process is frozen, and a client gives up waiting for it.

    On PostgreSQL every connection is ended meanwhile, as by a platform that freezes for longer.
    """
    database = {}
    if engine.schemas is not None:
        database["GENHOOK_DATABASE_URL"] = engine.database_of(tmp_path)
        with start(tmp_path, "migrate", **KEYS, **database) as migration:
            assert migration.wait(END_SECONDS) == 0
    with started(tmp_path, "sandbox", "--port", "0", ready=" at ") as sandbox:
        environ = KEYS | database
        environ |= {
            "GENHOOK_WORKER": worker,
            "GENHOOK_UPSTREAM_URL": f"{sandbox.url}/api/v1",
            "GENHOOK_UPSTREAM_API_KEY": "aio_sandbox",
            "GENHOOK_SAFETY_POLL_SECONDS": "3600",
            "GENHOOK_DRIVE_SECONDS": "60",
            "PORT": str(port := free_port()),  # Upstream is told the address before the start.
            "GENHOOK_PUBLIC_URL": f"http://127.0.0.1:{port}",
        }
        with started(tmp_path, "serve", **environ) as running, running.client() as client:
            body = {"model": "imagen4-fast", "input": {"prompt": "A small harbour"}}
            created = client.post("/v1/generations", json=body)
            assert created.status_code == 202, created.text
            path = f"/v1/generations/{created.json()['id']}"
            running.process.send_signal(signal.SIGSTOP)
            os.waitpid(running.process.pid, os.WUNTRACED)
            with pytest.raises(httpx.ReadTimeout):
                client.get(path, timeout=FROZEN_SECONDS)
            if engine.schemas is not None:
                assert engine.schemas.end_connections() > 0
            running.process.send_signal(signal.SIGCONT)
            answer = client.get(path, params={"wait": 15})
            assert answer.status_code == 200, answer.text
            generation = answer.json()
            assert (generation["status"], generation["route"]) == ("succeeded", "callback")
            check_ready(client)
            status, _, _ = running.end()
            assert status == 0


def check_ready(client: httpx.Client) -> None:
    """Check that it is ready, some seconds after it has noticed a commit that failed."""
    ends_at = time.monotonic() + END_SECONDS
    while (ready := client.get("/readyz")).status_code != 200:
        assert time.monotonic() < ends_at, ready.text
        threading.Event().wait(0.1)
