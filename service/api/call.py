"""An API call, the worker of its process, and answers in JSON."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive

from service.api.field_errors import field_errors
from service.api.problem import PROBLEM_TYPE, FieldError, Problem, not_found
from service.context import Context
from service.delivery.dispatch import Dispatcher
from service.generations.poll import Poller
from service.generations.submit import Submitter
from service.model import json_input
from service.model.delivery import Delivery
from service.model.event import Event
from service.model.generation import Generation
from service.model.key import TENANT_NAME, TENANT_NAME_RULE, Key
from service.model.replay import Replay
from service.model.subscriber import Subscriber
from service.store import pages, rows
from service.store.database import Ownership, Transaction, Unit
from service.store.pages import Page, Rows, Source
from service.store.writes import Database

T = TypeVar("T")
BodyT = TypeVar("BodyT", bound=msgspec.Struct)
# The nouns that belong to a tenant.
OwnedT = TypeVar("OwnedT", Delivery, Event, Generation, Key, Replay, Subscriber)
Answer = Response  # What operations return.
LIMIT_DEFAULT, LIMIT_MAX = 50, 250
AFTER_RULE = "must be the `next` of an earlier page"
PAGING = frozenset({"limit", "after", "order"})
ID = "_[0-9a-f]{32}"  # What follows the prefix of an id.

_INTEGER = re.compile(r"0|[1-9][0-9]{0,8}")


class Worker(Protocol):
    """The worker of a started process, as far as the API uses it."""

    context: Context
    submitter: Submitter
    poller: Poller

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher of this process; it has no lanes while another process works."""

    @property
    def ownership(self) -> Ownership:
        """The right to work, with the shards that this process holds."""

    @property
    def is_off(self) -> bool:
        """True if its loops were not started."""

    @property
    def problem(self) -> str | None:
        """Why the loops that were started do not run, as a sentence; or None."""

    async def drive(self, generation_id: str) -> None:
        """With GENHOOK_WORKER=off, do the work that a request made due; nothing is raised."""

    async def tick(self, seconds: float) -> Any:
        """Do due work for up to `seconds`; return the counts of rows."""


class Claim(NamedTuple):
    """An idempotency key that a request claims, and the SHA-256 of the operation and the body."""

    key: str
    request_sha256: bytes


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated request.

    resource_id: the id of what the call creates; empty if it creates nothing.
    claim: its `Idempotency-Key`, which is stored with what it creates.
    """

    worker: Worker
    context: Context
    database: Database
    key: Key
    tenant: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Headers
    body: bytes
    request_id: str
    receive: Receive  # After the body, it returns only that the client hung up.
    resource_id: str = ""
    claim: Claim | None = None

    def decode(self, type_: type[BodyT], *, empty: bytes = b"") -> BodyT:
        """Decode the body, else `empty`.

        Problem 400 if it is not JSON or gives a name twice, 422 for a wrong field or too many
        values.
        """
        body, document = self.body or empty, None
        try:
            with contextlib.suppress(msgspec.ValidationError):  # The next line names its field.
                document = json_input.decode(body)
            return msgspec.json.decode(body, type=type_)
        except json_input.ManyValuesError as error:
            raise _wrong_fields([FieldError("", str(error))]) from None
        except json_input.RepeatedNameError as error:
            name = msgspec.json.encode(str(error)[:64]).decode()
            detail = f"An object of the body gives {name} twice: give each name once."
            raise Problem(400, "invalid_json", detail) from None
        except msgspec.ValidationError as error:
            raise _wrong_fields(field_errors(str(error), document, type_)) from None
        except (ValueError, RecursionError) as error:
            raise _no_json(body, error) from None

    def page(self, prefix: str) -> Page:
        """Read `limit`, `after` and `order` of the query; Problem 400 if one is wrong."""
        return Page(
            limit=self.query_limit(),
            ascending=self.query_choice("order", ("asc", "desc")) == "asc",
            after=self.query_text("after", prefix + ID, AFTER_RULE),
        )

    def query_limit(self) -> int:
        """Read `limit` of the query; Problem 400 if it is wrong."""
        return self.query_integer("limit", LIMIT_DEFAULT, 1, LIMIT_MAX)

    def query_text(self, name: str, pattern: str, rule: str) -> str | None:
        """Read a text from the query; Problem 400 with the rule unless it matches the pattern."""
        text = self.query.get(name)
        if text is not None and not re.fullmatch(pattern, text):
            raise bad_query(name, rule)
        return text

    def query_id(self, name: str, prefix: str) -> str | None:
        """Read an id from the query; Problem 400 unless it is one with this prefix."""
        rule = f"must be an id, {prefix}_ and 32 hexadecimal digits"
        return self.query_text(name, prefix + ID, rule)

    def query_choice(self, name: str, choices: Sequence[str]) -> str | None:
        """Read a value from the query; Problem 400 unless it is one of `choices`."""
        pattern = "|".join(map(re.escape, choices))
        return self.query_text(name, pattern, f"must be one of: {', '.join(choices)}")

    def query_tenant(self) -> str:
        """Read `tenant` from the query, else the key's; Problem 403 if the key may not see it."""
        tenant = self.query_text("tenant", TENANT_NAME.pattern, f"must be {TENANT_NAME_RULE}")
        if tenant not in (None, self.tenant) and not self.key.has("operator"):
            detail = "Only a key with the scope operator sees other tenants."
            raise Problem(403, "forbidden", detail)
        return tenant or self.tenant

    def query_integer(self, name: str, default: int, low: int, high: int) -> int:
        """Read an integer from the query; Problem 400 unless it is from `low` to `high`."""
        text = self.query.get(name, str(default))
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise bad_query(name, f"must be a whole number from {low} to {high}")
        return int(text)

    def query_value(self, name: str, parse: Callable[[str], T], rule: str) -> T | None:
        """Read a value from the query; Problem 400 with the rule if `parse` raises ValueError."""
        try:
            return parse(self.query[name]) if name in self.query else None
        except (ValueError, OverflowError):
            raise bad_query(name, rule) from None


