"""What a process that has shown every page takes of memory."""

import asyncio
from pathlib import Path

import httpx
import pytest

from service.dashboard.pages import PAGES
from service.store.sqlite.byte_locks import IS_LINUX
from tests.cli.test_serve import Running, started
from tests.contract.scenes import Ids, populate
from tests.dashboard.browser import token_of
from tests.dashboard.test_pages import path_of
from tests.harness import ADMIN_KEY, opened

SECRET_KEY = "s" * 32 + "0123456789"
MEGABYTES_MAX = 70  # 57 were measured; 36 before the first request.


def resident_megabytes(running: Running) -> float:
    """The memory that a process has in RAM (proc_pid_status(5))."""
    lines = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1_024


@pytest.fixture
def ids(tmp_path: Path) -> Ids:
    async def fill() -> Ids:
        async with opened(tmp_path, secret_keys=(SECRET_KEY,)) as world:
            return await populate(world)

    return asyncio.run(fill())


@pytest.mark.skipif(not IS_LINUX, reason="other systems count memory in other ways")
def test_an_idle_service_that_has_shown_every_page_takes_less_than_70_mb(
    tmp_path: Path, ids: Ids
) -> None:
    environ = {
        "GENHOOK_DATABASE_URL": f"sqlite:///{tmp_path}/genhook.db",
        "GENHOOK_SECRET_KEYS": SECRET_KEY,
        "GENHOOK_ADMIN_KEY": ADMIN_KEY,
    }
    environ |= dict.fromkeys(("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"), "")
    with started(tmp_path, "serve", "--port", "0", **environ) as running:
        before = resident_megabytes(running)
        with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as client:
            fields = {"key": ADMIN_KEY, "token": token_of(client.get("/dashboard/sign-in"))}
            answer = client.post("/dashboard/sign-in", data=fields)
            assert answer.status_code == 303
            for _ in range(3):
                for page in PAGES:
                    answer = client.get(f"/dashboard{path_of(page, ids)}")
                    assert answer.status_code == 200, page.path
        after = resident_megabytes(running)
        assert before < after < MEGABYTES_MAX, (before, after)
        running.end()
