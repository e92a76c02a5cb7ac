"""The fields of a form that a browser posts."""

import asyncio
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException

from service.dashboard.visit import Visit

FIELDS_MAX = 200


async def read_form(visit: Visit) -> dict[str, str]:
    """Return the fields of a form; several values of a name are joined by spaces."""
    settings, body = visit.site.context.settings, b""
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for part in visit.request.stream():
                body += part
                if len(body) > settings.request_body_bytes:
                    raise HTTPException(413, "The form is too large.")
    except TimeoutError:
        raise HTTPException(408, "The form did not arrive in time.") from None
    try:
        fields = parse_qsl(body.decode("ascii"), max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None
    form: dict[str, str] = {}
    for name, value in fields:
        form[name] = f"{form[name]} {value}" if name in form else value
    return form
