"""Result files, drawn when somebody reads them and kept for a while."""

import asyncio
import functools

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.sandbox import sounds
from service.sandbox.parameters import count_of, size_of
from service.sandbox.scene import Scene
from service.sandbox.tasks import Task

MEDIA_TYPES = {"png": "image/png", "svg": "image/svg+xml", "gif": "image/gif", "wav": "audio/wav"}
FILES_KEPT = 64


async def show(request: Request) -> Response:
    """GET /files/{task_id}/{n}.{makes}: no key is asked for, as for any link upstream gives out."""
    task = request.app.state.sandbox.tasks.get(request.path_params["task_id"])
    number, makes = request.path_params["number"], request.path_params["makes"]
    if task is None or makes != task.model.makes:
        raise HTTPException(404, "no such file")
    if not 1 <= number <= count_of(task.model, task.body):
        raise HTTPException(404, "no such file")
    try:
        content = await asyncio.to_thread(draw, makes, scene_of(task, number))
    except ImportError as error:
        raise HTTPException(501, "pictures need Pillow: pip install 'genhook[demo]'") from error
    return Response(content, media_type=MEDIA_TYPES[makes])


def scene_of(task: Task, number: int) -> Scene:
    """What file `number` of a task shows: a matter of prompt, seed, model and size alone."""
    width, height = size_of(task.body)
    seed = task.body.get("seed") or 0
    return Scene(task.prompt, seed, task.model.value, number, width, height)


@functools.lru_cache(maxsize=FILES_KEPT)
def draw(makes: str, scene: Scene) -> bytes:
    """The bytes of a file; ImportError if it is a picture and Pillow is not installed."""
    if makes == "wav":
        return sounds.wav(scene)
    from service.sandbox import pictures  # noqa: PLC0415  Pillow is loaded when a picture is drawn

    return {"png": pictures.png, "svg": pictures.svg, "gif": pictures.gif}[makes](scene)
