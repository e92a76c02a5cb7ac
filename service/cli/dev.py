"""What `genhook serve --dev` makes up: throwaway keys, a database of its own, a sandbox."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from service.model.errors import CommandError
from service.settings import Settings

DATABASE_URL = "sqlite:///genhook-dev.db"
UPSTREAM_KEY = "aio_dev"

_BANNER = """\
genhook --dev: plain http and targets on this machine are allowed. Not for production.

  service  {url}, its reference at {url}/docs
{sandbox}  keys     {keys}

Try it from another terminal:

{export}  id=$(curl -s {url}/v1/generations \\
    -H "Authorization: Bearer $GENHOOK_ADMIN_KEY" -H 'Content-Type: application/json' \\
    -d '{{"model": "imagen4-fast", "input": {{"prompt": "A lighthouse at dusk"}}}}' \\
    | grep -o 'gen_[0-9a-f]*' | head -n 1)
  curl -s "{url}/v1/generations/$id?wait=30" -H "Authorization: Bearer $GENHOOK_ADMIN_KEY"
"""


def environ() -> dict[str, str]:
    """The environment, with what `--dev` makes up where it says nothing."""
    given = {n: v for n, v in os.environ.items() if v}  # noqa: TID251  only defaults go below it
    url = given.setdefault("GENHOOK_DATABASE_URL", DATABASE_URL)
    made = {
        "GENHOOK_ALLOW_HTTP": "true",
        "GENHOOK_ALLOW_NETWORKS": "127.0.0.0/8,::1/128",
        "GENHOOK_SHUTDOWN_SECONDS": "2",  # Who presses Ctrl-C is waiting.
    }
    if url.startswith("sqlite:///") and not {"GENHOOK_SECRET_KEYS", "GENHOOK_ADMIN_KEY"} <= {
        *given
    }:
        made |= keys(keys_path(url.removeprefix("sqlite:///")))
    return made | given


def keys_path(database_path: str) -> Path:
    """Where the throwaway keys of a development database are."""
    return Path(f"{database_path}-keys")


def keys(path: Path) -> Mapping[str, str]:
    """The throwaway keys as variables, made at the first run and readable by their owner alone.

    They are kept because the database is sealed under them: the next run has to open it.
    CommandError if they cannot be.
    """
    try:
        if not path.exists():
            _write(path)
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot keep throwaway keys in {path}: {error}.") from error
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _write(path: Path) -> None:
    import secrets  # noqa: PLC0415  cold start

    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(
            f"GENHOOK_SECRET_KEYS={secrets.token_urlsafe(32)}\n"
            f"GENHOOK_ADMIN_KEY=ghk_{secrets.token_urlsafe(32)}\n"
        )


def placed(settings: Settings, url: str, sandbox_url: str) -> Settings:
    """The settings once both are at their URLs: the sandbox is upstream and can call back."""
    return msgspec.structs.replace(
        settings,
        upstream_url=f"{sandbox_url}/api/v1",
        upstream_api_key=UPSTREAM_KEY,
        public_url=settings.public_url or url,
    )


def banner(settings: Settings, url: str, sandbox_url: str | None) -> str:
    """What is where, and two commands to paste. A key that we did not make is not printed."""
    theirs = os.environ.get("GENHOOK_ADMIN_KEY")  # noqa: TID251  to know whose key it is
    return _BANNER.format(
        url=url,
        sandbox=f"  sandbox  {sandbox_url}\n" if sandbox_url else "",
        keys="the environment's" if theirs else keys_path(settings.database_path),
        export="" if theirs else f"  export GENHOOK_ADMIN_KEY={settings.admin_key}\n",
    )
