"""Reads what upstream sends: answers to create requests and polls, and callbacks.

No bytes make these functions raise. Names of headers are in lower case. Nothing is redacted here.
"""

import base64
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec
from msgspec.structs import replace

from service.model.json_names import find_repeated
from service.upstream import documents, errors, lenient, names, results, vocabulary
from service.upstream.ids import disliked_id
from service.upstream.report import Answer, NoReport, Outcome, Report, Source, read_report
from service.upstream.scalars import MAX_TEXT_CHARS

__all__ = [
    "Answer",
    "NoReport",
    "Report",
    "read_callback",
    "read_create",
    "read_piece",
    "read_poll",
]

_NAME = re.compile(r'"\s*:')
# A callback with more texts of JSON, or with more in one of them, is no proof.
PROOF_TEXTS_MAX = 1_000
BROKEN_TEXTS_CHARACTERS = 8_192  # With more in texts that nearly are JSON, it is no proof.
_SUCCESS = range(200, 300)
_FILE_TYPES = ("audio/", "image/", "video/")  # The answer itself is the result.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# How often a submission is sent again that was declined with a code that nobody knows.
UNKNOWN_REPEATS_MAX = 5


def read_create(
    status: int, headers: Mapping[str, str], body: bytes, request: bytes = b""
) -> Answer:
    """Read the answer to a create request: a report has a task id, or already the outcome.

    `request` is what was sent: an id that is a value of it is no new task's, a file no result.
    """
    content_type = headers.get("content-type", "").lower()
    if status in _SUCCESS and content_type.startswith(_FILE_TYPES):
        return _read_file(status, content_type, body)
    document, sent = documents.parse(body), results.Request(request)
    if document is None or status not in _SUCCESS:
        return _no_result(status, headers, document, body, sent)
    report = read_report(document, sent)
    if report.names:
        new = tuple(name for name in report.names if not sent.holds(name))
        report = replace(report, names=new)
    if report.word is None and document.has_task_id:
        # The task is new: a URL beside its id is a URL of the task or an input, not a result.
        report = replace(report, state="processing", files=(), possible=None)
    if report.possible and (report.task_id is None or _is_list_of_results(document)):
        report = report.possible  # There is no task that could be asked about.
    if not document.is_whole and report.state != "processing":
        report = replace(report, state="processing", files=())
    is_error = report.word is None and document.root.get("error")
    has_error = vocabulary.is_known(document.code) or is_error
    if has_error or (report.task_id is None and report.state == "processing"):
        return _no_result(status, headers, document, body, sent)
    return report


def _is_list_of_results(document: documents.Document) -> bool:
    """Whether the `id` is that of the answer, as with Together (docs.together.ai) and OpenAI."""
    has_list = isinstance(document.root.get("data"), list)
    return has_list and document.word is None and not document.has_task_id


def read_piece(status: int, headers: Mapping[str, str], body: bytes, request: bytes) -> Answer:
    """Read what came of an answer to a create request before it broke off: at most a task's id."""
    answer = read_create(status, headers, body, request)
    ids = answer.task_ids if isinstance(answer, Report) else ()
    piece = Report("processing", ids[0], ids) if ids else NoReport("lost", status)
    return replace(piece, throttled_by=answer.throttled_by, retry_after=answer.retry_after)


def _read_file(status: int, content_type: str, body: bytes) -> Answer:
    kind = content_type.partition("/")[0]
    if not body:
        return NoReport("lost", status, f"the {kind} has no bytes", code="unusable")
    match = re.match(rf"{kind}/[a-z0-9.+-]+", content_type)
    media_type = match[0] if match else names.ROLES[kind].media_type
    url = f"data:{media_type};base64,{base64.b64encode(body).decode()}"
    return Report("succeeded", files=(results.File(url, media_type),), size_bytes=len(body))


