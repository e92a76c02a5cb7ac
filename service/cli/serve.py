"""`genhook serve`, `work` and `sandbox`; what they run is imported once it is needed."""

import argparse
import contextlib
import gc
from functools import partial

from service.cli import streams
from service.cli.arguments import check, define, parse_number
from service.model.number import read_whole

PORT_MAX = 65_535
WORK_CONNECTIONS_MAX = 256  # To GENHOOK_WORK_PORT.


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook serve`."""
    define(parser, serve, "genhook serve --dev --sandbox")
    parser.add_argument(
        "--host", type=parse_host, help="address to listen on (GENHOOK_HOST, 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=parse_port, help="port to listen on (PORT, 8000); 0 is any free port"
    )
    for name, summary in (
        ("--dev", "for trying out: create throwaway keys, allow http and local targets"),
        ("--sandbox", "run a sandbox and use it as upstream; needs --dev"),
    ):
        parser.add_argument(name, action="store_true", help=summary)


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook work`."""
    define(parser, work, "genhook work")


def add_sandbox(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook sandbox`."""
    define(parser, sandbox, "genhook sandbox --port 9000 --speed 10")
    parser.add_argument(
        "--host", type=parse_host, default="127.0.0.1", help="address to listen on (127.0.0.1)"
    )
    parser.add_argument("--port", type=parse_port, default=9000, help="port to listen on (9000)")
    parser.add_argument(
        "--api-key",
        type=parse_api_key,
        help="the only API key it accepts (any that starts with aio_)",
    )
    parser.add_argument(
        "--speed",
        type=partial(parse_number, low=0.01, high=1_000),
        default=1.0,
        help="speed, as a multiple of real time (1)",
    )


def parse_host(text: str) -> str:
    """Read an address. Spaces would mean every one."""
    check(bool(text.strip()), "must be an address, such as 127.0.0.1, or 0.0.0.0 for every one")
    return text


def parse_port(text: str) -> int:
    """Read a port; 0 is any free one."""
    port = read_whole(text)
    if port is None or port > PORT_MAX:
        raise argparse.ArgumentTypeError(f"must be a port, from 0 to {PORT_MAX}")
    return port


def parse_api_key(text: str) -> str:
    """Read a key, which a header can hold."""
    from service.settings import is_visible

    check(is_visible(text), "must be visible ASCII characters, without spaces")
    return text


def serve(options: argparse.Namespace) -> int:
    """Run the service until a signal ends it: 0, or 1 if its worker failed."""
    gc.disable()  # Until it serves: what is allocated at the start is not garbage.
    from service.cli import environment

    settings = environment.settings_of(options)
    import msgspec

    from service.app import App, configure_log
    from service.cli import server

    configure_log(settings, has_sandbox=options.sandbox)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(server.bind(settings.host, settings.port))
        url, sandbox_url, sandbox_sock = server.url_of(sock), None, None
        if options.sandbox:
            from service.sandbox.welcome import DEV_KEY

            sandbox_sock = stack.enter_context(server.bind("127.0.0.1", 0))
            sandbox_url = server.url_of(sandbox_sock)
            settings = msgspec.structs.replace(
                settings,
                upstream_url=f"{sandbox_url}/api/v1",
                upstream_api_key=DEV_KEY,
                public_url=settings.public_url or url,  # Where the sandbox calls back.
            )
        if options.dev:
            streams.echo(environment.banner(settings, url, sandbox_url))
        return server.run(server.serve(App(settings, accepts=True), sock, sandbox_sock))


def work(_options: argparse.Namespace) -> int:
    """Run the worker alone until a signal ends it: 0, or 1 if it failed."""
    from service.settings import read_settings

    settings = read_settings()
    import msgspec

    from service.app import App, configure_log
    from service.cli import server

    configure_log(settings)
    # Beside probes, few look at it: its connections take little of what attempts need.
    few = min(settings.connections_max, WORK_CONNECTIONS_MAX)
    settings = msgspec.structs.replace(settings, connections_max=few)
    app = App(settings, accepts=settings.work_port is not None)
    if settings.work_port is None:
        return server.run(server.work(app, None))
    with server.bind(settings.host, settings.work_port) as sock:
        return server.run(server.work(app, sock))


def sandbox(options: argparse.Namespace) -> int:
    """Run a sandbox of API in One until a signal ends it."""
    from service.cli import server
    from service.telemetry import log

    log.configure("info", stream="stdout")
    with server.bind(options.host, options.port) as sock:
        url = server.url_of(sock)
        streams.echo(
            f"The sandbox of API in One is at {url}/api/v1. To see what it can do: curl {url}"
        )
        return server.run(server.sandbox(sock, options.api_key, options.speed))
