"""The latency of every page at /dashboard with a million rows stored."""

import re
from collections.abc import Mapping
from pathlib import Path

import httpx

from bench import history, lists, load, world
from bench.machine import HOST
from bench.plan import Figures, Plan
from service.dashboard.pages import PAGES

NOUNS = ("generations", "subscribers", "deliveries", "callbacks")  # Those that have rows.
TOKEN = re.compile(r'name="token" value="([^"]+)"')


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure each page from one client that is signed in, and the slowest of them."""
    path = await history.build(plan)
    targets = list_pages(path)
    async with world.serve(path) as (_, port):
        cookie = await sign_in(f"http://{HOST}:{port}/dashboard/sign-in")
        requests = {name: build_get(target, cookie) for name, target in targets.items()}
        for _ in range(plan.rounds):
            await lists.run_round(port, requests)  # Templates are compiled when first used.
            latencies = await lists.run_round(port, requests)
            median_ms = {name: load.quantile(each, 0.5) * 1e3 for name, each in latencies.items()}
            p99_ms = [load.quantile(each, 0.99) * 1e3 for each in latencies.values()]
            figures.add(**median_ms, worst_p50_ms=max(median_ms.values()), worst_p99_ms=max(p99_ms))


def list_pages(path: Path) -> dict[str, str]:
    """Return the path of every page whose rows there are."""
    values = lists.read_values(path)["generations"]
    names = [page.path for page in PAGES]
    shown = [name for name in names if "{id}" not in name or name.split("/")[1] in NOUNS]
    return {"/metrics": "/metrics"} | {
        f"/dashboard{name}": f"/dashboard{name.replace('{id}', _id_of(name, values))}"
        for name in shown
    }


def _id_of(name: str, values: Mapping[str, str]) -> str:
    return values.get(name.split("/")[1], "") if name else ""


async def sign_in(url: str) -> str:
    """Sign in with the admin key; return the cookie."""
    async with httpx.AsyncClient(trust_env=False) as client:
        [token] = TOKEN.findall((await client.get(url)).text)
        await client.post(url, data={"token": token, "key": world.ADMIN_KEY})
        return f"genhook_sign_in={client.cookies['genhook_sign_in']}"


def build_get(target: str, cookie: str) -> bytes:
    """Return a request's bytes."""
    return f"GET {target} HTTP/1.1\r\nhost: {HOST}\r\ncookie: {cookie}\r\n\r\n".encode()
