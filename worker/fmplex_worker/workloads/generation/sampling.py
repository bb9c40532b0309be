"""Sampling: logits to tokens, for all sequences of a pass at once.

The token that a sequence draws depends on its own logits, seed and place alone, never on who shares the pass: the random number
of its n-th token is a hash of (seed, n), and the token is where that number falls among the probabilities. Filters come in the
order that transformers' `generate` has: penalties, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fmplex_broker.specs.sampling import GenerationParams
from fmplex_worker.workloads.generation.constraints import Constraint

_CANDIDATES = 256  # nearly always enough to hold the nucleus; sorting a whole vocabulary takes milliseconds a sequence
_COLD = 1e-5  # below, logits ÷ temperature would overflow, and only the best token could be drawn anyway


@dataclass(slots=True, eq=False)
class Sampler:
    """State of one sequence's sampling. `drawn` counts its tokens so far; `prompt`: the distinct tokens of its prompt; `ends`:
    tokens that must not be drawn before `min_tokens`."""

    params: GenerationParams
    seed: int
    prompt: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    ends: Collection[int] = ()
    drawn: Counter[int] = field(default_factory=Counter)
    steps: int = 0

    @property
    def penalised(self) -> bool:
        """True if tokens that were seen are penalised."""
        p = self.params
        return p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0

    @property
    def filtered(self) -> bool:
        """True if not all tokens may be drawn."""
        p = self.params
        return bool(p.top_k) or p.top_p < 1 or p.min_p > 0

    def advance(self, token: int) -> None:
        """Count the next token of the text. Raises `JobFailed` for one that the constraint excludes."""
        self.drawn[token] += 1
        self.steps += 1
        if self.constraint is not None:
            self.constraint.advance(token)

    def uniform(self) -> float:
        """Return the random number of the next token, in [0, 1)."""
        word = hashlib.blake2b(f"{self.seed}:{self.steps}".encode(), digest_size=8).digest()
        return (int.from_bytes(word, "big") >> 11) / (1 << 53)


class SampledToken(NamedTuple):
    """A token, its log probability among all, and those of the best (token, log probability) if they were asked for."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def draw(logits: Tensor, samplers: Sequence[Sampler]) -> list[SampledToken | None]:
    """Draw a token for every row of `logits` `[sequences, vocabulary]` float32, which is changed; None where they are not finite.
    Changes no sampler."""
    finite = torch.isfinite(logits.sum(1)).tolist()  # a tenth of the time that looking at each takes
    wanted = [i for i, sampler in enumerate(samplers) if sampler.params.logprobs is not None]
    raw = torch.log_softmax(logits[wanted], dim=1) if wanted else None
    for i, sampler in enumerate(samplers):
        if sampler.constraint is not None:
            sampler.constraint.mask(logits[i])
        if sampler.ends and sampler.steps < sampler.params.min_tokens:
            _go_on(logits[i], sampler.ends)
        if sampler.penalised:
            _penalise(logits[i], sampler)
    tokens: list[int] = logits.argmax(1).tolist()
    chance = [i for i, sampler in enumerate(samplers) if sampler.params.temperature >= _COLD and finite[i]]
    if chance:
        for i, token in zip(chance, _by_chance(logits[chance], [samplers[i] for i in chance]), strict=True):
            tokens[i] = token
    out = [SampledToken(token, 0.0, []) if ok else None for token, ok in zip(tokens, finite, strict=True)]
    if raw is not None:
        for logprobs, i in zip(raw, wanted, strict=True):
            if out[i] is not None:
                out[i] = _with_logprobs(logprobs, tokens[i], samplers[i].params.logprobs or 0)
    return out


def _go_on(logits: Tensor, ends: Collection[int]) -> None:
    """Exclude the tokens that end a text from one sequence's logits `[vocabulary]`, in place; unless a schema leaves no other."""
    at = torch.tensor([end for end in ends if end < len(logits)], device=logits.device, dtype=torch.int64)
    before = logits[at]
    logits[at] = float("-inf")
    if logits.max() == float("-inf"):
        logits[at] = before


def _with_logprobs(logprobs: Tensor, token: int, count: int) -> SampledToken:
    best = logprobs.topk(min(count, len(logprobs))) if count else None
    top = [] if best is None else list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return SampledToken(token, float(logprobs[token]), top)


