"""Streamed texts: the chunks that a worker sends while a job runs, and how a reader puts them together.

Chunks may be lost (the inbox is trimmed, the broker restarts), and a job may run again on another worker. So each chunk says to
which attempt it belongs, its number in it, and where in the text it begins; and the reply at the end holds the whole text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fmplex_broker.errors import StreamRestarted
from fmplex_broker.wire.messages import packb, unpackb

VERSION = 1


@dataclass(slots=True)
class Delta:
    """A part of a text: `text` begins at character `at`, its `tokens` follow the first `token_at` ones. `logprobs`: one entry a
    token if they were asked for. There may be tokens without text: how they read is not clear yet, or they are never shown."""

    at: int
    text: str
    token_at: int = 0
    tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def __add__(self, later: Delta) -> Delta:
        """Join this part and the next."""
        return Delta(
            self.at, self.text + later.text, self.token_at, self.tokens + later.tokens, self.logprobs + later.logprobs
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One part of a text as it travels. `attempt` counts the deliveries of the job, `number` the chunks of a run, both from 1."""

    attempt: int
    number: int
    delta: Delta


def encode_chunk(chunk: Chunk) -> bytes:
    """Encode a chunk."""
    d = chunk.delta
    return packb([VERSION, chunk.attempt, chunk.number, d.at, d.text, d.token_at, d.tokens, d.logprobs])


def decode_chunk(data: bytes) -> Chunk:
    """Decode a chunk. Raises `ValueError` when the bytes are not a chunk of this version."""
    match unpackb(data):
        case [version, int(attempt), int(number), int(at), str(text), int(token_at), int(tokens), list(logprobs)]:
            if version == VERSION and min(attempt, number, at, token_at, tokens) >= 0:
                return Chunk(attempt, number, Delta(at, text, token_at, tokens, logprobs))
    raise ValueError("not a chunk of this version")


class StreamReader:
    """Finds what a reader may pass on, in order and once. Pure.

    A job that runs again sends its text from the beginning: what has been passed on already is compared and skipped. If it
    differs, the stream cannot go on (`StreamRestarted`). After a gap nothing is passed on until a run that has none, or the
    reply, comes to that place.
    """

    def __init__(self) -> None:
        self._attempt = 0
        self._number = 0  # of the run's last chunk
        self._gap = False  # a chunk of this run is missing
        self._text = ""  # passed on
        self._tokens = 0

    def read(self, chunk: Chunk) -> Delta | None:
        """Return what of a chunk is new. Raises `StreamRestarted`."""
        if chunk.attempt < self._attempt:
            return None
        # A job that is given back, or was not in a pass when its worker died, has the same attempt again.
        if chunk.attempt > self._attempt or chunk.number == 1:
            self._attempt, self._number, self._gap = chunk.attempt, 0, False
        if chunk.number <= self._number:
            return None  # sent twice
        self._gap = self._gap or chunk.number != self._number + 1 or chunk.delta.at > len(self._text)
        self._number = chunk.number
        return None if self._gap else self._pass_on(chunk.delta)

    def end(self, text: str, tokens: int, logprobs: list[dict[str, Any]]) -> Delta | None:
        """Return what is new of the whole text, as the reply has it. Raises `StreamRestarted`."""
        if len(text) < len(self._text):
            raise _restarted()
        return self._pass_on(Delta(0, text, 0, tokens, logprobs))

    def _pass_on(self, delta: Delta) -> Delta | None:
        known = self._text[delta.at : delta.at + len(delta.text)]
        if not delta.text.startswith(known):
            raise _restarted()
        text = delta.text[len(known) :]
        skip = max(0, self._tokens - delta.token_at)
        tokens = max(0, delta.tokens - skip)
        if not text and not tokens:
            return None
        new = Delta(len(self._text), text, self._tokens, tokens, delta.logprobs[skip:])
        self._text += text
        self._tokens += tokens
        return new


def _restarted() -> StreamRestarted:
    return StreamRestarted("the text was generated again and came out differently; send the request again")
