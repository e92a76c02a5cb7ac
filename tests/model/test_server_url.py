"""The hosts in a URL of PostgreSQL: one URL for each, and a rule for a URL that is wrong."""

import pytest

from service.model.server_url import split_hosts


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        ("postgresql://app:pw@db:5432/g", ["postgresql://app:pw@db:5432/g"]),
        ("postgresql://db/g", ["postgresql://db/g"]),
        (
            "postgresql://app:pw@a:1,b,[::1]:3/g?sslmode=require",
            [
                "postgresql://app:pw@a:1/g?sslmode=require",
                "postgresql://app:pw@b/g?sslmode=require",
                "postgresql://app:pw@[::1]:3/g?sslmode=require",
            ],
        ),
        ("postgresql:///g?host=/run/pg", ["postgresql:///g?host=/run/pg"]),
        (
            "postgresql://app@/g?host=/run/pg,b&port=1,2",
            [
                "postgresql://app@/g?host=%2Frun%2Fpg&port=1",
                "postgresql://app@/g?host=b&port=2",
            ],
        ),
        (
            "postgresql://app@/g?host=a,b&port=1",
            ["postgresql://app@/g?host=a&port=1", "postgresql://app@/g?host=b&port=1"],
        ),
        (
            "postgresql://app@/g?host=a,b",
            ["postgresql://app@/g?host=a&port=", "postgresql://app@/g?host=b&port="],
        ),
    ],
)
def test_each_host_has_a_url(url: str, urls: list[str]) -> None:
    assert split_hosts(url) == urls


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("postgresql://a:1,b:x/g", "must be a URL such as"),
        ("postgresql://a:0,b/g", "must have ports from 1 to 65535"),
        ("postgresql://a,b:65536/g", "must have ports from 1 to 65535"),
        ("postgresql://a,,b/g", "must be a URL such as"),
        ("postgresql://a,/g", "must be a URL such as"),
        ("postgresql://a:1:2,b/g", "must be a URL such as"),
        ("postgresql://app:p@ss@a,b/g", "must have / . # and @ of a password as %2F"),
        ("postgresql:///g?host=a,b&port=1,2,3", "one port for all of its hosts, or one for each"),
        ("postgresql:///g?host=a,b&port=1,x", "must have ports from 1 to 65535"),
        (
            "postgresql://a,b/g?target_session_attrs=standby",
            "no target_session_attrs but read-write",
        ),
    ],
)
def test_a_wrong_url_is_told_the_rule(url: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        split_hosts(url)
