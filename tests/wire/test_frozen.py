"""A process that the platform freezes for a while goes on where it was."""

import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.cli.test_serve import KEYS, started

FROZEN_SECONDS = 1.5


@pytest.mark.parametrize("worker", ["embedded", "off"])
def test_a_process_that_was_frozen_goes_on(tmp_path: Path, worker: str) -> None:
    """Upstream calls back while the process is frozen, and a client gives up waiting for it."""
    with started(tmp_path, "sandbox", "--port", "0", "--speed", "4", ready=" at ") as sandbox:
        environ = {
            **KEYS,
            "GENHOOK_WORKER": worker,
            "GENHOOK_UPSTREAM_URL": f"{sandbox.url}/api/v1",
            "GENHOOK_UPSTREAM_API_KEY": "aio_sandbox",
            "GENHOOK_SAFETY_POLL_SECONDS": "3600",
            "PORT": str(port := free_port()),
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
            running.process.send_signal(signal.SIGCONT)
            generation = client.get(path, params={"wait": 15}).json()
            assert (generation["status"], generation["route"]) == ("succeeded", "callback")
            assert client.get("/readyz").status_code == 200
            status, _, _ = running.end()
            assert status == 0


def free_port() -> int:
    """A port that nothing listens on: upstream has to be told the address before the start."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
