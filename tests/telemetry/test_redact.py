"""Nothing of our callback URL or of a secret survives in what is shown of upstream's answer."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.upstream.wire import redact

TOKEN = "Imdlbl8wMSI.aWQ.c2lnbmF0dXJl"
CALLBACK = f"https://hooks.example.com/callbacks/apiinone/{TOKEN}"


@pytest.mark.parametrize(
    "key",
    [
        "callback_url",
        "callBackUrl",
        "webhook",
        "webhook_url",
        "webhook_secret",
        "secret",
        "api-key",
    ],
)
@pytest.mark.parametrize("value", ["anything", ["anything"], {"url": "anything"}])
def test_what_stands_under_the_key_of_a_secret_is_cut_out(key: str, value: Any) -> None:
    answer = {"data": {key: value, "status": "SUCCESS"}}
    assert redact(answer, ()) == {"data": {key: "[redacted]", "status": "SUCCESS"}}


def test_a_number_of_tokens_is_no_secret() -> None:
    assert redact({"usage": {"token": 28}, "webhook": None}, ()) == {
        "usage": {"token": 28},
        "webhook": None,
    }


@pytest.mark.parametrize(
    "written",
    [
        CALLBACK,
        f"calling {CALLBACK}?x=1",
        '{"callBackUrl":"https:\\/\\/hooks.example.com\\/callbacks\\/apiinone\\/' + TOKEN + '"}',
        f"https://relay.test/?to=https%3A%2F%2Fhooks.example.com%2Fcallbacks%2Fapiinone%2F{TOKEN}",
    ],
)
def test_our_callback_url_is_cut_out_however_it_is_written(written: str) -> None:
    cut = redact({"param": written, written: [written]}, (CALLBACK,))
    assert TOKEN not in repr(cut)
    assert "[redacted]" in cut["param"]


def test_the_longest_needle_is_cut_first() -> None:
    assert redact(CALLBACK, (TOKEN, CALLBACK)) == "[redacted]"


def test_an_empty_needle_cuts_nothing() -> None:
    assert redact({"a": "b"}, ("",)) == {"a": "b"}


def test_what_is_nested_too_deeply_to_look_through_is_cut_out() -> None:
    nested: Any = TOKEN
    for _ in range(10_000):
        nested = [nested]
    cut = redact(nested, (TOKEN,))
    assert len(msgspec.json.encode(cut)) < 1_000
    assert TOKEN not in msgspec.json.encode(cut).decode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(f"a{TOKEN}b"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.just(TOKEN), inner, max_size=4)
    ),
)


@given(JSON)
def test_no_needle_survives_and_the_argument_is_left_alone(value: Any) -> None:
    before = msgspec.json.encode(value)
    assert TOKEN not in msgspec.json.encode(redact(value, (TOKEN,))).decode()
    assert msgspec.json.encode(value) == before
