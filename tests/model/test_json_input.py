"""JSON of clients: values are counted before anything is decoded, and names stand once."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model import json_input
from service.model.json_input import VALUES_MAX, ManyValuesError, RepeatedNameError, has_few_values

TEXTS = st.text(alphabet='"\\,:[]{}a \né', max_size=8)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def count(value: Any) -> int:
    """Return how many values are below this one; an empty list or object has one."""
    if not isinstance(value, dict | list):
        return 0
    children = list(value.values() if isinstance(value, dict) else value)
    return max(1, len(children)) + sum(map(count, children))


@given(value=VALUES, indent=st.sampled_from([None, 1]), is_ascii=st.booleans())
def test_values_are_counted_and_what_stands_in_texts_is_not(
    *, value: Any, indent: int | None, is_ascii: bool
) -> None:
    body = json.dumps([value], indent=indent, ensure_ascii=is_ascii).encode()
    assert has_few_values(body, count([value]))
    assert not has_few_values(body, count([value]) - 1)


@pytest.mark.parametrize(
    "values",
    [
        b"[]," * VALUES_MAX,
        b"{}," * VALUES_MAX,
        b'{"a":1},' * VALUES_MAX,
        b'"",' * VALUES_MAX,
        b'"","\\"",' * VALUES_MAX * 3,
        b"[" * VALUES_MAX,
    ],
)
def test_a_body_of_very_many_values_is_not_decoded(
    values: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msgspec.json, "decode", None)
    with pytest.raises(ManyValuesError):
        json_input.decode(b'{"a":"\\u003a","l":[' + values + b"0]}")


@pytest.mark.parametrize("text", [",[{", '\\",', "\\\\", "{}", "é,"])
def test_a_long_text_of_any_characters_is_one_value(text: str) -> None:
    text *= 200_000
    assert json_input.decode(json.dumps({"a": text}).encode()) == {"a": text}


def test_as_many_values_as_the_limit_are_decoded() -> None:
    document = {"a": [0] * (VALUES_MAX - 1)}
    assert json_input.decode(msgspec.json.encode(document)) == document
    document["a"].append(0)
    with pytest.raises(ManyValuesError):
        json_input.decode(msgspec.json.encode(document))


def test_a_name_twice_is_named_and_json_in_a_text_is_not_looked_at() -> None:
    with pytest.raises(RepeatedNameError, match=r"^b$"):
        json_input.decode(b'{"a":[{"b":1,"\\u0062":2}],"c":"\\u003a"}')
    text = '{"a":1,"a":[' + "[]," * VALUES_MAX + "0]}"
    assert json_input.decode(json.dumps(text).encode()) == text
