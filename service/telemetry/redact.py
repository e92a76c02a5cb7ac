"""Cuts secrets out of text and decoded JSON, for logs, rows and answers alike."""

import base64
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import msgspec

from service.telemetry.secret_names import HIDDEN_NAME, cut_texts, is_hidden

REDACTED = "[redacted]"
DEPTH_MAX = 64  # Anything nested deeper is replaced whole.

SLASH = r"(?:\\{0,16}/|%(?:25)?2[Ff])"  # Plain, escaped in (nested) JSON, or percent-encoded.
CALLBACK_CHARACTERS_MIN = len("/callbacks/a/t")
# Secrets may overlap: a match ends before a callback path, and takes the token behind `bearer`.
_THEN_BEARER = r"(?:(?<=(?i:bearer))\s+[^\s\"'\\]+)*"
_CALLBACKS = rf"{SLASH}callbacks{SLASH}"
_SHAPES = re.compile(
    rf"(?:(?P<path>{_CALLBACKS}(?!callbacks{SLASH})[A-Za-z0-9-]{{1,64}}{SLASH})"
    rf"(?!callbacks{SLASH})[^/\s?\"'\\]+"
    rf"|(?:ghk_|aio_|whsec_|whsk_)(?:(?!{_CALLBACKS})[A-Za-z0-9+/=_-])+"
    rf"|(?i:bearer)\s+[^\s\"'\\]+){_THEN_BEARER}"
)
# A callback token is recognised without its URL, too.
_TOKEN = re.compile(
    rf"gen_[A-Za-z0-9]++\.[A-Za-z0-9_-]+\.[0-9]{{1,12}}\.[A-Za-z0-9_-]+{_THEN_BEARER}"
)
# The quantifiers are possessive (`++`): strangers' text must not make a pattern backtrack.
_ESCAPED = re.compile(r"(?<!\\)\\++(?:[uU]([0-9A-Fa-f]{4})|/)")
_LEADING_ZEROS = re.compile(r"(?<=&#)(?:0++(?=[0-9])|([xX])0++(?=[0-9A-Fa-f]))")
# Unicode has no such character, and Python refuses to read numbers of more than 4,300 digits.
_NO_CHARACTER = re.compile(r"&#(?:[0-9]{8,}+|[xX][0-9A-Fa-f]{8,}+);?")
_WORD = re.compile(r"[^\s\"'<>{}\[\],]+")
PIECE_CHARACTERS = 8  # At the cut end of a text, so many characters count as the whole secret.
UNESCAPES_MAX = 4  # How many levels of nested escapes are undone.
# To undo escapes, Python makes objects for each match, of up to 190 bytes: never for all at once.
REGION_CHARACTERS = 16_384
_BETWEEN_WORDS = re.compile(r"[\s\"'<>{}\[\],]")
HEADERS_REMEMBERED = 256
_BASE64_CHARACTERS_MIN = 12  # A shorter piece of base64 may be anything.
# A match of _SHAPES, in lower case, contains one of these; `in` is much cheaper than it.
_HINTS = ("ghk_", "aio_", "whs", "callbacks", "bearer")

_HIDDEN_HEADER = re.compile(
    r"(?ai:authorization|cookie|token|secret|password|(?:api|access|auth)[-_]?key)"
)


