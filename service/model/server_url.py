"""The URL of a PostgreSQL server, which may name several servers."""

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from service.model.number import read_whole

RULE = (
    "must be a URL such as postgresql://genhook@db.internal/genhook or, with several hosts, "
    "postgresql://genhook@db1.internal:5432,db2.internal:5432/genhook"
)
PORT_MAX = 65_535
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]*))?")
_WRITERS = ("read-write", "primary", "any", "")  # genhook asks for a server that takes writes.


def split_hosts(url: str) -> list[str]:
    """Return a URL for each host that a URL names, in order.

    They stand as `h1:5432,h2:5432` before the database, or as `?host=h1,h2&port=5432,5432`.
    ValueError for a wrong URL, with the rule that it breaks; the text quotes nothing of the URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # Its message could quote a password.
        raise ValueError(RULE) from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if options.get("target_session_attrs", "") not in _WRITERS:
        raise ValueError("must have no target_session_attrs but read-write: genhook writes")
    user, at, hosts = parts.netloc.rpartition("@")
    # A part of the password would be read as a host or as the name of the database.
    if "@" in user or "@" in parts.path or "#" in url:
        raise ValueError("must have / ? # and @ of a password as %2F %3F %23 and %40")
    if hosts:
        names = hosts.split(",")
        _check_hosts(names)
        return [parts._replace(netloc=f"{user}{at}{name}").geturl() for name in names]
    names, ports = (options.get(name, "").split(",") for name in ("host", "port"))
    if len(ports) not in (1, len(names)):
        raise ValueError("must have one port for all of its hosts, or one for each")
    _check_ports(ports)
    if len(names) == 1:
        return [url]
    places = zip(names, ports * (len(names) // len(ports)), strict=True)
    queries = [urlencode({**options, "host": name, "port": port}) for name, port in places]
    return [parts._replace(query=query).geturl() for query in queries]


def _check_hosts(names: list[str]) -> None:
    matches = [_HOST.fullmatch(name) for name in names]
    if None in matches:
        raise ValueError(RULE)
    _check_ports([match[1] or "" for match in matches if match])


def _check_ports(ports: list[str]) -> None:
    """ValueError if a port is not a number from 1 to PORT_MAX; an empty one is the default."""
    for port in ports:
        if port and not 1 <= (read_whole(port) or 0) <= PORT_MAX:
            raise ValueError(f"must have ports from 1 to {PORT_MAX}")
