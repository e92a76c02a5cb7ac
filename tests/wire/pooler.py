"""PgBouncer in transaction mode, in front of the PostgreSQL server of the tests."""

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from tests import programs
from tests.ports import free_port

CONFIG = """
[databases]
* = host={host} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {sessions}
log_connections = 0
log_disconnections = 0
"""


@contextmanager
def pooled(
    folder: Path, url: str, *, sessions: int = 2, mode: str = "transaction", port: int = 0
) -> Iterator[str]:
    """Run PgBouncer with so many sessions in front of the server; yield the URL of the pooler."""
    program, parts = programs.find("pgbouncer"), urlsplit(url)
    options = parse_qs(parts.query)
    [host] = options.pop("host")
    port = port or free_port()
    file = folder / "pgbouncer.ini"
    values = {"host": host, "user": parts.username, "port": port, "mode": mode}
    file.write_text(CONFIG.format(**values, sessions=sessions), "utf-8")
    line = [program, str(file)]
    if os.geteuid() == 0:  # It does not run as root; the server has a user of its own then, too.
        owner = next(path for path in Path(host).iterdir() if path.is_socket()).owner()
        pwd.getpwnam(owner)
        line[1:1] = ["-u", owner]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stderr is not None
            lines: list[str] = []
            while "process up" not in (said := process.stderr.readline()):
                lines.append(said)
                assert said, f"pgbouncer did not start: {lines}"
            query = f"?{urlencode(options, doseq=True)}" if options else ""
            yield f"postgresql://genhook@127.0.0.1:{port}{parts.path}{query}"
        finally:
            process.kill()
