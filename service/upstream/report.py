"""Reads what one body says about a task, by its words, its parts, its files and its errors."""

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from service.upstream import errors, results, vocabulary
from service.upstream.contents import NAMES_MAX, Contents, read_contents
from service.upstream.documents import Document
from service.upstream.scalars import JsonObject

Source = Literal["status", "body"]
Outcome = Literal["refused", "put_off", "lost", "absent", "throttled", "unwell", "other_task"]


class Report(msgspec.Struct, frozen=True):
    """What one body says about a task."""

    state: vocabulary.State
    task_id: str | None = None
    task_ids: tuple[str, ...] = ()  # Every id that the body gives the task.
    # Every other id that may be a task's; empty if the task's word says "processing".
    names: tuple[str, ...] = ()
    files: tuple[results.File, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    word: str | None = None  # The status word as written.
    recognised: bool = True  # False if that word is unknown; the state is then "processing".
    raw: Any = None  # The decoded JSON, not redacted.
    size_bytes: int = 0  # Of the body.
    # An outcome that one answer does not prove; the state is then "processing".
    possible: "Report | None" = None
    # False for a callback that was cut, has a name twice, names only a job, or whose code speaks of
    # trouble.
    is_proof: bool = True
    # Whether a final word stands where it is no proof. A callback's URL names the generation, so
    # in a callback it is most likely the task's.
    has_final_word: bool = False
    throttled_by: Source | None = None  # As in NoReport.
    retry_after: str | None = None

    @property
    def is_of_task(self) -> bool:
        """Whether it says anything of a task."""
        return self.state != "processing" or bool(self.word or self.task_id or self.possible)

    @property
    def reports_end(self) -> bool:
        """Whether it says that a task ended, though it may prove nothing, or name no file."""
        return self.state != "processing" or self.possible is not None or self.has_final_word

    def other_ids(self, task_id: str | None) -> tuple[str, ...]:
        """Return every id in the body that may be a task's, without `task_id`."""
        return tuple(id_ for id_ in (*self.task_ids, *self.names) if id_ != task_id)


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
    # Why a submission was not taken, in upstream's word; or the code of a body that declined a poll
    # and names no task: it may be about the one that was polled.
    code: str | None = None
    repeats_max: int | None = None  # Of a submission that is put off; None: until the deadline.
    # What says 429: the HTTP status, or a body alone.
    throttled_by: Source | None = None


Answer = Report | NoReport


def read_report(document: Document, request: results.Request = results.NOTHING) -> Report:
    """Return what a body says about its task; files that the request named are no results."""
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
    if state == "processing":
        return report
    contents = read_contents(document)
    report = _with_names(report, contents)
    is_about_task = document.is_about_task or bool(report.task_ids)
    if state is not None and not is_about_task:
        # The word of an envelope that names no task says how the request went.
        is_final = not errors.is_partial(document.root) and not _has_open_part(contents)
        report = replace(report, word=None, recognised=True, has_final_word=is_final)
        if state == "failed":
            return report
    if is_about_task and _has_failed(document):
        # A final word above parts that are open is no end.
        is_open = state == "failed" and _has_open_part(contents)
        return report if is_open else _as_failed(report, document)
    if document.may_be_of_request and _is_partial(document):
        return report
    if not contents.parts:
        return _read_success(report, document, contents, request)
    if is_about_task or isinstance(document.root.get("data"), list):
        return _read_parts(report, document, contents, request)
    is_done = all(vocabulary.state_of(part.word) == "succeeded" for part in contents.parts)
    return _read_success(report, document, contents, request) if is_done else report


def _with_names(report: Report, contents: Contents) -> Report:
    # A body may name its task deeper than at the top or in `data`.
    ids = report.task_ids or tuple(dict.fromkeys(contents.inner_ids))
    if not ids and not contents.names:
        return report
    known = frozenset(ids)  # A body may have thousands of ids.
    names = tuple(dict.fromkeys(n for n in contents.names if n not in known))[:NAMES_MAX]
    if not names and ids == report.task_ids:
        return report
    has_other_id = bool(contents.job_ids) and not ids
    task_id = ids[0] if ids else None
    return replace(report, task_id=task_id, task_ids=ids, names=names, is_proof=not has_other_id)


def _has_open_part(contents: Contents) -> bool:
    return any(vocabulary.state_of(part.word) == "processing" for part in contents.parts)


def _is_partial(document: Document) -> bool:
    return errors.is_partial(document.task) or (
        document.root is not document.task and errors.is_partial(document.root)
    )


def _has_failed(document: Document) -> bool:
    """Whether the word, the code or the error of a body about a task says that it failed."""
    state = document.state
    if vocabulary.ends_task(document.code) and document.task_ids:
        return True
    return state == "failed" or (state is None and errors.holds_any(document.task))


def _read_success(
    report: Report, document: Document, contents: Contents, request: results.Request
) -> Report:
    """Read a body with a word that means success, an unknown one or none."""
    # Suno's feed says SUCCESS from the start: without clips it has no result yet.
    is_done = document.state == "succeeded"
    is_known = is_done and (document.is_about_task or bool(report.task_ids))
    is_feed = "response_data" in document.task
    files = results.find(contents, "results" if is_feed else "images", request)
    has_text = results.has_text(document.task) and (is_known or report.task_id is None)
    success = replace(report, state="succeeded", files=files)
    is_proof = is_known or (report.word is None and _is_kie(document))
    if (files or has_text) and is_proof:
        return success
    if is_known and not is_feed:
        end = _without_files(success, document, contents, request)
        return end if end.state == "failed" else replace(report, possible=end)
    if is_done and not is_known and not files:
        files = results.find(contents, "anything", request)
        success = replace(success, files=files)
    if (files or has_text) and not _is_partial(document):
        return replace(report, possible=success)
    return report


def _without_files(
    success: Report, document: Document, contents: Contents, request: results.Request
) -> Report:
    """Return the outcome of a task that is done, but has no files where they should stand."""
    # The files may come a moment later, or never; beside an error they do not come. Under an
    # unknown name may be a cover. fal calls COMPLETED what failed (fal-ai/fal, pull request 1143).
    files = results.find(contents, "anything", request)
    outputs = errors.outputs_with_errors(document.task)
    if not files and (outputs or errors.holds_any(document.task)):
        return _as_failed(success, document, outputs)
    return replace(success, files=files)


def _is_kie(document: Document) -> bool:
    # KIE's callbacks for 4o images and Flux Kontext have no word: code 200 beside `info` is success
    # (docs.kie.ai/4o-image-api/generate-4o-image-callbacks).
    return document.root.get("code") == 200 and isinstance(document.task.get("info"), dict)


def _as_failed(report: Report, document: Document, parts: tuple[JsonObject, ...] = ()) -> Report:
    code, message = errors.read(document, parts)
    return replace(report, state="failed", files=(), error_code=code, error_message=message)


def _read_parts(
    report: Report, document: Document, contents: Contents, request: results.Request
) -> Report:
    # The parts decide, not the task's own word: Suno says SUCCESS while its clips have only lyrics.
    # One part that succeeded is a result if no other part is unfinished.
    pairs = [(part, vocabulary.state_of(part.word)) for part in contents.parts]
    states = {state for _, state in pairs}
    words = {state: part.word for part, state in pairs if part.word}
    is_feed = "response_data" in document.task
    is_partial = _is_partial(document)
    if "processing" in states:
        word = report.word or words["processing"]
        return replace(report, word=word, recognised=None not in states)
    good = [part.object_ for part, state in pairs if state != "failed"]
    bad = [part.object_ for part, state in pairs if state == "failed"]
    bad_urls = {file.url for file in results.find_in_parts(bad, request)}
    files = results.find(contents, "results", request)
    files = tuple(file for file in files if file.url not in bad_urls)
    files = files or results.find_in_parts(good, request)
    if not files and not good:
        return _as_failed(report, document, tuple(bad))
    if None in states:
        report = replace(report, word=words.get(None) or report.word, recognised=False)
    is_known = document.state is not None or (document.word is None and not is_partial)
    report = replace(report, word=report.word or words.get("succeeded"))
    success = replace(report, state="succeeded", files=files)
    if None in states or not is_known:
        is_possible = bool(files) and not is_feed and not is_partial
        return replace(report, possible=success) if is_possible else report
    if not files and not is_feed:
        success = _without_files(success, document, contents, request)
    is_end = bool(files) or success.state == "failed"
    return success if is_end else replace(report, possible=success)
