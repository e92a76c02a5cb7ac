"""Finds the files and texts of a result by their keys in the JSON."""

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from service.model import clock
from service.upstream import documents

MAX_FILES = 100
MAX_URL_CHARS = 8_192
_YEAR_10000 = 253_402_300_800_000

_EXTENSION_LIST = """
    png=image/png jpg=image/jpeg jpeg=image/jpeg webp=image/webp gif=image/gif avif=image/avif
    svg=image/svg+xml mp4=video/mp4 mov=video/quicktime webm=video/webm mp3=audio/mpeg
    wav=audio/wav m4a=audio/mp4 ogg=audio/ogg flac=audio/flac json=application/json
"""
_TYPE_BY_EXTENSION = dict(pair.split("=") for pair in _EXTENSION_LIST.split())
# For a URL without a known extension: the first of these words that its key contains.
_TYPE_BY_KEY = {"video": "video/mp4", "audio": "audio/mpeg", "image": "image/png"}

# Keys are compared in lower case, without underscores and hyphens. These hold only results.
_RESULT_KEY_LIST = """
    output outputs result results resulturl resulturls resultjson taskresult info response
    responsedata data file files fileurl url urls downloadurl video videos videourl videourls audio
    audios audiourl audiourls resultimageurl resultvideourl
"""
_RESULT_KEYS = frozenset(_RESULT_KEY_LIST.split())
# These hold results, or inputs where upstream repeats the request.
_IMAGE_KEYS = frozenset(("image", "images", "imageurl", "imageurls"))
_KNOWN_KEYS = _RESULT_KEYS | _IMAGE_KEYS
# Keys with these prefixes hold inputs, callback URLs or URLs of the task, never results.
_EXCLUDED_PREFIX_LIST = """
    input origin source stream reference mask face request param prompt metadata model callback
    webhook notify status polling cancel doc help
"""
_EXCLUDED_PREFIXES = tuple(_EXCLUDED_PREFIX_LIST.split())
Scope = Literal["results", "images", "anything"]


class File(msgspec.Struct, frozen=True):
    """One file of a result. `expires_at` is when its URL expires, in milliseconds, where known."""

    url: str
    media_type: str
    expires_at: int | None = None


def find(document: documents.Document, scope: Scope) -> tuple[File, ...]:
    """Return the files of a task's result: under keys that hold only results.

    If there are none and the scope is "images" or "anything", look under keys of pictures, which
    may be inputs. If there are still none and it is "anything", take every URL not excluded: for a
    task that reports success. It was billed, so an unknown key must not hide its result.
    """
    files = _deduplicate(_files_under(document, _RESULT_KEYS))
    if not files and scope != "results":
        files = _deduplicate(_files_under(document, _IMAGE_KEYS))
    if not files and scope == "anything":
        files = _deduplicate(_files_in(document.task, "", None, any_key=True))
    return files


def find_in_clips(clips: list[dict[str, Any]]) -> tuple[File, ...]:
    """Return the files of these clips: audio, videos and cover pictures."""
    return _deduplicate(_files_in(clips, "", None))


def has_text(document: documents.Document) -> bool:
    """Whether the task has a result without a file: lyrics, even an empty list of them."""
    values = [document.task.get(key) for key in ("lyricParams", "alignedWords", "lyrics")]
    return any(isinstance(v, list) or (isinstance(v, str) and v.strip()) for v in values)


def _deduplicate(files: Iterable[File]) -> tuple[File, ...]:
    """Return the first file of each URL, at most MAX_FILES."""
    file_of_url: dict[str, File] = {}
    for file in files:
        file_of_url.setdefault(file.url, file)
        if len(file_of_url) == MAX_FILES:
            break
    return tuple(file_of_url.values())


def _files_under(document: documents.Document, keys: frozenset[str]) -> Iterator[File]:
    """Yield the files under these keys of the task, then of the envelope around it."""
    places = [document.task]
    if document.root is not document.task:
        places.append({**document.root, "data": None})
    for place in places:
        expires_at = _expiry(place)
        for name, value in place.items():
            if (key := _normalize(name)) in keys:
                yield from _files_in(value, key, expires_at)


def _files_in(
    value: Any, key: str, expires_at: int | None, *, any_key: bool = False
) -> Iterator[File]:
    """Yield the files in a value and, for an object or array, below it; `key` is above it."""
    match value:
        case str() if key == "resultjson":
            yield from _files_in(documents.decode(value.encode()), "results", expires_at)
        case str() if _is_url(value):
            yield File(value, _media_type(value, key), expires_at)
        case list():
            for item in value:
                yield from _files_in(item, key, expires_at, any_key=any_key)
        case dict() if key != "urls":  # `urls: {get, cancel}` are URLs of the task.
            expires_at = _expiry(value) or expires_at
            for name, child in value.items():
                own_key = _normalize(name)
                if own_key.startswith(_EXCLUDED_PREFIXES):
                    continue
                may_hold_url = any_key or "url" in own_key or own_key in _KNOWN_KEYS
                if isinstance(child, str) and not may_hold_url:
                    continue
                # In `images: [{url}]` the parent's key tells the media type.
                media_key = key if key and own_key in {"url", "urls"} else own_key
                yield from _files_in(child, media_key, expires_at, any_key=any_key)


def _is_url(text: str) -> bool:
    if len(text) > MAX_URL_CHARS or not text.isprintable() or " " in text:
        return False
    try:
        return text.startswith(("http://", "https://")) and bool(urlsplit(text).hostname)
    except ValueError:
        return False


def _media_type(url: str, key: str) -> str:
    """Guess the media type from the URL's extension, else from the key above the URL."""
    extension = posixpath.splitext(urlsplit(url).path)[1].removeprefix(".").lower()
    by_key = (media_type for kind, media_type in _TYPE_BY_KEY.items() if kind in key)
    return _TYPE_BY_EXTENSION.get(extension) or next(by_key, "application/octet-stream")


def _normalize(name: str) -> str:
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
        # Numbers below this are seconds (up to the year 5138), others milliseconds (from 1973).
        expires_at = int(value * (clock.SECOND if value < 100_000_000_000 else 1))
    return expires_at if 0 <= expires_at < _YEAR_10000 else None
