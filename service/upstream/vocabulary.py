"""The words and codes of upstream and of the providers that it resells, each with its source.

Words are compared in lower case, spaces and hyphens as underscores. A word that is not here never
ends a task by itself; a code that is not here means neither "never" nor "again".
"""

import re
from functools import lru_cache
from typing import Any, Literal

State = Literal["processing", "succeeded", "failed"]
WORD_CHARS_MAX = 100  # A longer text is no status word.


def words_in(text: str) -> frozenset[str]:
    """Return the words of a table that is written as a text."""
    return frozenset(text.split())


# Provider (its source): state = its words. Only words that the source lists. All but those marked
# "not seen again" were compared with the source in November 2026: the page itself, or the type of
# the provider's own client. "clients" marks words that only clients of the provider show.
_WORDS_OF_PROVIDERS: dict[str, dict[State, str]] = {
    "API in One (apiin.one/docs, /docs/suno/feed, /docs/suno/cover; not seen again)": {
        "processing": "pending in_progress processing text first",
        "succeeded": "success complete completed",
        "failed": "failed error generate_cover_failed",
    },
    "UdioAPI (udioapi.pro/docs/v2-feed; not seen again)": {
        "processing": "new text first",
        "succeeded": "complete",
    },
    # CALLBACK_EXCEPTION is left out: it is about the callback, and the result may be there.
    "KIE (docs.kie.ai/suno-api/get-music-details, /get-wav-details, /generate-music-callbacks)": {
        "processing": "pending text_success first_success text first",
        "succeeded": "success complete",
        "failed": "create_task_failed generate_audio_failed generate_wav_failed error",
    },
    "KIE (docs.kie.ai/market/common/get-task-detail; not seen again)": {
        "processing": "waiting queuing generating",
        "succeeded": "success",
        "failed": "fail",
    },
    "KIE (clients)": {
        "failed": "sensitive_word_error generate_mp4_failed generate_lyrics_failed generate_failed",
    },
    "WaveSpeed (wavespeed.ai/docs/how-to-use-webhooks; the client knows all but created)": {
        "processing": "created processing",
        "succeeded": "completed",
        "failed": "failed",
    },
    "Evolink (docs.evolink.ai/en/api-manual/task-management/get-task-detail; not seen again)": {
        "processing": "pending processing",
        "succeeded": "completed",
        "failed": "failed cancelled",
    },
    "APIMart (docs.apimart.ai/en/api-reference/tasks/status; not seen again)": {
        "processing": "submitted pending processing in_progress",
        "succeeded": "completed",
        "failed": "failed cancelled",
    },
    "Kling (docs.crazyrouter.com/reference/status-codes)": {
        "processing": "submitted processing",
        "succeeded": "succeed",
        "failed": "failed",
    },
    # "Task not found" is left out: it is about the question.
    "BFL (docs.bfl.ai/api-reference/utility/get-result)": {
        "processing": "pending",
        "succeeded": "ready",
        "failed": "request_moderated content_moderated error",
    },
    "Replicate (replicate.com/docs/topics/predictions/lifecycle)": {
        "processing": "starting processing",
        "succeeded": "succeeded",
        "failed": "failed canceled aborted",
    },
    "fal (fal.ai/docs/model-apis/model-endpoints/queue, /webhooks; not seen again)": {
        "processing": "in_queue in_progress",
        "succeeded": "completed ok",
        "failed": "error",
    },
    "RunPod (github.com/runpod/docs, serverless/endpoints/job-states.mdx)": {
        "processing": "in_queue in_progress running",
        "succeeded": "completed",
        "failed": "failed cancelled timed_out",
    },
    "Luma (github.com/lumalabs/lumaai-python, types/generation.py)": {
        "processing": "queued dreaming",
        "succeeded": "completed",
        "failed": "failed",
    },
    "Runway (github.com/runwayml/sdk-python, types/task_retrieve_response.py)": {
        "processing": "pending throttled running",
        "succeeded": "succeeded",
        "failed": "failed cancelled",
    },
    "MiniMax (developers.cloudflare.com/ai/models/minimax/hailuo-2.3-fast)": {
        "processing": "preparing queueing processing",
        "succeeded": "success",
        "failed": "fail",
    },
    # UNKNOWN is left out: DashScope says it of a task that it does not find.
    "DashScope (github.com/dashscope/dashscope-sdk-python, common/constants.py)": {
        "processing": "pending running suspended",
        "succeeded": "succeeded",
        "failed": "failed canceled",
    },
    "OpenAI (github.com/openai/openai-python, types/video.py, types/batch.py)": {
        "processing": "queued in_progress validating finalizing cancelling",
        "succeeded": "completed",
        "failed": "failed expired cancelled",
    },
    "Midjourney relays (docs.crazyrouter.com/reference/status-codes)": {
        "processing": "not_start submitted in_progress",
        "succeeded": "success",
        "failed": "failure cancel",
    },
    # UNKNOWN is left out, as with DashScope.
    "Tripo (github.com/VAST-AI-Research/tripo-python-sdk, tripo3d/models.py)": {
        "processing": "queued running",
        "succeeded": "success",
        "failed": "failed cancelled banned expired",
    },
    "Meshy (docs.meshy.ai/openapi.yaml, docs.meshy.ai/api/image-to-3d)": {
        "processing": "pending in_progress",
        "succeeded": "succeeded",
        "failed": "failed canceled expired",
    },
    "Novita (novita.ai/docs/api-reference/model-apis-task-result; clients know CANCELED)": {
        "processing": "queued processing",
        "succeeded": "succeed",
        "failed": "failed canceled",
    },
    "HeyGen (docs.heygen.com/reference/video-status)": {
        "processing": "waiting pending processing",
        "succeeded": "completed",
        "failed": "failed",
    },
    # UNSPECIFIED is left out: it is no state.
    "Vertex AI (docs.cloud.google.com, Google::Cloud::AIPlatform::V1::JobState)": {
        "processing": "queued pending running cancelling paused updating",
        "succeeded": "succeeded partially_succeeded",
        "failed": "failed cancelled expired",
    },
    # Read in a public client of API in One, which names no page.
    "API in One (clients)": {"succeeded": "finished"},
    # Its code for success is 10000 (docs.octopusx.ai/en/images/jimeng/official-query).
    "Jimeng (clients)": {"processing": "in_queue generating", "succeeded": "done"},
    # Of no provider: what a task has made was paid for, also where a part of it is missing.
    "anybody (docs/decisions/0026-signs-of-a-task.md)": {
        "succeeded": "partial_success partial_succeeded partially_successful partially_completed "
        "partial_completed partial",
    },
}
STATE_OF_WORD: dict[str, State] = {
    word: state
    for words_of in _WORDS_OF_PROVIDERS.values()
    for state, words in words_of.items()
    for word in words.split()
}

