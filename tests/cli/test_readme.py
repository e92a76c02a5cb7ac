"""README.md: its blocks run in order in a fresh folder, and print what the page shows."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cli.test_documented import ID, normal
from tests.cli.test_serve import surroundings
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"(?ms)^```(sh|console|python)\n(.*?)^```$")
REAL = re.compile(rf"{ID.pattern}|\bwhsec_\S+|\bghk_\S+")
PORTS = ("8000", "9100")  # Of the service and of the receiver, as on the page.
CUT = "…"  # The command goes on, and the page shows no more of it.
DONE = "This command has ended."
SECONDS = 300


class Terminal:
    """A shell in a folder: what runs in its background prints among the output of the others."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["/bin/bash"],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())

    def run(self, command: str, line_count: int, *, has_end: bool = True) -> list[str]:
        """Run a command; return its lines, at least so many, and all of them if it ends."""
        assert self.process.stdin is not None
        # The empty line ends a last line of an output that has no end of its own.
        self.process.stdin.write(f"{command}\n" + f"echo; echo '{DONE}'\n" * has_end)
        self.process.stdin.flush()
        lines: list[str] = []
        is_done = not has_end
        while len(lines) < line_count or not is_done:
            try:
                line = self._lines.get(timeout=SECONDS)
            except queue.Empty:
                pytest.fail(f"{command}\nprinted only:\n" + "\n".join(lines))
            is_done |= line == DONE
            lines += [line] * (line not in ("", DONE))
        return lines

    def end(self) -> None:
        """End the shell and all that it runs; their output ends with the last of them."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        assert not self._reader.is_alive()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def opened(folder: Path, environ: dict[str, str]) -> Iterator[Terminal]:
    terminal = Terminal(folder, environ)
    try:
        yield terminal
    finally:
        terminal.end()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh folder in which `make` finds what it finds in a clone after `make install`."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def examples(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a block, which may have several lines, and what it prints there."""
    for example in re.split(r"(?m)^\$ ", block)[1:]:
        match = re.fullmatch(r"(?s)((?:[^\n]*\\\n)*[^\n]*)\n(.*)", example)
        assert match, example
        yield match[1], match[2]


def comparable(lines: list[str]) -> list[str]:
    """Lines without ids, times and ports; those of the receiver first, as it prints meanwhile."""
    text = re.sub(r"\breq_[0-9a-f]{32}", "ID", "\n".join(line for line in lines if line.strip()))
    plain = re.sub(r"(?<=127\.0\.0\.1):\d+", ":PORT", normal(text)).splitlines()
    return sorted((line.strip() for line in plain), key=lambda line: "ID generation." not in line)


class Tour:
    """The blocks of the page, run one after the other."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.ports = dict(zip(PORTS, (str(free_port()), str(free_port())), strict=True))
        self.real: dict[str, str] = {}  # By what stands on the page.
        self.terminal = self.open()

    def open(self) -> Terminal:
        environ = surroundings() | {"PORT": self.ports[PORTS[0]]}
        return self.stack.enter_context(opened(self.folder, environ))

    def own(self, text: str) -> str:
        """A text of the page with the ids, keys and ports of this run."""
        for shown, real in self.real.items():
            text = text.replace(shown, real)
        return re.sub(r"\b(8000|9100)\b", lambda match: self.ports[match[0]], text)

    def run(self, command: str, shown: str) -> None:
        lines = shown.splitlines()
        is_cut = bool(lines) and lines[-1].strip() == CUT
        expected = comparable(lines[: len(lines) - is_cut])
        own = self.own(command)
        if " timeline " in own:  # A webhook is received a moment before its attempt is recorded.
            count = f'"$({own} | wc -l)" -ge {len(expected)}'
            self.terminal.run(f"for _ in {{1..20}}; do [ {count} ] && break; done", 0)
        printed = self.terminal.run(own, len(expected), has_end=not is_cut)
        if command.endswith("&"):
            connect = f"(: < /dev/tcp/127.0.0.1/{self.ports[PORTS[1]]}) 2> /dev/null"
            self.terminal.run(f"until {connect}; do sleep 0.05; done", 0)
        assert comparable(printed) == expected, command
        self.real |= dict(zip(REAL.findall(shown), REAL.findall("\n".join(printed)), strict=True))
        if is_cut:  # It runs on; the page goes on in another terminal, with its `export` lines.
            self.terminal = self.open()
            for line in printed:
                if line.strip().startswith("export "):
                    self.terminal.run(line, 0)


@pytest.mark.timeout(600)
def test_the_tour_prints_what_the_page_shows(clone: Path) -> None:
    commands: list[str] = []
    with ExitStack() as stack:
        tour = Tour(clone, stack)
        for match in BLOCK.finditer(PAGE):
            kind, block = match.groups()
            if kind == "python":
                name = re.findall(r"`(\w+\.py)`", PAGE[: match.start()])[-1]
                (clone / name).write_text(tour.own(block), "utf-8")
            for command, shown in examples(block) if kind == "console" else ():
                commands.append(command)
                tour.run(command, shown)
    assert commands[0].endswith("make run")
    assert len(commands) > 6


@pytest.mark.timeout(600)
def test_the_demo_runs_as_the_page_says_and_every_other_target_is_there(clone: Path) -> None:
    blocks = [block for kind, block in BLOCK.findall(PAGE) if kind == "sh"]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(make [^`]+)`", PAGE)
    assert {"make demo", "make test", "make chaos", "make bench"} <= set(lines)
    for line in lines:
        # The others are only named: `make test` would run this test, `make bench` takes minutes.
        options = [] if line == "make demo" else ["--dry-run"]
        done = subprocess.run(  # noqa: S603  a line of our own page
            [*line.split(), *options],
            cwd=clone,
            env=surroundings(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
