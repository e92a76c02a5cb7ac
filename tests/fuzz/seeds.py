"""Realistic inputs for each target, from which fuzzing starts."""

from collections.abc import Iterator

import msgspec

from service.api.routes import OPERATIONS
from tests.fuzz import targets
from tests.harness import create_answer, success_report

PNG = "https://cdn.example.com/out/1.png"
CLIP = {"id": "c1", "audio_url": "https://cdn.example.com/1.mp3", "status": "complete"}
FEED = {"type": "SUCCESS", "response_data": [CLIP, {**CLIP, "status": "text"}]}
BODIES = (
    create_answer("n47abcd_imagen4"),
    success_report("n47abcd_imagen4"),
    {"id": "task_abc123", "status": "pending", "model": "kling-3"},
    {"code": 200, "data": FEED},
    {"code": 200, "msg": "success", "data": {"taskId": "cover1", "status": "SUCCESS"}},
    {
        "code": 200,
        "data": {"taskId": "k1", "state": "success", "resultJson": '{"resultUrls":["u"]}'},
    },
    {"code": 200, "data": {"taskId": "k1", "state": "fail", "failCode": "500", "failMsg": "no"}},
    {"code": 501, "msg": "failed", "data": {"taskId": "k1", "info": {"result_urls": [PNG]}}},
    {
        "data": {
            "id": "t",
            "status": "done",
            "result": {"images": [{"url": [PNG], "expires_at": 1}]},
        }
    },
    {"task_id": 4711, "task_status": "succeed", "task_result": {"videos": [{"url": PNG}]}},
    {"id": "w", "outputs": [PNG], "urls": {"get": PNG}, "status": "completed", "error": ""},
    {"error": {"code": 401, "message": "Invalid API key", "type": "authentication_error"}},
    {"code": 200, "data": {"lyricParams": [{"text": "It's a day", "start": 1.5}]}},
    [CLIP],
)
ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 None\r\nConnection: close\r\n\r\n",
    b"HTTP/1.0 503 Busy\r\nRetry-After: 7\r\n\r\nlater",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 Surplus\r\n\r\n",
)
JSON_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: a=b\r\n"


def of(target: str) -> Iterator[bytes]:
    """Return inputs that a target reads to their end."""
    yield from {
        "upstream": _upstream,
        "response": _response,
        "answer": lambda: (b"\x05" + answer for answer in ANSWERS),
        "retry-after": lambda: iter((b"120", b"Sun, 06 Nov 1994 08:49:37 GMT", b"soon")),
        "token": _tokens,
        "setting": _settings,
        "signature": _signed,
        "log": lambda: (bytes([n]) + b'GET "|" 200' for n in range(len(targets.SECRETS))),
        "callback": lambda: (b"\x00x-a: b\n" + body for body in bodies()),
        "request": _requests,
    }[target]()


def bodies() -> Iterator[bytes]:
    """Return upstream's bodies as bytes."""
    return map(msgspec.json.encode, BODIES)


def _upstream() -> Iterator[bytes]:
    for body in bodies():
        yield b"\x00application/json\n" + body
    yield b"\x00audio/mpeg\n\xff\xfbsound"
    yield b'\x0a120\n{"error":{"code":429,"message":"slow down"}}'


def _response() -> Iterator[bytes]:
    for body in bodies():
        yield b"\xff" + JSON_ANSWER + b"Content-Length: %d\r\n\r\n" % len(body) + body
    yield from (b"\x01" + answer for answer in ANSWERS)


def _tokens() -> Iterator[bytes]:
    _, genuine = targets.token_reader()
    return (token.encode() for token in (*sorted(genuine), *targets.foreign_tokens()))


def _settings() -> Iterator[bytes]:
    good = (b"https://hooks.example/base", b"10.0.0.0/8", b"sqlite:///a.db", b"15", b"true", b"off")
    for number in range(len(targets.NAMES)):
        yield from (bytes([number]) + text for text in good)


def _signed() -> Iterator[bytes]:
    """Return one valid signature for each scheme."""
    stamp, body = str(targets.NOW // 1_000), b'{"data":{"taskId":"k1"}}'
    for number, scheme in enumerate(targets.SCHEME_SECRETS):
        headers = dict.fromkeys(("webhook-timestamp", "x-webhook-timestamp"), stamp)
        signature = targets.valid_signature(scheme, {**headers, "webhook-id": "m1"}, body)
        yield bytes([number]) + f"m1\n{stamp}\n{signature}\n".encode() + body


def _requests() -> Iterator[bytes]:
    bodies_by_path = {
        "/v1/generations": b'{"model":"imagen4","input":{"prompt":"a harbour"},"metadata":{}}',
        "/v1/subscribers": b'{"url":"http://127.0.0.1:7/in","event_types":[],"ordered":true}',
        "/v1/replays": b'{"subscriber_id":"sub_1","since":"2026-11-18T00:00:00Z","only":"all"}',
        "/v1/keys": b'{"name":"shop","scopes":["read"]}',
    }
    for number, operation in enumerate(OPERATIONS):
        body = bodies_by_path.get(operation.path, b"{}")
        query = b"limit=2&order=asc" if "limit" in operation.query else b""
        yield bytes([number]) + b"\n" + query + b"\nidempotency-key: k1\n\n" + body