_ENUM_NAME = re.compile(r"^(?:[a-z]+_)*(?:status|state)_")

# Envelopes use these words for the request too: above a task, they do not say that it is done.
WORDS_OF_REQUESTS = frozenset(("success", "ok"))

# And these words, if the request failed (github.com/omniti-labs/jsend).
_WORDS_OF_FAILED_REQUESTS = frozenset(("error", "fail"))

# Only clips say these (udioapi.pro/docs/v2-feed), and never a task.
_WORDS_OF_CLIPS = frozenset(("text", "first", "complete", "streaming"))

# Flags in place of a word: numbers (docs.kie.ai/veo3-api/get-veo-3-video-details; clients agree) or
# words (docs.kie.ai/suno-api/get-wav-details).
_STATE_OF_FLAG: dict[int, State] = {0: "processing", 1: "succeeded", 2: "failed", 3: "failed"}
FLAG_KEYS = ("successFlag", "success_flag")

# Codes of a body that mean no error: 1 and 22 with Midjourney relays, "submitted" and "queued"
# (docs.crazyrouter.com/reference/status-codes); 100 with HeyGen
# (docs.heygen.com/reference/video-status).
CODES_FINE = frozenset({0, 1, 22, 100, *range(200, 300)})
# Codes of a body that end the task it names, though they look like a server's trouble: 501 the
# generation failed, 531 it failed and was refunded (docs.kie.ai/suno-api/generate-music-callbacks),
# 451 a file could not be fetched (docs.sunoapi.org/suno-api/convert-to-wav-format-callbacks).
# MiniMax (platform.minimax.io/docs/api-reference/errorcode): 1026 the input and 1027 the output is
# sensitive.
# WaveSpeed (wavespeed.ai/docs/error-codes): moderation, parameters, media, the task failed.
TASK_ENDS = frozenset({451, 501, 531, 1026, 1027, 1200, 1400, 1401, 1402, 1403, 1405})
# Codes of a body that say how the poll went, never how the task did (RFC 9110, RFC 6585, RFC
# 4918; 499: nginx).
QUESTION_TROUBLE = frozenset({401, 402, 403, 404, 408, 409, 423, 425, 429, 499})

