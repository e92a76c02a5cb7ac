"""The JSON that upstream sends, with its irregularities, such as `msg` and `taskId` of covers."""

from typing import Any

from service.model import clock
from service.sandbox import models
from service.sandbox.parameters import credits_of
from service.sandbox.tasks import COMPLETED, FAILED, RUNNING, Task

Json = dict[str, Any]

_KINDS = {"png": "image", "svg": "image", "gif": "video", "wav": "audio"}
_ERROR_TYPES = {
    401: "authentication_error",
    402: "insufficient_credits",
    404: "not_found",
    429: "rate_limit_error",
}
_FAILURE = "the sandbox was asked to fail"


def envelope(data: Json | None, *, code: int = 200, message: str = "success") -> Json:
    """Return the envelope of an answer that is no HTTP error."""
    return {"code": code, "message": message, "data": data}


def error(status_code: int, message: str) -> Json:
    """Return the body of an HTTP error."""
    kind = "server_error" if status_code >= 500 else "bad_request"
    return {
        "error": {
            "code": status_code,
            "message": message,
            "type": _ERROR_TYPES.get(status_code, kind),
        }
    }


def create_answer(task: Task) -> Json:
    """Return the answer to a create request; some routes spell `task_id` differently."""
    if task.misbehaviour.sync:
        answer = report(task)
        del answer["data"]["task_id"]
        return answer
    if task.model.path == models.COVER:
        return {"code": 200, "msg": "success", "data": {"taskId": task.id}}
    if task.model.path == models.UPLOAD_COVER:
        return envelope({"task_id": task.id})
    return envelope({"task_id": task.id, "status": RUNNING})


def report(task: Task, word: str | None = None) -> Json:
    """Return the body of a poll's answer or of a callback; `word` replaces the true status."""
    data: Json = {
        "task_id": task.id,
        "model": task.model.name,
        "status": word or task.status,
        "created_at": clock.rfc3339(task.created_at),
    }
    if word is None and task.status == COMPLETED:
        data |= {
            "credits": credits_of(task.model, task.body),
            "output": output(task, task.file_urls),
        }
    if word is None and task.status == FAILED:
        data |= {"credits": 0, "error": {"code": "generation_failed", "message": _FAILURE}}
    if word is None and task.completed_at is not None:
        data["completed_at"] = clock.rfc3339(task.completed_at)
    return envelope(data)


def partial_callback(task: Task) -> Json:
    """Return a callback with the first result of a running task."""
    answer = report(task, "processing")
    answer["data"]["output"] = output(task, task.file_urls[:1])
    return answer


def forged_callback(task: Task) -> Json:
    """Return a callback with a false result."""
    answer = report(task, COMPLETED)
    answer["data"]["output"] = output(task, [f"https://evil.example/1.{task.model.extension}"])
    answer["data"]["credits"] = 0
    return answer


def output(task: Task, urls: list[str]) -> Json:
    """Return result URLs under the key for their kind of file."""
    kind = _KINDS[task.model.extension]
    is_list = kind == "image" or len(urls) > 1
    return {f"{kind}_urls": urls} if is_list else {f"{kind}_url": urls[0]}


def feed(task: Task, word: str | None = None) -> Json:
    """Return the songs of a task. `type` is SUCCESS from the start; the clips have the status."""
    clip_status = {COMPLETED: "complete", FAILED: "error"}.get(task.status, "text")
    clips = [
        {
            "id": f"{task.id}-{number}",
            "status": word or clip_status,
            "audio_url": url if clip_status == "complete" else "",
            "image_url": "",
            "title": task.body.get("title", ""),
            "duration": 2.0 if clip_status == "complete" else "",
            "model_name": task.model.name,
            "error_message": _FAILURE if clip_status == "error" else None,
        }
        for number, url in enumerate(task.file_urls, 1)
    ]
    request_body = {field: value for field, value in task.body.items() if field != "callback_url"}
    return envelope(
        {
            "type": word or ("FAILED" if task.status == FAILED else "SUCCESS"),
            "request_body": request_body,
            "response_data": clips,
            "created_at": clock.rfc3339(task.created_at),
        }
    )


def cover(task: Task, word: str | None = None) -> Json:
    """Return the pictures for a song."""
    word = word or {COMPLETED: "SUCCESS", FAILED: "FAILED"}.get(task.status, RUNNING)
    data = {
        "taskId": task.id,
        "status": word,
        "images": task.file_urls if word == "SUCCESS" else [],
        "created_at": clock.rfc3339(task.created_at),
    }
    return {"code": 200, "msg": "success", "data": data}


def lyrics(words: list[str]) -> Json:
    """Return the start and end of each word; each lasts half a second."""
    entries = [
        {"word": word, "start_s": n * 0.5, "end_s": n * 0.5 + 0.5} for n, word in enumerate(words)
    ]
    return envelope({"aligned_words": entries, "credits": 2})
