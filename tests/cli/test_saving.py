"""`--save` and `generations save`: files under safe names, whole or not at all, over nothing."""

import http.server
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cli import saving
from service.model.errors import CommandError
from tests.cli.test_serve import served

PICTURE = b"\x89PNG picture"


class Storage(http.server.BaseHTTPRequestHandler):
    """A storage of results: one picture, one link that has expired, one that breaks off."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(str(self.headers.get("authorization")))
        if self.path.startswith("/expired"):
            self.send_error(403)
        elif self.path.startswith("/busy"):
            self.send_error(503)
        else:
            self.send_response(200)
            broken = self.path.startswith("/broken")
            if self.path.startswith("/page"):
                self.send_header("content-type", "Text/HTML; charset=utf-8")
            body = b"" if self.path.startswith("/empty") else PICTURE
            self.send_header("content-length", str(len(body) + 100 * broken))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def storage() -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []
    handler = type("Handler", (Storage,), {"seen": seen})
    with served(handler) as url:
        yield url.rstrip("/"), seen


def save(folder: Path, *files: dict[str, Any], **limits: int) -> tuple[bool, list[str]]:
    notes: list[str] = []
    generation = {"id": "gen_1", "output": {"files": list(files)}}
    return saving.save(generation, str(folder), notes.append, **limits), notes


def test_a_file_is_saved_without_the_key_and_never_overwritten(
    tmp_path: Path, storage: tuple[str, list[str]]
) -> None:
    url, seen = storage
    file = {"url": f"{url}/a.png", "media_type": "image/png"}
    folder = tmp_path / "new" / "pictures"
    assert save(folder, file) == (True, [f"1 of 1  {folder}/gen_1-1.png  12 bytes"])
    assert (folder / "gen_1-1.png").read_bytes() == PICTURE
    (folder / "gen_1-1.png").write_bytes(b"mine")
    is_whole, [note] = save(folder, file)
    assert (is_whole, "not overwritten" in note) == (True, True)
    assert (folder / "gen_1-1.png").read_bytes() == b"mine"
    assert seen == ["None"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/expired.png", "the link is dead: 127.0.0.1 answered 403; it was good until 2026-"),
        ("/busy.png", "127.0.0.1 answered 503; try again."),
        ("/broken.png", "no answer from 127.0.0.1"),
        ("/page.png", "127.0.0.1 answered with a web page, not with the file."),
        ("/empty.png", "it is empty."),
    ],
)
def test_what_cannot_be_fetched_is_said_and_leaves_no_file_and_the_others_are_saved(
    path: str, said: str, tmp_path: Path, storage: tuple[str, list[str]]
) -> None:
    url, _ = storage
    expires_at = "2026-11-22T18:20:00.000Z"
    bad = {"url": url + path, "media_type": "image/png", "expires_at": expires_at}
    is_whole, notes = save(tmp_path, bad, {"url": f"{url}/a.webp"})
    assert not is_whole
    assert said in notes[0]
    assert [each.name for each in tmp_path.iterdir()] == ["gen_1-2.webp"]


@pytest.mark.parametrize(
    "url", [None, "gs://bucket/a.png", "s3://bucket/a.png", "file:///etc/passwd", "http://[", 7]
)
def test_a_link_that_leads_nowhere_from_here_is_said(url: Any, tmp_path: Path) -> None:
    is_whole, [note] = save(tmp_path, {"url": url, "media_type": "image/png"})
    assert not is_whole
    assert "is not saved" in note
    assert list(tmp_path.iterdir()) == []


def test_a_file_inside_of_its_link_is_saved(tmp_path: Path) -> None:
    data = {"url": "data:audio/mpeg;base64,SUQz", "media_type": "audio/mpeg"}
    assert save(tmp_path, data, {"url": "data:text/plain,a%20b", "media_type": "text/plain"})[0]
    assert (tmp_path / "gen_1-1.mp3").read_bytes() == b"ID3"
    assert (tmp_path / "gen_1-2.bin").read_bytes() == b"a b"
    assert not save(tmp_path / "other", {"url": "data:;base64,a", "media_type": "x"})[0]


@pytest.mark.parametrize(
    ("id_", "url", "media_type", "name"),
    [
        ("gen_1", "https://a.example/x/../../etc/passwd", "image/png", "gen_1-1.png"),
        ("../../gen", "https://a.example/a.PNG?x=/../b", "", "______gen-1.png"),
        ("gen_1", "https://a.example/a.p%2f..", "", "gen_1-1.bin"),
        ("gen_1", "https://a.example/.bashrc", "video/mp4", "gen_1-1.mp4"),
        ("gen_1", "https://a.example/a.jpeg", "image/jpeg", "gen_1-1.jpeg"),
        ("gen_1", "https://a.example/\u202egnp.exe", None, "gen_1-1.bin"),
    ],
)
def test_nothing_of_a_name_comes_from_upstream_but_a_short_extension(
    id_: str, url: str, media_type: str, name: str
) -> None:
    assert saving.file_name(id_, 1, {"url": url, "media_type": media_type}) == name


def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="no folder to save in"):
        save(tmp_path / "file")


def test_a_file_that_is_too_large_is_not_kept(
    tmp_path: Path, storage: tuple[str, list[str]]
) -> None:
    is_whole, [note] = save(tmp_path, {"url": f"{storage[0]}/a.png"}, bytes_max=5)
    assert (is_whole, "more than 5 bytes" in note) == (False, True)
    assert list(tmp_path.iterdir()) == []
    assert save(tmp_path, {"url": f"{storage[0]}/a.png"}, bytes_max=len(PICTURE))[0]
