"""The commands that make one call of a running service's API or a few."""

import argparse
from typing import Any, get_args

import msgspec

from service.cli import answers, output
from service.cli.arguments import (
    Echo,
    add_command,
    add_group,
    add_json,
    check,
    parse_id,
    parse_whole,
    split_commas,
)
from service.cli.calls import ask, call, connect, not_genhook
from service.model.event import EVENT_TYPES
from service.model.generation import OPEN, GenerationStatus

WAIT_SECONDS = 30
NO_CONTENT = 204


# Options


def add_subscribers(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `genhook subscribers`."""
    group = add_group(parser)
    example = "sub_01a1f83ac6f470008f5b21d7c0e394a6"
    listing = add_command(
        group, "list", "list subscribers", list_subscribers, "genhook subscribers list"
    )
    add_paging(listing)
    create = add_command(
        group,
        "create",
        "create a subscriber: a URL that receives events",
        create_subscriber,
        "genhook subscribers create https://shop.example/hooks --event-types generation.succeeded",
    )
    create.add_argument("target", metavar="URL", help="the URL that receives events")
    add_event_types(create)
    test = add_command(
        group,
        "test",
        "send a ping and show the answer",
        test_subscriber,
        f"genhook subscribers test {example}",
    )
    delete = add_command(
        group,
        "delete",
        "delete a subscriber",
        delete_subscriber,
        f"genhook subscribers delete {example}",
    )
    for command in (test, delete):
        command.add_argument("id", type=parse_id, metavar="ID")
    for command in (listing, create, test, delete):
        add_remote(command)


def add_generations(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `genhook generations`."""
    group = add_group(parser)
    example = "gen_01a1f83ac6f470008f5b21d7c0e394a6"
    get = add_command(
        group, "get", "show a generation", get_generation, f"genhook generations get {example}"
    )
    timeline = add_command(
        group,
        "timeline",
        "show the steps of a generation, with their times",
        show_timeline,
        f"genhook generations timeline {example}",
    )
    for command in (get, timeline):
        command.add_argument("id", type=parse_id, metavar="ID")
    for command in (_add_create(group), get, _add_list(group), timeline):
        add_remote(command)


def _add_create(group: Any) -> argparse.ArgumentParser:
    create = add_command(
        group,
        "create",
        "create a generation",
        create_generation,
        "genhook generations create --model imagen4-fast --prompt 'A lighthouse at dusk' --wait",
    )
    create.add_argument("--model", required=True, help="the model's id in the catalogue")
    create.add_argument("--prompt", help="the model's parameter `prompt`")
    create.add_argument(
        "--input",
        type=parse_parameters,
        metavar="JSON",
        help="the model's parameters, as a JSON object",
    )
    create.add_argument(
        "--wait", action="store_true", help="wait until the generation has an outcome"
    )
    return create


def _add_list(group: Any) -> argparse.ArgumentParser:
    listing = add_command(
        group,
        "list",
        "list generations",
        list_generations,
        "genhook generations list --status failed",
    )
    listing.add_argument(
        "--status", choices=get_args(GenerationStatus), help="only those with this status"
    )
    add_paging(listing)
    return listing


def add_remote(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the service and the key."""
    parser.add_argument(
        "--url",
        metavar="SERVICE",
        help="URL of the service (GENHOOK_URL, GENHOOK_PUBLIC_URL, or this machine and PORT)",
    )
    parser.add_argument("--key", help="an API key (GENHOOK_API_KEY, GENHOOK_ADMIN_KEY)")
    add_json(parser)


def add_paging(parser: argparse.ArgumentParser) -> None:
    """Add the options of a list."""
    parser.add_argument("--limit", type=parse_whole, help="list at most this many (50)")
    parser.add_argument("--after", metavar="ID", help="list only what is older than this id")


def add_event_types(parser: argparse.ArgumentParser) -> None:
    """Add `--event-types`."""
    summary = f"one or more of {', '.join(EVENT_TYPES)}, separated by commas (all of them)"
    parser.add_argument(
        "--event-types", type=split_commas, default=[], metavar="TYPES", help=summary
    )


def parse_parameters(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):  # No JSON, no UTF-8, or nested too deeply.
        value = None
    check(isinstance(value, dict), "a JSON object, such as '{\"num_images\": 2}'")
    return dict(value)


# Commands


def show(options: argparse.Namespace, echo: Echo, answer: Any, lines: list[str]) -> None:
    """Print the answer as JSON with `--json`, else the lines."""
    if options.json:
        echo(output.json_line(answer))
        return
    for line in lines:
        echo(line)


def _show_page(options: argparse.Namespace, echo: Echo, page: Any, names: tuple[str, ...]) -> int:
    rows = [[_to_cell(item[name]) for name in names] for item in page["data"]]
    more = [f"more: --after {output.plain(page['next'])}"] if page["next"] else []
    show(options, echo, page, [*output.table(rows), *more] or ["There are none."])
    return 0


def _to_cell(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _read_paging(options: argparse.Namespace) -> dict[str, Any]:
    query = {"limit": options.limit, "after": options.after}
    return {name: value for name, value in query.items() if value is not None}


def list_subscribers(options: argparse.Namespace, echo: Echo) -> int:
    """List subscribers, newest first."""
    with connect(options) as client:
        page = ask(
            client, "GET", "/v1/subscribers", answers.SubscriberPage, params=_read_paging(options)
        )
    return _show_page(options, echo, page, ("id", "status", "url", "event_types", "description"))


def create_subscriber(options: argparse.Namespace, echo: Echo) -> int:
    """Create a subscriber and show its secret, only this once."""
    body = {"url": options.target, "event_types": options.event_types}
    with connect(options) as client:
        subscriber = ask(client, "POST", "/v1/subscribers", answers.NewSubscriber, json=body)
    names = ("id", "url", "event_types", "status", "secret")
    lines = output.fields({name: _to_cell(subscriber[name]) for name in names})
    show(options, echo, subscriber, lines)
    return 0


def test_subscriber(options: argparse.Namespace, echo: Echo) -> int:
    """Send a `ping` now; 1 unless the subscriber answers 2xx."""
    with connect(options) as client:
        answer = ask(client, "POST", f"/v1/subscribers/{options.id}/test", answers.Test)
    attempt = answer["attempt"]
    error = (attempt["error"] or {}).get("message")
    result = output.plain(error or f"It answered {attempt['status_code']}").rstrip(".")
    show(options, echo, answer, [f"{result}, in {attempt['duration_ms']} ms."])
    return 0 if 200 <= (attempt["status_code"] or 0) <= 299 else 1


def delete_subscriber(options: argparse.Namespace, echo: Echo) -> int:
    """Delete a subscriber; its pending deliveries are canceled."""
    with connect(options) as client:
        if call(client, "DELETE", f"/v1/subscribers/{options.id}").status_code != NO_CONTENT:
            raise not_genhook(client)
    show(options, echo, {"id": options.id, "deleted": True}, [f"{options.id} is deleted."])
    return 0


def create_generation(options: argparse.Namespace, echo: Echo) -> int:
    """Create a generation; with `--wait`, 1 unless it succeeds."""
    values = dict(options.input or {})
    if options.prompt is not None:
        values["prompt"] = options.prompt
    body = {"model": options.model, "input": values}
    with connect(options) as client:
        generation = ask(client, "POST", "/v1/generations", answers.Generation, json=body)
        path = f"/v1/generations/{generation['id']}"
        while options.wait and generation["status"] in OPEN:
            generation = ask(client, "GET", path, answers.Generation, params={"wait": WAIT_SECONDS})
    show(options, echo, generation, output.generation(generation))
    return 1 if generation["status"] in ("failed", "timed_out") else 0


def get_generation(options: argparse.Namespace, echo: Echo) -> int:
    """Show a generation."""
    with connect(options) as client:
        generation = ask(client, "GET", f"/v1/generations/{options.id}", answers.Generation)
    show(options, echo, generation, output.generation(generation))
    return 0


def list_generations(options: argparse.Namespace, echo: Echo) -> int:
    """List generations, newest first."""
    query = _read_paging(options) | ({"status": options.status} if options.status else {})
    with connect(options) as client:
        page = ask(client, "GET", "/v1/generations", answers.GenerationPage, params=query)
    return _show_page(options, echo, page, ("id", "status", "model", "route", "created_at"))


def show_timeline(options: argparse.Namespace, echo: Echo) -> int:
    """Show what happened to a generation, in order."""
    with connect(options) as client:
        timeline = ask(client, "GET", f"/v1/generations/{options.id}/timeline", answers.Timeline)
    entries = timeline["data"]
    lines = [output.entry(entry, entries[0]["at"]) for entry in entries]
    show(options, echo, timeline, lines)
    return 0
