"""The demo: it passes, it says so, and it can fail."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from standardwebhooks import Webhook

from service.cli import demo, main
from service.cli.demo import audience, play
from service.model.errors import CommandError

DEMO_SECONDS = 40
MAIN = "from service.cli.main import main; raise SystemExit(main())"


def test_the_demo_passes_and_shows_what_happened(tmp_path: Path) -> None:
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", MAIN, "demo", "--output", "pictures"],
        cwd=tmp_path,
        capture_output=True,
        timeout=DEMO_SECONDS,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("\n", "").isprintable()  # no control characters
    scenes = done.stdout.split("\n\n")
    assert [scene[:1] for scene in scenes[1:4]] == ["1", "2", "3"]
    assert ["callback" in scene.partition("\n")[2] for scene in scenes[1:4]] == [True, False, False]
    for scene in scenes[1:4]:
        assert scene.count("signature verified") == 2
    assert "3 generations, one outcome each; 6 webhooks" in scenes[-1]
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 3
    for path in pictures:
        assert str(path.relative_to(tmp_path)) in done.stdout
        with Image.open(path) as picture:
            picture.load()


SCENE = play.Scene(
    "By callback", "imagen4-fast", "A dune [sandbox: delay=0]", "callback", called_back=True
)


@pytest.mark.parametrize(
    ("scene", "failure"),
    [
        (play.Scene("A", SCENE.model, SCENE.prompt, "callback", called_back=False), "no callback"),
        (play.Scene("B", SCENE.model, SCENE.prompt, "poll", called_back=True), "not poll"),
        (
            play.Scene(
                "C", SCENE.model, "x [sandbox: fail, delay=0]", "callback", called_back=True
            ),
            "ended failed",
        ),
        (play.Scene("D", SCENE.model, "x", "callback", called_back=True), "422"),
    ],
)
async def test_a_failed_check_fails_the_demo(
    scene: play.Scene,
    failure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(play, "SCENES", (scene,))
    assert await play.play(tmp_path) == 1
    out = capsys.readouterr().out
    assert failure in out
    assert "checks failed" in out


async def test_an_invalid_signature_fails_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Webhook("whsec_" + "A" * 43 + "=")
    monkeypatch.setattr(audience, "Webhook", lambda _: other)
    monkeypatch.setattr(play, "SCENES", (SCENE,))
    assert await play.play(tmp_path) == 1
    out = capsys.readouterr().out
    assert "a signature is not valid" in out
    assert "signature verified" not in out.partition("failed")[0]


def test_without_its_extra_the_demo_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CommandError, match=r"pip install 'genhook\[demo\]'"):
        demo.demo(argparse.Namespace(output="x"), main.echo)


async def test_a_folder_that_cannot_be_created_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="cannot create"):
        await play.play(tmp_path / "file" / "below")
