"""Two tables of answers that decline a submission: what shows a task, and what a busy gateway says.

The first ones must never be sent again, the second ones must be. Both are as real services write.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.upstream import mentions, wire

T = "n63ab12cd_ideogram"
UUID = "764cabcf-b745-4b3e-ae38-1200304cf45b"
LINK = f"https://apiin.one/api/v1/tasks/{T}"
SENT = msgspec.json.encode({"model": "kling-v2.1-master", "prompt": "make task n63zz99yy shine"})

TASKS: list[Any] = [
    # Texts: the word for the job beside an id, before or after it.
    {"error": {"code": 503, "message": f"task {T} is queued, but the gateway is busy"}},
    {"message": f"Task {T} created; the worker pool is busy, poll later"},
    {"error": {"message": f"your task {T} was accepted and is running"}},
    {"message": f"generation {T} accepted, response timed out"},
    {"message": f"{T}: task queued"},
    {"message": f"timed out while waiting for {T} (job)"},
    {"message": f"prediction with id {UUID} is starting"},
    {"message": f"Job ID={T}"},
    {"message": "job #4711 is waiting for a GPU"},
    {"message": "generation 1320098173412546 has been submitted"},
    {"message": "the operation op-8a1b2c3d4e has begun"},
    {"message": "order 20261126-8a1b2c was paid"},
    {"message": "task_8a1b could not be confirmed in time"},
    {"message": f"Too many tasks; yours is {T}"},
    {"error": {"type": "busy", "detail": [{"loc": ["body"], "msg": f"run {T} started"}]}},
    {f"task {T}": "gateway timeout"},
    # Texts: a word of being taken.
    {"message": "Your task was created, but the response timed out"},
    {"message": "task created with warnings"},
    {"message": "The job has been submitted. Please poll for its result."},
    {"message": "Generation started; response lost"},
    {"message": "We accepted your request, come back later"},
    {"message": "Your request is being processed"},
    {"message": "Your request is in the queue."},
    {"message": "Your request has been added to our queue."},
    {"message": "Job status: queued"},
    {"message": "Error: your task was queued, the connection broke"},
    {"message": "Task created and will not be started until a GPU is free"},
    {"message": "Your task is in progress."},
    {"code": "TASK_CREATED"},
    {"message": "queued"},
    {"status": "post_processing"},
    {"message": "has been accepted for processing"},
    {"message": "Come back later. ID: n63ab12cd"},
    {"message": "Successfully created"},
    {"detail": "IN_PROGRESS"},
    {"message": "You are in the queue (position 5)"},
    {"message": "Please wait while your video is being generated"},
    {"message": "Your task was queued due to limited capacity"},
    {"message": "Your AI songs are being rendered"},
    {"message": "Task was queued; the queue is full now"},
    {"message": "任务已创建\uff0c请稍后查询"},
    {"message": "任务 n63ab12cd 排队中"},
    # Names.
    [{"code": 503, "task": [T]}],
    {"code": 503, "data": {"task": T}},
    {"code": 503, "tasks": [T]},
    {"code": 503, "data": {"jobs": [T]}},
    {"code": 503, "data": {"taskNo": T}},
    {"code": 503, "data": {"task_uuid": T}},
    {"code": 503, "data": {"predictionKey": "xyz"}},
    {"code": 503, "data": {"new_task": {"ref": "xyz"}}},
    {"code": 503, "data": {"orderNo": "xyz"}},
    {"code": 503, "data": {"task_created": True}},
    {"code": 503, "accepted": True},
    # What stands bare in the place of the result.
    {"code": 503, "description": "busy", "result": T},
    {"code": 503, "data": T},
    {"code": 503, "result": 1320098173412546},
    {"code": 503, "data": 4711},
    # Words, progress and places.
    {"status": "accepted", "message": "busy"},
    {"code": 503, "data": {"state": "scheduled"}},
    {"code": 503, "data": {"progress": 0, "eta": 30}},
    {"error": {"message": "busy", "queue_position": 3}},
    {"code": 503, "name": f"operations/{T}"},
    {"code": 503, "links": {"self": LINK}},
    {"code": 503, "message": f"busy, see {LINK}/status"},
    {"code": 503, "href": "/v1/jobs/4711"},
    {"detail": f"https://queue.fal.run/fal-ai/flux/requests/{UUID}/status"},
    # Pages.
    f"<html>Your task {T} was queued. 503</html>",
    f"<html><body><p>Job <b>{T}</b> is running</p></body></html>",
    f'<html><a href="/tasks/{T}">Result</a></html>',
    f"<Error><Code>Busy</Code><TaskNo>{T}</TaskNo></Error>",
    f"task_id={T}&error=busy",
]

CLOUDFLARE = """<!DOCTYPE html><html lang="en-US"><head><title>Access denied | api.example.com used
Cloudflare to restrict access</title><script>(function(){window._cf_chl_opt={cvId:'3',cRay:
'8f2b3c4d5e6f7a8b',cH:'job-8a1b2c3d4e5f'}})()</script><style>.task-12ab34cd{color:red}</style>
</head><body><div id="cf-error-details" class="p-0 task-8a1b2c3d"><h1>Error 1015</h1>
<p>Ray ID: <strong>8f2b3c4d5e6f7a8b</strong> &bull; 2026-11-26 18:00:00 UTC</p>
<h2>You are being rate limited</h2><p>The owner of this website has banned you temporarily from
starting tasks.</p><p>Your IP: 2001:db8::8a1b:2c3d</p></div></body></html>"""
NGINX = """<html>\r\n<head><title>503 Service Temporarily Unavailable</title></head>\r\n<body>\r
<center><h1>503 Service Temporarily Unavailable</h1></center>\r\n<hr><center>nginx/1.18.0 (Ubuntu)
</center>\r\n</body>\r\n</html>"""
APACHE = """<html><head><title>503 Service Unavailable</title></head><body><p>The server is
temporarily unable to service your request due to maintenance downtime or capacity problems. Please
try again later.</p><p>Additionally, a 503 error was encountered while trying to use an
ErrorDocument to handle the request.</p></body></html>"""
AWS = """<Error><Code>SlowDown</Code><Message>Please reduce the rate of your tasks.</Message>
<RequestId>4442587FB7D0A2F9</RequestId><HostId>hjqXO4k3Kx8bT2</HostId></Error>"""
GOOGLE = {
    "error": {
        "code": 429,
        "message": "Resource has been exhausted (e.g. check quota).",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [
                    {
                        "quotaMetric": "googleapis.com/generate_content_free_tier_requests",
                        "quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
                        "quotaDimensions": {"location": "global", "model": "gemini-2.0-flash"},
                        "quotaValue": "50",
                    }
                ],
            },
            {
                "@type": "type.googleapis.com/google.rpc.Help",
                "links": [{"url": "https://ai.google.dev/gemini-api/docs/rate-limits"}],
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "36s"},
        ],
    }
}

BUSY: list[Any] = [
    NGINX,
    CLOUDFLARE,
    APACHE,
    AWS,
    GOOGLE,
    "",
    "busy",
    "upstream connect error or disconnect/reset before headers. reset reason: overflow",
    "<h1>Error 503 Backend fetch failed</h1><p>Guru Meditation:</p><p>XID: 123456789</p>",
    "error code: 1015",
    "no healthy upstream",
    {"message": "Too Many Requests"},
    {"message": "Limit Exceeded"},
    {"message": None},
    {"__type": "ThrottlingException", "message": "Rate exceeded"},
    {
        "message": "An error occurred (ThrottlingException) when calling the InvokeModel operation "
        f"(reached max retries: 4): Too many requests (Request ID: {UUID}; Proxy: null)"
    },
    # OpenAI, Azure and what is like them.
    {
        "error": {
            "message": "Rate limit reached for gpt-4o-2024-08-06 in organization org-abc123DEF456 "
            "on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s. "
            "Visit https://platform.openai.com/account/rate-limits to learn more.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    },
    {
        "error": {
            "code": "429",
            "message": "Requests to the ImageGenerations_Create Operation under Azure OpenAI API "
            "version 2024-10-21 have exceeded token rate limit of your current OpenAI S0 pricing "
            "tier. Please retry after 26 seconds.",
        }
    },
    {"error": {"message": "The server had an error while processing your request. Sorry!"}},
    {"error": {"message": "While processing your request, an internal error occurred."}},
    {"error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_011CSHoE"},
    {"error": {"message": "The engine is currently overloaded, please try again later"}},
    # Hugging Face, Replicate, fal, RunPod.
    {
        "error": "Model stabilityai/stable-diffusion-xl-base-1.0 is currently loading",
        "estimated_time": 20.0,
    },
    {"detail": "Request was throttled. Expected available in 1 second."},
    {
        "detail": "Request was throttled. Your rate limit for creating predictions is reduced to 6 "
        "requests per minute with a burst of 1 requests while you have less than $5.0 in credit. "
        "Your rate limit resets in ~9s.",
        "status": 429,
        "retry_after": 9,
    },
    {"detail": [{"loc": ["body"], "msg": "Rate limit exceeded", "type": "rate_limit"}]},
    {"error": "too many jobs in queue", "endpoint": "a100-80gb"},
    # KIE, WaveSpeed, Kling, Midjourney relays, MiniMax.
    {"code": 429, "msg": "Your call frequency is too high. Please try again later.", "data": None},
    {"code": 455, "msg": "System is currently undergoing maintenance", "data": None},
    {"code": 429, "message": "You have reached your concurrent task limit: 3", "data": None},
    {"code": 1303, "message": "parallel task over resource pack limit", "request_id": "CjMkWmdJ8A"},
    {"code": 23, "description": "Queue is full, please try again later", "result": None},
    {"code": 23, "description": "队列已满\uff0c请稍后尝试"},
    {"code": 429, "msg": "任务数量已达上限"},
    {"code": 503, "msg": "任务未创建\uff0c系统繁忙"},
    {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "task_id": ""},
    # Limits, and tasks that are somebody's or of before.
    {"message": "too many tasks"},
    {"message": "queue is full"},
    {"message": "your task was not created"},
    {"message": "Your task wasn't created because all GPUs are taken"},
    {"message": "3 tasks running, limit 3"},
    {"message": "You have 1 running task, limit 1"},
    {"message": "You have 3 jobs queued; the maximum is 3"},
    {"message": "Another task is already running"},
    {"message": "Wait for the running task to finish"},
    {"message": "Request processing queue is full"},
    {"message": "Queued job limit reached"},
    {"message": "job running limit exceeded"},
    {"message": "Your video was not generated"},
    {"message": "limit: 10 tasks/60 seconds"},
    {"message": "Max pending jobs: 1024"},
    {"message": "API key aio_8a1b2c3d4e5f has too many tasks"},
    {"message": "deployment in progress"},
    {"message": "All workers are busy processing other jobs"},
    "<p>The request is blocked.</p><p>Your support ID is: 12345678901234567890</p>",
    "<p>Incapsula incident ID: 1234000890123-456789012345</p><p>Proxy ID a1b2c3d4</p>",
    "<p>Generated by cloudfront (CloudFront) Request ID: 3wW8a1b2c3dXyZ==</p>",
    "<p>Access Denied. Reference #18.2d351ab8.1557333295.a4e16ab</p>",
    {"message": "Please wait until your previous generation is finished"},
    {"message": "A job is already running for this account"},
    {"message": "Unable to create task: no GPU"},
    {"message": "Failed to submit job to kling-v2.1-master, try again later"},
    {"message": "Too many tasks for seedance-1-0-pro-250528 in us-east-1"},
    {"message": "No task was created. See https://docs.example.com/errors/tasks/rate-limits"},
    {"message": "Maintenance work in progress, back at 2026-11-26T19:00:00Z"},
    {"message": "make task n63zz99yy shine"},
    {"error": {"code": "TASK_LIMIT_EXCEEDED", "type": "too_many_running_tasks"}},
    {"error": {"message": "busy", "active_tasks": 3, "max_tasks": 3, "tasks": {"running": 3}}},
    {"error": {"message": "busy", "task_type": "video", "generation_time": 12, "task": None}},
    {"message": "busy", "reset": 1764180000, "data": "overloaded", "result": -1},
    {"message": "busy", "created": 1764180000, "data": 1764180000, "accepted": False},
    {"message": "busy", "links": {"help": "https://docs.example.com/jobs/limits"}},
]


NOUNS = st.sampled_from(["task", "Job", "generation", "PREDICTION", "order", "tasks", "work"])
IDS = st.sampled_from([T, UUID, "1320098173412546", "upl987654321bksv", "8a1b2c3d", "n-63ab12cd"])
FILLERS = st.lists(st.sampled_from(["is", "the", "new", "busy", "gateway", "id", "for", "you"]))
FORMS: list[Callable[[str], Any]] = [
    lambda text: text,
    lambda text: {"error": {"message": text}},
    lambda text: [{"a": {"b": [text]}}],
    lambda text: {text: "busy"},
    lambda text: f"<p class='x'>{text}</p>",
    lambda text: {"detail": msgspec.json.encode({"x": text}).decode()},
]


def sent_again(body: Any, status: int, headers: dict[str, str] | None = None) -> bool:
    content = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    answer = wire.read_create(status, headers or {}, content, SENT)
    return isinstance(answer, wire.NoReport) and answer.outcome == "put_off"


@given(NOUNS, FILLERS, IDS, st.sampled_from([" ", ": ", "=", " (", ", "]), st.sampled_from(FORMS))
def test_an_id_near_a_word_for_the_job_is_a_sign_wherever_it_stands(
    noun: str, fillers: list[str], id_: str, mark: str, form: Callable[[str], Any]
) -> None:
    between = " ".join(fillers[: mentions.NEAR_WORDS - 1])
    for text in (f"{noun}{mark}{between} {id_}", f"{id_}{mark}{between} {noun}."):
        assert not sent_again(form(text), 503), text


@pytest.mark.parametrize("body", TASKS, ids=str)
def test_an_answer_that_shows_a_task_is_not_sent_again(body: Any) -> None:
    for status in (425, 429, 503):
        assert not sent_again(body, status)


@pytest.mark.parametrize("body", [body for body in TASKS if isinstance(body, dict)], ids=str)
def test_an_error_with_http_200_that_shows_a_task_is_not_sent_again(body: Any) -> None:
    for error in ({"success": False}, {"code": 503}, {"error": {"code": 1234, "message": "slow"}}):
        assert not sent_again({**error, **body}, 200)
        assert not sent_again({**error, "details": {"inner": [body]}}, 200)


@pytest.mark.parametrize("body", BUSY, ids=lambda body: str(body)[:60])
def test_what_a_busy_gateway_says_is_sent_again(body: Any) -> None:
    for status in (425, 429, 503):
        assert sent_again(body, status)
    if isinstance(body, dict):
        assert sent_again({"code": 503, "details": [body]}, 200)


@pytest.mark.parametrize(
    "headers",
    [
        {"location": f"/api/v1/tasks/{T}"},
        {"operation-location": "https://a.test/operations/4711?api-version=1"},
        {"content-location": f"/v1/images/{T}"},
        {"x-task-id": T},
        {"x-fal-job-id": "1"},
        {"x-run-id": "1"},
        {"replicate-prediction-id": UUID},
    ],
)
def test_headers_that_show_a_task_are_not_sent_again(headers: dict[str, str]) -> None:
    for status in (429, 503):
        assert not sent_again({"error": {"message": "busy"}}, status, headers)
        assert not sent_again("busy", status, headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-request-id": T, "cf-ray": "8f2b3c4d5e6f7a8b-FRA", "x-fal-request-id": UUID},
        {"location": "https://status.example.com/", "content-location": "/errors/503.html"},
        {"function-execution-id": "8a1b2c3d4e", "x-amz-id-2": UUID, "x-task-id": " "},
        {"location": "https://[cut"},
    ],
)
def test_headers_of_any_answer_are_sent_again(headers: dict[str, str]) -> None:
    assert sent_again({"error": {"message": "busy"}}, 503, headers)


def test_what_is_too_long_to_be_read_is_not_sent_again() -> None:
    assert sent_again("busy " * 50_000, 503)
    assert not sent_again("busy " * 60_000, 503)
    assert not sent_again({"texts": ["busy " * 20_000] * 3}, 503)


@pytest.mark.parametrize(
    "text", ["<a" * 90_000, "." * 250_000, "a" * 250_000, "tasks/" * 40_000, "task_id" * 30_000]
)
def test_a_long_text_takes_little_time(text: str) -> None:
    mentions.tell_of_task(text, lambda _: False)


@pytest.mark.timeout(60)  # It takes a second; four minutes if the time grew with the square.
@pytest.mark.parametrize(
    ("beginning", "repeated", "end"),
    [
        ("per ", "task task running ", ""),
        ("", "a task running ", "per"),
        ("", "a task created ", "already"),
    ],
)
def test_the_longest_text_is_searched_in_a_time_that_grows_with_its_size(
    beginning: str, repeated: str, end: str
) -> None:
    count = 2 * mentions.TEXT_CHARS_MAX // len(repeated)
    assert not mentions.tell_of_task(beginning + repeated * count + end, lambda _text: False)
