"""`genhook doctor`: what keeps this installation from working, and what to do about it."""

import argparse
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

from service.cli import output
from service.cli.client import is_loopback
from service.delivery import signing_keys
from service.model.clock import MINUTE, now_ms, parse_rfc3339, rfc3339
from service.model.errors import SettingsError
from service.model.ids import time_of
from service.settings import Settings, read_settings, unknown
from service.store.sqlite import schema
from service.store.vault import Vault, VaultError

Say = Callable[[str], None]

DISK_FAIL_BYTES = 100 << 20
DISK_WARN_BYTES = 1 << 30
CLOCK_OFF_MS = 2 * MINUTE  # Receivers of Standard Webhooks give five minutes.
RELEASED_AT = parse_rfc3339("2026-01-01T00:00:00Z")
ONLINE_SECONDS = 10.0
DISTINCT_CHARACTERS_MIN = 10


class Finding(NamedTuple):
    """What a check found, in a sentence; of a failure or a warning, also what to do."""

    level: Literal["ok", "warn", "fail"]
    about: str
    said: str


def doctor(options: argparse.Namespace, say: Say) -> int:
    """Say what every check found; 1 if one failed."""
    findings = list(examine(now_ms(), online=options.online))
    if options.json:
        say(msgspec.json.encode([finding._asdict() for finding in findings]).decode())
    else:
        for line in output.table(findings):
            say(line)
    return int(any(finding.level == "fail" for finding in findings))


def examine(now: int, *, online: bool) -> Iterator[Finding]:
    """Every finding; settings that cannot be read are the only one."""
    for name in unknown():
        yield Finding("warn", "settings", f"{name} is no setting: see docs/settings.md.")
    try:
        settings = read_settings()
    except SettingsError as error:
        yield Finding("fail", "settings", str(error))
        return
    yield Finding("ok", "settings", "Every setting can be read.")
    yield from _secrets(settings)
    yield from _public_url(settings)
    yield from _upstream(settings)
    yield from _clock(now)
    yield from _database(settings, now)
    if online:
        yield from _online(settings, now)


def _secrets(settings: Settings) -> Iterator[Finding]:
    weak = [k for k in settings.secret_keys if len(set(k)) < DISTINCT_CHARACTERS_MIN]
    said = f"Secret keys: {len(settings.secret_keys)}; the last one signs and seals."
    if weak:
        said = "A secret key repeats itself: make one with `openssl rand -hex 32`."
        yield Finding("fail", "keys", said)
    elif len(set(settings.secret_keys)) < len(settings.secret_keys):
        yield Finding("warn", "keys", "A secret key is there twice: once is enough.")
    elif settings.admin_key in settings.secret_keys:
        said = "The admin key is a secret key too: whoever calls the API could sign callbacks."
        yield Finding("fail", "keys", said)
    else:
        yield Finding("ok", "keys", said)
    if settings.admin_key is None:
        said = "GENHOOK_ADMIN_KEY is not set: make API keys with `genhook keys create`."
        yield Finding("warn", "admin key", said)
    elif len(set(settings.admin_key)) < DISTINCT_CHARACTERS_MIN:
        said = "The admin key repeats itself: make one with `openssl rand -hex 32`, after ghk_."
        yield Finding("fail", "admin key", said)


def _public_url(settings: Settings) -> Iterator[Finding]:
    url = settings.public_url
    if url is None:
        said = "GENHOOK_PUBLIC_URL is not set: no callbacks are asked for, everything is polled."
        yield Finding("warn", "public url", said)
    elif is_loopback(url):
        said = f"{url} is this machine: an upstream elsewhere cannot call back."
        yield Finding("warn", "public url", said)
    elif urlsplit(url).scheme != "https":
        said = f"{url} is not https: callback tokens can be read on the way."
        yield Finding("warn", "public url", said)
    else:
        yield Finding("ok", "public url", f"Callbacks come to {url}/callbacks/.")


def _upstream(settings: Settings) -> Iterator[Finding]:
    if settings.upstream_api_key:
        yield Finding("ok", "upstream", f"{settings.upstream_url}, with a key.")
        return
    said = "GENHOOK_UPSTREAM_API_KEY is not set: upstream will refuse every generation."
    yield Finding("fail", "upstream", said)


