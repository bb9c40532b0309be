"""A call for texts as jobs: `n` of them for each prompt."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fmplex_broker.admission import MAX_INPUTS
from fmplex_broker.errors import BrokerUnavailable, FmplexError, TooLarge
from fmplex_broker.messages import Reply
from fmplex_broker.specs import VfmSpec
from fmplex_broker.streams.session import Pending, Session, cancel_all, raise_first_error
from fmplex_gateway.generation.bodies import ChatBody, TextBody

_SEED_BITS = 48  # a number that JSON carries exactly, also with n added to it


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks of a vFM. The texts of one prompt differ in their seeds, which count up from the caller's."""

    vfm: str
    inputs: list[Any]
    params: dict[str, Any]
    n: int

    @classmethod
    def of(cls, body: TextBody, vfm: VfmSpec) -> Asked:
        """Raises `InvalidInput`, and `TooLarge` for more texts than the vFM's queue could ever hold."""
        inputs = body.inputs()
        most = min(MAX_INPUTS, vfm.limits.max_pending)
        if body.n > 1 and body.n * len(inputs) > most:
            raise TooLarge(f"{body.n * len(inputs)} texts in one call, at most {most} are taken; lower n", field="n")
        return cls(body.model, inputs, body.params(), body.n)

    async def submit(self, session: Session) -> list[Pending]:
        """All or none; those of one prompt next to each other. Raises what `Session.submit` raises."""
        if self.n == 1:
            return await session.submit(self.vfm, self.inputs, self.params)
        first: int = self.params.get("seed", secrets.randbits(_SEED_BITS))
        rounds: list[list[Pending]] = []
        try:
            for seed in range(first, first + self.n):
                rounds.append(await session.submit(self.vfm, self.inputs, self.params | {"seed": seed}))
        except BaseException:
            with suppress(BrokerUnavailable):  # what went wrong first is what the caller must hear of
                await cancel_all([job for jobs in rounds for job in jobs])
            raise
        return [job for jobs in zip(*rounds, strict=True) for job in jobs]

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
        if e.field is not None:
            e.field = ".".join(_theirs(e.field.split("."), isinstance(body, ChatBody)))
        raise


def _theirs(ours: Sequence[str], chat: bool) -> Sequence[str]:
    match ours:
        case ["params", *rest]:
            return _theirs(rest, chat)
        case ["schema" | "schema_", *_]:
            return ["response_format"]
        case ["logprobs"] if chat:
            return ["top_logprobs"]
        case ["inputs", _, "messages", *rest]:
            return ["messages", *rest]
        case ["inputs", *rest]:
            return ["messages"] if chat else ["prompt", *rest[:1]]
    return ours
