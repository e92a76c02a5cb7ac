"""Buttons and forms of the pages: each act is one API call, with the scope that it needs."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from service.dashboard.calls import ApiCall
from service.model.key import Scope

Form = Mapping[str, str]
ONCE_CHARACTERS_MAX = 64


class Act(NamedTuple):
    """A button or a form.

    path: where the form is posted, below /dashboard. api: the path of the call.
    read: makes the call's body from the form's fields; None for a call without one.
    warning: the text that the reader has to confirm first.
    notice: the text of the next page. result: in its place, a template that shows the answer once.
    back: the next page, below /dashboard; `{new}` is the id of the created resource.
    button_at: the page with the button, if it is not the one above `path`.
    filters: the fields of the form that the next page has in its query.
    for_operators: whether the scope `operator` suffices, as in the API.
    example: the fields of the form in the curl command that the page shows.
    """

    path: str
    scope: Scope
    label: str
    api: str
    notice: str = ""
    method: str = "POST"
    read: Callable[[Form], Any] | None = None
    warning: str = ""
    result: str = ""
    back: str = ""
    button_at: str = ""
    filters: tuple[str, ...] = ()
    for_operators: bool = False
    example: Form = MappingProxyType({})

    @property
    def name(self) -> str:
        """The act's name in a link, such as `subscribers.pause`."""
        parts = self.path.split("/")
        return f"{parts[1]}.{parts[-1]}"

    @property
    def page(self) -> str:
        """The path of the page with the button."""
        return self.button_at or self.path.rpartition("/")[0]

    def call(self, id_: str, form: Form) -> ApiCall:
        """Return the call that the act makes about `id_`."""
        body = self.read(form) if self.read else None
        return ApiCall(method=self.method, path=self.api.replace("{id}", id_), body=body)

    def target(self, id_: str, new_id: str) -> str:
        """Return the path of the next page."""
        return (self.back or self.page).replace("{id}", id_).replace("{new}", new_id)


def once_headers(form: Form) -> dict[str, str]:
    """Return the `Idempotency-Key` of a form as a header, so that two clicks create once."""
    once = form.get("once", "")
    is_valid = once.isascii() and once.isalnum() and len(once) <= ONCE_CHARACTERS_MAX
    return {"idempotency-key": f"dashboard-{once}"} if is_valid else {}


def read_time(text: str) -> str:
    """Return the value of a `datetime-local` field, which is UTC, as RFC 3339."""
    return f"{text}{':00' * (text.count(':') == 1)}Z" if text and not text.endswith("Z") else text


def _status(status: str) -> Callable[[Form], Any]:
    return lambda _form: {"status": status}


def _new_subscriber(form: Form) -> Any:
    return {
        "url": form.get("url", "").strip(),
        "event_types": form.get("event_types", "").split(),
        "description": form.get("description", "").strip(),
    }


def _new_key(form: Form) -> Any:
    tenant = form.get("tenant", "").strip()
    body = {"name": form.get("name", "").strip(), "scopes": form.get("scopes", "").split()}
    return body | ({"tenant": tenant} if tenant else {})


def _new_replay(form: Form) -> Any:
    return {
        "subscriber_id": form.get("subscriber_id", ""),
        "since": read_time(form.get("since", "")),
        "until": read_time(form.get("until", "")),
        "only": form.get("only") or "dead",
    }


