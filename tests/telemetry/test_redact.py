"""No secret and no callback URL survives in what is logged, stored or shown."""

import base64
import html
import itertools
import json
import re
import tracemalloc
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.telemetry import redact
from service.telemetry.redact import REDACTED, Redactor

TOKEN = "Imdlbl8wMSI.aWQ.c2lnbmF0dXJl"
PUBLIC_URL = "https://hooks.example.com/base"
CALLBACK = f"{PUBLIC_URL}/callbacks/apiinone/{TOKEN}"
SECRET = 'sk-"hush"/äöü+0123456789'


# JSON of upstream


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
def test_the_value_of_a_secret_key_is_cut(key: str, value: Any) -> None:
    answer = {"data": {key: value, "status": "SUCCESS"}}
    assert Redactor().json(answer) == {"data": {key: "[redacted]", "status": "SUCCESS"}}


def test_a_number_of_tokens_is_no_secret() -> None:
    answer = {"usage": {"token": 28}, "webhook": None}
    assert Redactor().json(answer) == answer


@pytest.mark.parametrize(
    "text",
    [
        CALLBACK,
        f"calling {CALLBACK}?x=1",
        json.dumps({"callBackUrl": CALLBACK}).replace("/", "\\/"),
        "https://relay.test/?to=https%3A%2F%2Fhooks.example.com%2Fbase%2Fcallbacks%2Fapiinone%2F"
        + TOKEN,
    ],
)
@pytest.mark.parametrize(
    "redactor", [Redactor([CALLBACK]), Redactor([], PUBLIC_URL)], ids=["secret", "public_url"]
)
def test_a_callback_url_is_cut_however_it_is_written(redactor: Redactor, text: str) -> None:
    cut = redactor.json({"param": text, text: [text]})
    assert TOKEN not in repr(cut)
    assert "hooks.example.com" not in repr(cut)
    assert "[redacted]" in cut["param"]


def test_a_callback_url_at_another_host_loses_its_path_only() -> None:
    text = f'we called http://10.0.0.7/callbacks/apiinone/{TOKEN}, "twice"; see /callbacks for help'
    cut = Redactor([], PUBLIC_URL).json(text)
    assert cut == 'we called http://10.0.0.7[redacted], "twice"; see /callbacks for help'


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        json.dumps(SECRET, ensure_ascii=False),
        msgspec.json.encode([SECRET]).decode(),
        "sk-%22hush%22%2F%C3%A4%C3%B6%C3%BC%2B0123456789",
        SECRET.replace("/", "\\/"),
    ],
)
def test_a_secret_is_cut_in_each_of_its_spellings(text: str) -> None:
    redactor = Redactor([SECRET])
    for cut in (redactor.text(f"key: {text}!"), redactor.json([{"a": f"key: {text}!"}])[0]["a"]):
        assert cut.strip('key: "[]!\\') == "redacted"


CALLBACK_TOKEN = f"gen_{'0a1' * 10}.{'n-_' * 7}x.1795608000.{'s-_' * 14}A"
LIVE_KEY = "sk-live-upstream-0123456789abcdef"


def escape_letters(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "spell",
    [
        str,
        lambda text: json.dumps({"a": json.dumps({"b": json.dumps([text])})}),
        lambda text: text.replace("/", "\\u002f"),
        lambda text: text.replace("/", "\\" * 9 + "/"),
        lambda text: text.replace("/", "&#x2F;"),
        lambda text: text.replace("/", " / "),
        lambda text: text.replace("callbacks", "Callbacks"),
        lambda text: text.partition("/callbacks/apiinone/")[2] or text,
        lambda text: quote(quote(text, safe=""), safe=""),
        lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
        lambda text: "".join(f"&#{ord(letter)};" for letter in text),
        escape_letters,
        lambda text: quote(escape_letters(text)),
        lambda text: json.dumps({"a": escape_letters(text)}),
    ],
)
@pytest.mark.parametrize("secret", [f"{PUBLIC_URL}/callbacks/apiinone/{CALLBACK_TOKEN}", LIVE_KEY])
def test_no_spelling_hides_a_secret_of_ours(secret: str, spell: Any) -> None:
    redactor = Redactor([LIVE_KEY], PUBLIC_URL)
    text = f"begin {spell(secret)} end"
    for cut in (redactor.text(text), redactor.json({"x": [text]})["x"][0]):
        plain = cut
        for _ in range(8):
            assert CALLBACK_TOKEN not in plain
            assert LIVE_KEY not in plain
            plain = re.sub(r"\\+u(....)", lambda match: chr(int(match[1], 16)), plain)
            plain = html.unescape(unquote(plain))
        assert cut.startswith("begin ")
        assert cut.endswith(" end")