def _wrong_fields(errors: Sequence[FieldError]) -> Problem:
    return Problem(422, "invalid_request", "The request has wrong fields.", errors)


def answer(content: Any, status: int = 200) -> Answer:
    """Return an answer in JSON."""
    return Answer(msgspec.json.encode(content), status, media_type="application/json")


def answer_list(views: Sequence[Any], after: str | None = None) -> Answer:
    """Return a page of a list, and the cursor of the next one."""
    return answer({"data": views, "next": after})


async def answer_page(
    call: Call,
    prefix: str,
    noun: type[Any],
    read: Unit[Rows],
    *filters: object,
    tenant: str | None = None,
) -> Answer:
    """Return the page of a list that the query asks for; its ids start with `prefix`.

    `read(tx, page, tenant, *filters)` returns its rows, each of which decodes to a `noun`. They are
    those of `tenant`, by default the caller's, who waits for searches of its own tenant only.
    """
    page_rows, after = await call.database.search(
        call.tenant, read, call.page(prefix), tenant or call.tenant, *filters
    )
    return answer_list(rows.view_rows(noun, page_rows), after)


async def get_own(
    tx: Transaction, call: Call, noun: type[OwnedT], id_: str | None = None
) -> OwnedT:
    """Return the tenant's noun with this id, by default the path's; Problem 404 without one."""
    id_ = call.path["id"] if id_ is None else id_
    resource = await rows.read_by_id(tx, noun, id_, call.tenant)
    return _require_own(call, noun, resource)


async def lock_own(tx: Transaction, call: Call, noun: type[OwnedT]) -> OwnedT:
    """Like `get_own`, and lock the row, as whoever changes it must."""
    return _require_own(call, noun, await rows.lock_by_id(tx, noun, call.path["id"], call.tenant))


def _require_own(call: Call, noun: type[OwnedT], resource: OwnedT | None) -> OwnedT:
    if resource is None or resource.tenant != call.tenant:
        raise not_found(noun.__name__.lower())
    return resource


async def read_own_page(tx: Transaction, page: Page, tenant: str, source: Source) -> Rows:
    """Return a page of the tenant's rows of a source, without a filter."""
    return await pages.read(tx, source, page, {"tenant": tenant})


def read_header(headers: Headers, name: str) -> str | None:
    """Return a header's value, None without it; Problem 400 if it was sent more than once."""
    values = headers.getlist(name)
    if len(values) > 1:  # A proxy may have used another of the values.
        raise Problem(400, "invalid_header", f"{name} was sent more than once.")
    return values[0] if values else None


def answer_problem(problem: Problem, request_id: str) -> Answer:
    """Return a problem as an answer."""
    return Answer(problem.body(request_id), problem.status, problem.headers, PROBLEM_TYPE)


def bad_query(name: str, message: str) -> Problem:
    """400: a query parameter is wrong or unknown."""
    error = FieldError(f"?{name}", message)
    return Problem(400, "invalid_query", f"The query parameter {name} {message}.", (error,))


def _no_json(body: bytes, error: Exception) -> Problem:
    r"""400: the body is not JSON. msgspec calls an empty body and a `\ud800` "truncated"."""
    detail = f"The body is not JSON: {error}"
    if not body.strip():
        detail = "A body is needed: a JSON object."
    elif _has_lone_surrogate(body):
        detail = (
            "A text of the body has half of a surrogate pair, of \\ud800 to \\udfff: "
            "no character is that, and UTF-8 cannot hold it."
        )
    return Problem(400, "invalid_json", detail)


def _has_lone_surrogate(body: bytes) -> bool:
    try:  # The standard library decodes them, unlike msgspec.
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):  # No JSON, or too deep.
        return False
    return False