def _no_result(
    status: int,
    headers: Mapping[str, str],
    document: documents.Document | None,
    body: bytes,
    request: results.Request,
) -> Answer:
    """Read an answer with an error or without a result. A task that it names is polled."""
    from service.upstream import headers as fields  # noqa: PLC0415  cold start: many patterns
    from service.upstream.signs import Signs  # noqa: PLC0415  the same

    is_ok = status in _SUCCESS
    outcome = _outcome_of_body(document) if is_ok else _outcome_of_status(status)
    signs = Signs(document, request) if document else None
    ids: tuple[str | None, ...] = signs.task_ids() if signs else ()
    if outcome != "refused":
        ids = ids or (signs.job_ids(is_ok=is_ok) if signs else ()) or (fields.task_id_of(headers),)
    new_ids = tuple(id_ for id_ in ids if id_ and not request.holds(id_))
    is_failed = document is not None and document.state == "failed"
    if new_ids and not (outcome == "refused" and is_failed):
        return Report(
            "processing",
            new_ids[0],
            new_ids,
            raw=document.raw if document else None,
            size_bytes=len(body),
            throttled_by=_throttled_by(status, document),
            retry_after=_retry_after(headers),
        )
    if outcome == "put_off":
        # Beside an error with an unknown code, any id may be that of a task.
        is_unknown = is_ok and document is not None and document.code not in vocabulary.CODES_AGAIN
        is_told = signs.tell_of_task(is_unknown=is_unknown) if signs else _tells(body, request)
        if is_told or fields.tell_of_task(headers) or (not body and fields.tell_of_body(headers)):
            # Upstream may have taken it: sending the request again may bill twice.
            outcome = "lost"
    return _no_task(outcome, status, headers, document, body)


def _tells(body: bytes, request: results.Request) -> bool:
    from service.upstream.traces import Traces  # noqa: PLC0415  cold start, as above

    return Traces(body.decode("utf-8", "replace"), request).has_any


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
    own_code, message = errors.read(document) if document else (None, None)
    default = "the answer holds neither a task nor a result"
    message = message or _text_of(status, headers, body, default)
    name = disliked_id(document.task, document.root) if document and outcome == "lost" else None
    if name:
        message = f"the {name} in the answer cannot be asked about: {message}"
    is_unknown = outcome == "put_off" and status in _SUCCESS and code not in vocabulary.CODES_AGAIN
    return NoReport(
        outcome,
        code or status,
        message,
        _retry_after(headers),
        own_code or default_code,
        UNKNOWN_REPEATS_MAX if is_unknown else None,
        throttled_by=_throttled_by(status, document),
    )


def _throttled_by(status: int, document: documents.Document | None) -> Source | None:
    if status == 429:
        return "status"
    is_said = status in _SUCCESS and document is not None and document.code == 429
    return "body" if is_said else None


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
    # The code is not known. A submission with an error and no id was certainly not taken.
    error = document.root.get("error")
    is_error = isinstance(error, dict) and errors.is_error(error)
    return "put_off" if is_error or document.root.get("success") is False else "lost"


def _text_of(status: int, headers: Mapping[str, str], body: bytes, default: str) -> str:
    """Return the body as a reason, shortened; for an answer without a known name of a reason."""
    if status in _REDIRECTS:
        location = headers.get("location", "")[:MAX_TEXT_CHARS]
        return f"HTTP {status}: upstream is at {location or 'another address'}"
    text = " ".join(body[:4_096].decode("utf-8", "replace").split())[:MAX_TEXT_CHARS]
    begin = default if status in _SUCCESS else f"HTTP {status}"
    return f"{begin}: {text}" if text else begin


def read_poll(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    asked_id: str | None = None,
    request: Any = None,
) -> Answer:
    """Read the answer to a poll about `asked_id`. It may be about another task all the same.

    `request` is the input of the submission: a file that stands in it is no result.
    """
    is_read = status in _SUCCESS or _may_decline(status)
    document = documents.parse(body, asked_id) if is_read else None
    if document is None:
        return _no_report(status, headers, body, "the answer is not a JSON object")
    if not document.is_whole:
        return _no_report(status, headers, body, "the answer was cut off")
    sent = results.Request(request)
    if status not in _SUCCESS:
        if asked_id in document.task_ids and (failure := _read_decline(status, document, sent)):
            return failure
        return _no_report(status, headers, body, "", errors.read(document)[1], document)
    if others := documents.other_tasks(document, asked_id):
        # Nothing says that one of their ids is another name of the task.
        names = ", ".join(others)[:MAX_TEXT_CHARS]
        return NoReport("other_task", status, f"the answer lists other tasks: {names}")
    report = read_report(document, sent)
    if _is_trouble(document, report):
        default = f"code {document.code}"
    elif not report.is_of_task:
        default = "the answer says nothing about a task"
    else:
        return report
    message = errors.read(document)[1] or _text_of(status, headers, body, default)
    return _no_report(document.code or status, headers, body, default, message, document)


