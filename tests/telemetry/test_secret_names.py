"""Texts under secret names are cut out of raw JSON, and nothing else of it changes."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.telemetry.secret_names import cut_texts, is_hidden

NAMES = ("token", "Password", "API-Key", "_access_token", "callBackUrl", "note", "tokens")
texts = st.text(st.sampled_from('a"\\:{},ä\n\u2028'), max_size=8)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | texts, inner, max_size=4)
    ),
    max_leaves=12,
)


def cut(text: str) -> str:
    return cut_texts(text.encode(), b"[cut]").decode()


def without_texts(value: Any) -> Any:
    if isinstance(value, list):
        return [without_texts(each) for each in value]
    if isinstance(value, dict):
        return {
            name: "[cut]"
            if isinstance(each, str) and is_hidden(name, each)
            else without_texts(each)
            for name, each in value.items()
        }
    return value


@given(documents, st.sampled_from([None, 1]))
@example({"token": 'a"\\', "note": "\\"}, None)
@example({"token": "", "Password": "\\\\"}, 1)
def test_json_has_the_same_meaning_but_for_its_texts_under_secret_names(
    document: Any, indent: int | None
) -> None:
    written = json.dumps(document, ensure_ascii=indent is None, indent=indent)
    assert json.loads(cut(written)) == without_texts(document)
    if without_texts(document) == document:
        assert cut(written) == written


@given(st.sampled_from(NAMES[:5]), texts, st.integers(1, 3))
def test_so_it_is_in_a_text_of_json_within_json(name: str, text: str, levels: int) -> None:
    document: Any = {name: text, "note": "stays"}
    for _ in range(levels):
        document = {"resultJson": json.dumps(document)}
    document = json.loads(cut(json.dumps(document)))
    for _ in range(levels):
        document = json.loads(document["resultJson"])
    assert document == {name: "[cut]", "note": "stays"}


@given(documents, st.lists(st.integers(0, 40), min_size=1, max_size=4))
@example('say "token": "abc', [0])
@example({"token": "abc"}, [2])
@example({"token": "ab\\"}, [3])
@example({"note": {"token": 'say "abc"'}}, [6, 3])
def test_json_that_was_cut_off_within_a_text_of_json_leaves_the_rest_of_it(
    document: Any, ends: list[int]
) -> None:
    for end in ends:
        text = document if isinstance(document, str) else json.dumps(document)
        document = {"prompt": text[: max(0, len(text) - end)], "status": "failed"}
    shown = json.loads(cut(json.dumps(document)))
    assert shown.keys() == document.keys()
    assert shown["status"] == "failed"
    assert shown["prompt"].rstrip("\\") == cut(document["prompt"]).rstrip("\\")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ('{"token": "s3cr3t', '{"token": "[cut]'),
        ('{"token": "s3cr3t\\', '{"token": "[cut]'),
        ('event: {"password" :\n"s3cr3t"} ', 'event: {"password" :\n"[cut]"} '),
        ('{"token": 17, "secret": null}', '{"token": 17, "secret": null}'),
        ('{"said": "token", "b": "token"}', '{"said": "token", "b": "token"}'),
        ('{\\"token": "a"}', '{\\"token": "a"}'),
        ('\\"token": "a", "token": "b"', '\\"token": "a", "token": "[cut]"'),
    ],
)
def test_what_is_cut_off_or_stands_beside_something_else_is_read_as_far_as_it_is_json(
    body: str, shown: str
) -> None:
    assert cut(body) == shown
