"""Hang-ups: an application receives that its client sends no more.

When a client closes its connection, TCP says only that it sends no more, as it does of one that
closed its sending half and still reads. Most have gone, so who waits for a hang-up is told of both;
the answer then goes to who still reads. Such an answer is no stream: Starlette would end that.
"""

from collections.abc import Callable
from typing import Any


async def serve(
    app: Any, is_half_closed: Callable[[], bool], scope: Any, receive: Any, send: Any
) -> None:
    """Run an ASGI application; after the whole body, it receives a half-close as a disconnect.

    What it waits for has to end when the connection is half closed, with any message.
    """
    is_read = False

    async def receive_next() -> Any:
        nonlocal is_read
        if not (is_read and is_half_closed()):
            message = await receive()
            if not (is_read and is_half_closed()):
                is_read = not message.get("more_body")
                return message
        return {"type": "http.disconnect"}

    await app(scope, receive_next, send)