class Redactor:
    """Cuts these secrets, also encoded ones, and texts that look like keys or tokens of genhook."""

    def __init__(self, secrets: Iterable[str] = (), public_url: str | None = None) -> None:
        """`public_url` is GENHOOK_PUBLIC_URL, with which callback URLs start."""
        self._secrets = tuple(filter(None, secrets))
        forms = {form for secret in self._secrets for form in _forms(secret)}
        self._forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))
        self._any_form = re.compile("|".join(map(re.escape, self._forms)))
        self._base_url = public_url or ""
        self._harmless_length = min([CALLBACK_CHARACTERS_MIN, *map(len, forms)])
        # Most headers of most callbacks are the same.
        self._cut_value = lru_cache(HEADERS_REMEMBERED)(self._cut_value)  # type: ignore[method-assign]

    def text(self, text: str) -> str:
        """Return a text without the secrets, API keys, signing secrets and callback tokens."""
        text = self._without_secrets(text)
        text = _TOKEN.sub(REDACTED, text) if "gen_" in text else text
        lowered = text.lower()
        for hint in _HINTS:
            if hint in lowered:
                return _SHAPES.sub(lambda match: (match["path"] or "") + REDACTED, text)
        return text

    def body(self, body: bytes) -> str | bytes:
        """Return a body without what `text` cuts, nor texts under secret names; bytes if no UTF-8.

        Of JSON nothing else changes.
        """
        body = cut_texts(body, REDACTED.encode())
        try:
            return self.text(body.decode())
        except UnicodeDecodeError:
            return self.text(body.decode("latin-1")).encode("latin-1")

    def header(self, name: str, value: str) -> str:
        """Return a header's value without secrets; REDACTED if the name is that of a secret."""
        return REDACTED if _HIDDEN_HEADER.search(name) else self.text(value)

    def headers(self, lines: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the lines of headers without secrets, as `header` cuts them."""
        return [(name, self._cut_value(name, value)) for name, value in lines]

    def _cut_value(self, name: bytes, value: bytes) -> bytes:
        return self.header(name.decode("latin-1"), value.decode("latin-1")).encode("latin-1")

    def lines(self, lines: Sequence[str]) -> Sequence[str]:
        """Return log lines without secrets. Few have one, so all are searched at once first."""
        whole = "\n".join(lines)
        return lines if self.text(whole) == whole else [self.line(line) for line in lines]

    def line(self, line: str) -> str:
        r"""Return a log line without secrets; a line in JSON stays JSON.

        A match in the text of JSON may begin within an escape (`\u000bearer x` has no "bearer"),
        so secrets are cut out of the decoded strings.
        """
        cut = self.text(line)
        if cut == line:
            return line
        try:
            return msgspec.json.encode(self._cut_line(msgspec.json.decode(line))).decode()
        except msgspec.DecodeError:  # A line for a terminal.
            return cut

    def _cut_line(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._cut_line(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self._cut_line(child) for key, child in value.items()}
        return value

    def excerpt(self, text: str, characters: int) -> str:
        """Return the beginning of a text without secrets; the text may end within a secret."""
        return self._cut_string(self.without_cut_end(text))[:characters]

    def without_cut_end(self, text: str) -> str:
        """Return a text without the beginning of a secret within which it was cut."""
        for form in self._forms:
            piece = form[: min(PIECE_CHARACTERS, (len(form) + 1) // 2)]
            at = text.find(piece, max(0, len(text) - len(form)))
            while at >= 0:
                if form.startswith(text[at:]):
                    return text[:at] + REDACTED
                at = text.find(piece, at + 1)
        return text

    def json(self, value: Any) -> Any:
        """Return decoded JSON without secrets, callback URLs and values under secret names.

        Texts that only look like an API key stay: prompts and file names may look so. If nothing
        has to be cut, the result is `value` itself.
        """
        return value if self._is_clean(value) else self._cut(value, DEPTH_MAX)

    def _is_clean(self, value: Any) -> bool:
        """Whether a search of the value's JSON text finds nothing to cut, as nearly always.

        Without a backslash, the JSON text holds each string unchanged.
        """
        if not isinstance(value, dict | list):
            return False
        try:
            text = msgspec.json.encode(value).decode()
        except (TypeError, ValueError, RecursionError):
            return False
        if "\\" in text or "callbacks" in text or "gen_" in text:
            return False
        for form in self._forms:
            if form in text:
                return False
        if text.count("{") + text.count("[") > DEPTH_MAX:
            return False
        if HIDDEN_NAME.search(text.replace("_", "").replace("-", "").lower()):
            return False
        return not (("%" in text or "&" in text) and self._hides_secret(text))

    def _cut(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._cut_string(value)
        if not isinstance(value, (dict, list)):  # Faster than a union.
            return value
        if depth == 0:
            return REDACTED
        if isinstance(value, list):
            return [self._cut(item, depth - 1) for item in value]
        return {
            self._cut_string(n): REDACTED if is_hidden(n, child) else self._cut(child, depth - 1)
            for n, child in value.items()
        }

    def _cut_string(self, text: str) -> str:
        if len(text) < self._harmless_length:
            return text
        text = self._without_secrets(text)
        text = self._callback_url.sub(REDACTED, text) if "callbacks" in text else text
        return _TOKEN.sub(REDACTED, text) if "gen_" in text else text

    @cached_property
    def _callback_url(self) -> re.Pattern[str]:
        """Any callback URL, one of ours with its host; never the text before or after it."""
        base = self._base_url
        forms = {base, base.replace("/", "\\/"), urllib.parse.quote(base, safe="")}
        host = "|".join(re.escape(form) for form in sorted(forms))
        path = rf"{SLASH}callbacks{SLASH}[a-z]{{1,32}}{SLASH}[A-Za-z0-9._~%-]+"
        return re.compile(f"(?:{host})?{path}")

    def _without_secrets(self, text: str) -> str:
        for form in self._forms:
            if form in text:
                text = self._any_form.sub(REDACTED, text)
                break
        # Escapes of JSON, URLs or HTML may hide a secret. For short text, `in` is faster than a
        # pattern, and faster for one character than for two.
        is_escaped = "\\" in text and ("\\u" in text or "\\U" in text)
        if not (is_escaped or "%" in text or "&" in text):
            return text
        if not self._hides_secret(text):
            return text
        text = _in_regions(self._without_hiding_words, text, _BETWEEN_WORDS)
        return REDACTED if self._hides_secret(text) else text

    def _without_hiding_words(self, text: str) -> str:
        return _WORD.sub(lambda word: REDACTED if self._hides_secret(word[0]) else word[0], text)

    def _hides_secret(self, text: str) -> bool:
        """Whether a secret or token appears when the escapes of JSON, URLs and HTML are undone."""
        text = _TOKEN.sub(REDACTED, text)  # A plain one hides nothing, and may stand beside others.
        for _ in range(UNESCAPES_MAX):
            plain = text
            for decode, borders in _DECODERS:
                plain = _in_regions(decode, plain, borders)
            if plain == text:
                break
            if any(form in plain for form in self._forms) or _TOKEN.search(plain):
                return True
            text = plain
        return False


def _in_regions(function: Callable[[str], str], text: str, borders: re.Pattern[str]) -> str:
    """Return `function(text)`, computed in regions; each after the first begins at a border."""
    if len(text) <= REGION_CHARACTERS:
        return function(text)
    regions, start = [], 0
    while start < len(text):
        border = borders.search(text, start + REGION_CHARACTERS)
        end = border.start() if border else len(text)
        regions.append(function(text[start:end]))
        start = end
    return "".join(regions)


def _unescape_json(text: str) -> str:
    return _ESCAPED.sub(lambda escape: chr(int(escape[1] or "2f", 16)), text)


def _unescape_html(text: str) -> str:
    if "&" not in text:
        return text
    import html  # noqa: PLC0415  cold start: a table of 2,000 names

    if "&#" in text:
        text = _NO_CHARACTER.sub("\ufffd", _LEADING_ZEROS.sub(r"\1", text))
    return html.unescape(text)


_CONTINUATION = "%[89ABab][0-9A-Fa-f]"  # A character in UTF-8 has up to three, at its end.
# Each with where the text may be cut in two: never within an escape, or a character of several.
_DECODERS = (
    (_unescape_json, re.compile(r"(?<!\\)\\")),
    (
        urllib.parse.unquote,
        re.compile(f"(?<=[^%]{{3}})|(?!{_CONTINUATION})%|(?<={_CONTINUATION * 3})%"),
    ),
    (_unescape_html, re.compile("&")),
)


def _forms(secret: str) -> Iterator[str]:
    in_json = msgspec.json.encode(secret).decode()[1:-1]
    yield from (secret, urllib.parse.quote(secret, safe=""), secret.replace("/", "\\/"), in_json)
    # In base64, what a secret looks like depends on how many bytes stand before it.
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret.encode()).decode().rstrip("=")
        # The first and the last character also hold bits of what is beside the secret.
        piece = encoded[-(-before * 8 // 6) : -1]
        if len(piece) >= _BASE64_CHARACTERS_MIN:
            yield from (piece, piece.replace("+", "-").replace("/", "_"))
