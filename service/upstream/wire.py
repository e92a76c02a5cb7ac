"""Reads what upstream sends: answers to create requests, answers about tasks, callbacks.

Nothing here raises, whatever the bytes, and nothing is redacted: `telemetry.redact` does that.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from service.upstream import results, shapes
from service.upstream.results import File

MAX_AUDIO_BYTES = 8 * 1024 * 1024

# Codes that a provider sends in place of a status word for a task that failed (docs.kie.ai).
_TASK_FAILED_CODES = frozenset({451, 501, 531})
_END_STATES = ("succeeded", "failed")


class Report(msgspec.Struct, frozen=True):
    """What one body says about a task.

    word: the status word as written. recognised: false if that word is unknown; the state is then
    "processing". raw: the decoded JSON, not redacted.
    """

    state: shapes.State
    task_id: str | None = None
    files: tuple[File, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    word: str | None = None
    recognised: bool = True
    raw: Any = None


class Accepted(msgspec.Struct, frozen=True):
    """Upstream accepted the request: the report has a task id, or the outcome already."""

    report: Report


class Rejected(msgspec.Struct, frozen=True):
    """Upstream answered without a task.

    resend: whether the request may be sent again. "never": it was not accepted and never will be.
    "later": it was not accepted for now. "unknown": it may have been accepted and billed.
    status: the HTTP status, or the error code of a body with HTTP 200.
    retry_after: the header as written.
    """

    resend: Literal["never", "later", "unknown"]
    status: int
    code: str
    message: str
    retry_after: str | None = None


class TaskNotFound(msgspec.Struct, frozen=True):
    """Upstream does not know the task, or not yet."""


class Throttled(msgspec.Struct, frozen=True):
    """Upstream received too many requests; `retry_after` is the header as written."""

    retry_after: str | None = None


class UpstreamTrouble(msgspec.Struct, frozen=True):
    """Upstream's answer says nothing about the task.

    status: the HTTP status, the body's error code, or 0 if there was no answer.
    """

    status: int
    message: str
    retry_after: str | None = None


CreateAnswer = Accepted | Rejected
TaskAnswer = Report | TaskNotFound | Throttled | UpstreamTrouble


def read_create(status: int, headers: Mapping[str, str], body: bytes) -> CreateAnswer:
    """Read the answer to a create request."""
    if _is_2xx(status) and _header(headers, "content-type").lower().startswith("audio/"):
        return _read_audio(status, headers, body)
    shape = shapes.parse(body)
    if shape is None or not _is_2xx(status):
        return _rejected(status, headers, shape)
    code = shapes.error_code(shape)
    if code is not None:
        return _rejected(code, headers, shape)
    report = _report(shape)
    if report.word is None and shape.root.get("error"):
        return _rejected(status, headers, shape)
    if report.word is None and shapes.names_task(shape):
        # The task is new: a URL beside its id is the task's own address, or one that was sent.
        report = replace(report, state="processing", files=())
    if report.task_id or report.state != "processing":
        return Accepted(report)
    return _rejected(status, headers, shape)


def _read_audio(status: int, headers: Mapping[str, str], body: bytes) -> CreateAnswer:
    if not 0 < len(body) <= MAX_AUDIO_BYTES:
        message = f"the audio has {len(body)} bytes; 1 to {MAX_AUDIO_BYTES} are accepted"
        return Rejected("unknown", status, "unusable", message)
    match = re.match(r"audio/[a-z0-9.+-]+", _header(headers, "content-type").lower())
    media_type = match[0] if match else "audio/mpeg"
    url = f"data:{media_type};base64,{base64.b64encode(body).decode()}"
    return Accepted(Report("succeeded", files=(File(url, media_type),)))


def _rejected(status: int, headers: Mapping[str, str], shape: shapes.Shape | None) -> Rejected:
    code, message = shapes.read_error(shape) if shape else (None, None)
    default_code = "no_task" if _is_2xx(status) else str(status)
    if shape is None and _is_2xx(status):
        default_code, message = "unreadable", "the answer is not a JSON object"
    elif message is None:
        message = "the answer holds neither a task nor a result" if shape else f"HTTP {status}"
    resend = _resend(status)
    if resend == "later" and shape and shapes.names_task(shape):
        resend = "unknown"  # The body names a task: sending the request again may bill twice.
    return Rejected(resend, status, code or default_code, message, _retry_after(headers))


def _resend(status: int) -> Literal["never", "later", "unknown"]:
    if status in {425, 429, 503}:
        return "later"
    # 408 and 499 report a broken connection: the request may have been read before it broke.
    if 400 <= status <= 499 and status not in {408, 499}:
        return "never"
    return "unknown"


def read_task(status: int, headers: Mapping[str, str], body: bytes) -> TaskAnswer:
    """Read the answer to a request for a task."""
    shape = shapes.parse(body) if _is_2xx(status) else None
    if shape is None:
        message = "the answer is not a JSON object" if _is_2xx(status) else f"HTTP {status}"
        return _no_report(status, headers, message)
    report = _report(shape)
    code = shapes.error_code(shape)
    if report.state == "failed":
        return report
    if code in _TASK_FAILED_CODES and _code_decides(report):
        return _failed(report, shape)
    if code is not None:
        return _no_report(code, headers, shapes.read_error(shape)[1] or f"code {code}")
    if report.state == "processing" and report.word is None and report.task_id is None:
        message = shapes.read_error(shape)[1] or "nothing about a task"
        return _no_report(status, headers, message)
    return report


def _no_report(status: int, headers: Mapping[str, str], message: str) -> TaskAnswer:
    if status in {404, 410}:
        return TaskNotFound()
    if status == 429:
        return Throttled(_retry_after(headers))
    return UpstreamTrouble(status, message, _retry_after(headers))


def read_callback(body: bytes) -> Report | None:
    """Read the body of a callback; None unless it is a JSON object or array."""
    shape = shapes.parse(body)
    if shape is None:
        return None
    report = _report(shape)
    code = shapes.error_code(shape)
    if code is not None and code >= 400 and _code_decides(report):
        return _failed(report, shape)
    return report


def _code_decides(report: Report) -> bool:
    # An error code means failure in a body without a status word, and over a word of success. It
    # proves nothing over a word that means "processing" or is unknown.
    return report.word is None or report.state == "succeeded"


def _report(shape: shapes.Shape) -> Report:
    word = shapes.status_word(shape)
    state = shapes.state_of(word)
    report = Report("processing", shapes.task_id(shape), word=word, raw=shape.raw)
    if word is not None and state is None:
        return replace(report, recognised=False)
    if state == "processing":
        return report
    if state == "failed":
        return _failed(report, shape)
    if shape.clips:
        return _report_of_clips(report, shape)
    files = _files(report, shape)
    # A word of success without a result stays open: the files may come later, or never.
    if files or (results.has_text(shape) and (word or report.task_id is None)):
        return replace(report, state="succeeded", files=files)
    return report


def _failed(report: Report, shape: shapes.Shape) -> Report:
    code, message = shapes.read_error(shape)
    return replace(report, state="failed", files=(), error_code=code, error_message=message)


def _files(report: Report, shape: shapes.Shape) -> tuple[File, ...]:
    # Suno's feed says SUCCESS from the start: without clips it has no result yet. A picture beside
    # a task id without a status word may be one that was sent.
    if (report.word and "response_data" in shape.task) or (not report.word and report.task_id):
        return results.in_result_keys(shape)
    return results.in_any_key(shape) if report.word else results.in_result_or_image_keys(shape)


def _report_of_clips(report: Report, shape: shapes.Shape) -> Report:
    # The clips decide, not the task's own word: Suno says SUCCESS over clips that have only their
    # lyrics yet. One finished clip is a result if no other clip is still open.
    words = shapes.clip_words(shape.clips)
    states = [shapes.state_of(word) for word in words]
    open_words = [w for w, state in zip(words, states, strict=True) if state not in _END_STATES]
    word = report.word or (open_words or words)[0]
    report = replace(report, word=word, recognised=None not in states)
    if open_words:
        return report
    finished = [c for c, s in zip(shape.clips, states, strict=True) if s == "succeeded"]
    if not finished:
        return _failed(report, shape)
    files = results.of_clips(finished)
    return replace(report, state="succeeded", files=files) if files else report


def _is_2xx(status: int) -> bool:
    return 200 <= status <= 299


def _header(headers: Mapping[str, str], name: str) -> str:
    return next((value for key, value in headers.items() if key.lower() == name), "")


def _retry_after(headers: Mapping[str, str]) -> str | None:
    return _header(headers, "retry-after")[:100] or None
