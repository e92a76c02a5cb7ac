"""Serves result files; each is drawn when it is first requested."""

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
FILES_CACHED = 64


async def show(request: Request) -> Response:
    """GET /files/{task_id}/{number}.{extension}: needs no key, as at upstream."""
    task = request.app.state.sandbox.tasks.get(request.path_params["task_id"])
    number, extension = request.path_params["number"], request.path_params["extension"]
    if task is None or extension != task.model.extension:
        raise HTTPException(404, "no such file")
    if not 1 <= number <= count_of(task.model, task.body):
        raise HTTPException(404, "no such file")
    try:
        content = await asyncio.to_thread(draw, extension, scene_of(task, number))
    except ImportError as error:
        raise HTTPException(501, "pictures need Pillow: pip install 'genhook[demo]'") from error
    return Response(content, media_type=MEDIA_TYPES[extension])


def scene_of(task: Task, number: int) -> Scene:
    """Return the scene of file `number` of a task."""
    width, height = size_of(task.body)
    seed = task.body.get("seed") or 0
    return Scene(task.prompt, seed, task.model.name, number, width, height)


@functools.lru_cache(maxsize=FILES_CACHED)
def draw(extension: str, scene: Scene) -> bytes:
    """Draw a file; ImportError for a picture if Pillow is not installed."""
    if extension == "wav":
        return sounds.wav(scene)
    from service.sandbox import pictures  # noqa: PLC0415  Pillow is imported for pictures only

    return {"png": pictures.png, "svg": pictures.svg, "gif": pictures.gif}[extension](scene)
