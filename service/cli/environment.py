"""The settings that commands start with, and the throwaway keys of `genhook serve --dev`."""

import argparse
import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from service.cli import new_file
from service.model.errors import CommandError, SettingsError
from service.settings import ENVIRONMENT, Settings, read_settings, read_variable
from service.store.sqlite.opening import problem_before_opening

DATABASE_URL = "sqlite:///genhook-dev.db"
THROWAWAY = ("GENHOOK_SECRET_KEYS", "GENHOOK_ADMIN_KEY")

_BANNER = """\
genhook --dev: plain http and targets on this machine are allowed. Not for production.

  service  {url}, its reference at {url}/docs
  pages    {url}/dashboard
{sandbox}  keys     {keys}

Try it from another terminal:

{export}  id=$(curl -s {url}/v1/generations \\
    -H "Authorization: Bearer $GENHOOK_ADMIN_KEY" -H 'Content-Type: application/json' \\
    -d '{{"model": "imagen4-fast", "input": {{"prompt": "A lighthouse at dusk"}}}}' \\
    | grep -o 'gen_[0-9a-f]*' | head -n 1)
  curl -s "{url}/v1/generations/$id?wait=30" -H "Authorization: Bearer $GENHOOK_ADMIN_KEY"
{database}"""
_DATABASE = """
  # Commands that open the database, such as genhook doctor, need its settings too:
  export $(grep -E '{names}' {keys}) GENHOOK_DATABASE_URL={url}
"""


def settings_of(options: argparse.Namespace) -> Settings:
    """Read the settings of the environment; those of the command line come before them."""
    if options.sandbox and not options.dev:
        raise SettingsError("--sandbox needs --dev: a sandbox is no upstream for production.")
    overrides = {"host": options.host, "port": options.port}
    return read_settings(
        with_defaults() if options.dev else ENVIRONMENT,
        **{name: value for name, value in overrides.items() if value is not None},
    )


def require_database(settings: Settings) -> Settings:
    """Return the settings; CommandError if their database is a file that cannot be opened.

    Commands that only read or clean up create no database: a missing one means a mistyped name.
    """
    if settings.is_postgres:
        return settings
    path = Path(settings.database_path).absolute()
    if problem := problem_before_opening(str(path)):
        raise CommandError(f"cannot open {path}: {problem}")
    if not path.exists():
        raise CommandError(
            f"there is no database at {path}: check GENHOOK_DATABASE_URL, "
            "or create one with `genhook migrate`."
        )
    return settings


def with_defaults() -> dict[str, str]:
    """Return the environment, with defaults for development where it sets nothing."""
    own = {name: value for name, value in ENVIRONMENT.items() if value}
    url = own.setdefault("GENHOOK_DATABASE_URL", DATABASE_URL)
    defaults = {
        "GENHOOK_ALLOW_HTTP": "true",
        "GENHOOK_ALLOW_NETWORKS": "127.0.0.0/8,::1/128",
        "GENHOOK_SHUTDOWN_SECONDS": "2",  # Somebody pressed Ctrl-C and waits.
    }
    has_keys = own.keys() >= {*THROWAWAY}
    if url.startswith("sqlite:///") and not has_keys:
        defaults |= throwaway_keys(Path(url.removeprefix("sqlite:///") + "-keys"))
    return defaults | own


def throwaway_keys(path: Path) -> Mapping[str, str]:
    """Return the keys of a development database; its first run creates them, else CommandError."""
    try:
        if not path.exists():
            _create_keys(path)
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise CommandError(f"cannot keep throwaway keys in {path}: {error.strerror}.") from error
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    keys = {name: values.get(name, "") for name in THROWAWAY}
    try:
        is_whole = all(read_variable(name, keys) for name in keys)
    except SettingsError:
        is_whole = False
    if not is_whole:
        raise CommandError(
            f"{path} does not hold the keys {' and '.join(THROWAWAY)} of its database: "
            "put them back, or remove both files and begin anew."
        )
    return keys


def _create_keys(path: Path) -> None:
    """Create the file of throwaway keys, unless another process is faster."""
    import secrets

    secret_key, admin_key = (secrets.token_urlsafe(32) for _ in THROWAWAY)
    with contextlib.suppress(FileExistsError), new_file.create(path) as partial:
        partial.write_text(f"GENHOOK_SECRET_KEYS={secret_key}\nGENHOOK_ADMIN_KEY=ghk_{admin_key}\n")


def banner(settings: Settings, url: str, sandbox_url: str | None) -> str:
    """Return the URLs, and commands to paste. A key from the environment is not printed."""
    # Throwaway keys are kept beside a file, which may have one that the service does not use.
    throwaway = [n for n in THROWAWAY if not (settings.is_postgres or ENVIRONMENT.get(n))]
    path = Path(settings.database_path).absolute()
    keys_path, database_url = map(shlex.quote, (f"{path}-keys", f"sqlite:///{path}"))
    database = _DATABASE.format(names="|".join(throwaway), keys=keys_path, url=database_url)
    keys = f"throwaway {' and '.join(throwaway)}, in {settings.database_path}-keys"
    export = (
        f"  export GENHOOK_ADMIN_KEY={settings.admin_key}\n" if THROWAWAY[1] in throwaway else ""
    )
    return _BANNER.format(
        url=url,
        sandbox=f"  sandbox  {sandbox_url}\n" if sandbox_url else "",
        keys=keys if throwaway else "from the environment",
        export=f"  export GENHOOK_URL={shlex.quote(url)}\n{export}",
        database=database if throwaway else "",
    )
