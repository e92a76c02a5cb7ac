"""Names that stand twice in an object are noticed, although most bodies are parsed only once."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model.json_names import find_repeated
from service.upstream import lenient, wire


class Pairs(list[Any]):
    """An object as pairs: a name may come twice."""


VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='":{}\\/u0a \n', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(st.text(alphabet='ab":\\ \n', max_size=2), inner), max_size=4).map(
            Pairs
        )
    ),
    max_leaves=12,
)


def written(value: Any, *, colon: str) -> str:
    """Return JSON as strangers write it, with each pair of each object."""
    if isinstance(value, Pairs):
        pairs = (json.dumps(k) + colon + written(v, colon=colon) for k, v in value)
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, colon=colon) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def has_twice(value: Any) -> bool:
    children = [child for _, child in value] if isinstance(value, Pairs) else value
    names = [name for name, _ in value] if isinstance(value, Pairs) else []
    is_here = len(set(names)) < len(names)
    return is_here or (isinstance(children, list) and any(map(has_twice, children)))


@given(VALUES, st.sampled_from([":", ": ", " \n:"]))
def test_a_name_twice_is_noticed_wherever_it_stands(value: Any, colon: str) -> None:
    body = f"[{written(value, colon=colon)}]".encode()
    decoded = lenient.decode(body)
    assert decoded is not None
    assert (find_repeated(body, decoded.value) is not None) == has_twice(value)


@pytest.mark.parametrize("colon", ["\\u003a", "\\u003A"])
def test_an_escaped_colon_hides_no_repeated_name(colon: str) -> None:
    body = f'{{"a":1,"a":2,"text":"{colon}"}}'.encode()
    assert find_repeated(body, msgspec.json.decode(body)) == "a"


ODD_VALUES = {
    "a raw line end": b'"a\nb"',
    "a long integer": b"1" * 5_000,
    "no UTF-8": b'"\xff"',
    **{f"{depth} lists": b"[" * depth + b"]" * depth for depth in (990, 993, 1_000, 5_000)},
}
TWICE = b'{"taskId":"task1","status":"failed","status":"failed","x":'


@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES)
@pytest.mark.parametrize("is_text", [False, True], ids=["body", "text"])
def test_no_odd_value_hides_a_repeated_name_from_the_proof(value: bytes, *, is_text: bool) -> None:
    body = TWICE + value + b"}"
    if is_text:
        body = json.dumps(body.decode("latin-1"), ensure_ascii=False).encode("latin-1")
    report = wire.read_callback(body)
    assert report is not None
    assert report.task_id == "task1"
    assert not report.is_proof
    assert report.has_final_word


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_escaped_colon_in_another_encoding_hides_no_repeated_name(encoding: str) -> None:
    body = (TWICE + b'"\\u003a"}').decode().encode(encoding)
    report = wire.read_callback(body)
    assert report is not None
    assert not report.is_proof


@pytest.mark.parametrize("colon", ["\\u003a", "\\u005cu003a", "\\\\u003\\u0061"])
def test_an_escaped_colon_in_a_text_of_json_hides_no_repeated_name(colon: str) -> None:
    inner = (TWICE + b'"COLON"}').decode()
    report = wire.read_callback(json.dumps(inner).replace("COLON", colon).encode())
    assert report is not None
    assert not report.is_proof


@pytest.mark.parametrize("value", [b'"a\nb"', b"1" * 5_000], ids=["a raw line end", "digits"])
def test_a_body_with_an_odd_value_and_each_name_once_is_proof(value: bytes) -> None:
    body = b'{"taskId":"task1","status":"failed","url":"a\\u003ab","x":' + value + b"}"
    report = wire.read_callback(body)
    assert report is not None
    assert report.is_proof


HELD = '{"task_id":"t","output":{"url":"https://cdn.test/1.png"},"status":"failed"%s}'


def within(text: str) -> list[bytes]:
    """Return bodies that hold the task as JSON in a text."""
    escaped = json.dumps(text).replace("{", "\\u007b").replace('\\"', "\\u0022")
    held = [{"data": text}, {"data": json.dumps({"output": text})}, {"output": [text]}]
    return [*map(msgspec.json.encode, held), f'{{"data":{escaped}}}'.encode()]


@pytest.mark.parametrize("body", within(HELD % ',"status":"completed"'))
def test_a_name_twice_in_a_text_that_is_read_is_noticed(body: bytes) -> None:
    report = wire.read_callback(body)
    assert report is not None
    assert (report.task_id, report.is_proof) == ("t", False)


@pytest.mark.parametrize("body", within(HELD % ""))
def test_a_text_that_gives_each_name_once_is_proof(body: bytes) -> None:
    report = wire.read_callback(body)
    assert report is not None
    assert (report.state, report.is_proof) == ("failed", True)


PEOPLES_TEXTS = [
    "[1] Verse: hello\n",
    "[] x: y",
    "[Chorus: all]",
    '{x} is "it"',
    '{"scene": "a cat", "style": "x",}',
    '{"scene": "a cat", // "style": open\n}',
    '[Verse 1] She said "hello": goodbye',
]


@pytest.mark.parametrize("text", PEOPLES_TEXTS)
def test_a_text_that_people_wrote_beside_a_result_is_no_doubt(text: str) -> None:
    body = {"task_id": "t", "status": "failed", "prompt": text, "lyrics": "a\nb"}
    report = wire.read_callback(msgspec.json.encode(body))
    assert report is not None
    assert report.is_proof


def test_a_body_with_more_texts_of_json_than_are_looked_at_is_no_proof() -> None:
    for count in (wire.PROOF_TEXTS_MAX - 1, wire.PROOF_TEXTS_MAX, wire.PROOF_TEXTS_MAX * 2):
        report = wire.read_callback(
            msgspec.json.encode({"data": HELD % "", "x": ['{"a":1}'] * count})
        )
        assert report is not None
        assert report.is_proof == (count < wire.PROOF_TEXTS_MAX)


@pytest.mark.parametrize("size", [wire.BROKEN_TEXTS_CHARACTERS, 2 * wire.BROKEN_TEXTS_CHARACTERS])
def test_so_many_characters_that_nearly_are_json_are_looked_at_and_more_are_a_doubt(
    size: int,
) -> None:
    broken = ['{"scene": "a cat",}'.ljust(1_024)] * (size // 1_024)
    report = wire.read_callback(msgspec.json.encode({"data": HELD % "", "lyrics": broken}))
    assert report is not None
    assert report.is_proof == (size == wire.BROKEN_TEXTS_CHARACTERS)
