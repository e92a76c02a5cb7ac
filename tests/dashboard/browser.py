"""A client that signs in to the pages and posts their forms, without JavaScript."""

import html
import re
import shlex
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpx

from tests.harness import ADMIN_KEY, Harness
from tests.markup import Markup

TOKEN = re.compile(r'name="token" value="([^"]+)"')
COMMAND = re.compile(r"<code>(curl .*?)</code>", re.DOTALL)


class Browser:
    """A browser with cookies, at the root of the service."""

    def __init__(self, world: Harness, prefix: str = "", peer: str = "127.0.0.1") -> None:
        self.world, self.prefix = world, prefix
        transport = httpx.ASGITransport(world._asgi, client=(peer, 50_000))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://genhook")

    async def get(self, path: str = "", **headers: str | bytes) -> httpx.Response:
        lines = [
            (name.replace("_", "-").encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in headers.items()
        ]
        return await self.client.get(f"{self.prefix}/dashboard{path}", headers=lines)

    async def post(self, path: str, token: str | None = None, **fields: Any) -> httpx.Response:
        """Post a form with the token of this browser's pages, or with another one."""
        if token is None:
            page = await self.get()
            token = token_of(page if page.is_success else await self.get("/sign-in"))
        content = urlencode({"token": token, **fields}, doseq=True)
        kind = {"content-type": "application/x-www-form-urlencoded"}
        path = f"{self.prefix}/dashboard{path}"
        return await self.client.post(path, content=content, headers=kind)

    async def follow(self, answer: httpx.Response) -> httpx.Response:
        """Go where a redirect leads."""
        assert answer.status_code == 303, answer.text
        return await self.client.get(urljoin(str(answer.request.url), answer.headers["location"]))

    async def sign_in(self, key: str = ADMIN_KEY, **fields: str) -> httpx.Response:
        token = token_of(await self.get("/sign-in"))
        return await self.post("/sign-in", token, key=key, **fields)

    async def run(self, command: str, key: str = ADMIN_KEY) -> httpx.Response:
        """Run a curl command as a shell would, against the service."""
        values = {"$GENHOOK_URL": "http://genhook", "$GENHOOK_API_KEY": key}
        words = shlex.split(command.replace("\\\n", " "))
        for name, value in values.items():
            words = [word.replace(name, value) for word in words]
        method, url, headers, body = None, "", {}, None
        iterator = iter(words[1:])
        for word in iterator:
            if word == "-X":
                method = next(iterator)
            elif word == "-H":
                name, _, value = next(iterator).partition(": ")
                headers[name] = value
            elif word == "-d":
                body = next(iterator)
            elif not word.startswith("--"):
                url = word
        method = method or ("GET" if body is None else "POST")
        return await self.world.anonymous.request(method, url, headers=headers, content=body)


def token_of(page: httpx.Response) -> str:
    match = TOKEN.search(page.text)
    assert match, page.text
    return match[1]


def text_of(page: httpx.Response) -> str:
    return Markup(page.text).text


def commands(page: httpx.Response) -> list[str]:
    """The curl commands that a page shows."""
    return [html.unescape(command) for command in COMMAND.findall(page.text)]


def policy_of(page: httpx.Response) -> dict[str, str]:
    rules = page.headers["content-security-policy"].split("; ")
    return dict(rule.split(" ", 1) for rule in rules)


def links(page: httpx.Response) -> list[str]:
    """The paths of all links on a page."""
    base = str(page.request.url)
    targets = [
        value or ""
        for _tag, name, value in Markup(page.text).attributes
        if name in ("href", "action")
    ]
    return [urlsplit(urljoin(base, target)).path for target in targets if "#" not in target]
