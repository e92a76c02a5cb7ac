"""The words and codes of upstream and of the providers that it resells, each with its source.

Words are compared in lower case, spaces and hyphens as underscores. A word that is not here never
ends a task by itself; a code that is not here means neither "never" nor "again".
"""

import re
from typing import Any, Literal

State = Literal["processing", "succeeded", "failed"]

# Provider (its source): state = its words. Only words that the source lists.
_WORDS_OF_PROVIDERS: dict[str, dict[State, str]] = {
    "API in One (apiin.one/docs, /docs/suno/feed, /docs/suno/cover)": {
        "processing": "pending in_progress processing text first",
        "succeeded": "success complete completed",
        "failed": "failed error generate_cover_failed",
    },
    "UdioAPI (udioapi.pro/docs/v2-feed)": {"processing": "new text first", "succeeded": "complete"},
    "KIE (docs.kie.ai/market/common/get-task-detail, /suno-api/get-music-details)": {
        "processing": "waiting queuing generating pending text_success first_success",
        "succeeded": "success",
        "failed": "fail create_task_failed generate_audio_failed sensitive_word_error",
    },
    "WaveSpeed (wavespeed.ai/docs/how-to-use-webhooks)": {
        "processing": "created processing",
        "succeeded": "completed",
        "failed": "failed",
    },
    "Evolink (docs.evolink.ai/en/api-manual/task-management/get-task-detail)": {
        "processing": "pending processing",
        "succeeded": "completed",
        "failed": "failed cancelled",
    },
    "APIMart (docs.apimart.ai/en/api-reference/tasks/status)": {
        "processing": "submitted pending processing in_progress",
        "succeeded": "completed",
        "failed": "failed cancelled",
    },
    "Kling (apidoc.cometapi.com/callback-url-doc-866305)": {
        "processing": "submitted processing",
        "succeeded": "succeed",
        "failed": "failed",
    },
    "BFL (docs.bfl.ai/api_integration/errors)": {
        "processing": "pending",
        "succeeded": "ready",
        "failed": "request_moderated content_moderated error",
    },
    "Replicate (replicate.com/docs/topics/predictions/lifecycle)": {
        "processing": "starting processing",
        "succeeded": "succeeded",
        "failed": "failed canceled aborted",
    },
    "fal (fal.ai/docs/model-apis/model-endpoints/queue, /webhooks)": {
        "processing": "in_queue in_progress",
        "succeeded": "completed ok",
        "failed": "error",
    },
    "RunPod (docs.runpod.io/serverless/endpoints/job-states)": {
        "processing": "in_queue in_progress running",
        "succeeded": "completed",
        "failed": "failed cancelled timed_out",
    },
    "Luma (docs.lumalabs.ai/docs/video-generation)": {
        "processing": "queued dreaming",
        "succeeded": "completed",
        "failed": "failed",
    },
    "Runway (docs.dev.runwayml.com/api)": {
        "processing": "pending throttled running",
        "succeeded": "succeeded",
        "failed": "failed cancelled",
    },
    "MiniMax (platform.minimax.io/docs/api-reference/video-generation-query)": {
        "processing": "preparing queueing processing",
        "succeeded": "success",
        "failed": "fail",
    },
    "DashScope (help.aliyun.com/zh/model-studio/text-to-image-v2-api-reference)": {
        "processing": "pending running suspended",
        "succeeded": "succeeded",
        "failed": "failed canceled",
    },
    "OpenAI (platform.openai.com/docs/api-reference/videos)": {
        "processing": "queued in_progress",
        "succeeded": "completed",
        "failed": "failed expired",
    },
    "Midjourney relays (docs.crazyrouter.com/reference/status-codes)": {
        "processing": "not_start submitted in_progress",
        "succeeded": "success",
        "failed": "failure cancel",
    },
    # Read in a public client of API in One, which names no page.
    "clients (shared/apiinone.md, vocabulary)": {"succeeded": "finished"},
}
STATE_OF_WORD: dict[str, State] = {
    word: state
    for words_of in _WORDS_OF_PROVIDERS.values()
    for state, words in words_of.items()
    for word in words.split()
}

# Flags in place of a word. KIE: docs.kie.ai/veo3-api/get-veo-3-video-details.
_STATE_OF_FLAG: dict[int, State] = {0: "processing", 1: "succeeded", 2: "failed", 3: "failed"}
FLAG_KEYS = ("successFlag", "success_flag")

# Codes of a body that end the task which it names, though they look like a server's trouble.
# KIE (docs.kie.ai/suno-api/generate-music-callbacks): 451 a file could not be fetched, 501 the
# generation failed, 531 it failed and was refunded.
TASK_ENDS = frozenset({451, 501, 531})
# Codes of a body that say how the question went, never how the task did (RFC 9110, RFC 6585).
QUESTION_TROUBLE = frozenset({401, 402, 403, 404, 408, 425, 429})

# Codes of a body that answers a submission. "again": certainly not taken, and welcome later.
CODES_AGAIN = frozenset(
    {
        *(425, 429, 503),  # As the HTTP statuses.
        *(430, 455),  # KIE (docs.kie.ai, Suno and Veo): called too often, maintenance.
        23,  # Midjourney relays (docs.crazyrouter.com/reference/status-codes): the queue is full.
        *(1002, 1039, 1041),  # MiniMax (platform.minimax.io/docs/api-reference/errorcode): limits.
    }
)
# "never": certainly not taken, whenever it is sent.
CODES_NEVER = frozenset(
    {
        *(400, 401, 402, 403, 404, 409, 413, 415, 422, 451),  # As the HTTP statuses.
        # MiniMax, same page: the key, the balance, the input's content, the parameters.
        *(1004, 1008, 1026, 1042, 2013),
    }
)


def state_of(word: str | None) -> State | None:
    """Return the state that a status word means, in any case; None for an unknown word."""
    return STATE_OF_WORD.get(re.sub(r"[\s-]+", "_", word.strip().lower())) if word else None


def state_of_flag(value: Any) -> State | None:
    """Return the state that a flag means; None for another value."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return _STATE_OF_FLAG.get(value) if is_number else None


def ends_task(code: int | None) -> bool:
    """Whether this code of a body that names a task says that the task failed."""
    if code is None or code in QUESTION_TROUBLE:
        return False
    return code in TASK_ENDS or 400 <= code <= 499
