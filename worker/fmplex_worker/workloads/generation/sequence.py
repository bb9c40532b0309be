"""The tokens of one generating job: how far they are computed, and the text that has come out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fmplex_broker.wire.streaming import Delta
from fmplex_worker.kvcache.pool import Slab
from fmplex_worker.kvcache.prefix_cache import CachedPrefix
from fmplex_worker.workloads.generation.detokenizer import Detokenizer, StopMatcher
from fmplex_worker.workloads.generation.sampling import SampledToken, Sampler


@dataclass(slots=True, eq=False)
class TokenSequence:
    """`tokens`: prompt and text; of these (and of the `virtual` ones of a soft prompt before them) `computed` have their keys and
    values in `slab`. It has generated everything once `finish` says why."""

    tokens: list[int]
    prompt: int  # tokens of the prompt
    virtual: int
    limit: int  # tokens of the text, at most
    ends: Collection[int]  # tokens that end it
    sampler: Sampler
    detokenizer: Detokenizer
    stopper: StopMatcher
    computed: int = 0
    cached: int = 0  # tokens of the prompt that were not computed here, when it first ran
    slab: Slab | None = None
    prefix: CachedPrefix | None = None  # its entry in the prefix cache
    finish: str = ""
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    sent: int = 0  # characters that `take_delta` has given out
    sent_tokens: int = 0

    @property
    def length(self) -> int:
        """Tokens whose keys and values it needs for its next one."""
        return self.virtual + len(self.tokens)

    @property
    def generated(self) -> int:
        """Tokens of the text so far."""
        return len(self.tokens) - self.prompt

    @property
    def left(self) -> int:
        """Tokens to compute before it can draw its next one; 1 while it decodes."""
        return self.length - self.computed

    def reach(self, tokens: int) -> int:
        """Return how many of its tokens will be computed after a pass with so many more."""
        return min(self.computed + tokens, self.length)

    def append(self, sampled: SampledToken) -> None:
        """Append its next token, and finish if it is the last. Raises whatever a tokenizer or a grammar raises."""
        token = sampled.token
        self.sampler.advance(token)
        self.tokens.append(token)
        ended = token in self.ends
        if self.sampler.params.logprobs is not None:
            top = [self._logprob_entry(*pair) for pair in sampled.top]
            entry = self._logprob_entry(token, sampled.logprob)
            self.logprobs.append(entry | {"top": top, "at": self.detokenizer.place(token)})
        if not ended:
            text = self.detokenizer.push(token)
            early = self.generated < self.sampler.params.min_tokens
            self.text += text if early else self.stopper.push(text, self.detokenizer.hidden(token))
        constraint = self.sampler.constraint
        if ended or self.stopper.stopped or (constraint is not None and constraint.ended):
            self.finish = "stop"
        elif self.generated >= self.limit:
            self.finish = "length"
        if self.finish and not self.stopper.stopped:
            self.text += self.stopper.push(self.detokenizer.flush()) + self.stopper.flush()

    def _logprob_entry(self, token: int, logprob: float) -> dict[str, Any]:
        """Name a token, with its bytes if they are not those of its text: a part of a character has none."""
        data = self.detokenizer.spell(token)
        text = data.decode(errors="replace")
        named = {"id": token, "token": text, "logprob": logprob}
        return named if text.encode() == data else named | {"bytes": list(data)}

    def take_delta(self) -> Delta:
        """Take the text and tokens that have come out since the last call."""
        delta = Delta(self.sent, self.text[self.sent :], self.sent_tokens, self.generated - self.sent_tokens, [])
        if self.logprobs:
            delta.logprobs.extend(self.logprobs[self.sent_tokens :])
        self.sent, self.sent_tokens = len(self.text), self.generated
        return delta

    def output(self) -> dict[str, Any]:
        """Build the result of a sequence that has finished."""
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
