"""The fields of a form that a browser posts."""

import binascii
import re
from collections.abc import Sequence

from starlette.exceptions import HTTPException

from service.dashboard.visit import Visit

FIELDS_MAX = 200
_WRONG_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


async def read_form(visit: Visit, bytes_max: int | None = None) -> dict[str, str]:
    """Return the fields of a form; several values of a name are joined by spaces.

    Its body has at most `bytes_max` bytes, by default GENHOOK_REQUEST_BODY_BYTES.
    """
    site = visit.site
    bytes_max = bytes_max or site.context.settings.request_body_bytes
    body = await site.read_body(site.context, visit.request, bytes_max)
    try:
        fields = _parse(body)
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None
    form: dict[str, str] = {}
    for name, value in fields:
        form[name] = f"{form[name]} {value}" if name in form else value
    return form


def _parse(body: bytes) -> Sequence[tuple[str, str]]:
    """Return the fields of a form that have a value; ValueError if the body is no form."""
    if body.count(b"&") >= FIELDS_MAX or not body.isascii() or _WRONG_ESCAPE.search(body):
        raise ValueError("no form")
    pairs = (field.partition(b"=") for field in body.split(b"&"))
    return [(_unescape(name), _unescape(value)) for name, _, value in pairs if value]


def _unescape(text: bytes) -> str:
    """Undo the escapes of a form.

    Quoted-printable has the same ones, but with `=`, and is decoded in C: `urllib.parse` takes a
    quarter of a second for 1 MiB of escapes, on the event loop.
    """
    text = text.replace(b"+", b" ").replace(b"=", b"=3D").replace(b"%", b"=")
    return binascii.a2b_qp(text).decode()
