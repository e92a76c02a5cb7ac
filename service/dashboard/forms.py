"""The fields of a form that a browser posts."""

from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException

from service.dashboard.visit import Visit

FIELDS_MAX = 200


async def read_form(visit: Visit, bytes_max: int | None = None) -> dict[str, str]:
    """Return the fields of a form; several values of a name are joined by spaces.

    It has at most `bytes_max`, else GENHOOK_REQUEST_BODY_BYTES.
    """
    site = visit.site
    bytes_max = bytes_max or site.context.settings.request_body_bytes
    body = await site.read_body(site.context, visit.request, bytes_max)
    try:
        fields = parse_qsl(body.decode("ascii"), max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None
    form: dict[str, str] = {}
    for name, value in fields:
        form[name] = f"{form[name]} {value}" if name in form else value
    return form
