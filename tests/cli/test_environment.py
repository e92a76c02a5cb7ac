"""The settings that commands start with: keys for development, and what the banner shows."""

import argparse
import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.cli import environment
from service.model.errors import CommandError, SettingsError
from service.settings import VARIABLES
from tests.cli.test_serve import ADMIN_KEY, KEYS, SECRET_KEY


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"host": None, "port": None, "dev": False, "sandbox": False, **given}
    )


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the surroundings, and a folder without databases."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("alone")
def test_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENHOOK_SECRET_KEYS", SECRET_KEY)
    monkeypatch.setenv("PORT", "1234")
    assert environment.settings_of(options()).port == 1234
    changed = environment.settings_of(options(port=0, host="127.0.0.2"))
    assert (changed.port, changed.host) == (0, "127.0.0.2")
    assert changed.database_path == "genhook.db"


@pytest.mark.usefixtures("alone")
def test_the_environment_goes_before_the_defaults_of_development(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GENHOOK_ADMIN_KEY", ADMIN_KEY)
    monkeypatch.setenv("GENHOOK_ALLOW_NETWORKS", "10.0.0.0/8")
    first = environment.settings_of(options(dev=True))
    assert first.admin_key == ADMIN_KEY
    assert [str(network) for network in first.allow_networks] == ["10.0.0.0/8"]
    assert first.database_path == "genhook-dev.db"
    shown = environment.banner(first, "http://127.0.0.1:1", None)
    assert ADMIN_KEY not in shown
    assert "keys     throwaway GENHOOK_SECRET_KEYS, in genhook-dev.db-keys\n" in shown
    assert exported(shown)["GENHOOK_SECRET_KEYS"] == first.secret_keys[0]
    assert exported(shown).get("GENHOOK_ADMIN_KEY", ADMIN_KEY) == ADMIN_KEY
    again = environment.settings_of(options(dev=True))
    assert again.secret_keys == first.secret_keys


@pytest.mark.usefixtures("alone")
def test_the_banner_exports_no_secret_keys_that_the_service_does_not_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GENHOOK_SECRET_KEYS", SECRET_KEY)
    settings = environment.settings_of(options(dev=True))
    own = exported(environment.banner(settings, "http://127.0.0.1:1", None))
    assert own["GENHOOK_ADMIN_KEY"] == settings.admin_key
    assert own["GENHOOK_SECRET_KEYS"] == SECRET_KEY


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["with a space", "it's", 'a "quote"', "$HOME;*", "\u6e2f"])
def test_the_exports_of_the_banner_work_wherever_the_database_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    settings = environment.settings_of(options(dev=True))
    own = exported(environment.banner(settings, "http://[::1]:1", None))
    assert own["GENHOOK_URL"] == "http://[::1]:1"
    assert own["GENHOOK_SECRET_KEYS"] == settings.secret_keys[0]
    assert own["GENHOOK_DATABASE_URL"] == f"sqlite:///{folder}/genhook-dev.db"


def exported(banner: str) -> dict[str, str]:
    """The variables after the exports of a banner in the shell from which the service started."""
    lines = [line for line in banner.splitlines() if line.startswith("  export ")]
    command = ["/bin/sh", "-ec", "\n".join([*lines, "env"])]
    done = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


@pytest.mark.usefixtures("alone")
def test_keys_from_the_environment_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    read = environment.settings_of(options(dev=True))
    assert list(tmp_path.iterdir()) == []
    assert "keys     from the environment\n" in environment.banner(read, "http://x", None)


@pytest.mark.usefixtures("alone")
def test_a_sandbox_is_refused_without_dev() -> None:
    with pytest.raises(SettingsError, match="--sandbox needs --dev"):
        environment.settings_of(options(sandbox=True))


@pytest.mark.usefixtures("alone")
def test_keys_that_cannot_be_stored_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENHOOK_DATABASE_URL", "sqlite:////nowhere/genhook.db")
    with pytest.raises(CommandError, match=r"in /nowhere/\S+: No such file or directory\.$"):
        environment.settings_of(options(dev=True))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        f"GENHOOK_SECRET_KEYS={SECRET_KEY}\n".encode(),
        f"GENHOOK_SECRET_KEYS={SECRET_KEY[:20]}\nGENHOOK_ADMIN_KEY={ADMIN_KEY}\n".encode(),
        f"GENHOOK_SECRET_KEYS={SECRET_KEY}\nGENHOOK_ADMIN_KEY=\xff{ADMIN_KEY}".encode("latin-1"),
    ],
)
def test_a_damaged_file_of_keys_is_named_and_left_as_it_is(content: bytes) -> None:
    path = Path("genhook-dev.db-keys")
    path.write_bytes(content)
    with pytest.raises(CommandError, match=r"genhook-dev\.db-keys does not hold the keys"):
        environment.settings_of(options(dev=True))
    assert path.read_bytes() == content


@pytest.mark.usefixtures("alone")
def test_keys_that_are_written_only_in_part_leave_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, text: str) -> None:
        path.write_bytes(text[:20].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(CommandError, match="cannot keep throwaway keys"):
        environment.settings_of(options(dev=True))
    assert list(Path().iterdir()) == []
