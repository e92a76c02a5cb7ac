"""The OpenAPI document, and a page that shows it with Swagger UI.

Swagger UI is in swagger_ui/. The page has relative links only: a proxy may add a path before them.
"""

import asyncio
from pathlib import Path

from service.api.call import Answer, Call
from service.api.problem import not_found

FOLDER = Path(__file__).with_name("swagger_ui")
MEDIA_TYPES = {
    "start.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
# No file of another host, nothing inline. The style sheet's icons are data URIs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def document() -> bytes:
    """Read openapi.yaml, from the package or the checkout."""
    packaged = Path(__file__).parents[1] / "openapi.yaml"
    return (packaged if packaged.exists() else packaged.parents[1] / "openapi.yaml").read_bytes()


async def get_document(_call: Call) -> Answer:
    """GET /openapi.yaml."""
    return Answer(document(), media_type="application/yaml")


async def get(_call: Call) -> Answer:
    """GET /docs."""
    headers = {"content-security-policy": POLICY}
    return Answer((FOLDER / "index.html").read_bytes(), 200, headers, "text/html; charset=utf-8")


async def get_file(call: Call) -> Answer:
    """GET /docs/{file}: a script or the style sheet of the page."""
    name = call.path["file"]
    if name not in MEDIA_TYPES:
        raise not_found("file")
    body = await asyncio.to_thread((FOLDER / name).read_bytes)
    return Answer(body, 200, {"cache-control": "max-age=3600"}, MEDIA_TYPES[name])
