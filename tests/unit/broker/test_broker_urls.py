"""Which URLs a broker can have, and what is said of the others: at the start, with what to give instead, and no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmplex import Client
from fmplex.cli.common import broker_url
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.broker_url import check_broker_url
from fmplex_broker.specs.fleet import load_fleet
from fmplex_broker.streams.connection import open_redis
from tests.support.fleets import write_fleet

TAKEN = [
    "redis://127.0.0.1:6379",
    "redis://user:pass@host/3",
    "redis://[::1]:6379/0",
    "rediss://host:6380?ssl_cert_reqs=none",
    "unix:///run/valkey,1.sock?db=1",
    "redis://host?socket_timeout=3&protocol=3&decode_responses=1&max_connections=2&retry_on_timeout=yes",
]
REFUSED = {
    "redis+sentinel://:secret@one:26379,two:26379/primary": "asks no Sentinel",
    "sentinel://:secret@one:26379": "asks no Sentinel",
    "rediss-cluster://:secret@one": "no node of a cluster",
    "redis+cluster://:secret@one": "no node of a cluster",
    "valkey://:secret@one": "redis:// in front",
    "valkeys://:secret@one": "rediss:// in front",
    "redis://:secret@one:1,two:2": "several hosts",
    "redis://:secret@one:port": "cannot be read",
    "redis://:secret@one:99999": "cannot be read",
    "memcached://:secret@one": "begins with redis://",
    "one:6379": "begins with redis://",
    "": "begins with redis://",
}
UNUSABLE = {
    "redis://:secret@one?no_such_option=1": "no_such_option",
    "redis://:secret@one?db=two": "db",
    "unix:///run/s?ssl_check_hostname=yes": "ssl_check_hostname",
}


@pytest.mark.parametrize("url", TAKEN)
def test_what_is_taken(url: str, tmp_path: Path) -> None:
    assert check_broker_url(url) == url
    pool = open_redis(url).connection_pool
    kept = pool.connection_kwargs
    assert (kept["protocol"], kept["decode_responses"], kept["socket_timeout"]) == (2, False, None)
    assert kept["retry"].get_retries() == 0
    assert pool.max_connections == 1024
    assert load_fleet(write_fleet(tmp_path / "f.toml", {"name": "b", "model": "m"}, broker=url)).broker == url


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_refused_and_what_to_give_instead(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMPLEX_BROKER", url or "x")
    for use in (
        lambda: check_broker_url(url),
        lambda: open_redis(url),
        lambda: broker_url(None),
        lambda: load_fleet(write_fleet(tmp_path / "f.toml", {"name": "b", "model": "m"}, broker=url)),
    ):
        with pytest.raises(InvalidInput, match=REFUSED[url]) as caught:
            use()
        assert caught.value.field == "broker"
        assert "secret" not in caught.value.message


@pytest.mark.parametrize("url", UNUSABLE)
def test_an_option_that_no_connection_has_is_named_at_the_start(url: str) -> None:
    with pytest.raises(InvalidInput, match=UNUSABLE[url]) as caught:
        open_redis(url)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("url", list(REFUSED)[:6])
def test_the_sdk_says_what_to_give_instead(url: str) -> None:
    with pytest.raises(InvalidInput, match=REFUSED[url]) as caught:
        Client(url)
    assert "secret" not in caught.value.message
