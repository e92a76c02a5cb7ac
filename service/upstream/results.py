"""Finds the files and texts of a result by the keys under which they stand."""

import posixpath
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from service.model import clock
from service.upstream import shapes

MAX_FILES = 100
MAX_URL_CHARS = 8_192
_YEAR_10000 = 253_402_300_800_000

_TYPE_BY_EXTENSION = {
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
# For a URL without a known extension: the first of these that the key contains.
_TYPE_BY_KEY = {"video": "video/mp4", "audio": "audio/mpeg", "image": "image/png"}

# Keys are compared in lower case, without underscores and hyphens. These hold nothing but results.
_RESULT_KEY_LIST = """
    output outputs result results resulturl resulturls resultjson taskresult info response
    responsedata data file files fileurl url urls downloadurl video videos videourl videourls audio
    audios audiourl audiourls resultimageurl resultvideourl
"""
# These also hold the pictures that were sent, where upstream repeats the request.
_IMAGE_KEY_LIST = "image images imageurl imageurls"
# Keys that begin like this hold what was sent, where results go or how to ask: never a result.
_EXCLUDED_PREFIX_LIST = """
    input origin source stream reference mask face request param prompt metadata model callback
    webhook notify status polling cancel doc help
"""
_RESULT_KEYS = frozenset(_RESULT_KEY_LIST.split())
_IMAGE_KEYS = frozenset(_IMAGE_KEY_LIST.split())
_EXCLUDED_PREFIXES = tuple(_EXCLUDED_PREFIX_LIST.split())
_TEXT_KEYS = ("lyricParams", "alignedWords", "lyrics")


class File(msgspec.Struct, frozen=True):
    """One file of a result. `expires_at` is when its URL expires, in milliseconds, where known."""

    url: str
    media_type: str
    expires_at: int | None = None


def in_result_keys(shape: shapes.Shape) -> tuple[File, ...]:
    """Return the files under keys that hold nothing but results."""
    return _unique(_files_under(shape, _RESULT_KEYS))


def in_result_or_image_keys(shape: shapes.Shape) -> tuple[File, ...]:
    """As `in_result_keys`; where there are none, the files under keys that may hold inputs too."""
    return in_result_keys(shape) or _unique(_files_under(shape, _IMAGE_KEYS))


def in_any_key(shape: shapes.Shape) -> tuple[File, ...]:
    """As `in_result_or_image_keys`; where there are none, every URL except under excluded keys.

    For a task with a word of success: it was paid for, whatever the key of its result.
    """
    return in_result_or_image_keys(shape) or _unique(
        _files_in_object(shape.task, "", None, any_key=True)
    )


def of_clips(clips: Iterable[dict[str, Any]]) -> tuple[File, ...]:
    """Return the files of these clips: sounds, videos and covers."""
    return _unique(file for clip in clips for file in _files_in_object(clip, "", None))


def has_text(shape: shapes.Shape) -> bool:
    """Whether there is a result without a file: lyrics, even an empty list of them."""
    values = [shape.task.get(key) for key in _TEXT_KEYS]
    return any(isinstance(v, list) or (isinstance(v, str) and bool(v.strip())) for v in values)


def _unique(files: Iterable[File]) -> tuple[File, ...]:
    """Return the first file of each URL, at most MAX_FILES."""
    file_of_url: dict[str, File] = {}
    for file in files:
        file_of_url.setdefault(file.url, file)
        if len(file_of_url) == MAX_FILES:
            break
    return tuple(file_of_url.values())


def _files_under(shape: shapes.Shape, keys: frozenset[str]) -> Iterator[File]:
    """Yield the files under these keys of the task, then of the envelope around it."""
    places = [shape.task]
    if shape.root is not shape.task:
        places.append({name: value for name, value in shape.root.items() if name != "data"})
    for place in places:
        expires_at = _expiry(place)
        for name, value in place.items():
            key = _normalized(name)
            if key in keys:
                yield from _files_in(value, key, expires_at)


def _files_in(
    value: Any, key: str, expires_at: int | None, *, any_key: bool = False
) -> Iterator[File]:
    match value:
        case str() if key == "resultjson":
            yield from _files_in(shapes.decode(value.encode()), "results", expires_at)
        case str() if _is_url(value):
            yield File(value, _media_type(value, key), expires_at)
        case list():
            for item in value:
                yield from _files_in(item, key, expires_at, any_key=any_key)
        case dict():
            yield from _files_in_object(value, key, expires_at, any_key=any_key)


def _files_in_object(
    value: dict[str, Any], parent_key: str, expires_at: int | None, *, any_key: bool = False
) -> Iterator[File]:
    if parent_key == "urls":  # `urls: {get, cancel}` are addresses of the task.
        return
    expires_at = _expiry(value) or expires_at
    for name, child in value.items():
        key = _normalized(name)
        if key.startswith(_EXCLUDED_PREFIXES):
            continue
        if isinstance(child, str) and not (any_key or _may_hold_url(key)):
            continue
        # In `images: [{url}]` the kind of media is in the key of the parent.
        media_key = parent_key if parent_key and key in {"url", "urls"} else key
        yield from _files_in(child, media_key, expires_at, any_key=any_key)


def _may_hold_url(key: str) -> bool:
    return key in _RESULT_KEYS or key in _IMAGE_KEYS or "url" in key


def _is_url(text: str) -> bool:
    """Whether `text` is an http or https URL with a host, printable and without spaces."""
    if not text.startswith(("http://", "https://")) or len(text) > MAX_URL_CHARS:
        return False
    if not text.isprintable() or " " in text:
        return False
    try:
        return bool(urllib.parse.urlsplit(text).hostname)
    except ValueError:
        return False


def _media_type(url: str, key: str) -> str:
    """Guess the media type from the URL's extension, else from the key above the URL."""
    extension = posixpath.splitext(urllib.parse.urlsplit(url).path)[1].removeprefix(".").lower()
    by_key = (media_type for kind, media_type in _TYPE_BY_KEY.items() if kind in key)
    return _TYPE_BY_EXTENSION.get(extension) or next(by_key, "application/octet-stream")


def _normalized(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _expiry(place: dict[str, Any]) -> int | None:
    """Return `expires_at` in milliseconds; None unless it is a date from 1970 to 9999."""
    value = place.get("expires_at", place.get("expiresAt"))
    if isinstance(value, str):
        try:
            expires_at = clock.parse_rfc3339(value)
        except (ValueError, OverflowError):
            return None
    elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    else:
        # As seconds these numbers end in the year 5138, as milliseconds they begin in 1973.
        in_milliseconds = value >= 100_000_000_000
        expires_at = int(value if in_milliseconds else value * clock.SECOND)
    return expires_at if 0 <= expires_at < _YEAR_10000 else None
