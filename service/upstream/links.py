"""Reads a link, or a file that is written into the JSON, as people write them."""

import base64
import re
from urllib.parse import urlsplit

import msgspec

MAX_URL_CHARS = 8_192
INLINE_MIN_CHARS = 64  # Shorter texts of these letters may be anything.
_EXTENSION_LIST = """
    png=image/png jpg=image/jpeg jpeg=image/jpeg webp=image/webp gif=image/gif avif=image/avif
    svg=image/svg+xml mp4=video/mp4 mov=video/quicktime webm=video/webm mp3=audio/mpeg
    wav=audio/wav m4a=audio/mp4 ogg=audio/ogg flac=audio/flac json=application/json
    glb=model/gltf-binary gltf=model/gltf+json obj=model/obj mtl=model/mtl stl=model/stl
    usdz=model/vnd.usdz+zip
"""
TYPE_BY_EXTENSION = dict(pair.split("=") for pair in _EXTENSION_LIST.split())
# A path of names, without the characters that no URL has unescaped (RFC 3986), with an extension.
_NAME = r"""[^\s/:?#\\<>"{}|^`]+"""
_PATH = re.compile(rf"(?:{_NAME}/)*{_NAME}\.(?P<extension>[A-Za-z0-9]{{3,4}})(?:\?[^\s#]*)?")
# A URL as most are written: nothing of it has to be read again.
_PLAIN = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:[/?#][!-~]*)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_HEAD_CHARS = 32
# The first bytes of a file: where they are, what they are, and its media type.
_SIGNATURES = (
    (0, b"\x89PNG\r\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"OggS", "audio/ogg"),
    (0, b"fLaC", "audio/flac"),
)


class Link(msgspec.Struct, frozen=True):
    """Where a file is: a URL, or None with the media type of a file inside the JSON."""

    url: str | None
    media_type: str | None = None


def read(text: str) -> Link | None:
    """Return the link in a text that is nothing else; None if it is no link.

    A URL may have any case of scheme, spaces (they are encoded) or no host: it is then relative to
    upstream (RFC 3986). Of a data URI or base64 only the media type is returned.
    """
    if len(text) <= MAX_URL_CHARS and _PLAIN.fullmatch(text):
        return Link(text)
    if inline := _inline_type(text):
        return Link(None, inline)
    text = text.strip()
    if not text or len(text) > MAX_URL_CHARS or not text.isprintable():
        return None
    is_path = text.startswith("/")
    if not is_path:
        scheme, _, rest = text.partition(":")
        if scheme.lower() not in {"http", "https", "gs", "s3"} or not rest.startswith("//"):
            return None
        text = f"{scheme.lower()}:{rest}"
    url = text.replace(" ", "%20")
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None  # Nothing that reads URLs could use it, such as what makes it absolute.
    return Link(url) if host or (is_path and text.strip("/")) else None


def read_path(text: str) -> Link | None:
    """Return the link in a text that is a path without a slash before it, as `files/a.png`.

    Only a name with the extension of a result's file counts: other texts may be anything.
    """
    text = text.strip()
    path = _PATH.fullmatch(text) if len(text) <= MAX_URL_CHARS and text.isprintable() else None
    media_type = TYPE_BY_EXTENSION.get(path["extension"].lower(), "") if path else ""
    if not media_type.startswith(("image/", "video/", "audio/", "model/")):
        return None
    first, slash, _ = text.partition("/")
    # `cdn.example/a.png` most likely lacks its scheme: that path would lead to nothing.
    return None if slash and "." in first.strip(".") else Link(text)


def media_type_of(url: str) -> str | None:
    """Return the media type that the extension in a URL tells; None if it tells none."""
    path = url.partition("#")[0].partition("?")[0]
    before, separator, after = path.partition("://")
    _, slash, name = (after if separator else before).rpartition("/")
    stem, _, extension = name.rpartition(".")
    is_host = separator and not slash
    return TYPE_BY_EXTENSION.get(extension.lower()) if stem and not is_host else None


def _inline_type(text: str) -> str | None:
    """Return the media type of a data URI, or of base64 that begins as a known kind of file."""
    if text[:5].lower() == "data:" and "," in text[:256]:
        return re.split("[;,]", text[5:256])[0].strip().lower() or "text/plain"
    if len(text) < INLINE_MIN_CHARS or not _BASE64.fullmatch(text[:_HEAD_CHARS]):
        return None
    head_text = text[:_HEAD_CHARS].replace("-", "+").replace("_", "/")
    head = base64.b64decode(head_text)
    matches = (kind for at, magic, kind in _SIGNATURES if head[at:].startswith(magic))
    return next(matches, None)
