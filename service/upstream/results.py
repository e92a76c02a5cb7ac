"""Finds the files and texts of a result by their keys in the JSON."""

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from service.model import clock
from service.upstream import documents, lenient, links

MAX_FILES = 100
_YEAR_10000 = 253_402_300_800_000

# For a URL without a known extension: the first of these words that its key contains.
_TYPE_BY_KEY = {"video": "video/mp4", "audio": "audio/mpeg", "image": "image/png"}

_FILE_WORDS = ("file", *_TYPE_BY_KEY)  # Of the keys below, those with one of these name files.

# Keys are compared in lower case, without underscores and hyphens. These hold only results.
_RESULT_KEY_LIST = """
    output outputs result results resulturl resulturls resultjson taskresult info response
    responsedata data file files fileurl url urls downloadurl video videos videourl videourls audio
    audios audiourl audiourls resultimageurl resultvideourl b64json imagebase64 gcsuri
    bytesbase64encoded sample assets videoinfo
"""
_RESULT_KEYS = frozenset(_RESULT_KEY_LIST.split())
# These hold results, or inputs where upstream repeats the request.
_IMAGE_KEYS = frozenset(("image", "images", "imageurl", "imageurls"))
_KNOWN_KEYS = _RESULT_KEYS | _IMAGE_KEYS
# Keys with these prefixes hold inputs, callback URLs or URLs of the task, never results.
_EXCLUDED_PREFIX_LIST = """
    input origin source stream reference mask face request param prompt metadata model callback
    webhook notify status polling cancel doc help generateparam parent responseurl
"""
_EXCLUDED_PREFIXES = tuple(_EXCLUDED_PREFIX_LIST.split())
Scope = Literal["results", "images", "anything"]


class File(msgspec.Struct, frozen=True):
    """One file of a result. `expires_at` is when its URL expires, in milliseconds, where known.

    A URL without a scheme is relative to upstream. None: the file is in the JSON itself.
    """

    url: str | None
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


def holds_any(document: documents.Document) -> bool:
    """Whether an answer holds files, wherever they stand; the `url` of an error is no file."""
    named = [(_normalize(name), value) for name, value in document.root.items()]
    places = [(k, v) for k, v in named if k in _KNOWN_KEYS and k not in {"url", "urls"}]
    return any(True for key, value in places for _ in _files_in(value, key, None))


def find_in_clips(clips: list[dict[str, Any]]) -> tuple[File, ...]:
    """Return the files of these clips: audio, videos and cover pictures."""
    return _deduplicate(_files_in(clips, "", None))


def has_text(document: documents.Document) -> bool:
    """Whether the task has a result without a file: lyrics, even an empty list of them."""
    values = [document.task.get(key) for key in ("lyricParams", "alignedWords", "lyrics")]
    return any(isinstance(v, list) or (isinstance(v, str) and v.strip()) for v in values)


def _deduplicate(files: Iterable[File]) -> tuple[File, ...]:
    """Return the first file of each URL, and each without one, at most MAX_FILES."""
    urls: set[str] = set()
    unique: list[File] = []
    for file in files:
        if file.url in urls:
            continue
        unique.append(file)
        if file.url is not None:
            urls.add(file.url)
        if len(unique) == MAX_FILES:
            break
    return tuple(unique)


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
    value: Any, key: str, expires_at: int | None, own_key: str = "", *, any_key: bool = False
) -> Iterator[File]:
    """Yield the files in a value and, for an object or array, below it; `own_key` is above it.

    `key` tells the media type: that of `own_key`, or of what is above a mere `url`.
    """
    own_key = own_key or key
    match value:
        case str() if key == "resultjson":
            decoded = lenient.decode(value.encode())
            yield from _files_in(decoded.value if decoded else None, "results", expires_at)
        case str() if link := _link(value, own_key, any_key=any_key):
            media_type = link.media_type or _media_type(link.url or "", key)
            yield File(link.url, media_type, expires_at)
        case list():
            for item in value:
                yield from _files_in(item, key, expires_at, own_key, any_key=any_key)
        case dict() if key != "urls":  # `urls: {get, cancel}` are URLs of the task.
            expires_at = _expiry(value) or expires_at
            for name, child in value.items():
                own_key = _normalize(name)
                if own_key.startswith(_EXCLUDED_PREFIXES):
                    continue
                is_link_key = "url" in own_key or "uri" in own_key
                may_hold_url = any_key or is_link_key or own_key in _KNOWN_KEYS
                if isinstance(child, str) and not may_hold_url:
                    continue
                # In `images: [{url}]` the parent's key tells the media type.
                media_key = key if key and own_key in {"url", "urls"} else own_key
                yield from _files_in(child, media_key, expires_at, own_key, any_key=any_key)


def _link(text: str, key: str, *, any_key: bool) -> links.Link | None:
    """Return the link that a text is under this key; under an unknown key it may be any path."""
    if link := links.read(text):
        return None if any_key and links.is_relative(link) else link
    is_url = "url" in key or "uri" in key
    # A bare name under `file` or `image` may be that of what was sent.
    names_file = key in _KNOWN_KEYS and any(word in key for word in _FILE_WORDS) and "/" in text
    return links.read_path(text) if not any_key and (is_url or names_file) else None


def _media_type(url: str, key: str) -> str:
    """Guess the media type from the URL's extension, else from the key above the URL."""
    extension = posixpath.splitext(urlsplit(url).path)[1].removeprefix(".").lower()
    by_key = (media_type for kind, media_type in _TYPE_BY_KEY.items() if kind in key)
    return links.TYPE_BY_EXTENSION.get(extension) or next(by_key, "application/octet-stream")


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
