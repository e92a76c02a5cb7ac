"""Reading arbitrary bytes never raises, never invents an outcome, and keeps its limits."""

import itertools
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from service.generations import ingest
from service.telemetry.redact import Redactor
from service.upstream import contents, documents, lenient, links, scalars, vocabulary, wire

NAMES = """
    code message msg error data status state type task_status callbackType task_id taskId workId id
    response_data request_body resultJson info result_urls output outputs results urls get images
    image url audio_url video_url expires_at failMsg failCode lyricParams task_result detail
    callback_url success
"""
KEYS = st.sampled_from(NAMES.split())
TEXTS = st.text(max_size=6) | st.sampled_from(
    [
        *vocabulary.STATE_OF_WORD,
        "SUCCESS",
        "https://a.test/1.png",
        "https://[",
        "9" * 400,
        "2027-01-15T08:00:00Z",
        "9999-99-99",
        '{"resultUrls":["https://a.test/1.png"]}',
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=24,
)
# What URLs are made of, where they are read piece by piece.
PIECES = """
    / // : https: [ ] @ # % %2e .. \\ ? = & a.png cdn.test \u2100 :99999 data:, ?Expires= &se= 0
    x-amz-date= &x-amz-expires= 20260101T000000Z 9999999999999999999999999
"""
ODD_TEXTS = st.lists(st.sampled_from([*PIECES.split(), " "]), max_size=5).map("".join)
BODIES = st.dictionaries(KEYS, VALUES, max_size=8) | st.lists(VALUES, max_size=4)
STATUSES = st.sampled_from([200, 201, 202, 204, 301, 400, 401, 404, 429, 500, 503]) | st.integers()
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "retry-after", "x", "location", "x-task-id"]),
    st.text(max_size=12) | st.sampled_from(["audio/mpeg", "application/json", "..", "x" * 513]),
)
UNKNOWN_WORDS = st.text(min_size=1, max_size=12).filter(
    lambda word: word.strip() != "" and vocabulary.state_of(word) is None
)


def nested(count: int, opening: bytes, closing: bytes) -> bytes:
    return opening * count + b"1" + closing * count


CONTEXT: Any = SimpleNamespace(
    redactor=Redactor(["a-secret-of-ours"], "https://genhook.test"),
    settings=SimpleNamespace(upstream_url="https://upstream.test/api/v1"),
)


def read_everything(status: int, headers: dict[str, str], body: bytes) -> None:
    created = wire.read_create(status, headers, body)
    assert isinstance(created, wire.Answer)
    answer = wire.read_poll(status, headers, body)
    assert isinstance(answer, wire.Answer)
    report = wire.read_callback(body)
    assert report is None or isinstance(report, wire.Report)
    reports = [each for each in (created, answer, report) if isinstance(each, wire.Report)]
    ids = {id_ for each in reports for id_ in each.other_ids(None)}
    assert ids == {scalars.id_of(id_) for id_ in ids}
    for value in (created, answer, report, *(each.possible for each in reports)):
        msgspec.json.encode(value)
        if value is not None:
            msgspec.json.encode(ingest.update_of(CONTEXT, value))


@given(STATUSES, HEADERS, st.binary(max_size=64))
def test_no_bytes_make_reading_raise(status: int, headers: dict[str, str], body: bytes) -> None:
    read_everything(status, headers, body)


@given(STATUSES, HEADERS, BODIES)
@example(200, {}, {"data": [{"task_id": "a"}, 1]})
@example(200, {}, {"response_data": [{"status": None}, {"status": "complete"}, "x"]})
@example(200, {}, {"status": "SUCCESS", "output": {"url": "https://a.test", "expires_at": 1e300}})
def test_no_json_makes_reading_raise(status: int, headers: dict[str, str], body: Any) -> None:
    read_everything(status, headers, msgspec.json.encode(body))


@given(ODD_TEXTS)
@example("//[x/2.png")
@example("//a]b")
@example("//\u2100.com/2.png")
@example("//[Verse] A harbour")
def test_no_text_where_a_file_belongs_makes_reading_raise_or_hides_a_file(text: str) -> None:
    output = [text, "https://cdn.test/1.png"]
    body = {"data": {"task_id": "t", "status": "SUCCESS", "url": text, "output": output}}
    read_everything(200, {}, msgspec.json.encode(body))
    report = wire.read_callback(msgspec.json.encode(body))
    assert report is not None
    assert output[1] in [file.url for file in report.files]


