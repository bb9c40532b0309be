"""One generating job: its tokens, how far they are computed, and what has come out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fmplex_broker.wire.streaming import Delta
from fmplex_worker.kvcache.pool import Slab
from fmplex_worker.kvcache.prefix_cache import Kept
from fmplex_worker.workloads.generation.detokenizer import Detokenizer, StopMatcher
from fmplex_worker.workloads.generation.sampling import Drawn, Sampler


@dataclass(slots=True, eq=False)
class TokenSequence:
    """`tokens`: prompt and text; of these (and of the `virtual` ones of a soft prompt before them) `computed` have their keys and
    values in `slab`. It has generated everything once `finish` says why."""

    tokens: list[int]
    prompt: int
    virtual: int
    limit: int  # tokens of the text, at most
    ends: Collection[int]  # tokens that end it
    sampler: Sampler
    detokenizer: Detokenizer
    stopper: StopMatcher
    computed: int = 0
    cached: int = 0  # tokens of the prompt that were not computed here, when it first ran
    slab: Slab | None = None
    kept: Kept | None = None  # what the cache of prefixes knows of it
    finish: str = ""
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    told: int = 0  # characters that `news` has given out
    told_tokens: int = 0

    @property
    def length(self) -> int:
        """Tokens whose keys and values it needs for its next one."""
        return self.virtual + len(self.tokens)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt

    @property
    def left(self) -> int:
        """Tokens to compute before it can draw its next one; 1 while it decodes."""
        return self.length - self.computed

    def take_token(self, drawn: Drawn) -> None:
        """Its next token."""
        token = drawn.token
        self.sampler.took(token)
        self.tokens.append(token)
        ended = token in self.ends
        if self.sampler.params.logprobs is not None:
            top = [self._named(*pair) for pair in drawn.top]
            self.logprobs.append(self._named(token, drawn.logprob) | {"top": top, "at": self.detokenizer.place(token)})
        if not ended:
            self.text += self.stopper.push(self.detokenizer.push(token))
        constraint = self.sampler.constraint
        if ended or self.stopper.stopped or (constraint is not None and constraint.ended):
            self.finish = "stop"
        elif self.generated >= self.limit:
            self.finish = "length"
        if self.finish and not self.stopper.stopped:
            self.text += self.stopper.push(self.detokenizer.flush()) + self.stopper.flush()

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        """With its bytes if they are not those of its text: a part of a character has none."""
        data = self.detokenizer.spell(token)
        text = data.decode(errors="replace")
        named = {"id": token, "token": text, "logprob": logprob}
        return named if text.encode() == data else named | {"bytes": list(data)}

    def news(self) -> Delta:
        """What has come out since the last call."""
        delta = Delta(self.told, self.text[self.told :], self.told_tokens, self.generated - self.told_tokens, [])
        if self.logprobs:
            delta.logprobs.extend(self.logprobs[self.told_tokens :])
        self.told, self.told_tokens = len(self.text), self.generated
        return delta

    def output(self) -> dict[str, Any]:
        """Of a job that has finished."""
        out: dict[str, Any] = {
            "text": self.text,
            "finish_reason": self.finish,
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "cached_tokens": self.cached,
        }
        if self.sampler.params.logprobs is not None:
            out["logprobs"] = self.logprobs
        return out
