"""A call for texts as jobs: `n` of them for each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.queue_client import Pending, QueueClient, raise_first_error
from fmplex_broker.wire.messages import Reply
from fmplex_gateway.generation.bodies import ChatBody, TextBody


@dataclass(frozen=True, slots=True)
class TextCall:
    """What a call asks of a vFM."""

    vfm: str
    inputs: list[Any]
    params: dict[str, Any]
    n: int

    @classmethod
    def of(cls, body: TextBody) -> TextCall:
        """Raises `InvalidInput` for what does not go together."""
        return cls(body.model, body.inputs(), body.params(), body.n)

    async def submit(self, session: QueueClient) -> list[Pending]:
        """All or none; those of one prompt next to each other. Raises what `Session.submit` raises."""
        return await session.submit(self.vfm, self.inputs, self.params, n=self.n)

    def check(self, at: int, reply: Reply) -> Reply:
        """The reply to one of the jobs, unless it is an error: then that is raised, and names its prompt."""
        raise_first_error([*[Reply()] * (at // self.n), reply])
        return reply


@contextmanager
def in_their_words(body: TextBody) -> Iterator[None]:
    """Errors name the fields of the caller's body, not ours."""
    try:
        yield
    except FmplexError as e:
        e.message = e.message.replace("max_tokens", body.length_field)
        if e.field is not None:
            theirs = ".".join(_theirs(e.field.split("."), body))
            if e.message.startswith(f"{e.field}: "):
                e.message = theirs + e.message.removeprefix(e.field)
            e.field = theirs
        raise


def _theirs(ours: Sequence[str], body: TextBody) -> Sequence[str]:
    chat = isinstance(body, ChatBody)
    match ours:
        case ["params", *rest]:
            return _theirs(rest, body)
        case ["max_tokens"]:
            return [body.length_field]
        case ["schema" | "schema_", *_]:
            return ["response_format"]
        case ["logprobs"] if chat:
            return ["top_logprobs"]
        case ["inputs", _, "messages", *rest]:
            return ["messages", *rest]
        case ["inputs", *rest]:
            return ["messages"] if chat else ["prompt", *rest[:1]]
    return ours
