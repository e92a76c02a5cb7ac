"""Reads what upstream sends: answers to create requests and polls, and callbacks.

No bytes make these functions raise. Names of headers are in lower case. Nothing is redacted here.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from service.upstream import documents, lenient, results, vocabulary

_SUCCESS = range(200, 300)
# 303 is not among them: it is also how a server shows what it has made.
_REDIRECTS = frozenset({301, 302, 307, 308})
# How often a submission is sent again that was declined with a code that nobody knows.
UNKNOWN_REPEATS_MAX = 5
Outcome = Literal[
    "refused", "put_off", "lost", "absent", "throttled", "unwell", "other_task", "undecided"
]


class Report(msgspec.Struct, frozen=True):
    """What one body says about a task."""

    state: vocabulary.State
    task_id: str | None = None
    task_ids: tuple[str, ...] = ()  # Every id that the body gives the task.
    files: tuple[results.File, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    word: str | None = None  # The status word as written.
    recognised: bool = True  # False if that word is unknown; the state is then "processing".
    raw: Any = None  # The decoded JSON, not redacted.
    size_bytes: int = 0  # Of the body.
    # An outcome that one answer does not prove; the state is then "processing".
    possible: "Report | None" = None
    is_proof: bool = True  # False for a callback that was cut, or whose code speaks of trouble.


class NoReport(msgspec.Struct, frozen=True):
    """An answer that says nothing about a task, or no answer.

    outcome of a create request: "refused": it was not accepted and never will be. "put_off": it was
    not accepted for now, so it may be sent again. "lost": it may have been accepted and billed.
    outcome of a poll: "absent": upstream does not know the task, or not yet. "throttled": it
    received too many requests. "other_task": it named another task. "unwell": anything else.
    """

    outcome: Outcome
    status: int | None = None  # Or the error code of a body with HTTP 200.
    message: str | None = None
    retry_after: str | None = None  # The header as written.
    # Upstream's word for why it refused a submission; the code of an envelope without any task that
    # declined a question, which may be about the task.
    code: str | None = None
    repeats_max: int | None = None  # Of a submission that is put off; None: until the deadline.
    of_body: bool = False  # Whether a body alone says that it is throttled.


Answer = Report | NoReport


def read_create(
    status: int, headers: Mapping[str, str], body: bytes, request: bytes = b""
) -> Answer:
    """Read the answer to a create request: a report has a task id, or already the outcome.

    `request` is what was sent: an id that stands in it is no new task's.
    """
    content_type = headers.get("content-type", "").lower()
    if status in _SUCCESS and content_type.startswith("audio/"):
        return _read_audio(status, content_type, body)
    document = documents.parse(body)
    if document is None or status not in _SUCCESS:
        return _no_result(status, headers, document, body, request)
    code, report = document.code, _read_report(document)
    if report.word is None and document.has_task_id:
        # The task is new: a URL beside its id is a URL of the task or an input, not a result.
        report = replace(report, state="processing", files=(), possible=None)
    if report.possible and report.task_id is None:
        report = report.possible  # There is no task that could be asked about.
    if not document.is_whole and report.state != "processing":
        report = replace(report, state="processing", files=())
    has_error = code is not None or (report.word is None and document.root.get("error"))
    if has_error or (report.task_id is None and report.state == "processing"):
        return _no_result(status, headers, document, body, request)
    return report


def read_piece(status: int, headers: Mapping[str, str], body: bytes, request: bytes) -> Answer:
    """Read what came of an answer to a create request before it broke off: at most a task's id."""
    answer = read_create(status, headers, body, request)
    ids = answer.task_ids if isinstance(answer, Report) else ()
    return Report("processing", ids[0], ids) if ids else NoReport("lost", status)


def _read_audio(status: int, content_type: str, body: bytes) -> Answer:
    if not body:
        return NoReport("lost", status, "the audio has no bytes", code="unusable")
    match = re.match(r"audio/[a-z0-9.+-]+", content_type)
    media_type = match[0] if match else "audio/mpeg"
    url = f"data:{media_type};base64,{base64.b64encode(body).decode()}"
    return Report("succeeded", files=(results.File(url, media_type),))


