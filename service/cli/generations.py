"""`genhook generations`: create them, look at them, end them, save their files."""

import argparse
import secrets
import shlex
from typing import TYPE_CHECKING, Any, get_args

from service.cli import answers, calls, client, nouns, output, saving, streams
from service.cli.arguments import parse_json_object, parse_size
from service.cli.command import IDEMPOTENCY, Argument, Command, argument, pairs
from service.model.errors import CommandError, UsageError
from service.model.generation import OPEN, GenerationStatus

if TYPE_CHECKING:
    import httpx

WAIT_SECONDS = 25  # Some routers, such as those of Heroku and AWS, end a request after 30 or 29 s.
SUBMIT_SECONDS = 10.0  # The service's own default, GENHOOK_SUBMIT_WAIT_SECONDS.
LOOK_SECONDS = 0.1


def create(command: Command, options: argparse.Namespace) -> int:
    """Create a generation, or request one again; 1 if it has failed by the end."""
    if options.argument_no_wait and (options.argument_wait or options.argument_save is not None):
        raise UsageError("--no-wait goes neither with --wait nor with --save: leave one out.")
    # The service then answers with the id before upstream has answered.
    more: dict[str, Any] = {"headers": {"Prefer": "respond-async"}}
    _check_saving(options)
    if command.path == nouns.GENERATION.path:  # A retry sends nothing: the request is stored.
        more["json"] = client.values_of(command, options, "body") | {"input": _input_of(options)}
    if options.argument_save is not None:
        saving.prepare(options.argument_save)  # Before something is paid for.
        command = command._replace(lost=_lost_files(options.argument_save))
    with calls.connect(options) as connection:
        generation = _request(connection, command, options, more)
        seconds = 0.0 if options.argument_no_wait else SUBMIT_SECONDS
        return _follow(connection, options, generation, submit_seconds=seconds)


def _request(
    connection: "httpx.Client", command: Command, options: argparse.Namespace, more: dict[str, Any]
) -> Any:
    """Send a request that upstream may bill, with an idempotency key, since its answer may be lost.

    The error then names the key, with which a repeat of the command pays only once.
    """
    key = options.argument_idempotency_key or secrets.token_hex(16)
    options.argument_idempotency_key = key
    repeat = f"In any case repeat it with --idempotency-key {key}, to pay once."
    try:
        return client.send(connection, command, options, **more)
    except calls.UnsentError:
        raise
    except calls.UnreachableError as error:
        raise calls.UnreachableError(f"{str(error).rstrip('.')}. {repeat}") from error
    except KeyboardInterrupt:
        streams.note(f"genhook: interrupted. {repeat}")
        raise


def _lost_files(folder: str) -> str:
    """Say what saves the files that a command was to save, also if the result is not there yet."""
    word = shlex.quote(folder).replace("{", "{{").replace("}", "}}")
    return f"genhook generations get {{id}} --save {word} shows it and saves its files."


def _input_of(options: argparse.Namespace) -> dict[str, Any]:
    values, prompt = dict(options.argument_input or {}), options.argument_prompt
    if prompt is not None and values.setdefault("prompt", prompt) != prompt:
        raise UsageError("--prompt and --input give different values for prompt: give one.")
    return values


def get(command: Command, options: argparse.Namespace) -> int:
    """Show a generation; with `--wait` or `--save`, 1 unless it succeeds."""
    _check_saving(options)
    with calls.connect(options) as connection:
        generation = client.send(connection, command, options)
        return _follow(connection, options, generation)


def _check_saving(options: argparse.Namespace) -> None:
    if options.argument_max_bytes is not None and options.argument_save is None:
        raise UsageError("--max-bytes limits what --save saves: give --save, too.")


def _follow(
    connection: "httpx.Client",
    options: argparse.Namespace,
    generation: Any,
    *,
    submit_seconds: float | None = None,
) -> int:
    """Show a generation, after waiting and saving its files if the options want that.

    The id of an open generation is printed first: it may be billed already, whatever ends the wait.

    submit_seconds: how long to wait until upstream takes a new generation; None if it is not new.
    """
    folder = options.argument_save
    waits = options.argument_wait or folder is not None
    is_open = generation["status"] in OPEN
    begun = output.generation(generation)[:1] if is_open and (waits or submit_seconds) else []
    for line in begun:
        (streams.note if options.json else streams.echo)(line)
    if waits:
        generation = _wait(connection, generation)
    elif submit_seconds:
        generation = _wait_for_upstream(connection, generation, submit_seconds)
    output.show(options, generation, output.generation(generation)[len(begun) :])
    status, is_saved = generation["status"], True
    if folder is not None and status == "succeeded":
        is_saved = _save(generation, folder, options)
    has_failed = (waits or submit_seconds is not None) and status not in (*OPEN, "succeeded")
    return 1 if has_failed or not is_saved else 0


def _wait(connection: "httpx.Client", generation: Any) -> Any:
    while generation["status"] in OPEN:
        generation = _look(connection, generation, query={"wait": WAIT_SECONDS})
    return generation


def _wait_for_upstream(
    connection: "httpx.Client", generation: Any, seconds: float, wait: calls.Wait = calls.pause
) -> Any:
    """Return the generation once upstream has answered, or as it is after so many seconds."""
    for _ in range(round(seconds / LOOK_SECONDS)):
        if generation["status"] != "queued":
            break
        wait(LOOK_SECONDS)
        generation = _look(connection, generation, wait)
    return generation


