"""docs/cli.md: each example runs and prints what the page shows, but for ids, times and secrets."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cli import main
from service.cli.calls import KeyRefusedError, UnreachableError
from service.cli.completion import SHELLS
from service.model.clock import now_ms
from service.model.errors import CommandError, MissingError
from tests.cli import test_serve
from tests.cli.test_main import COMMANDS
from tests.cli.test_serve import Running

service, inbox = test_serve.service, test_serve.inbox
PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "cli.md").read_text("utf-8")
SECONDS_MAX, DAY_SECONDS = 180, 86_400
RECEIVER = "http://127.0.0.1:9100/"
ID = re.compile(r"\b(?:gen|cb|sub|dlv|evt|key|rpl)_[0-9a-f]{32}\b")
VARYING = (
    (ID, "ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "DAY"),
    (re.compile(r"\bn[0-9a-f]{14}_imagen4\b"), "TASK"),
    (re.compile(r"(?m)^host +127\.0\.0\.1:\d+|^content-length +\d+|python-httpx/\S+"), "HEADER"),
    (re.compile(r"http://127\.0\.0\.1:\d+/(?:inbox)?"), "URL/"),
    (re.compile(r"\bwhsec_\S+|\bghk_\S+"), "SECRET"),
    (re.compile(r'\d+\.\d+ s|in \d+ ms|(?<="p\d\d":)[\d.]+|\d+\.\d KiB'), "NUMBER"),
    (re.compile(r"(?m)^( *1 +test .*?TIME) +\d+ "), r"\1 NUMBER "),
    (re.compile(r"[ \t]+"), " "),
)
# Not on the page, as they run a service or look after one: their help and operations.md show them.
ELSEWHERE = {"serve", "work", "sandbox", "demo", "migrate", "backup", "copy", "tick", "doctor"}


def examples() -> Iterator[tuple[str, str]]:
    """Each command line of the page, and what it prints there."""
    for block in re.findall(r"(?s)```console\n(.*?)```", PAGE):
        for example in re.split(r"(?m)^\$ genhook ", block)[1:]:
            line, _, shown = example.partition("\n")
            yield line, shown


def normal(text: str) -> str:
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text


@pytest.mark.timeout(SECONDS_MAX)
def test_every_example_prints_what_the_page_shows(
    service: Running,
    inbox: tuple[str, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if DAY_SECONDS - now_ms() // 1_000 % DAY_SECONDS < SECONDS_MAX:
        pytest.skip("the day may end meanwhile, and usage has a line for each day")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENHOOK_URL", service.url)
    monkeypatch.setenv("GENHOOK_ADMIN_KEY", test_serve.ADMIN_KEY)
    real = {RECEIVER: inbox[0]}  # By what stands on the page.
    for line, shown in examples():
        for text, own in real.items():
            line = line.replace(text, own)  # noqa: PLW2901  the page's ids become those of this run
        assert main.main(shlex.split(line)) == 0, line
        printed = capsys.readouterr().out
        assert normal(printed) == normal(shown), line
        real |= dict(zip(ID.findall(shown), ID.findall(printed), strict=True))
    assert len(real) > 5


def test_the_page_has_every_command_that_calls_a_service() -> None:
    named = {name for name in COMMANDS if name.split()[1] not in ELSEWHERE}
    assert {name for name in named if not re.search(rf"{name}[ `\n]", PAGE)} == set()


def test_the_page_has_every_exit_status_and_every_shell() -> None:
    errors = (CommandError, UnreachableError, MissingError, KeyRefusedError)
    for status in (0, 2, 130, *(error.status for error in errors)):
        assert f"\n| {status} | " in PAGE
    for shell in SHELLS:
        assert f"genhook completion {shell} > " in PAGE


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_example_in_the_help_of_a_command_is_one_that_it_takes(name: str) -> None:
    """Only parsed: some would serve, others would need a database."""
    example = COMMANDS[name].format_help().partition("example:\n")[2].strip().splitlines()[0]
    words = shlex.split(re.sub(r"\$\(.*?\)", "today", example).partition(" > ")[0])
    words = words[words.index("genhook") + 1 :]
    options = main.parser(words[0]).parse_args(words)
    assert callable(options.run)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_printed_and_says_what_each_option_does(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([*name.split()[1:], "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}")
    options = [action for action in COMMANDS[name]._actions if action.option_strings]
    assert all(action.help for action in options)
