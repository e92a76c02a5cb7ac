"""Reads what upstream sends: answers to create requests and polls, and callbacks.

No bytes make these functions raise. They redact nothing: `telemetry.redact` does that.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from service.upstream import documents, results
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

    state: documents.State
    task_id: str | None = None
    files: tuple[File, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    word: str | None = None
    recognised: bool = True
    raw: Any = None


class Accepted(msgspec.Struct, frozen=True):
    """Upstream accepted the request: the report has a task id, or already the outcome."""

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


class NoReport(msgspec.Struct, frozen=True):
    """A poll got no answer, or one that says nothing about the task.

    status: the HTTP status, the body's error code, or 0 without an answer.
    """

    status: int
    message: str
    retry_after: str | None = None


CreateAnswer = Accepted | Rejected
PollAnswer = Report | TaskNotFound | Throttled | NoReport


def read_create(status: int, headers: Mapping[str, str], body: bytes) -> CreateAnswer:
    """Read the answer to a create request."""
    if _is_2xx(status) and _header(headers, "content-type").lower().startswith("audio/"):
        return _read_audio(status, headers, body)
    document = documents.parse(body)
    if document is None or not _is_2xx(status):
        return _read_rejected(status, headers, document)
    code = documents.read_error_code(document)
    if code is not None:
        return _read_rejected(code, headers, document)
    report = _read_report(document)
    if report.word is None and document.root.get("error"):
        return _read_rejected(status, headers, document)
    if report.word is None and documents.has_task_id(document):
        # The task is new: a URL beside its id is a URL of the task or an input, not a result.
        report = replace(report, state="processing", files=())
    if report.task_id or report.state != "processing":
        return Accepted(report)
    return _read_rejected(status, headers, document)


def _read_audio(status: int, headers: Mapping[str, str], body: bytes) -> CreateAnswer:
    if not 0 < len(body) <= MAX_AUDIO_BYTES:
        message = f"the audio has {len(body)} bytes; 1 to {MAX_AUDIO_BYTES} are accepted"
        return Rejected("unknown", status, "unusable", message)
    match = re.match(r"audio/[a-z0-9.+-]+", _header(headers, "content-type").lower())
    media_type = match[0] if match else "audio/mpeg"
    url = f"data:{media_type};base64,{base64.b64encode(body).decode()}"
    return Accepted(Report("succeeded", files=(File(url, media_type),)))


def _read_rejected(
    status: int, headers: Mapping[str, str], document: documents.Document | None
) -> Rejected:
    code, message = documents.read_error(document) if document else (None, None)
    default_code = "no_task" if _is_2xx(status) else str(status)
    if document is None and _is_2xx(status):
        default_code, message = "unreadable", "the answer is not a JSON object"
    elif message is None:
        message = "the answer holds neither a task nor a result" if document else f"HTTP {status}"
    resend = _resend(status)
    if resend == "later" and document and documents.has_task_id(document):
        resend = "unknown"  # The body names a task: sending the request again may bill twice.
    return Rejected(resend, status, code or default_code, message, _retry_after(headers))


def _resend(status: int) -> Literal["never", "later", "unknown"]:
    if status in {425, 429, 503}:
        return "later"
    # 408 and 499 report a broken connection: the request may have been read before it broke.
    if 400 <= status <= 499 and status not in {408, 499}:
        return "never"
    return "unknown"


def read_poll(status: int, headers: Mapping[str, str], body: bytes) -> PollAnswer:
    """Read the answer to a poll."""
    document = documents.parse(body) if _is_2xx(status) else None
    if document is None:
        message = "the answer is not a JSON object" if _is_2xx(status) else f"HTTP {status}"
        return _answer_without_report(status, headers, message)
    report = _read_report(document)
    code = documents.read_error_code(document)
    if report.state == "failed":
        return report
    if code in _TASK_FAILED_CODES and _error_code_means_failure(report):
        return _as_failed(report, document)
    if code is not None:
        return _answer_without_report(
            code, headers, documents.read_error(document)[1] or f"code {code}"
        )
    if report.state == "processing" and report.word is None and report.task_id is None:
        message = documents.read_error(document)[1] or "the answer says nothing about a task"
        return _answer_without_report(status, headers, message)
    return report


def _answer_without_report(status: int, headers: Mapping[str, str], message: str) -> PollAnswer:
    if status in {404, 410}:
        return TaskNotFound()
    if status == 429:
        return Throttled(_retry_after(headers))
    return NoReport(status, message, _retry_after(headers))


def read_callback(body: bytes) -> Report | None:
    """Read the body of a callback; None unless it is a JSON object or array."""
    document = documents.parse(body)
    if document is None:
        return None
    report = _read_report(document)
    code = documents.read_error_code(document)
    if code is not None and code >= 400 and _error_code_means_failure(report):
        return _as_failed(report, document)
    return report


def _error_code_means_failure(report: Report) -> bool:
    # It does without a status word, and beside one that means success. Beside one that means
    # "processing" or is unknown, it proves nothing.
    return report.word is None or report.state == "succeeded"


def _read_report(document: documents.Document) -> Report:
    word = documents.read_status_word(document)
    state = documents.state_of(word)
    report = Report("processing", documents.read_task_id(document), word=word, raw=document.raw)
    if word is not None and state is None:
        return replace(report, recognised=False)
    if state == "processing":
        return report
    if state == "failed":
        return _as_failed(report, document)
    if document.clips:
        return _read_clips(report, document)
    files = _find_files(report, document)
    # Success without a result counts as processing: the files may come later, or never.
    if files or (results.has_text(document) and (word or report.task_id is None)):
        return replace(report, state="succeeded", files=files)
    return report


def _as_failed(report: Report, document: documents.Document) -> Report:
    code, message = documents.read_error(document)
    return replace(report, state="failed", files=(), error_code=code, error_message=message)


def _find_files(report: Report, document: documents.Document) -> tuple[File, ...]:
    # Suno's feed says SUCCESS from the start: without clips it has no result yet. Without a status
    # word, a picture beside a task id may be an input.
    if (report.word and "response_data" in document.task) or (not report.word and report.task_id):
        return results.find_in_result_keys(document)
    return (
        results.find_in_any_key(document)
        if report.word
        else results.find_in_result_or_image_keys(document)
    )


def _read_clips(report: Report, document: documents.Document) -> Report:
    # The clips decide, not the task's own word: Suno says SUCCESS while its clips have only lyrics.
    # One clip that succeeded is a result if no other clip is unfinished.
    words = documents.clip_words(document.clips)
    states = [documents.state_of(word) for word in words]
    unfinished_words = [
        w for w, state in zip(words, states, strict=True) if state not in _END_STATES
    ]
    word = report.word or (unfinished_words or words)[0]
    report = replace(report, word=word, recognised=None not in states)
    if unfinished_words:
        return report
    succeeded = [c for c, s in zip(document.clips, states, strict=True) if s == "succeeded"]
    if not succeeded:
        return _as_failed(report, document)
    files = results.find_in_clips(succeeded)
    return replace(report, state="succeeded", files=files) if files else report


def _is_2xx(status: int) -> bool:
    return 200 <= status <= 299


def _header(headers: Mapping[str, str], name: str) -> str:
    return next((value for key, value in headers.items() if key.lower() == name), "")


def _retry_after(headers: Mapping[str, str]) -> str | None:
    return _header(headers, "retry-after")[:100] or None