def _clock(now: int) -> Iterator[Finding]:
    if now < RELEASED_AT:
        said = f"It is not {rfc3339(now)}: set the clock, or no signature will be accepted."
        yield Finding("fail", "clock", said)
    else:
        yield Finding("ok", "clock", f"It is {rfc3339(now)}.")


def _database(settings: Settings, now: int) -> Iterator[Finding]:
    path = Path(settings.database_path).absolute()
    yield from _disk(path)
    if not path.exists():
        yield Finding("warn", "database", f"{path} is not there yet: the first start makes it.")
        return
    connection = None
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None
        )
        yield from _inside(connection, settings, now)
    except sqlite3.Error as error:
        yield Finding("fail", "database", f"{path} cannot be used: {error}.")
    finally:
        if connection:
            connection.close()


def _disk(path: Path) -> Iterator[Finding]:
    folder = path.parent
    if not os.access(folder, os.W_OK):
        yield Finding("fail", "disk", f"{folder} is not there or cannot be written to.")
        return
    free = shutil.disk_usage(folder).free
    level: Literal["ok", "warn", "fail"] = "ok"
    if free < DISK_WARN_BYTES:
        level = "fail" if free < DISK_FAIL_BYTES else "warn"
    more = "" if level == "ok" else ": make room, or callbacks will be answered 503"
    yield Finding(level, "disk", f"{free >> 20} MiB are free in {folder}{more}.")


def _inside(connection: sqlite3.Connection, settings: Settings, now: int) -> Iterator[Finding]:
    """What the database says of itself: schema, integrity, writes, seals, times."""
    found = schema.version(connection)
    if found != schema.latest():
        older = found < schema.latest()
        todo = "run `genhook migrate`" if older else "a newer genhook made it: run that one"
        said = f"The schema is {found}, this genhook needs {schema.latest()}: {todo}."
        yield Finding("fail" if not older else "warn", "schema", said)
        return
    yield Finding("ok", "schema", f"The schema is {found}, the one that is needed.")
    damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        yield Finding("fail", "database", f"It is damaged, restore a backup: {damage}.")
        return
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")
    yield Finding("ok", "database", "It is whole, and takes writes.")
    yield from _seals(connection, settings)
    event = connection.execute("SELECT id FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    newest = time_of(event[0]) if event else 0
    if newest > now + CLOCK_OFF_MS:
        said = f"The newest event is of {rfc3339(newest)}: the clock went back."
        yield Finding("warn", "clock", said)


def _seals(connection: sqlite3.Connection, settings: Settings) -> Iterator[Finding]:
    vault = Vault(settings.secret_keys)
    try:
        for tenant, sealed in connection.execute("SELECT id, sealed_secrets FROM tenants"):
            signing_keys.unseal(vault, sealed, tenant)
    except VaultError as error:
        said = f"A secret cannot be opened, {error}: put the key that is missing first."
        yield Finding("fail", "seals", said)
    else:
        yield Finding("ok", "seals", "The secret keys open what the database has sealed.")


def _online(settings: Settings, now: int) -> Iterator[Finding]:
    """Ask upstream about a task that there is not: free, and it says whether the key is good."""
    import email.utils  # noqa: PLC0415  only online

    import httpx  # noqa: PLC0415  only online

    headers = {"user-agent": "genhook"}
    if settings.upstream_api_key:
        headers["authorization"] = f"Bearer {settings.upstream_api_key}"
    url = f"{settings.upstream_url}/tasks/genhook-doctor"
    try:
        answer = httpx.get(url, headers=headers, timeout=ONLINE_SECONDS, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = f"{settings.upstream_url} does not answer: {error or type(error).__name__}."
        yield Finding("fail", "online", output.plain(said))
        return
    if answer.status_code in (401, 403):
        yield Finding("fail", "online", "Upstream refuses the key: check GENHOOK_UPSTREAM_API_KEY.")
    elif answer.status_code >= 500:
        yield Finding("warn", "online", f"Upstream is unwell: it answers {answer.status_code}.")
    else:
        yield Finding("ok", "online", "Upstream answers, and takes the key.")
    try:
        theirs = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp() * 1_000
    except (KeyError, ValueError):
        return
    if abs(theirs - now) > CLOCK_OFF_MS:
        said = f"Upstream's clock says {rfc3339(round(theirs))}: one of the two is wrong."
        yield Finding("fail", "clock", said)