def _no_result(
    status: int,
    headers: Mapping[str, str],
    document: documents.Document | None,
    body: bytes,
    request: bytes,
) -> Answer:
    """Read an answer that speaks of trouble. The task that it names is asked about all the same."""
    outcome = _outcome_of_status(status) if status not in _SUCCESS else _outcome_of_body(document)
    ids = documents.named_ids(document) if document else ()
    is_refused = outcome == "refused" and document is not None and document.state == "failed"
    new_ids = tuple(id_ for id_ in ids if id_.encode() not in request)
    if document and new_ids and not is_refused:
        raw, size_bytes = document.raw, document.size_bytes
        return Report("processing", new_ids[0], new_ids, raw=raw, size_bytes=size_bytes)
    if outcome == "put_off" and document and (ids or results.holds_any(document)):
        outcome = "lost"  # Upstream took it: sending the request again may bill twice.
    return _no_task(outcome, status, headers, document, body)


def _no_task(
    outcome: Outcome,
    status: int,
    headers: Mapping[str, str],
    document: documents.Document | None,
    body: bytes,
) -> NoReport:
    code = document.code if document and status in _SUCCESS else None
    default_code = str(code or status)
    if status in _SUCCESS and code is None:
        default_code = "no_task" if document and document.is_whole else "unreadable"
    own_code, message = documents.read_error(document) if document else (None, None)
    known = document is not None and code in vocabulary.CODES_AGAIN | vocabulary.CODES_NEVER
    is_unknown = outcome == "put_off" and status in _SUCCESS and not known
    return NoReport(
        outcome,
        code or status,
        message or _text_of(status, headers, body, "the answer holds neither a task nor a result"),
        _retry_after(headers),
        own_code or default_code,
        UNKNOWN_REPEATS_MAX if is_unknown else None,
        of_body=code == 429,
    )


def _outcome_of_status(status: int) -> Outcome:
    if status in {425, 429, 503}:
        return "put_off"
    # 408 and 499 report a broken connection: the request may have been read before it broke.
    is_never = 400 <= status <= 499 and status not in {408, 499}
    return "refused" if is_never or status in _REDIRECTS else "lost"


def _outcome_of_body(document: documents.Document | None) -> Outcome:
    """Read the codes of a body with HTTP 2xx by their table: they are not HTTP statuses."""
    if document is None or not document.is_whole:
        return "lost"
    if document.code in vocabulary.CODES_AGAIN:
        return "put_off"
    if document.code in vocabulary.CODES_NEVER:
        return "refused"
    # Nobody knows the code. An error that names nothing was certainly not taken.
    is_error = isinstance(document.root.get("error"), dict) or document.root.get("success") is False
    return "put_off" if is_error and not document.task_ids else "lost"


def _text_of(status: int, headers: Mapping[str, str], body: bytes, default: str) -> str:
    """Return what upstream said, as it said it, where no known name holds a reason."""
    if status in _REDIRECTS:
        location = headers.get("location", "")[: documents.MAX_TEXT_CHARS]
        return f"HTTP {status}: upstream is at {location or 'another address'}"
    text = " ".join(body[:4_096].decode("utf-8", "replace").split())[: documents.MAX_TEXT_CHARS]
    begin = default if status in _SUCCESS else f"HTTP {status}"
    return f"{begin}: {text}" if text else begin


def read_poll(
    status: int, headers: Mapping[str, str], body: bytes, asked_id: str | None = None
) -> Answer:
    """Read the answer to a poll about `asked_id`. It may be about another task all the same."""
    is_read = status in _SUCCESS or _may_decline(status)
    document = documents.parse(body, asked_id) if is_read else None
    if document is None:
        return _no_report(status, headers, body, "the answer is not a JSON object")
    if not document.is_whole:
        return _no_report(status, headers, body, "the answer was cut off")
    if status not in _SUCCESS:
        if asked_id in document.task_ids and (failure := _read_decline(status, document)):
            return failure
        return _no_report(status, headers, body, "", documents.read_error(document)[1], document)
    if others := documents.other_tasks(document, asked_id):
        # Nothing says that one of them is another name of the task.
        names = ", ".join(others)[: documents.MAX_TEXT_CHARS]
        return NoReport("other_task", status, f"the answer lists other tasks: {names}")
    report = _read_report(document)
    says_nothing = not (report.word or report.task_id or report.possible)
    if _is_trouble(document):
        default = f"code {document.code}"
    elif says_nothing and report.state == "processing":
        default = "the answer says nothing about a task"
    else:
        return report
    message = documents.read_error(document)[1]
    return _no_report(document.code or status, headers, body, default, message, document)


def _read_decline(status: int, document: documents.Document) -> Report | None:
    """Read the body of a 4xx that names the task that was asked about; None: it ends nothing."""
    # Without a word or a code of its own, the status counts as the code of the body.
    if document.code is None and document.state is None:
        document = replace(document, code=status)
    report = _read_report(document)
    return report if report.state == "failed" else None


