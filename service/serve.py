"""`genhook serve` and `genhook work`: settings, logs, sockets, signals."""

import argparse
import asyncio
import gc
import ipaddress
import os
import secrets
import signal
import sys
from typing import Any

from service import log
from service.errors import SettingsError
from service.settings import Settings, read_settings, unknown

KEEP_ALIVE_SECONDS = 30
CONNECTIONS_MAX = 1_024
BACKLOG = 2_048


def settings_for(options: argparse.Namespace) -> Settings:
    """The environment's settings with the command's options before them."""
    overrides: dict[str, Any] = {}
    if getattr(options, "host", None):
        overrides["host"] = options.host
    if getattr(options, "port", None) is not None:
        overrides["port"] = options.port
    if getattr(options, "dev", False):
        overrides |= _throwaway()
    elif getattr(options, "sandbox", False):
        raise SettingsError("--sandbox needs --dev: a sandbox is no upstream for production.")
    return read_settings(**overrides)


def _throwaway() -> dict[str, Any]:
    """What `--dev` makes up where the environment says nothing."""
    made: dict[str, Any] = {
        "allow_http": True,
        "allow_networks": tuple(ipaddress.ip_network(n) for n in ("127.0.0.0/8", "::1/128")),
    }
    environ = os.environ  # noqa: TID251  only to see what is missing
    if not environ.get("GENHOOK_SECRET_KEYS"):
        made["secret_keys"] = (secrets.token_urlsafe(32),)
    if not environ.get("GENHOOK_ADMIN_KEY"):
        made["admin_key"] = "ghk_" + secrets.token_urlsafe(32)
    return made


def warn_of_unknown() -> None:
    """Say which variables look like settings and are none."""
    for name in unknown():
        log.get().warning("settings.unknown", name=name, see="docs/settings.md")


def serve(options: argparse.Namespace) -> int:
    """Run the service until a signal ends it."""
    settings = settings_for(options)
    log.configure(settings.log_level)
    warn_of_unknown()
    if options.dev:
        _say_throwaway(settings)
    from service.app import App  # noqa: PLC0415  settings are refused before anything is loaded

    return run_app(App(settings), settings)


def work(options: argparse.Namespace) -> int:
    """Run the worker alone, until a signal ends it."""
    settings = settings_for(options)
    log.configure(settings.log_level)
    warn_of_unknown()
    from service.app import App  # noqa: PLC0415  settings are refused before anything is loaded

    asyncio.run(_work(App(settings)))
    return 0


async def _work(app: Any) -> None:
    """The application without its sockets."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await app.start(worker=True)
    app.worker.task.add_done_callback(lambda _task: stopping.set())
    await stopping.wait()
    failed = app.worker.task.done() and app.worker.task.exception()
    await app.stop()
    if failed:
        raise failed


def run_app(app: Any, settings: Settings) -> int:
    """Serve an ASGI application with uvicorn, as fast as this machine has it."""
    import uvicorn  # noqa: PLC0415  cold start

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="on",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )
    server = uvicorn.Server(config)
    gc.freeze()  # What start-up made lives as long as the process.
    server.run()
    return 0 if server.started else 3


def _say_throwaway(settings: Settings) -> None:
    print("genhook: --dev: keys made up for this run, plain http and loopback targets allowed.")
    print(f"genhook: http://{settings.host}:{settings.port}  admin key: {settings.admin_key}")
    sys.stdout.flush()
