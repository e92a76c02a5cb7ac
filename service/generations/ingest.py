"""The only door by which upstream's word enters, whoever carried it."""

import functools
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from service.context import Context
from service.delivery import fanout
from service.model.clock import rfc3339
from service.model.event import EVENT_TYPE_OF, Event
from service.model.generation import Generation
from service.store import callbacks, events, generations
from service.store.callbacks import Arrival
from service.store.database import Transaction
from service.telemetry import log, metrics
from service.upstream import catalogue, wire

_log = log.get()


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What upstream says about a generation, or that its deadline has passed."""

    generation_id: str
    status: Literal["processing", "succeeded", "failed", "timed_out"]
    task_id: str | None = None
    output: dict[str, Any] | None = None
    error: dict[str, str] | None = None


def news_of(context: Context, generation: Generation, report: wire.Report) -> News:
    """A report as news, with our callback URL and every secret cut out."""
    return News(
        generation_id=generation.id,
        status=report.state,
        task_id=report.task_id,
        output=_output(context, report) if report.state == "succeeded" else None,
        error=_error(context, report) if report.state == "failed" else None,
    )


async def ingest(
    tx: Transaction, context: Context, news: News, generation: Generation | None = None
) -> Event | None:
    """Record upstream's word and fan it out; None if it says nothing new.

    `generation` is the one that the news are about, where this transaction has read it already.

    The status moves along model.TRANSITIONS and nowhere else, so that whichever of callback and
    poll comes first yields the one terminal event, in any order, any number of times.
    """
    generation = generation or await generations.get(tx, news.generation_id)
    if generation is None or not generation.accepts(news.status):
        return None
    generation = await generations.change(
        tx, generation, **_changes(context, generation, news, tx.now)
    )
    event = await events.insert(
        tx, generation.tenant, EVENT_TYPE_OF[news.status], generation.view(), generation.id
    )
    await fanout.fan_out(tx, context, event, generation)
    if generation.is_terminal:
        await generations.confirmed(tx, generation.id, tx.now)
        counts = {news.status: 1, "credits": generation.credits or 0}
        await generations.add_usage(tx, generation, **counts)
        tx.after_commit(_ended, context, generation)
    return event


async def receive(tx: Transaction, arrivals: Sequence[Arrival]) -> list[str | None]:
    """Store callbacks as hints and have upstream asked; the verdict of each.

    None: the generation is gone or the token's nonce was revoked, and nothing was stored.
    """
    kept = await callbacks.insert(tx, arrivals)
    await callbacks.ask_now(tx, arrivals, kept)
    return [one.verdict if one else None for one in kept]


async def believe(tx: Transaction, context: Context, arrival: Arrival) -> str | None:
    """Store a callback whose body is proof, and what follows from it, in one transaction."""
    [kept] = await callbacks.insert(tx, [arrival])
    if kept is None or kept.verdict not in ("accepted", "unreadable"):
        return kept.verdict if kept else None
    report = wire.read_callback(arrival.body)
    if report is None:
        await callbacks.ask_now(tx, [arrival], [kept])
        tx.after_commit(context.signals.poll.set)
        return kept.verdict
    generation = await generations.get(tx, arrival.generation_id)
    assert generation is not None  # Its row gave the verdict, in this transaction.
    if not report.recognised:
        _log.warning("upstream.unknown_word", word=report.word, generation_id=generation.id)
    await ingest(tx, context, news_of(context, generation, report), generation)
    if report.state == "processing" and generation.next_poll_at is None:
        # The create answer is late or lost: with this callback's task id upstream can be asked.
        await callbacks.ask_now(tx, [arrival], [kept])
        tx.after_commit(context.signals.poll.set)
    return kept.verdict


def _changes(context: Context, old: Generation, news: News, now: int) -> dict[str, Any]:
    changes: dict[str, Any] = {"status": news.status, "task_id": old.task_id or news.task_id}
    if news.status == "processing":
        return {**changes, "submitted_at": old.submitted_at or now}
    changes.update(
        completed_at=now,
        output=news.output,
        error=news.error,
        next_poll_at=None,
        submit_at=None,
        late_poll_count=0,
    )
    if news.status == "succeeded":
        model = context.catalogue.get(old.model)
        changes["credits"] = model and catalogue.credits(model, old.input)
    elif news.status == "failed":
        changes["credits"] = 0
    return changes


def _ended(context: Context, generation: Generation) -> None:
    metrics.generations.add(1, generation.status)
    _log.info(
        "generation.ended",
        generation_id=generation.id,
        status=generation.status,
        model=generation.model,
    )
    context.waiters.wake(generation.id)


def _needles(context: Context) -> list[str]:
    settings = context.settings
    secrets = [settings.upstream_api_key, settings.upstream_signature_secret, settings.admin_key]
    return [secret for secret in (*secrets, *settings.secret_keys) if secret]


def cleaned(context: Context, value: Any) -> Any:
    """Decoded JSON, or a sentence, of upstream's without our callback URLs and secrets."""
    return _without(
        _callback_url(context.settings.public_url), wire.redact(value, _needles(context))
    )


@functools.lru_cache(maxsize=8)
def _callback_url(public_url: str | None) -> re.Pattern[str]:
    """Any callback URL, ours with its host; never text before or after it."""
    base = public_url or ""
    forms = {base, base.replace("/", "\\/"), urllib.parse.quote(base, safe="")}
    host = "|".join(re.escape(form) for form in sorted(forms))
    return re.compile(
        rf"(?:{host})?{log.SLASH}callbacks{log.SLASH}[a-z]{{1,32}}{log.SLASH}[A-Za-z0-9._~%-]+"
    )


def _without(url: re.Pattern[str], value: Any) -> Any:
    """`value` with every match cut out of its strings, decoded: an edit of JSON would break it."""
    if isinstance(value, str):
        return url.sub("[redacted]", value) if "callbacks" in value else value
    if isinstance(value, list):
        return [_without(url, item) for item in value]
    if isinstance(value, dict):
        return {_without(url, key): _without(url, item) for key, item in value.items()}
    return value


def _output(context: Context, report: wire.Report) -> dict[str, Any]:
    return {"files": [_file(file) for file in report.files], "raw": cleaned(context, report.raw)}


def _file(file: wire.File) -> dict[str, str]:
    seen = {"url": file.url, "media_type": file.media_type}
    return seen if file.expires_at is None else {**seen, "expires_at": rfc3339(file.expires_at)}


def _error(context: Context, report: wire.Report) -> dict[str, str]:
    error: dict[str, str] = cleaned(
        context,
        {
            "code": report.error_code or "upstream_failed",
            "message": report.error_message or "Upstream reported a failure and gave no reason.",
        },
    )
    return error
