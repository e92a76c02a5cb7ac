"""Names that stand twice in an object are noticed, although most bodies are parsed only once."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model.json_names import find_repeated
from service.upstream import lenient


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