_GENERATION, _SUBSCRIBER = "/v1/generations/{id}", "/v1/subscribers/{id}"
ACTS = (
    Act(
        "/generations/{id}/refresh",
        "submit",
        "Ask upstream now",
        f"{_GENERATION}/refresh",
        "Upstream was asked, if it could be. This is what is known now.",
    ),
    Act(
        "/generations/{id}/cancel",
        "submit",
        "Cancel",
        f"{_GENERATION}/cancel",
        "The generation is canceled.",
        warning="Nobody asks for the result any more. Upstream may finish it, and bill for it.",
    ),
    Act(
        "/generations/{id}/retry",
        "submit",
        "Try again",
        f"{_GENERATION}/retry",
        "This is a new generation with the same input.",
        warning="A new generation has the same input, and costs credits again.",
        back="/generations/{new}",
    ),
    Act(
        "/generations/{id}/delete",
        "manage",
        "Delete",
        _GENERATION,
        "The generation is deleted.",
        "DELETE",
        warning="Its prompt, results, events and callbacks are erased. Its usage stays.",
        back="/generations",
    ),
    Act(
        "/subscribers/create",
        "manage",
        "Create the subscriber",
        "/v1/subscribers",
        read=_new_subscriber,
        result="subscriber_created.html",
        example={"url": "https://hooks.example.com/genhook"},
    ),
    Act(
        "/subscribers/{id}/test",
        "manage",
        "Send a test",
        f"{_SUBSCRIBER}/test",
        result="test_sent.html",
    ),
    Act(
        "/subscribers/{id}/pause",
        "manage",
        "Pause",
        _SUBSCRIBER,
        "The subscriber is paused. Its deliveries wait.",
        "PATCH",
        _status("paused"),
    ),
    Act(
        "/subscribers/{id}/resume",
        "manage",
        "Resume",
        _SUBSCRIBER,
        "The subscriber is active. Its deliveries go on.",
        "PATCH",
        _status("active"),
    ),
    Act(
        "/subscribers/{id}/disable",
        "manage",
        "Disable",
        _SUBSCRIBER,
        "The subscriber is disabled. Nothing is sent to it.",
        "PATCH",
        _status("disabled"),
        warning="What is pending waits. Events make no new deliveries; a replay sends them later.",
    ),
    Act(
        "/subscribers/{id}/rotate",
        "manage",
        "Rotate the secret",
        f"{_SUBSCRIBER}/rotate-secret",
        read=lambda _form: {},
        warning="The old secret signs beside the new one for a day. Then it is gone.",
        result="secret_rotated.html",
    ),
    Act(
        "/subscribers/{id}/replace-secret",
        "manage",
        "Replace the secret",
        f"{_SUBSCRIBER}/rotate-secret",
        read=lambda _form: {"overlap_seconds": 0},
        warning="For a secret that has leaked or is lost. The old one signs nothing any more: the "
        "receiver refuses every webhook until it has the new one.",
        result="secret_rotated.html",
    ),
    Act(
        "/subscribers/{id}/delete",
        "manage",
        "Delete the subscriber",
        _SUBSCRIBER,
        "The subscriber is deleted.",
        "DELETE",
        warning="Its pending deliveries are canceled.",
        back="/subscribers",
    ),
    Act(
        "/deliveries/{id}/retry",
        "manage",
        "Try again now",
        "/v1/deliveries/{id}/retry",
        "One more attempt is due now.",
    ),
    Act(
        "/replays/create",
        "manage",
        "Replay",
        "/v1/replays",
        "The replay has begun.",
        read=_new_replay,
        back="/replays/{new}",
        button_at="/dead-letters",
    ),
    Act(
        "/replays/{id}/cancel",
        "manage",
        "Cancel the replay",
        "/v1/replays/{id}/cancel",
        "The replay is canceled.",
        warning="Deliveries that were not sent yet are canceled.",
    ),
    Act(
        "/keys/create",
        "admin",
        "Create the key",
        "/v1/keys",
        read=_new_key,
        result="key_created.html",
        for_operators=True,
        example={"name": "reader", "scopes": "read"},
    ),
    Act(
        "/keys/{id}/revoke",
        "admin",
        "Revoke",
        "/v1/keys/{id}",
        "The key is revoked.",
        "DELETE",
        warning="Who uses it is refused from now on.",
        button_at="/keys",
        filters=("tenant",),
        for_operators=True,
    ),
)
