"""The page at /: example requests, the models, and the directives for misbehaviour."""

import textwrap

from starlette.requests import Request
from starlette.responses import PlainTextResponse

from service.sandbox import models
from service.sandbox.misbehaviour import DIRECTIVES
from service.sandbox.routes import PREFIX, base_url

DEV_KEY = "aio_dev"  # Of the sandbox that `genhook serve --dev --sandbox` runs.

_PAGE = """\
genhook sandbox: API in One on this machine. Nothing here costs anything.

This sandbox accepts {accepted_keys}.

  curl {base}/images/generations \\
    -H 'Authorization: Bearer {key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"model": "imagen4", "prompt": "A lighthouse at dusk", "callback_url": "http://127.0.0.1:3000/hooks"}}'

  curl -H 'Authorization: Bearer {key}' {base}/tasks/TASK_ID

Models (* sends callbacks, the others are polled)

{models}

Misbehaviour: write directives into the prompt, separated by commas.
"A lighthouse at dusk [sandbox: duplicate=3, late=5]"

{directives}
"""


async def show(request: Request) -> PlainTextResponse:
    """GET /: the page, as plain text."""
    sandbox = request.app.state.sandbox
    return PlainTextResponse(
        _PAGE.format(
            accepted_keys=f"only its own key ({DEV_KEY} with genhook serve --dev)"
            if sandbox.api_key
            else "any key that starts with aio_",
            key={None: "aio_sandbox", DEV_KEY: DEV_KEY}.get(sandbox.api_key, "YOUR_KEY"),
            base=base_url(request) + PREFIX,
            models="\n".join(_model_lines()),
            directives="\n".join(_directive_lines()),
        )
    )


def _model_lines() -> list[str]:
    lines = []
    for path in models.PATHS:
        names = ", ".join(model.name + "*" * model.callbacks for model in models.of_route(path))
        lines.append(f"  POST {PREFIX}{path}")
        wrapped = textwrap.wrap(names, 92, break_on_hyphens=False, break_long_words=False)
        lines += [f"    {line}" for line in wrapped]
    return lines


def _directive_lines() -> list[str]:
    return [
        f"  {name if directive.minimum is None else f'{name}=N':<16}{directive.effect}"
        for name, directive in DIRECTIVES.items()
    ]
