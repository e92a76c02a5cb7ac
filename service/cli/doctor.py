"""`genhook doctor`: finds what keeps this installation from working, and says what to do."""

import argparse
import os
import resource
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit

from service.api import signatures
from service.cli import calls, output
from service.cli.arguments import add_json, define
from service.cli.database_checks import (
    CLOCK_OFF_MS,
    SEALED,
    TOUCH,
    Finding,
    Level,
    judge_due,
    judge_indexes,
    judge_schema,
    judge_tables,
)
from service.cli.deadline import LateError, deadline
from service.delivery import descriptors
from service.model.clock import now_ms, parse_rfc3339, rfc3339
from service.model.errors import SettingsError
from service.model.ids import time_of
from service.settings import Settings, is_loopback, read_settings, unknown_variables
from service.store.vault import Vault, VaultError

DISK_FAIL_BYTES = 100 << 20
DISK_WARN_BYTES = 1 << 30
RELEASED_AT = parse_rfc3339("2026-01-01T00:00:00Z")
ONLINE_SECONDS = 10.0


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook doctor`."""
    define(parser, doctor, "genhook doctor --online")
    parser.add_argument("--online", action="store_true", help="also send a request to upstream")
    add_json(parser)


def doctor(options: argparse.Namespace) -> int:
    """Print every finding; 1 if one is a failure."""
    findings = list(examine(now_ms(), online=options.online))
    content = [finding._asdict() for finding in findings]
    output.show(options, content, output.table(findings))
    return int(any(finding.level == "fail" for finding in findings))


def examine(now: int, *, online: bool) -> Iterator[Finding]:
    """Yield every finding; if the settings cannot be read, no other check is made."""
    for name in unknown_variables():
        yield Finding("warn", "settings", f"{name} is not a setting: see docs/settings.md.")
    try:
        settings = read_settings()
        signatures.configured(settings)
    except SettingsError as error:
        yield from (Finding("fail", "settings", problem) for problem in error.problems)
        return
    yield Finding("ok", "settings", "Every setting can be read.")
    yield _secret_keys(settings)
    yield from _admin_key(settings)
    yield _public_url(settings)
    yield _upstream(settings)
    yield _clock(now)
    yield _descriptors(settings)
    if settings.is_postgres:
        from service.cli import server_checks

        server = server_checks.look(settings.database_path)
        yield from server_checks.judge(server, settings, now)
        if server.sealed is not None:
            yield _seals(server.sealed, settings)
    else:
        yield _sqlite(sqlite3.sqlite_version_info)
        yield from _database(settings, now)
    if online:
        yield from _online(settings, now)


def _secret_keys(settings: Settings) -> Finding:
    keys = settings.secret_keys
    if len(set(keys)) < len(keys):
        return Finding("warn", "keys", "A secret key is listed twice: once is enough.")
    return Finding("ok", "keys", f"Secret keys: {len(keys)}; the last one signs and encrypts.")


def _admin_key(settings: Settings) -> Iterator[Finding]:
    if settings.admin_key is None:
        message = (
            "GENHOOK_ADMIN_KEY is not set: make the first key with `genhook keys create --offline`."
        )
        yield Finding("warn", "admin key", message)


def _public_url(settings: Settings) -> Finding:
    url = settings.public_url
    if url is None:
        message = "GENHOOK_PUBLIC_URL is not set: upstream is not asked to call back, only polled."
    elif is_loopback(url):
        message = f"{url} is this machine: an upstream elsewhere cannot call back."
    elif urlsplit(url).scheme != "https":
        message = f"{url} is not https: callback tokens can be read on the way."
    else:
        return Finding("ok", "public url", f"Callbacks come to {url}/callbacks/.")
    return Finding("warn", "public url", message)


def _descriptors(settings: Settings) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors.needed_for(settings, accepts=True)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return Finding("ok", "descriptors", f"Up to {needed} are allowed, as the limits ask for.")
    message = (
        f"The hard limit is {hard}, and the limits ask for {needed}: fewer connections are used. "
        "Raise it (ulimit -Hn, LimitNOFILE), or lower GENHOOK_MAX_IN_FLIGHT."
    )
    return Finding("warn", "descriptors", message)


def _upstream(settings: Settings) -> Finding:
    if settings.upstream_api_key:
        return Finding("ok", "upstream", f"{settings.upstream_url}, with a key.")
    message = "GENHOOK_UPSTREAM_API_KEY is not set: upstream will refuse every generation."
    return Finding("fail", "upstream", message)


def _clock(now: int) -> Finding:
    if now < RELEASED_AT:
        message = f"It is not {rfc3339(now)}: set the clock, or receivers refuse every signature."
        return Finding("fail", "clock", message)
    return Finding("ok", "clock", f"It is {rfc3339(now)}.")


def _sqlite(version: tuple[int, int, int]) -> Finding:
    """The WAL-reset fault (https://sqlite.org/wal.html) was also fixed in 3.44.6 and 3.50.7."""
    name = f"SQLite {'.'.join(map(str, version))}"
    is_fixed = version >= (3, 51, 3) or any(
        first <= version < (first[0], first[1] + 1) for first in ((3, 44, 6), (3, 50, 7))
    )
    if is_fixed:
        return Finding("ok", "sqlite", f"{name} is linked.")
    message = (
        f"{name} may lose a commit if two processes write to one database at once, which 3.51.3 "
        "mends. One process is safe: update SQLite before you run more."
    )
    return Finding("warn", "sqlite", message)


def _database(settings: Settings, now: int) -> Iterator[Finding]:
    from service.store.sqlite.opening import problem_before_opening

    path = Path(os.path.realpath(settings.database_path))  # Also if the links have no end.
    yield _disk(path.parent)
    if problem := problem_before_opening(settings.database_path):  # It could do more harm.
        yield Finding("fail", "database", f"{path} cannot be used: {problem}.")
        return
    if not path.exists():
        yield Finding(
            "warn",
            "database",
            f"{path} does not exist: the first start creates it, or GENHOOK_DATABASE_URL is wrong.",
        )
        return
    uri = f"file:{quote(str(path))}?mode=rw"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            yield from _inside(connection, settings, now)
    except sqlite3.Error as error:
        yield Finding("fail", "database", f"{path} cannot be used: {error}.")


def _disk(folder: Path) -> Finding:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("fail", "disk", f"{folder} cannot be used: {error.strerror}.")
    if not os.access(folder, os.W_OK):
        return Finding("fail", "disk", f"{folder} cannot be written to.")
    message = f"{free >> 20} MiB are free in {folder}"
    if free >= DISK_WARN_BYTES:
        return Finding("ok", "disk", f"{message}.")
    level: Level = "fail" if free < DISK_FAIL_BYTES else "warn"
    return Finding(level, "disk", f"{message}: make room, or callbacks will be answered 503.")


def _inside(connection: sqlite3.Connection, settings: Settings, now: int) -> Iterator[Finding]:
    """Check what the database holds: schema, integrity, writes, secrets, times."""
    from service.store.sqlite import schema
    from service.store.sqlite.statements import statements

    yield (judged := judge_schema(schema.problem(connection), schema.latest()))
    if judged.level != "ok":
        return
    # The whole file, which takes a while if it is large: a start does not look for this.
    damage = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if damage != "ok":
        yield Finding("fail", "database", f"It is damaged, restore a backup: {damage}.")
        return
    if tables := schema.missing(connection, "table"):
        yield from judge_tables(tables)
        return
    connection.execute(TOUCH)
    yield Finding("ok", "database", "It is intact and can be written to.")
    missing = schema.missing(connection, "index")
    yield from judge_indexes(missing)
    if not missing:
        due = connection.execute(statements()["stats_due"].sql)
        yield from judge_due(due, now)
    yield _seals(connection.execute(SEALED), settings)
    event = connection.execute("SELECT id FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    newest = time_of(event[0]) if event else 0
    if newest > now + CLOCK_OFF_MS:
        message = f"The newest event is of {rfc3339(newest)}: the clock was set back."
        yield Finding("warn", "clock", message)


def _seals(sealed: Iterable[tuple[str, bytes]], settings: Settings) -> Finding:
    vault = Vault(settings.secret_keys)
    try:
        for context, secret in sealed:
            vault.open(secret, context)
    except VaultError as error:
        owner = context.partition(":")[2]
        return Finding("fail", "seals", f"A secret of {owner} cannot be decrypted: {error}.")
    return Finding("ok", "seals", "The secret keys decrypt the secrets of tenants and subscribers.")


def _online(settings: Settings, now: int) -> Iterator[Finding]:
    """Ask upstream about a task that does not exist: free, and it shows whether the key works."""
    import httpx

    headers = {"user-agent": "genhook"}
    if settings.upstream_api_key:
        headers["authorization"] = f"Bearer {settings.upstream_api_key}"
    url = f"{settings.upstream_url}/tasks/genhook-doctor"
    stream = httpx.stream("GET", url, headers=headers, timeout=ONLINE_SECONDS, trust_env=False)
    try:
        with deadline(ONLINE_SECONDS), stream as answer:
            pass  # Its body does not matter, and may have no end.
    except (httpx.RequestError, httpx.InvalidURL, UnicodeError, LateError) as error:
        message = f"{settings.upstream_url} does not answer: {calls.give_reason(error)}."
        yield Finding("fail", "online", message)
        return
    yield _judge_answer(answer.status_code)
    yield from _upstream_clock(answer.headers.get("date", ""), now)


def _judge_answer(status: int) -> Finding:
    if status in (401, 403):
        message = "Upstream refuses the key: check GENHOOK_UPSTREAM_API_KEY."
        return Finding("fail", "online", message)
    if status >= 500:
        return Finding("warn", "online", f"Upstream has trouble: it answers {status}.")
    return Finding("ok", "online", "Upstream answers and accepts the key.")


def _upstream_clock(date: str, now: int) -> Iterator[Finding]:
    import email.utils

    try:
        at = round(email.utils.parsedate_to_datetime(date).timestamp() * 1_000)
    except (ValueError, OverflowError):
        return
    if abs(at - now) > CLOCK_OFF_MS:
        message = f"Upstream's clock says {rfc3339(at)}: one of the two clocks is wrong."
        yield Finding("fail", "clock", message)