def _look(
    connection: "httpx.Client",
    generation: Any,
    wait: calls.Wait = calls.pause,
    query: dict[str, int] | None = None,
) -> Any:
    """Return the generation as it is now, as `calls.ask_again` does."""
    get = f"genhook generations get {output.plain(generation['id'])} --wait"
    goes_on = f"The generation goes on: to look at it, run {get}."
    path = f"{nouns.GENERATION.path}/{generation['id']}"
    return calls.ask_again(connection, path, answers.Generation, goes_on, wait, query)


def list_(command: Command, options: argparse.Namespace) -> int:
    """List generations; each pair of `--metadata` is a filter of its own."""
    query = client.values_of(command, options, "query")
    pairs_ = _WITH_METADATA.value_of(options) or {}
    query |= {f"metadata.{name}": value for name, value in pairs_.items()}
    client.show_answer(command, options, client.fetch(command, options, params=query))
    return 0


def _format_timeline(timeline: Any) -> list[str]:
    entries = timeline["data"]
    return [output.entry(entry, entries[0]["at"]) for entry in entries]


def save(command: Command, options: argparse.Namespace) -> int:
    """Save the files of a result; 1 if one cannot be saved, or if there is no result."""
    generation = client.fetch(command, options)
    if generation["status"] != "succeeded":
        state = f"{output.plain(generation['id'])} is {output.plain(generation['status'])}"
        raise CommandError(f"{state}: it has no files.")
    is_saved = _save(generation, options.argument_directory, options)
    output.show(options, generation, [])
    return 0 if is_saved else 1


def _save(generation: Any, folder: str, options: argparse.Namespace) -> bool:
    note = streams.note if options.json else streams.echo
    bytes_max = options.argument_max_bytes or saving.FILE_BYTES_MAX
    return saving.save(generation, folder, note, bytes_max)


_NO_WAIT = argument(
    *("own", "--no-wait", "do not wait until upstream takes the generation"), action="store_true"
)
_MAX_BYTES = argument(
    *("own", "--max-bytes", f"keep no file that is larger ({saving.FILE_BYTES_MAX})"),
    type=parse_size,
    metavar="N",
)
_WAITING = (
    argument("own", "--wait", "wait until the generation has an outcome", action="store_true"),
    argument("own", "--save", "wait, then save the result's files in this folder", metavar="DIR"),
    _MAX_BYTES,
)
_CREATE = (
    argument("body", "--model", "the model's id in the catalogue", required=True),
    argument("own", "--prompt", "the model's parameter `prompt`"),
    argument(
        *("own", "--input", "the model's parameters, as a JSON object"),
        type=parse_json_object,
        metavar="JSON",
    ),
    pairs("body", "--metadata", "a pair to find the generation by"),
    argument("body", "--notify-url", "send the generation's outcome to this URL", metavar="URL"),
    *(IDEMPOTENCY, _NO_WAIT, *_WAITING),
)
_WITH_METADATA = pairs("own", "--metadata", "only with this pair")
_FILTERS = (
    argument("query", "--status", "only with this status", choices=get_args(GenerationStatus)),
    argument("query", "--model", "only of this model"),
    _WITH_METADATA,
    argument("query", "--created-after", "only after this RFC 3339 time", metavar="TIME"),
    argument("query", "--created-before", "only before this RFC 3339 time", metavar="TIME"),
)
_LOST = "genhook generations get {id} shows it."
_FOLDER = {"metavar": "DIR", "help": "the folder to save in, which is created (this one)"}
_DIRECTORY = Argument("directory", "own", "directory", {"nargs": "?", "default": ".", **_FOLDER})

GENERATIONS = {
    "create": Command(
        "create a generation",
        "--model imagen4-fast --prompt 'A lighthouse at dusk' --wait",
        *("POST", nouns.GENERATION.path, _CREATE),
        shape=answers.Generation,
        lost=_LOST,
        run=create,
    ),
    "list": nouns.GENERATION.page(
        "list generations",
        "--status failed",
        *_FILTERS,
        shows=("id", "status", "model", "route", "created_at"),
        run=list_,
    ),
    "get": nouns.GENERATION.one(
        "show a generation", "GET", *_WAITING, shape=answers.Generation, run=get
    ),
    "timeline": nouns.GENERATION.one(
        "show the steps of a generation, with their times",
        "GET /timeline",
        shape=answers.Timeline,
        details=_format_timeline,
    ),
    "refresh": nouns.GENERATION.one(
        "ask upstream about a generation now",
        "POST /refresh",
        shape=answers.Generation,
        details=output.generation,
    ),
    "cancel": nouns.GENERATION.one(
        "cancel an open generation; upstream may bill for it all the same",
        "POST /cancel",
        shape=answers.Generation,
        details=output.generation,
    ),
    "retry": nouns.GENERATION.one(
        "request a generation again that failed, timed out or was canceled",
        "POST /retry",
        *(IDEMPOTENCY, _NO_WAIT, *_WAITING),
        example="--wait",
        shape=answers.Generation,
        lost=_LOST,
        run=create,
    ),
    "delete": nouns.GENERATION.one(
        "erase a generation that has ended, with its callbacks and events",
        "DELETE",
        says="{id} is deleted.",
    ),
    "save": nouns.GENERATION.one(
        "save the files of a generation's result",
        "GET",
        *(_DIRECTORY, _MAX_BYTES),
        example="pictures",
        shape=answers.Generation,
        run=save,
    ),
}
