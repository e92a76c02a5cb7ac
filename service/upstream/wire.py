"""What upstream can say, read tolerantly: create answers, task answers, callbacks.

Nothing here raises, whatever the bytes. Nothing is cut out either: `redact` does that, for what
is shown to others.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from service.telemetry.redact import redact_json as redact
from service.upstream import results, shapes
from service.upstream.results import File

__all__ = [
    "Absent",
    "File",
    "Refused",
    "Report",
    "Taken",
    "Throttled",
    "Unwell",
    "read_callback",
    "read_create",
    "read_task",
    "redact",
]

MAX_SOUND_BYTES = 8 * 1024 * 1024

# A provider's codes for a task that ended badly, in place of a status word (docs.kie.ai).
_TASK_FAILED_CODES = frozenset({451, 501, 531})


class Report(msgspec.Struct, frozen=True):
    """What one body says of a task.

    `word` is its status word as written; `recognised` is false when that word is not known, and
    then the state is "processing". `raw` is the decoded JSON, secrets included.
    """

    state: shapes.State
    task_id: str | None = None
    files: tuple[File, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    word: str | None = None
    recognised: bool = True
    raw: Any = None


class Taken(msgspec.Struct, frozen=True):
    """Upstream took the request: the report has a task id, or the outcome already."""

    report: Report


class Refused(msgspec.Struct, frozen=True):
    """Upstream gave no task. `status` is HTTP's, or the error code of a 200 body.

    never: not taken, and the same request never will be. later: not taken, may be sent again.
    unknown: it may have been taken, and billed; sending it again may bill twice.
    """

    kind: Literal["never", "later", "unknown"]
    status: int
    code: str
    message: str
    retry_after: str | None = None


class Absent(msgspec.Struct, frozen=True):
    """Upstream knows no such task, or not yet."""


class Throttled(msgspec.Struct, frozen=True):
    """Upstream was asked too often; `retry_after` is the header as written."""

    retry_after: str | None = None


class Unwell(msgspec.Struct, frozen=True):
    """Upstream answered nothing about the task; `status` is HTTP's or the body's error code."""

    status: int
    message: str
    retry_after: str | None = None


def read_create(status: int, headers: Mapping[str, str], body: bytes) -> Taken | Refused:
    """Read the answer to a create request."""
    if 200 <= status <= 299 and _header(headers, "content-type").lower().startswith("audio/"):
        return _read_sound(status, headers, body)
    value = shapes.decode(body)
    if value is None:
        return _refused(status, headers, None)
    shape = shapes.open_up(value)
    code = shapes.body_code(shape)
    if not 200 <= status <= 299:
        return _refused(status, headers, shape)
    if not shapes.is_fine(code):
        return _refused(code or status, headers, shape)
    report = _report(shape, value)
    if report.word is None and shape.outer.get("error"):
        return _refused(status, headers, shape)
    if report.word is None and shapes.names_task(shape):
        # A task was made: a URL beside its id is the task's own address, or an echo.
        report = msgspec.structs.replace(report, state="processing", files=())
    if report.task_id or report.state != "processing":
        return Taken(report)
    return _refused(status, headers, shape)


def _read_sound(status: int, headers: Mapping[str, str], body: bytes) -> Taken | Refused:
    if not 0 < len(body) <= MAX_SOUND_BYTES:
        message = f"a sound of {len(body)} bytes: 1 to {MAX_SOUND_BYTES} are kept"
        return Refused("unknown", status, "unusable", message)
    named = re.match(r"audio/[a-z0-9.+-]+", _header(headers, "content-type").lower())
    media_type = named[0] if named else "audio/mpeg"
    url = f"data:{media_type};base64,{base64.b64encode(body).decode()}"
    return Taken(Report("succeeded", files=(File(url, media_type),)))


def _refused(status: int, headers: Mapping[str, str], shape: shapes.Shape | None) -> Refused:
    code, message = shapes.error(shape) if shape else (None, None)
    fallback = "no_task" if 200 <= status <= 299 else str(status)
    if shape is None and 200 <= status <= 299:
        fallback, message = "unreadable", "the answer is not a JSON object"
    elif message is None:
        message = "the answer holds neither a task nor a result" if shape else f"HTTP {status}"
    kind = _kind(status)
    if kind == "later" and shape and shapes.names_task(shape):
        kind = "unknown"  # Busy, and yet there is a task: sending it again might bill twice.
    return Refused(kind, status, code or fallback, message, _retry_after(headers))


def _kind(status: int) -> Literal["never", "later", "unknown"]:
    if status in {425, 429, 503}:
        return "later"
    # 408 and 499 are a connection that broke off: by then the request may have been read.
    if 400 <= status <= 499 and status not in {408, 499}:
        return "never"
    return "unknown"


def read_task(
    status: int, headers: Mapping[str, str], body: bytes
) -> Report | Absent | Throttled | Unwell:
    """Read the answer to a question about a task."""
    value = shapes.decode(body) if 200 <= status <= 299 else None
    if value is None:
        message = "the answer is not a JSON object" if 200 <= status <= 299 else f"HTTP {status}"
        return _no_report(status, headers, message)
    shape = shapes.open_up(value)
    report = _report(shape, value)
    code = shapes.body_code(shape)
    if report.state == "failed":
        return report
    if code in _TASK_FAILED_CODES and _may_fail(report):
        return _as_failed(report, shape)
    if not shapes.is_fine(code):
        return _no_report(code or status, headers, shapes.error(shape)[1] or f"code {code}")
    if report.state == "processing" and report.word is None and report.task_id is None:
        return _no_report(status, headers, shapes.error(shape)[1] or "nothing about a task")
    return report


def _no_report(
    status: int, headers: Mapping[str, str], message: str
) -> Absent | Throttled | Unwell:
    if status in {404, 410}:
        return Absent()
    if status == 429:
        return Throttled(_retry_after(headers))
    return Unwell(status, message, _retry_after(headers))


def read_callback(body: bytes) -> Report | None:
    """Read the body of a callback; None unless it is a JSON object or array."""
    value = shapes.decode(body)
    if value is None:
        return None
    shape = shapes.open_up(value)
    report = _report(shape, value)
    code = shapes.body_code(shape)
    if code is not None and code >= 400 and _may_fail(report):
        return _as_failed(report, shape)
    return report


def _may_fail(report: Report) -> bool:
    # An error code is how a body without a status word says that its task failed. Over a word that
    # says "processing", or one that is not known, it proves nothing.
    return report.word is None or report.state == "succeeded"


def _as_failed(report: Report, shape: shapes.Shape) -> Report:
    code, message = shapes.error(shape)
    return msgspec.structs.replace(
        report, state="failed", files=(), error_code=code, error_message=message
    )


def _report(shape: shapes.Shape, raw: Any) -> Report:
    written = shapes.word(shape)
    meaning = shapes.meaning(written)
    task_id = shapes.task_id(shape)
    if written is not None and meaning is None:
        return Report("processing", task_id, word=written, recognised=False, raw=raw)
    if meaning == "failed":
        return _as_failed(Report("failed", task_id, word=written, raw=raw), shape)
    if meaning == "processing":
        return Report("processing", task_id, word=written, raw=raw)
    if shape.clips:
        return _report_of_clips(shape, Report("processing", task_id, word=written, raw=raw))
    files = _files(shape, written, task_id)
    done = bool(files) or (results.has_text(shape) and (bool(written) or task_id is None))
    # A word of success without any result comes before its files do, or instead of them: the task
    # stays open, and is asked about until its deadline.
    return Report("succeeded" if done else "processing", task_id, files, word=written, raw=raw)


def _files(shape: shapes.Shape, written: str | None, task_id: str | None) -> tuple[File, ...]:
    if "response_data" in shape.node and written:
        # Suno's feed says SUCCESS from the start; without clips it has nothing yet.
        return results.sure(shape)
    if written:
        return results.any_at_all(shape)
    # With a task and no word, a picture may as well be the one that was sent.
    return results.sure(shape) if task_id else results.likely(shape)


def _report_of_clips(shape: shapes.Shape, report: Report) -> Report:
    # The clips decide, whatever the task's own word: SUCCESS is written over clips that have only
    # their lyrics yet. One finished clip is a result when no other is still to come.
    words = shapes.clip_words(shape)
    meanings = [shapes.meaning(word) for word in words]
    ends = [meaning in {"succeeded", "failed"} for meaning in meanings]
    word = report.word or words[0 if all(ends) else ends.index(False)]
    report = msgspec.structs.replace(report, word=word, recognised=None not in meanings)
    if not all(ends):
        return report
    pairs = zip(shape.clips, meanings, strict=True)
    done = [clip for clip, meaning in pairs if meaning == "succeeded"]
    if not done:
        return _as_failed(report, shape)
    files = results.of_clips(done)
    return msgspec.structs.replace(report, state="succeeded", files=files) if files else report


def _header(headers: Mapping[str, str], name: str) -> str:
    return next((value for key, value in headers.items() if key.lower() == name), "")


def _retry_after(headers: Mapping[str, str]) -> str | None:
    return _header(headers, "retry-after")[:100] or None
