"""Reads why a task failed, or why an answer says nothing about one."""

import re
from itertools import chain
from typing import Any

from service.upstream.documents import Document
from service.upstream.names import ROLES
from service.upstream.scalars import JsonObject, first_text, number_of, text_of, values_of
from service.upstream.vocabulary import CODES_FINE, state_of, words_in

_CODE_KEYS = ("failCode", "fail_code", "failureCode", "error_code", "errorCode")
_MESSAGE_KEY_LIST = """
    failMsg fail_msg fail_message error_message errorMessage error_msg task_status_msg fail_reason
    failure_reason failureReason failure_message failure extra_message status_msg reason
"""
_MESSAGE_KEYS = _MESSAGE_KEY_LIST.split()
_NO_ERROR_CODES = {None, *CODES_FINE}
_ERROR_KEYS = ("error", "errors", "errorMessage", "error_message", "failMsg")
ERRORS_MAX = 10  # Of a list.
# Texts under the name of an error that mean "no error", without the punctuation around them and
# with underscores between their words.
_NOTHINGS = words_in("""
    - -- none null nil n/a na no false undefined nothing [] {} no_error no_errors noerror error_none
    no_error_message normal \u6210\u529f \u65e0 \u6b63\u5e38
""")
_PUNCTUATION = " \t\r\n.!\u3002\uff01"
_OUTPUT_KEYS = ("output", "result")
_PROGRESS = re.compile(r"[0-9]{1,3}(\.[0-9]+)?")


def read(document: Document, parts: tuple[JsonObject, ...] = ()) -> tuple[str | None, str | None]:
    """Return the code and the message of a failure, each at most 500 characters, or None."""
    objects = (document.task, *parts, document.root)
    nested = [*values_of(objects, ("error", "errors", "task_error", "base_resp", "detail"))]
    listed = [item for value in nested if isinstance(value, list) for item in value[:ERRORS_MAX]]
    errors = [error for error in (*nested, *listed) if isinstance(error, dict)]
    code = document.root.get("code")
    is_word = isinstance(code, str) and state_of(code) is None
    codes = chain(
        values_of(objects, _CODE_KEYS),
        # A name as code ("content_policy") is more exact than the type ("authentication_error").
        (error.get("code") for error in errors if number_of(error.get("code")) is None),
        values_of(errors, ("type", "code")),
        (code if is_word or number_of(code) not in _NO_ERROR_CODES else None,),
    )
    # The envelope of a failed task may have the message "success": that is no error message.
    envelope = values_of((document.task, document.root), ("message", "msg", "detail"))
    messages = chain(
        values_of(objects, _MESSAGE_KEYS),
        values_of(errors, ("message", "msg", "detail", "reason", *_MESSAGE_KEYS)),
        values_of(objects, ("error",)),
        listed,
        (message for message in envelope if state_of(text_of(message)) is None),
    )
    return first_text(codes), first_text(messages)


def holds_any(object_: JsonObject) -> bool:
    """Whether an object holds an error of its own: a text, a code or an object with one."""
    return any(key in object_ and is_error(object_[key]) for key in _ERROR_KEYS)


def outputs_with_errors(task: JsonObject) -> tuple[JsonObject, ...]:
    """Return the objects in place of a result that hold an error."""
    outputs = (task[key] for key in _OUTPUT_KEYS if isinstance(task.get(key), dict))
    return tuple(filter(holds_any, outputs))


def is_error(value: Any) -> bool:
    """Whether the value under the name of an error is one: 0, "N/A" and {} are none."""
    if isinstance(value, list):
        return any(map(is_error, value[:ERRORS_MAX]))
    if isinstance(value, dict):
        return any(is_error(value.get(key)) for key in ("message", "msg", "code", "type"))
    if isinstance(value, str):
        text = _plain(value)
        # A word for working or for success means no error, as a code like "0000" does.
        is_well = state_of(text) in ("processing", "succeeded") or number_of(text) in CODES_FINE
        return bool(text) and text not in _NOTHINGS and not is_well
    return number_of(value) not in _NO_ERROR_CODES


def is_nothing(value: Any) -> bool:
    """Whether a value is a text that means "none"."""
    return isinstance(value, str) and _plain(value) in _NOTHINGS


def _plain(text: str) -> str:
    return text.strip(_PUNCTUATION).lower().replace(" ", "_")


def is_partial(object_: JsonObject) -> bool:
    """Whether an object, or its result, is not complete: a progress below 100, or below 1.0."""
    for part in (object_, object_.get("output"), object_.get("result")):
        if type(part) is dict:
            for name, value in part.items():
                if ROLES[name].is_progress and _is_below_all(value):
                    return True
    return False


def _is_below_all(progress: Any) -> bool:
    text = str(progress).strip().removesuffix("%").rstrip()
    if not _PROGRESS.fullmatch(text):
        return False
    return float(text) < 100 and not ("." in text and float(text) == 1)