# Codes of a body that answers a submission. "again": certainly not taken, and welcome later.
CODES_AGAIN = frozenset(
    {
        *(425, 429, 503),  # As the HTTP statuses.
        # docs.sunoapi.org/suno-api/get-wav-conversion-details, which KIE shares: called too often
        # (405, 430), maintenance (455; clients of KIE agree).
        *(405, 430, 455),
        23,  # Midjourney relays (docs.crazyrouter.com/reference/status-codes): the queue is full.
        # MiniMax (platform.minimax.io/docs/api-reference/errorcode): limits. 1039 and 1041 were not
        # seen again.
        *(1002, 1039, 1041),
    }
)
# "never": certainly not taken, whenever it is sent.
CODES_NEVER = frozenset(
    {
        *(400, 401, 402, 403, 404, 409, 413, 415, 422, 451),  # As the HTTP statuses.
        # MiniMax, same page: the key, the balance, the input's content, the parameters. 1042 and
        # 2013 were not seen again.
        *(1004, 1008, 1026, 1042, 2013),
    }
)


def state_of(word: str | None) -> State | None:
    """Return the state that a status word means, in any case; None for an unknown word."""
    return STATE_OF_WORD.get(_plain(word)) if word else None


def may_be_of_request(word: str | None) -> bool:
    """Whether an envelope may use this word for the request as well as for the task."""
    return word is not None and _plain(word) in WORDS_OF_REQUESTS


def may_be_of_failed_request(word: str) -> bool:
    """Whether an envelope may use this word for a failed request as well as for the task."""
    return _plain(word) in _WORDS_OF_FAILED_REQUESTS


def is_of_clip(word: str | None) -> bool:
    """Whether this is a word of a clip of music, and not of a task."""
    return word is not None and _plain(word) in _WORDS_OF_CLIPS


def _plain(word: str) -> str:
    return _plain_word(word) if len(word) <= WORD_CHARS_MAX else ""


@lru_cache(maxsize=1_024)
def _plain_word(word: str) -> str:
    # Values of an enum may have its name before them: TASK_STATUS_SUCCEED, JOB_STATE_SUCCEEDED
    # (buf.build/blog/totw-3-enum-names-need-prefixes).
    return _ENUM_NAME.sub("", re.sub(r"[\s-]+", "_", word.strip().lower()))


def state_of_flag(value: Any) -> State | None:
    """Return the state that a flag means, a number or a word; None for another value."""
    if isinstance(value, str):
        return state_of(value)
    return _STATE_OF_FLAG.get(value) if type(value) is int else None


def is_trouble(code: int) -> bool:
    """Whether this code beside a task says how the poll went."""
    return code in QUESTION_TROUBLE or (500 <= code <= 599 and code not in TASK_ENDS)


def may_be_of_question(code: int | None) -> bool:
    """Whether this code beside a word of failure may say that the poll failed, or why."""
    return code is not None and (code in CODES_AGAIN or is_trouble(code))


def is_known(code: int | None) -> bool:
    """Whether a table or a range has this code. Another says nothing in a body about a task."""
    is_of_create = code in CODES_AGAIN or code in CODES_NEVER
    return code is not None and (is_of_create or is_trouble(code) or ends_task(code))


def ends_task(code: int | None) -> bool:
    """Whether this code of a body that names a task says that the task failed."""
    if code is None or code in QUESTION_TROUBLE or code in CODES_AGAIN:
        return False
    return code in TASK_ENDS or 400 <= code <= 499
