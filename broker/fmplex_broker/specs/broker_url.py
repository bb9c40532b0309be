"""Broker URLs: which are taken, and what to give instead of the others."""

from __future__ import annotations

from urllib.parse import urlsplit

from fmplex_broker.errors import InvalidInput

BROKER_SCHEMES = ("redis", "rediss", "unix")


def check_broker_url(url: str) -> str:
    """Return the URL of a broker as it is. Raises `InvalidInput` with what to give instead, never with the URL itself: it may
    hold a password."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in BROKER_SCHEMES:
        better = better_broker_url(scheme) or "a broker's URL begins with redis://, rediss:// or unix://"
        raise InvalidInput(better, field="broker")
    if scheme == "unix":
        return url
    if "," in rest.partition("/")[0].rpartition("@")[2]:
        raise InvalidInput(
            "the broker's URL names several hosts and FMplex speaks to one server; give one, or a DNS name or proxy that "
            "follows the primary",
            field="broker",
        )
    try:
        _ = urlsplit(url).port
    except ValueError as e:
        raise InvalidInput(
            f"the broker's URL cannot be read ({e}); write it as redis://USER:PASSWORD@HOST:PORT/DATABASE",
            field="broker",
        ) from None
    return url


def better_broker_url(scheme: str) -> str | None:
    """Say what to give instead of a URL of another kind of Redis; None if it is no such."""
    if "sentinel" in scheme:
        return "FMplex asks no Sentinel which server is the primary; give the redis:// URL of a DNS name or proxy that follows it"
    if "cluster" in scheme:
        return "FMplex speaks to one server; give the redis:// URL of one that is no node of a cluster"
    if scheme in ("valkey", "valkeys"):
        return f"write the broker's URL with {scheme.replace('valkey', 'redis')}:// in front; the server is the same"
    return None