@pytest.mark.parametrize("between", [" ", "%20", "%2e", "/"])
def test_a_plain_token_shelters_no_escaped_one(between: str) -> None:
    text = f"{CALLBACK_TOKEN}{between}{CALLBACK_TOKEN.replace('.', '%2E')}"
    for cut in (Redactor().text(text), Redactor().json({"x": text})["x"]):
        assert CALLBACK_TOKEN not in unquote(cut)
        assert cut.endswith(REDACTED)


@pytest.mark.timeout(30)  # It takes a fraction of a second.
@pytest.mark.parametrize("cut", ["text", "json"])
@pytest.mark.parametrize(
    "run",
    ["\\", "\\\\u", "%", "%25", "&", "&#", "&#0", "&#x0", "&amp;", "gen_a.", "gen_", "bearer "],
)
def test_a_long_run_of_escapes_is_looked_at_once(run: str, cut: str) -> None:
    text = "&%" + run * 300_000  # Looking at it from each of its characters would take minutes.
    redactor = Redactor([LIVE_KEY], PUBLIC_URL)
    cut_text = getattr(redactor, cut)(text + f" {LIVE_KEY}")
    assert cut_text.endswith(REDACTED)
    assert LIVE_KEY not in cut_text


@pytest.mark.parametrize(
    "run",
    ["%", "%25", "%2525", "%80", "%80a", "%c3%a9", "%41ab", "&#37;", "&#037;", "\\u0025", "%a "],
)
def test_a_long_run_of_escapes_takes_memory_for_its_text_only(run: str) -> None:
    text = run * (240_000 // len(run)) + " %67en_a.b.1.c"
    redactor = Redactor([LIVE_KEY], PUBLIC_URL)
    tracemalloc.start()
    try:
        assert redactor.json([text])[0].endswith(REDACTED)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Copies of the text, and the objects of one region; for all matches it is 32 to 190 times.
    assert peak_bytes < 20 * len(text)


@pytest.mark.parametrize("characters", range(1, 24))
@pytest.mark.parametrize(
    "spell",
    [
        escape_letters,
        lambda text: quote(escape_letters(text)),
        lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
        lambda text: "".join(f"&#{ord(letter)};" for letter in text),
    ],
)
def test_a_long_text_hides_no_secret_where_its_regions_meet(
    monkeypatch: pytest.MonkeyPatch, characters: int, spell: Any
) -> None:
    monkeypatch.setattr(redact, "REGION_CHARACTERS", characters)
    cut = Redactor([SECRET]).text(f"begin {spell(SECRET)} end")
    assert cut == f"begin {REDACTED} end"


PIECES = st.sampled_from(
    [
        *("%", "%e4", "%B8", "%ad", "%f0", "%9f", "%80", "%C3", "%2", "25", "é", "a", " ", ";"),
        *("\\", "\\u00", "\\u0025", "u", "/", "&", "&#", "&#0", "37;", "&#x", "amp", "&lt"),
        "&#99999999",
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join), st.integers(1, 12))
def test_a_text_decoded_in_regions_is_the_text_decoded_at_once(text: str, characters: int) -> None:
    for decode, borders in redact._DECODERS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(redact, "REGION_CHARACTERS", characters)
            assert redact._in_regions(decode, text, borders) == decode(text)


@pytest.mark.parametrize(
    "number", ["9" * 5_000, "x" + "f" * 5_000, "0" * 5_000, "0" * 5_000 + "65"]
)
def test_a_character_reference_of_any_length_is_text(number: str) -> None:
    assert Redactor([LIVE_KEY]).text(f"&#{number}; {LIVE_KEY}").endswith(f"; {REDACTED}")


def test_zeros_before_the_number_of_a_character_hide_nothing() -> None:
    text = "".join(f"&#{'0' * 5_000}{ord(letter)};" for letter in LIVE_KEY)
    assert Redactor([LIVE_KEY]).text(f"begin {text} end") == f"begin {REDACTED} end"


@pytest.mark.parametrize("before", ["", "u", "us", "use", "user:"])
@pytest.mark.parametrize("after", ["", ":", ":p", ":pw"])
def test_a_secret_within_base64_is_cut(before: str, after: str) -> None:
    text = in_base64(before + LIVE_KEY + after)
    for cut in (Redactor([LIVE_KEY]).text(text), Redactor([LIVE_KEY]).json(text)):
        assert "[redacted]" in cut
        assert len(cut) < len("[redacted]") + 16


def test_escapes_that_hide_nothing_stay() -> None:
    text = "100 % of /a%20b &amp; \\u00e9 gen_01a1ee565e007001b4410d13573a55fe.png"
    redactor = Redactor([LIVE_KEY], PUBLIC_URL)
    assert (redactor.text(text), redactor.json(text)) == (text, text)


def test_the_longest_secret_is_cut_first() -> None:
    assert Redactor([TOKEN, CALLBACK]).json(CALLBACK) == "[redacted]"


@pytest.mark.parametrize("secret", ["a", "0123456789abc"])
def test_a_short_secret_is_cut_too(secret: str) -> None:
    assert Redactor([secret]).json({"x": secret, secret: 1}) == {"x": "[redacted]", "[redacted]": 1}


def test_an_empty_secret_cuts_nothing() -> None:
    assert Redactor([""]).json({"a": "b"}) == {"a": "b"}


def test_text_that_only_looks_like_a_key_stays_in_json() -> None:
    answer = {"prompt": "Bearer of bad news", "url": "https://cdn.test/aio_0123.png"}
    assert Redactor([SECRET], PUBLIC_URL).json(answer) == answer


def test_json_that_is_nested_too_deeply_is_cut_whole() -> None:
    nested: Any = TOKEN
    for _ in range(10_000):
        nested = [nested]
    cut = msgspec.json.encode(Redactor([TOKEN]).json(nested))
    assert len(cut) < 1_000
    assert TOKEN not in cut.decode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(f"a{TOKEN}b"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.just(TOKEN), inner, max_size=4)
    ),
)