def _penalise(logits: Tensor, sampler: Sampler) -> None:
    """Apply the penalties to one sequence's logits `[vocabulary]`, in place: repetition (Keskar et al., "CTRL", 2019) over prompt
    and text; presence and frequency (OpenAI) over the text alone."""
    p = sampler.params
    if p.repetition_penalty != 1 and (seen := sampler.prompt | sampler.drawn.keys()):
        at = torch.tensor(sorted(seen), device=logits.device)
        values = logits[at]
        logits[at] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    if sampler.drawn and (p.presence_penalty or p.frequency_penalty):
        at = torch.tensor(list(sampler.drawn), device=logits.device)
        counts = torch.tensor(list(sampler.drawn.values()), device=logits.device, dtype=logits.dtype)
        logits[at] -= p.presence_penalty + p.frequency_penalty * counts


def _by_chance(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Draw a token by chance for every row of `logits`."""
    heat = torch.tensor([sampler.params.temperature for sampler in samplers], device=logits.device)
    logits = logits / heat.unsqueeze(1)
    chance = torch.tensor([sampler.uniform() for sampler in samplers], device=logits.device, dtype=torch.float64)
    if not any(sampler.filtered for sampler in samplers):
        return _fall(logits.softmax(1).double(), chance).tolist()
    tokens = [0] * len(samplers)
    plain = [i for i, sampler in enumerate(samplers) if not sampler.filtered]
    some = [i for i, sampler in enumerate(samplers) if sampler.filtered]
    if plain:
        for i, token in zip(plain, _fall(logits[plain].softmax(1).double(), chance[plain]).tolist(), strict=True):
            tokens[i] = token
    drawn = _filtered(logits[some], [samplers[i].params for i in some], chance[some])
    for i, token in zip(some, drawn, strict=True):
        tokens[i] = token
    return tokens


def _fall(shares: Tensor, chance: Tensor) -> Tensor:
    """Find where each number falls among its row's shares `[rows, n]`, which need not sum to 1."""
    sums = shares.cumsum(1)
    at = torch.searchsorted(sums, (chance * sums[:, -1]).unsqueeze(1), right=True).squeeze(1)
    return at.clamp(max=shares.shape[1] - 1)


def _filtered(logits: Tensor, params: Sequence[GenerationParams], chance: Tensor) -> list[int]:
    """Draw among the few best, which nearly always suffice; for the rows for which they do not, among all."""
    vocabulary = logits.shape[1]
    count = min(_CANDIDATES, vocabulary)
    tokens, complete = _among_best(logits, params, chance, count)
    again = [i for i, ok in enumerate(complete) if not ok] if count < vocabulary else []
    if again:
        drawn, _ = _among_best(logits[again], [params[i] for i in again], chance[again], vocabulary)
        for i, token in zip(again, drawn, strict=True):
            tokens[i] = token
    return tokens


def _among_best(
    logits: Tensor, params: Sequence[GenerationParams], chance: Tensor, count: int
) -> tuple[list[int], list[bool]]:
    """Draw a token a row among its `count` best; and tell whether none beyond them could be drawn."""
    best = logits.topk(count, dim=1)
    shares = (best.values - logits.logsumexp(1, keepdim=True)).exp().double()
    kept, complete = _keep(shares, params)
    at = _fall(shares * kept, chance)
    return best.indices.gather(1, at.unsqueeze(1)).squeeze(1).tolist(), complete


def _keep(shares: Tensor, params: Sequence[GenerationParams]) -> tuple[Tensor, list[bool]]:
    """Tell which of the candidates `[rows, n]`, best first, each row may draw; and whether it could draw none beyond them."""
    device, n = shares.device, shares.shape[1]
    place = torch.arange(n, device=device)
    k = torch.tensor([p.top_k or n + 1 for p in params], device=device).unsqueeze(1)
    top_p = torch.tensor([p.top_p for p in params], device=device, dtype=torch.float64).unsqueeze(1)
    min_p = torch.tensor([p.min_p for p in params], device=device, dtype=torch.float64).unsqueeze(1)
    in_k = place < k
    # Of all there is, unless top-k has cut it off.
    whole = torch.where(k <= n, (shares * in_k).sum(1, keepdim=True), torch.ones_like(top_p))
    before = (shares.cumsum(1) - shares) / whole
    kept = in_k & (before < top_p) & (shares >= min_p * shares[:, :1])
    kept[:, 0] = True
    unlimited = torch.tensor([not p.top_k for p in params], device=device)
    complete: list[bool] = ((k.squeeze(1) <= n) | (unlimited & ~kept[:, -1])).tolist()
    return kept, complete
