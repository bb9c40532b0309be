"""A call for texts as jobs: `n` of them for each prompt; errors with the caller's field names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.queue_client import Pending, QueueClient, raise_first_error
from fmplex_broker.wire.messages import Reply
from fmplex_gateway.dialect import callers_words
from fmplex_gateway.generation.bodies import ChatBody, TextBody


@dataclass(frozen=True, slots=True)
class TextCall:
    """A call for texts: `n` texts for each of the `inputs`, with the same parameters."""

    vfm: str
    inputs: list[Any]
    params: dict[str, Any]
    n: int

    @classmethod
    def of(cls, body: TextBody) -> TextCall:
        """Read a call from its body. Raises `InvalidInput` for what does not go together."""
        return cls(body.model, body.inputs(), body.params(), body.n)

    async def submit(self, queue: QueueClient) -> list[Pending]:
        """Submit all jobs or none; those of one prompt next to each other. Raises what `QueueClient.submit` raises."""
        return await queue.submit(self.vfm, self.inputs, self.params, n=self.n)

    def check(self, at: int, reply: Reply) -> Reply:
        """Return the reply to the job at a position. Raises its error, if it is one, with the field of its prompt."""
        raise_first_error([*[Reply()] * (at // self.n), reply])
        return reply


@contextmanager
def translated_errors(body: TextBody) -> Iterator[None]:
    """Make errors name the fields of the caller's body instead of the parameters of the job."""
    with callers_words(lambda path: _request_field(path, body)):
        try:
            yield
        except FmplexError as e:
            e.message = e.message.replace("max_tokens", body.length_field)
            raise


def _request_field(path: Sequence[str], body: TextBody) -> Sequence[str]:
    """Return the path in the caller's body of a path in the job."""
    chat = isinstance(body, ChatBody)
    match path:
        case ["params", *rest]:
            return _request_field(rest, body)
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
    return path