@settings(deadline=None)
@given(JSON)
def test_no_secret_survives_and_the_argument_stays_as_it_is(value: Any) -> None:
    before = msgspec.json.encode(value)
    assert TOKEN not in msgspec.json.encode(Redactor([TOKEN]).json(value)).decode()
    assert msgspec.json.encode(value) == before


NASTY = st.sampled_from(
    [
        *(SECRET, quote(SECRET, safe=""), json.dumps(SECRET), SECRET.replace("/", "\\/"), CALLBACK),
        *(html.escape(SECRET), "".join(f"\\u{ord(c):04x}" for c in SECRET), "a&b", "100%", "\\n"),
        *("call_Back-URL", "webhook", "token", "gen_01.x.1.y", "%67en_01.x.1.y", "a plain text"),
    ]
)
NASTY_JSON = st.recursive(
    st.none() | st.integers() | NASTY | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
)


@settings(deadline=None)
@given(NASTY_JSON)
def test_one_look_at_the_whole_overlooks_nothing_that_a_look_at_each_text_finds(value: Any) -> None:
    redactor = Redactor([SECRET], PUBLIC_URL)
    assert redactor.json(value) == redactor._cut(value, 64)


def test_json_without_a_secret_is_looked_at_once_and_not_copied() -> None:
    answer = {
        "data": {"task_id": "t", "status": "SUCCESS", "url": "https://a.test/1.png?a=1&b=%20"}
    }
    assert Redactor([SECRET], PUBLIC_URL).json(answer) is answer


