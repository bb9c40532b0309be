"""What the broker's refusals, and its silence, mean: what redis-py raises becomes an error of ours.

A server puts a code in front of each refusal (`MISCONF …`). Those that are our own mistake are few and known; whatever else a
server says is a state of it, or of its configuration, which somebody can change while we wait.
"""

from __future__ import annotations

import re

from redis import exceptions as redis_errors

from fmplex_broker.errors import BrokerFault, BrokerMisconfigured, BrokerUnavailable, FmplexError

FAILURES = (
    redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ResponseError, redis_errors.InvalidResponse,
    OSError, EOFError,
)  # fmt: skip
_LONGEST = 300  # characters of a server's words that are passed on
_CODE = re.compile(r"[A-Z][A-Z0-9]+\b")
# redis-py puts this in front of what a command of a pipeline met, and after it the error's arguments as a tuple.
_PIPELINED = re.compile(r"Command # \d+ \(.*\) of pipeline caused error: (.*)", re.DOTALL)
_TUPLE = re.compile(r"""\((["'])(.*)\1,\)""", re.DOTALL)

_OURS = frozenset({"ERR", "WRONGTYPE", "NOGROUP", "BUSYGROUP"})
_FORBIDDEN = frozenset({"NOPERM", "NOAUTH", "WRONGPASS", "DENIED"})
_CLUSTER = frozenset({"MOVED", "ASK", "CROSSSLOT"})
# Some of the many meanings of `ERR` are no mistake in what was asked; a script says some of them in words of its own.
_ERR_FORBIDDEN = ("ACL failure", "The user executing the script can't")
_ERR_CLUSTER = "Script attempted to access"
_ERR_CLIENTS = "max number of clients"
_NOT_SERVED = re.compile(
    r"unknown |(invalid db|db) index|select is not allowed|operation not permitted|error compiling script .*near '#'",
    re.IGNORECASE,
)


def as_ours(e: Exception) -> FmplexError:
    """Return what an error of redis-py or of a connection means: `BrokerUnavailable`, `BrokerMisconfigured`, `BrokerFault`."""
    code, words = _read(e)
    said = f"{code} {words}".strip()
    if code == "ERR":
        code = _meant(words)
    if code in _FORBIDDEN or isinstance(e, redis_errors.AuthenticationError | redis_errors.AuthorizationError):
        return BrokerMisconfigured(
            f"the broker forbids it ({said}); let the user in the broker's URL run scripts and all commands on all keys of this "
            "database, or give another user and password"
        )
    if code in _CLUSTER:
        return BrokerMisconfigured(
            f"the broker is a node of a cluster ({said}); FMplex speaks to one server: give the URL of one without cluster mode"
        )
    if isinstance(e, redis_errors.InvalidResponse):
        return BrokerMisconfigured(
            f"what answers at the broker's URL does not speak the Redis protocol ({said}); check host and port"
        )
    if code == "NOT_SERVED":
        return BrokerMisconfigured(
            f"the server at the broker's URL does not do what FMplex asks ({said}); is it Redis 7 or newer, or Valkey, no "
            "Sentinel, and is the database right?"
        )
    if code in _OURS and isinstance(e, redis_errors.ResponseError):
        return BrokerFault(
            f"the broker found a mistake in what it was asked ({said}); does another program use its keys? If not, please report "
            "this"
        )
    return _refused(code, said)


def _meant(words: str) -> str:
    """Return the code that `ERR` with these words should have been."""
    if words.startswith(_ERR_FORBIDDEN):
        return "NOPERM"
    if words.startswith(_ERR_CLUSTER):
        return "CROSSSLOT"
    if words.startswith(_ERR_CLIENTS):
        return "MAXCLIENTS"
    return "NOT_SERVED" if _NOT_SERVED.match(words) else "ERR"


def _refused(code: str, said: str) -> BrokerUnavailable:
    """Return what it means that the server refuses or is silent, if that may pass by itself."""
    match code:
        case "":
            return BrokerUnavailable(f"the broker does not answer ({said}); is it running, and is its URL right?")
        case "MAXCLIENTS":
            return BrokerUnavailable(
                f"the broker takes no more connections ({said}); raise its maxclients, or run fewer processes"
            )
        case "OOM":
            return BrokerUnavailable("the broker is out of memory; jobs are taken again once it has drained")
        case "READONLY":
            return BrokerUnavailable(
                f"the broker is a replica and takes no writes ({said}); after a failover that passes, else give the primary's URL"
            )
    return BrokerUnavailable(f"the broker refused: {said}")


def _read(e: Exception) -> tuple[str, str]:
    """Return the code in front of what the server said, '' if there is none, and the other words."""
    words = str(e)
    if pipelined := _PIPELINED.fullmatch(words):
        words = pipelined[1]
        if quoted := _TUPLE.fullmatch(words):
            words = quoted[2]
    code = getattr(e, "status_code", None) or ""  # redis-py cuts the codes that it knows from the words
    if not code and isinstance(e, redis_errors.ResponseError) and (found := _CODE.match(words)):
        code, words = found[0], words[found.end() :].lstrip()
    return code, (words or type(e).__name__)[:_LONGEST]
