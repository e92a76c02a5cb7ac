"""Reads what upstream sends: answers to create requests and polls, and callbacks.

No bytes make these functions raise. Names of headers are in lower case. Nothing is redacted here.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from service.upstream import documents, results

MAX_AUDIO_BYTES = 8 * 1024 * 1024
_SUCCESS = range(200, 300)

# Codes that a provider sends in place of a status word for a task that failed (docs.kie.ai).
_TASK_FAILED_CODES = frozenset({451, 501, 531})
Outcome = Literal["refused", "put_off", "lost", "absent", "throttled", "unwell"]


class Report(msgspec.Struct, frozen=True):
    """What one body says about a task."""

    state: documents.State
    task_id: str | None = None
    files: tuple[results.File, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    word: str | None = None  # The status word as written.
    recognised: bool = True  # False if that word is unknown; the state is then "processing".
    raw: Any = None  # The decoded JSON, not redacted.


class NoReport(msgspec.Struct, frozen=True):
    """An answer that says nothing about a task, or no answer.

    outcome of a create request: "refused": it was not accepted and never will be. "put_off": it was
    not accepted for now, so it may be sent again. "lost": it may have been accepted and billed.
    outcome of a poll: "absent": upstream does not know the task, or not yet. "throttled": it
    received too many requests. "unwell": anything else.
    """

    outcome: Outcome
    status: int | None = None  # Or the error code of a body with HTTP 200.
    message: str | None = None
    retry_after: str | None = None  # The header as written.
    code: str | None = None  # Upstream's word for why it refused.


Answer = Report | NoReport


def read_create(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """Read the answer to a create request: a report has a task id, or already the outcome."""
    content_type = headers.get("content-type", "").lower()
    if status in _SUCCESS and content_type.startswith("audio/"):
        return _read_audio(status, content_type, body)
    document = documents.parse(body)
    if document is None or status not in _SUCCESS:
        return _no_task(status, headers, document)
    code, report = document.code, _read_report(document)
    if report.word is None and document.has_task_id:
        # The task is new: a URL beside its id is a URL of the task or an input, not a result.
        report = replace(report, state="processing", files=())
    has_error = code is not None or (report.word is None and document.root.get("error"))
    if has_error or (report.task_id is None and report.state == "processing"):
        return _no_task(code or status, headers, document)
    return report


def _read_audio(status: int, content_type: str, body: bytes) -> Answer:
    if not 0 < len(body) <= MAX_AUDIO_BYTES:
        message = f"the audio has {len(body)} bytes; 1 to {MAX_AUDIO_BYTES} are accepted"
        return NoReport("lost", status, message, code="unusable")
    match = re.match(r"audio/[a-z0-9.+-]+", content_type)
    media_type = match[0] if match else "audio/mpeg"
    url = f"data:{media_type};base64,{base64.b64encode(body).decode()}"
    return Report("succeeded", files=(results.File(url, media_type),))


def _no_task(
    status: int, headers: Mapping[str, str], document: documents.Document | None
) -> NoReport:
    default_code = str(status)
    if status in _SUCCESS:
        default_code = "no_task" if document else "unreadable"
    code, message = documents.read_error(document) if document else (None, _no_json(status))
    message = message or "the answer holds neither a task nor a result"
    if status in {425, 429, 503}:
        # If the body names a task, sending the request again may bill twice.
        outcome: Outcome = "lost" if document and document.has_task_id else "put_off"
    else:
        # 408 and 499 report a broken connection: the request may have been read before it broke.
        outcome = "refused" if 400 <= status <= 499 and status not in {408, 499} else "lost"
    return NoReport(outcome, status, message, _retry_after(headers), code or default_code)


def _no_json(status: int) -> str:
    return "the answer is not a JSON object" if status in _SUCCESS else f"HTTP {status}"


def read_poll(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """Read the answer to a poll."""
    document = documents.parse(body) if status in _SUCCESS else None
    if document is None:
        return _no_report(status, headers, _no_json(status))
    code, report = document.code, _read_report(document)
    if code in _TASK_FAILED_CODES:
        report = _as_failed_by_code(report, document)
    says_nothing = not (report.word or report.task_id) and report.state == "processing"
    if report.state == "failed" or (code is None and not says_nothing):
        return report
    default = f"code {code}" if code else "the answer says nothing about a task"
    return _no_report(code or status, headers, documents.read_error(document)[1] or default)


def _no_report(status: int, headers: Mapping[str, str], message: str) -> NoReport:
    if status in {404, 410}:
        return NoReport("absent")
    if status == 429:
        return NoReport("throttled", retry_after=_retry_after(headers))
    return NoReport("unwell", status, message, _retry_after(headers))


def read_callback(body: bytes) -> Report | None:
    """Read the body of a callback; None unless it is a JSON object or array."""
    document = documents.parse(body)
    if document is None:
        return None
    report, has_failed = _read_report(document), (document.code or 0) >= 400
    return _as_failed_by_code(report, document) if has_failed else report


def _as_failed_by_code(report: Report, document: documents.Document) -> Report:
    # An error code means failure without a status word, and beside one that means success. Beside
    # one that means "processing" or is unknown, it proves nothing.
    means_failure = report.word is None or report.state == "succeeded"
    return _as_failed(report, document) if means_failure else report


def _read_report(document: documents.Document) -> Report:
    word, task_id = document.word, document.task_id
    state = documents.state_of(word)
    recognised = state is not None or word is None
    report = Report("processing", task_id, word=word, recognised=recognised, raw=document.raw)
    if state == "processing" or not recognised:
        return report
    if state == "failed":
        return _as_failed(report, document)
    if document.clips:
        return _read_clips(report, document)
    # Suno's feed says SUCCESS from the start: without clips it has no result yet. Without a status
    # word, a picture beside a task id may be an input.
    results_only = "response_data" in document.task if word else task_id is not None
    scope: results.Scope = "results" if results_only else ("anything" if word else "images")
    files = results.find(document, scope)
    # Success without a result counts as processing: the files may come later, or never.
    if files or (results.has_text(document) and (word or task_id is None)):
        return replace(report, state="succeeded", files=files)
    return report


def _as_failed(report: Report, document: documents.Document) -> Report:
    code, message = documents.read_error(document)
    return replace(report, state="failed", files=(), error_code=code, error_message=message)


def _read_clips(report: Report, document: documents.Document) -> Report:
    # The clips decide, not the task's own word: Suno says SUCCESS while its clips have only lyrics.
    # One clip that succeeded is a result if no other clip is unfinished.
    words = documents.clip_words(document.clips)
    states = [documents.state_of(word) for word in words]
    unfinished_words = [
        word for word, state in zip(words, states, strict=True) if state in (None, "processing")
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


def _retry_after(headers: Mapping[str, str]) -> str | None:
    return headers.get("retry-after", "")[:100] or None