# Text


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (f"POST /callbacks/apiinone/{TOKEN} 200", "POST /callbacks/apiinone/[redacted] 200"),
        (f"https://a.example/callbacks/apiinone/{TOKEN}?x=1", "apiinone/[redacted]?x=1"),
        (f'{{"url":"https:\\/\\/a.example\\/callbacks\\/apiinone\\/{TOKEN}"}}', '[redacted]"}'),
        (f"?hook=https%3A%2F%2Fa.example%2Fcallbacks%2Fapiinone%2F{TOKEN} end", "[redacted] end"),
        ("key ghk_0123456789abcdef is wrong", "key [redacted] is wrong"),
        ("key aio_0123456789abcdef is wrong", "key [redacted] is wrong"),
        ("secret whsec_aGVsbG8+/w== end", "secret [redacted] end"),
        ("secret whsk_aGVsbG8+/w== end", "secret [redacted] end"),
        ("Authorization: Bearer abc.def", "Authorization: [redacted]"),
        ("AUTHORIZATION: BEARER abc.def", "AUTHORIZATION: [redacted]"),
    ],
)
def test_secrets_are_cut_out_of_text_and_the_rest_stays(text: str, rest: str) -> None:
    for cut in (Redactor().text(text), Redactor([SECRET], PUBLIC_URL).text(text)):
        assert rest in cut
        for secret in (TOKEN, "0123456789abcdef", "aGVsbG8", "abc.def"):
            assert secret not in cut


LEAD_INS = [
    *("", "a", "/", ".", "-", "_", "=", "?", '"', " ", "\\", "\\/", "%2F", "callbacks"),
    *("/callbacks/", "ghk_", "aio_", "whsec_", "Bearer ", "bearer", "gen_a.b.1."),
]


@pytest.mark.parametrize("after", ["", "/x", " x", ".y", "Bearer "])
@pytest.mark.parametrize(
    ("secret", "hushed"),
    [
        ("ghk_0123456789abcdef", ["0123456789abcdef"]),
        ("whsec_0123456789abcdef", ["0123456789abcdef"]),
        ("Bearer 0123456789abcdef", ["0123456789abcdef"]),
        (f"/callbacks/apiinone/{TOKEN}", TOKEN.split(".")),
    ],
)
def test_no_beginning_of_one_secret_shelters_the_next(
    secret: str, hushed: list[str], after: str
) -> None:
    for lead_in in itertools.product(LEAD_INS, repeat=3):
        cut = Redactor().text("".join(lead_in) + secret + after)
        assert not any(part in cut for part in hushed), lead_in


@pytest.mark.parametrize("text", ["", "a plain sentence", "gen_0123456789abcdef", "callbacks: 3"])
def test_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert Redactor().text(text) == text


# Lines of the log


@settings(max_examples=300)
@given(
    character=st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]),
    rest=st.sampled_from(["earer 0123456789ab", "hk_0123456789abcdef", "bearer 0123", "io_x0123"]),
)
def test_a_line_of_json_stays_json_whatever_is_cut(character: str, rest: str) -> None:
    text = f"before {character}{rest} behind"
    line = json.dumps({"event": text, "more": {text: [1, None, text]}})
    expected = Redactor().text(text)
    assert json.loads(Redactor().line(line)) == {
        "event": expected,
        "more": {expected: [1, None, expected]},
    }


def test_an_escape_before_a_word_makes_no_secret_of_it() -> None:
    line = json.dumps({"event": "\x0bearer 01234567", "more": CALLBACK})
    cut = json.loads(Redactor().line(line))
    assert cut == {"event": "\x0bearer 01234567", "more": Redactor().text(CALLBACK)}


def test_a_line_for_people_is_cut_as_text() -> None:
    assert Redactor().line("token: Bearer 0123 end") == "token: [redacted] end"