@pytest.mark.parametrize("count", [65, 500, 5_000, 50_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"data":', b"}")])
def test_json_nested_too_deeply_is_read_as_far_as_it_goes(
    count: int, opening: bytes, closing: bytes
) -> None:
    body = nested(count, opening, closing)
    read_everything(200, {}, body)
    report = wire.read_callback(body)
    assert report is not None
    depth, value = 0, report.raw
    while isinstance(value, dict | list):
        depth, value = depth + 1, value["data"] if isinstance(value, dict) else value[0]
    assert (depth, value) == (lenient.DEPTH_MAX, None)


@pytest.mark.parametrize("piece", [b"[", b'{"a":', b'"', b'"\\', b'"",', b"NaN,"])
def test_repairing_a_large_body_is_bounded(piece: bytes) -> None:
    decoded = lenient.decode(b"[" + piece * 500_000)
    assert decoded is None or not decoded.is_whole


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"t","x":NaN,"many":[' + b"1," * 400_000 + b"1]}",
        b'{"id":"t","many":[' + b"[]," * 600_000 + b"1]}",
        b'{"id":"t","many":[' + b"1," * 4_000_000,
    ],
)
def test_a_body_with_too_many_values_is_read_to_a_bound(body: bytes) -> None:
    decoded = lenient.decode(body)
    assert decoded is not None
    assert not decoded.is_whole
    assert isinstance(decoded.value, dict)
    assert decoded.value["id"] == "t"
    assert len(decoded.value["many"]) <= lenient.TOKENS_MAX


def test_a_large_file_within_broken_json_is_read_whole() -> None:
    body = b'{"id":"t","x":NaN,"b64_json":"' + b"iVBORw0KGgoA" * 500_000 + b'"}'
    decoded = lenient.decode(body)
    assert decoded is not None
    assert decoded.is_whole


@given(UNKNOWN_WORDS, BODIES)
def test_an_unknown_word_without_an_error_is_never_an_outcome(word: str, rest: Any) -> None:
    envelope = rest if isinstance(rest, dict) else {"data": rest}
    excluded = {"data", "error", "failMsg"}
    data = {k: v for k, v in envelope.items() if k not in excluded} | {"status": word}
    body = msgspec.json.encode({"code": 200, "data": data})
    document = documents.parse(body)
    assert document is not None
    assume(not contents.read_contents(document).parts)  # Parts with words of their own decide.
    for report in (wire.read_callback(body), wire.read_poll(200, {}, body)):
        assert isinstance(report, wire.Report)
        assert (report.state, report.recognised, report.files) == ("processing", False, ())


@given(BODIES)
def test_a_report_that_is_not_a_success_has_no_files(body: Any) -> None:
    report = wire.read_callback(msgspec.json.encode(body))
    assert report is not None
    assert report.state == "succeeded" or report.files == ()
    urls = [file.url for file in report.files if file.url is not None]
    assert all(links.read(url) or links.read_path(url) for url in urls)
    assert len(report.error_message or "") <= scalars.MAX_TEXT_CHARS


@given(st.text(max_size=600))
def test_a_task_id_is_any_text_up_to_its_limit(task_id: str) -> None:
    body = msgspec.json.encode({"task_id": task_id, "status": "pending"})
    report = wire.read_callback(body)
    assert report is not None
    is_usable = task_id.strip() != "" and len(task_id) <= scalars.MAX_ID_CHARS
    is_usable = is_usable and task_id not in {".", ".."} and "\ufffd" not in task_id
    assert report.task_id == (task_id if is_usable else None)


def spellings_of_task_id(count: int) -> list[str]:
    """Names of a task's id that differ in case and separators only."""
    upper = itertools.product((False, True), repeat=6)
    separators = itertools.product(("", "_", "-"), repeat=6)
    names = (
        "".join(
            (letter.upper() if is_upper else letter) + separator
            for letter, is_upper, separator in zip("taskid", uppers, separated, strict=True)
        )
        for separated, uppers in itertools.product(separators, [*upper])
    )
    return [*itertools.islice(names, count)]


@pytest.mark.timeout(40)  # It takes a second; in the square of the ids it would take a minute.
def test_the_time_grows_with_the_ids_of_a_body_and_not_with_their_square() -> None:
    names = spellings_of_task_id(45_000)
    task = {"status": "completed", **{name: f"t{at}" for at, name in enumerate(names)}}
    report = wire.read_callback(msgspec.json.encode({"data": task}))
    assert report
    assert len(report.task_ids) == len(names)