def _read_decline(
    status: int, document: documents.Document, request: results.Request
) -> Report | None:
    """Read the body of a 4xx that names the task that was polled; None: it ends nothing."""
    # Without a word or a code of its own, the status counts as the code of the body.
    if document.code is None and document.state is None:
        document = replace(document, code=status)
    report = read_report(document, request)
    if report.state == "succeeded":  # Its status says no: it has to say so more than once.
        return replace(report, state="processing", files=(), possible=report)
    return report if report.state == "failed" or report.possible else None


def _may_decline(code: int) -> bool:
    """Whether a code may be about the task although the envelope names none: most of 4xx."""
    others = vocabulary.QUESTION_TROUBLE | vocabulary.CODES_AGAIN
    return 400 <= code <= 499 and code not in others


def _is_trouble(document: documents.Document, report: Report) -> bool:
    """Whether the body's code says that the poll went wrong, which ends no task."""
    code = document.code
    if code is None or document.has_failed or (vocabulary.ends_task(code) and document.task_ids):
        return False
    # Any other code counts only if the body says nothing of a task.
    return vocabulary.may_be_of_question(code) or not report.is_of_task


def _no_report(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    default: str,
    message: str | None = None,
    document: documents.Document | None = None,
) -> NoReport:
    message = message or _text_of(status, headers, body, default)
    if status in {404, 410}:
        return NoReport("absent", message=message)
    if status == 429:
        by: Source = "body" if document else "status"
        return NoReport("throttled", retry_after=_retry_after(headers), throttled_by=by)
    is_declined = document is not None and not document.task_ids and _may_decline(status)
    code = str(status) if is_declined else None
    return NoReport("unwell", status, message, _retry_after(headers), code)


def read_callback(body: bytes, *, is_proof: bool = True) -> Report | None:
    """Read the body of a callback; None unless it is a JSON object or array.

    If it may be proof, objects with a name twice are looked for, which takes longer.
    """
    document = documents.parse(body)
    if document is None:
        return None
    report = read_report(document)
    is_clear = document.is_whole and (not is_proof or _has_each_name_once(body, document.raw))
    if is_clear and report.is_proof and not _is_trouble(document, report):
        return report
    return Report(
        "processing",
        report.task_id,
        report.task_ids,
        raw=document.raw,
        is_proof=False,
        has_final_word=report.reports_end,
    )


def _has_each_name_once(body: bytes, decoded: Any) -> bool:
    """Whether no object has a name twice, also within texts of JSON: one may hold the task."""
    broken: list[str] = []
    if not _is_clear(body, decoded, broken):
        return False
    # Nobody reads a text that the lenient decoder does not open. Decoding takes 1 µs a character.
    is_short = sum(map(len, broken)) <= BROKEN_TEXTS_CHARACTERS
    return is_short and all(lenient.opened(text) is text for text in broken)


def _is_clear(body: bytes, decoded: Any, broken: list[str]) -> bool:
    """Look for names in JSON, and in its texts of JSON; add texts with names that are no JSON."""
    try:
        if find_repeated(body, decoded) is not None:
            return False
    except (ValueError, RecursionError):
        return False  # Only the lenient decoder reads it, so nobody can tell.
    # A name in a text has quotation marks, which are escaped.
    texts = lenient.texts_of_json(decoded) if b"\\" in body else ()
    few = [*islice(texts, PROOF_TEXTS_MAX + 1)]
    return len(few) <= PROOF_TEXTS_MAX and all(_is_text_clear(text, broken) for text in few)


def _is_text_clear(text: str, broken: list[str]) -> bool:
    try:
        return _is_clear(text.encode(), msgspec.json.decode(text), broken)
    except (ValueError, RecursionError):
        broken += [text] if _NAME.search(text) else []
        return True


def _retry_after(headers: Mapping[str, str]) -> str | None:
    return headers.get("retry-after", "")[:100] or None