def _may_decline(code: int | None) -> bool:
    """Whether a code may be about the task although the envelope names none: most of 4xx."""
    others = vocabulary.QUESTION_TROUBLE | vocabulary.CODES_AGAIN
    return code is not None and 400 <= code <= 499 and code not in others


def _is_trouble(document: documents.Document) -> bool:
    """Whether the body's code says that the question went wrong, which ends no task."""
    ends = vocabulary.ends_task(document.code) and bool(document.task_ids)
    return document.code is not None and not ends


def _no_report(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    default: str,
    message: str | None = None,
    document: documents.Document | None = None,
) -> NoReport:
    if status in {404, 410}:
        return NoReport("absent", message=message or _text_of(status, headers, body, default))
    if status == 429:
        return NoReport("throttled", retry_after=_retry_after(headers), of_body=bool(document))
    message = message or _text_of(status, headers, body, default)
    is_declined = document is not None and not document.task_ids and _may_decline(status)
    code = str(status) if is_declined else None
    return NoReport("unwell", status, message, _retry_after(headers), code)


def read_callback(body: bytes) -> Report | None:
    """Read the body of a callback; None unless it is a JSON object or array."""
    document = documents.parse(body)
    if document is None:
        return None
    report = _read_report(document)
    is_clear = document.is_whole and not lenient.has_repeated_names(body)
    if is_clear and not _is_trouble(document):
        return report
    task_id, ids = report.task_id, report.task_ids
    return Report("processing", task_id, ids, raw=document.raw, is_proof=False)


def _read_report(document: documents.Document) -> Report:
    word, state = document.word, document.state
    report = Report(
        "processing",
        document.task_id,
        document.task_ids,
        word=word,
        recognised=state is not None or word is None,
        raw=document.raw,
        size_bytes=document.size_bytes,
    )
    if vocabulary.ends_task(document.code) and document.task_ids and state in (None, "succeeded"):
        return _as_failed(report, document)
    if state == "failed":
        # The word of an envelope that names no task says how the request went.
        if document.is_about_task:
            return _as_failed(report, document)
        return replace(report, word=None, recognised=True)
    if state is None and document.is_about_task and documents.has_error(document.task):
        return _as_failed(report, document)
    if state == "processing":
        return report
    if document.clips:
        return _read_clips(report, document)
    return _read_success(report, document)


def _read_success(report: Report, document: documents.Document) -> Report:
    """Read a body with a word that means success, an unknown one or none."""
    # Suno's feed says SUCCESS from the start: without clips it has no result yet. Without a status
    # word, a picture beside a task id may be an input.
    is_known = document.state == "succeeded"
    is_feed = "response_data" in document.task
    results_only = is_feed if is_known else report.task_id is not None or report.word is not None
    files = results.find(document, "results" if results_only else "images")
    has_text = results.has_text(document) and (is_known or report.task_id is None)
    success = replace(report, state="succeeded", files=files)
    is_proof = is_known or (report.word is None and (report.task_id is None or _is_kie(document)))
    if (files or has_text) and is_proof:
        return success
    if is_known and not is_feed:
        # The files may come a moment later, or never. Under an unknown key may be a cover.
        files = results.find(document, "anything")
        if files or document.is_about_task:
            return replace(report, possible=replace(success, files=files))
    if files and not documents.is_partial(document.task):
        return replace(report, possible=success)
    return report


def _is_kie(document: documents.Document) -> bool:
    # KIE's callbacks for 4o images and Flux Kontext have no word: code 200 beside `info` is success
    # (docs.kie.ai/4o-image-api/generate-4-o-image-callbacks).
    return document.root.get("code") == 200 and isinstance(document.task.get("info"), dict)


def _as_failed(report: Report, document: documents.Document) -> Report:
    code, message = documents.read_error(document)
    return replace(report, state="failed", files=(), error_code=code, error_message=message)


def _read_clips(report: Report, document: documents.Document) -> Report:
    # The clips decide, not the task's own word: Suno says SUCCESS while its clips have only lyrics.
    # One clip that succeeded is a result if no other clip is unfinished.
    words = documents.clip_words(document.clips)
    states = [vocabulary.state_of(word) for word in words]
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
    success = replace(report, state="succeeded", files=files)
    return success if files else replace(report, possible=success)


def _retry_after(headers: Mapping[str, str]) -> str | None:
    return headers.get("retry-after", "")[:100] or None
