"""The files and texts that a task's result holds, found by the names under which results stand."""

import itertools
import posixpath
import urllib.parse
from collections.abc import Iterator
from typing import Any

import msgspec

from service.model import clock
from service.upstream import shapes

MAX_FILES = 100
MAX_URL_CHARS = 8_192
_YEAR_10000 = 253_402_300_800_000

_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "avif": "image/avif",
    "svg": "image/svg+xml",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "m4a": "audio/mp4",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "json": "application/json",
}
# A URL without an extension is named by the key that it stood under.
_TYPES_BY_KEY = {"video": "video/mp4", "audio": "audio/mpeg", "image": "image/png"}

# Keys are compared in lower case, without underscores.
_SURE_KEYS = """
    output outputs result results resulturl resulturls resultjson taskresult info response
    responsedata data file files fileurl url urls downloadurl video videos videourl videourls audio
    audios audiourl audiourls resultimageurl resultvideourl
"""
# The same names carry the pictures that went in, when upstream echoes the request.
_UNSURE_KEYS = "image images imageurl imageurls"
# What went in, where it goes, how to ask again: none of it is a result.
_NEVER_PREFIXES = """
    input origin source stream reference mask face request param prompt metadata model callback
    webhook notify status polling cancel doc help
"""
_SURE = frozenset(_SURE_KEYS.split())
_UNSURE = frozenset(_UNSURE_KEYS.split())
_NEVER = tuple(_NEVER_PREFIXES.split())
_TEXT_KEYS = ("lyricParams", "alignedWords", "lyrics")


class File(msgspec.Struct, frozen=True):
    """One file of a result. `expires_at` is when its URL dies, in milliseconds, where known."""

    url: str
    media_type: str
    expires_at: int | None = None


def sure(shape: shapes.Shape) -> tuple[File, ...]:
    """Return the files that stand under a name which only results have."""
    return _files(file for place in _places(shape) for file in _under(place, _SURE))


def likely(shape: shapes.Shape) -> tuple[File, ...]:
    """Return the sure files, else those under a name which request echoes have too."""
    return sure(shape) or _files(
        file for place in _places(shape) for file in _under(place, _UNSURE)
    )


def any_at_all(shape: shapes.Shape) -> tuple[File, ...]:
    """Return the likely files, else every URL that is not plainly something else.

    For a task that upstream calls finished: it was paid for, whatever name its result has.
    """
    return likely(shape) or _files(_inside(shape.node, "", None, anything=True))


def of_clips(clips: list[dict[str, Any]]) -> tuple[File, ...]:
    """Return the files of these clips: sound, film and cover."""
    return _files(file for clip in clips for file in _inside(clip, "", None))


def has_text(shape: shapes.Shape) -> bool:
    """Whether there is a result without a file: the lyrics, an empty list of them too."""
    return any(isinstance(shape.node.get(key), list) or _written(shape, key) for key in _TEXT_KEYS)


def _written(shape: shapes.Shape, key: str) -> bool:
    value = shape.node.get(key)
    return isinstance(value, str) and bool(value.strip())


def _places(shape: shapes.Shape) -> Iterator[dict[str, Any]]:
    yield shape.node
    if shape.outer is not shape.node:
        yield {key: value for key, value in shape.outer.items() if key != "data"}


def _files(found: Iterator[File]) -> tuple[File, ...]:
    by_url: dict[str, File] = {}
    for file in found:
        by_url.setdefault(file.url, file)
        if len(by_url) == MAX_FILES:
            break
    return tuple(by_url.values())


def _under(place: dict[str, Any], names: frozenset[str]) -> Iterator[File]:
    expires_at = _expiry(place)
    for key, value in place.items():
        if _plain(key) in names:
            yield from _walk(value, _plain(key), expires_at)


def _walk(
    value: Any, key: str, expires_at: int | None, *, anything: bool = False
) -> Iterator[File]:
    match value:
        case str() if key == "resultjson":
            yield from _walk(shapes.decode(value.encode()), "results", expires_at)
        case str() if is_url(value):
            yield File(value, media_type(value, key), expires_at)
        case list():
            walks = (_walk(item, key, expires_at, anything=anything) for item in value)
            yield from itertools.chain.from_iterable(walks)
        case dict():
            yield from _inside(value, key, expires_at, anything=anything)


def _inside(
    value: dict[str, Any], under: str, expires_at: int | None, *, anything: bool = False
) -> Iterator[File]:
    expires_at = _expiry(value) or expires_at
    for name, child in value.items():
        key = _plain(name)
        if key.startswith(_NEVER):
            continue
        if isinstance(child, str) and not (anything or key in _SURE | _UNSURE or "url" in key):
            continue
        # `urls: {get, cancel}` are addresses of the task; `images: [{url}]` names its media above.
        if under != "urls":
            shown = under if key in {"url", "urls"} and under else key
            yield from _walk(child, shown, expires_at, anything=anything)


def is_url(text: str) -> bool:
    """Whether `text` is an http or https URL with a host and nothing unprintable."""
    if not text.startswith(("http://", "https://")) or len(text) > MAX_URL_CHARS:
        return False
    if not text.isprintable() or " " in text:
        return False
    try:
        return bool(urllib.parse.urlsplit(text).hostname)
    except ValueError:
        return False


def media_type(url: str, key: str) -> str:
    """Guess the media type from the URL's extension, else from the key that it stood under."""
    extension = posixpath.splitext(urllib.parse.urlsplit(url).path)[1].removeprefix(".").lower()
    by_key = (given for name, given in _TYPES_BY_KEY.items() if name in key)
    return _TYPES.get(extension) or next(by_key, "application/octet-stream")


def _plain(key: str) -> str:
    return key.replace("_", "").replace("-", "").lower()


def _expiry(place: dict[str, Any]) -> int | None:
    given = place.get("expires_at", place.get("expiresAt"))
    if isinstance(given, str):
        return _parsed(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or given <= 0:
        return None
    # Seconds until the year 5138, milliseconds since 1973: no moment that matters is both.
    return _written_moment(int(given) if given >= 100_000_000_000 else int(given * clock.SECOND))


def _parsed(text: str) -> int | None:
    try:
        return _written_moment(clock.parse_rfc3339(text))
    except (ValueError, OverflowError):
        return None


def _written_moment(moment: int) -> int | None:
    """`moment` if a date can be written for it, which years before 1970 and after 9999 cannot."""
    return moment if 0 <= moment < _YEAR_10000 else None
