"""Saves the files of a result: under our own names, whole or not at all; overwrites nothing."""

import base64
import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes, urlsplit

from service.cli import calls, interrupts, new_file, output, streams
from service.cli.deadline import LateError, deadline
from service.model.errors import CommandError
from service.upstream.links import TYPE_BY_EXTENSION

FILE_BYTES_MAX = 2 << 30  # Of one file: upstream is a stranger, and the disk is the user's.
FILE_SECONDS = 3_600.0  # For one file as a whole.
TIMEOUT_SECONDS = 60.0  # Without a byte.
MODE = 0o666  # Of a file; the umask takes away from it.
DEAD = (401, 403, 404, 410)  # What storage answers to a link that has expired.


class _NotSavedError(Exception):
    """Why one file was not saved; the others are tried."""


def save(
    generation: Mapping[str, Any], folder: str, note: streams.Print, bytes_max: int = FILE_BYTES_MAX
) -> bool:
    """Save every file of a generation's result in a folder; return whether all are there.

    bytes_max: of one file; a larger one is not kept. A file is named after the generation and its
    number. A file that exists is not overwritten.
    """
    prepare(folder)
    files = (generation["output"] or {}).get("files", [])
    is_whole = True
    for number, file in enumerate(files, 1):
        target = Path(folder) / file_name(generation["id"], number, file)
        prefix = f"{number} of {len(files)}  {output.plain(target)}"
        if os.path.lexists(target):
            note(f"{prefix} is there already; it is not overwritten.")
            continue
        try:
            with interrupts.cleaned_up(), deadline(FILE_SECONDS):
                size = _save(file, target, bytes_max)
        except (_NotSavedError, LateError) as error:
            is_whole = False
            note(f"{prefix} is not saved: {str(error).rstrip('.')}.")
        else:
            note(f"{prefix}  {_size(size)}")
    if not files:
        note("The result has no files: see output.raw with --json.")
    return is_whole


def prepare(folder: str) -> None:
    """Create the folder if it is missing; CommandError if nothing can be saved in it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"{output.plain(folder)} is no folder to save in: {error.strerror}."
        raise CommandError(reason) from error


def file_name(generation_id: str, number: int, file: Mapping[str, Any]) -> str:
    """Return the name of a file. Only its extension, one of those we know, comes from upstream."""
    suffix = _path_of(str(file.get("url") or "")).rpartition(".")[2].lower()
    extensions = (
        known for known, type_ in TYPE_BY_EXTENSION.items() if type_ == file.get("media_type")
    )
    extension = suffix if suffix in TYPE_BY_EXTENSION else next(extensions, "bin")
    safe_id = re.sub(r"[^A-Za-z0-9_]", "_", str(generation_id))[:64]
    return f"{safe_id}-{number}.{extension}"


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _save(file: Mapping[str, Any], target: Path, bytes_max: int) -> int:
    """Save one file; return its size in bytes."""
    url = file.get("url")
    if not isinstance(url, str):
        raise _NotSavedError("it has no link; it is inside of output.raw, see --json.")
    if not url.startswith("data:") and not calls.is_sendable(url):
        raise _NotSavedError(f"{output.plain(url[:100])} cannot be fetched from here.")
    with _whole_or_nothing(target) as stream:
        size = 0
        for chunk in [_decode(url)] if url.startswith("data:") else _fetch(url, file):
            size += len(chunk)
            streams.progress(f"{output.plain(target.name)}  {_size(size)}")
            if size > bytes_max:
                raise _NotSavedError(f"it has more than {_size(bytes_max)}: see --max-bytes.")
            stream.write(chunk)
        if size == 0:
            raise _NotSavedError("it is empty.")
    return size


@contextlib.contextmanager
def _whole_or_nothing(target: Path) -> Iterator[IO[bytes]]:
    """Write to a file that gets the name of the target only when it is whole."""
    try:
        with new_file.create(target, MODE) as partial, partial.open("wb") as stream:
            yield stream
    except OSError as error:
        raise _NotSavedError(f"{error.strerror}.") from error
    finally:
        streams.progress("")


def _decode(url: str) -> bytes:
    head, _, text = url.partition(",")
    try:
        content = unquote_to_bytes(text)
        return base64.b64decode(content) if head.endswith(";base64") else content
    except ValueError as error:
        raise _NotSavedError("its data cannot be decoded.") from error


def _fetch(url: str, file: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the bytes at a link. The key of the service does not go there."""
    import httpx

    host = output.plain(urlsplit(url).hostname)
    try:
        with (
            calls.open_client(url, timeout=TIMEOUT_SECONDS, follow_redirects=True) as client,
            client.stream("GET", url) as answer,
        ):
            if answer.status_code in DEAD:
                expired = file.get("expires_at")
                until = f"; it was good until {output.plain(expired)}" if expired else ""
                raise _NotSavedError(
                    f"the link is dead: {host} answered {answer.status_code}{until}."
                )
            if not answer.is_success:
                raise _NotSavedError(f"{host} answered {answer.status_code}; try again.")
            if _is_page(answer.headers.get("content-type", ""), file):
                raise _NotSavedError(f"{host} answered with a web page, not with the file.")
            yield from answer.iter_bytes()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = calls.give_reason(error).rstrip(".")
        raise _NotSavedError(f"no answer from {host}: {reason}.") from error


def _is_page(content_type: str, file: Mapping[str, Any]) -> bool:
    """Whether an answer is a page about the file, as proxies and some storages send with a 200."""
    pages = ("text/html", "application/xhtml+xml")
    is_page = content_type.partition(";")[0].strip().lower() in pages
    return is_page and file.get("media_type") not in (None, *pages)


def _size(count: int) -> str:
    """Return a number of bytes for people."""
    units = ("bytes", "KiB", "MiB", "GiB")
    size, unit = float(count), 0
    while size >= 1024 and unit < len(units) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.{min(unit, 1)}f} {units[unit]}"
