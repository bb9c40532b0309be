"""All heads of one pass: hidden states in, one result a job out, with as few tensor operations as the pass allows.

Jobs are grouped by what their heads do, never by who owns them; each group is one matmul, one check for values that are
not finite, and one copy to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fmplex_broker.errors import NonFiniteOutput
from fmplex_broker.heads import Pooling, Tagging, outputs
from fmplex_broker.tensors import Tensor as WireTensor
from fmplex_worker.heads import answers
from fmplex_worker.heads.linear import apply_heads
from fmplex_worker.heads.loading import LoadedHead
from fmplex_worker.heads.pooling import pool
from fmplex_worker.heads.spans import spans


class Ask(NamedTuple):
    """What one job wants of its head. `text` and `offsets` are there for tagging only."""

    head: LoadedHead
    dimensions: int | None = None
    top_k: int | None = None
    text: str = ""
    offsets: NDArray[np.int64] | None = None


class Member(NamedTuple):
    """A job in a group: its place among the results, what it asks, and the packed texts it reads (two for a similarity)."""

    job: int
    ask: Ask
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class States:
    """What the backbone gave: hidden `[tokens, width]`, and where each packed text lies in it; `pooled` `[texts, width]`."""

    hidden: Tensor
    starts: Sequence[int]
    lengths: Sequence[int]
    pooled: Tensor


Results = list[Any]
_Runner = Callable[[States, list[Member], Results], None]


def run_heads(
    hidden: Tensor,
    starts: Sequence[int],
    lengths: Sequence[int],
    asks: Sequence[Ask],
    places: Sequence[tuple[int, ...]],
) -> Results:
    """One result per ask: what the head gives, or `NonFiniteOutput` for the job whose values are not finite."""
    how: list[Pooling | None] = [None] * len(starts)
    groups: dict[_Runner, list[Member]] = {}
    for job, (ask, where) in enumerate(zip(asks, places, strict=True)):
        for place in where:
            how[place] = getattr(ask.head.spec, "pooling", None)
        groups.setdefault(_RUNNERS[ask.head.spec.kind], []).append(Member(job, ask, where))
    states = States(hidden, starts, lengths, pool(hidden, starts, lengths, how))
    results: Results = [None] * len(asks)
    for runner, members in groups.items():
        runner(states, members, results)
    return results


def _embedding(states: States, members: list[Member], results: Results) -> None:
    alike: dict[tuple[bool, int], list[Member]] = {}
    for member in members:
        size = member.ask.dimensions or states.pooled.shape[1]
        alike.setdefault((member.ask.head.spec.normalize, size), []).append(member)  # type: ignore[union-attr]
    for (normalize, size), group in alike.items():
        vectors = states.pooled[[m.places[0] for m in group], :size]
        if normalize:
            vectors = functional.normalize(vectors, dim=1)
        raw, width = vectors.cpu().numpy().tobytes(), 4 * size
        made = (WireTensor("float32", (size,), raw[i : i + width]) for i in range(0, len(raw), width))
        _settle(group, _finite(vectors), ({"embedding": vector} for vector in made), results)


def _similarity(states: States, members: list[Member], results: Results) -> None:
    left, right = (states.pooled[[m.places[side] for m in members]] for side in (0, 1))
    cosine = functional.cosine_similarity(left, right)
    _settle(members, _finite(cosine.unsqueeze(1)), ({"score": score} for score in cosine.tolist()), results)


def _pooled_linear(states: States, members: list[Member], results: Results) -> None:
    """Classification, regression and ranking: one matmul per number of outputs, whatever the kind."""
    for group, heads, counts in _by_shape(members, lambda _: 1):
        logits = apply_heads(states.pooled[[m.places[0] for m in group]], heads, counts)
        made = answers.of_logits([m.ask.head.spec for m in group], [m.ask.top_k for m in group], logits)
        _settle(group, _finite(logits), made, results)


def _tagging(states: States, members: list[Member], results: Results) -> None:
    for group, heads, counts in _by_shape(members, lambda m: states.lengths[m.places[0]]):
        logits = apply_heads(_token_rows(states, group).float(), heads, counts)
        shares, classes = logits.softmax(1).max(1)
        bounds = np.cumsum([0, *(states.lengths[m.places[0]] for m in group)]).tolist()
        finite, scores, best = _finite(logits), shares.tolist(), classes.tolist()
        for member, a, b in zip(group, bounds, bounds[1:], strict=False):
            made = {"spans": _spans(member.ask, best[a:b], scores[a:b])}
            results[member.job] = made if all(finite[a:b]) else _not_finite()


def _spans(ask: Ask, best: list[int], scores: list[float]) -> list[dict[str, Any]]:
    assert ask.offsets is not None
    assert isinstance(ask.head.spec, Tagging)
    return spans(ask.text, ask.offsets.tolist(), best, scores, ask.head.spec.labels)


def _features(states: States, members: list[Member], results: Results) -> None:
    hidden = _token_rows(states, members).float().cpu().numpy()
    bounds = np.cumsum([states.lengths[m.places[0]] for m in members])[:-1]
    parts = np.split(hidden, bounds)
    finite = [bool(np.isfinite(part).all()) for part in parts]
    _settle(members, finite, ({"features": WireTensor.of(part)} for part in parts), results)


_RUNNERS: dict[str, _Runner] = {
    "embedding": _embedding,
    "classification": _pooled_linear,
    "regression": _pooled_linear,
    "ranking": _pooled_linear,
    "similarity": _similarity,
    "tagging": _tagging,
    "features": _features,
}


def _token_rows(states: States, members: list[Member]) -> Tensor:
    """The hidden states of the members' texts, one after the other."""
    spans_ = ((states.starts[m.places[0]], states.lengths[m.places[0]]) for m in members)
    return torch.cat([states.hidden[start : start + length] for start, length in spans_])


def _by_shape(
    members: list[Member], rows: Callable[[Member], int]
) -> Iterator[tuple[list[Member], list[LoadedHead], list[int]]]:
    """Members whose heads have as many outputs, ordered by head; those heads; and how many `rows` each has."""
    alike: dict[int, list[Member]] = {}
    for member in members:
        alike.setdefault(outputs(member.ask.head.spec), []).append(member)
    for group in alike.values():
        group.sort(key=lambda m: m.ask.head.number)
        heads: list[LoadedHead] = []
        counts: list[int] = []
        for member in group:
            if not heads or heads[-1] is not member.ask.head:
                heads.append(member.ask.head)
                counts.append(0)
            counts[-1] += rows(member)
        yield group, heads, counts


def _finite(values: Tensor) -> list[bool]:
    """Per row of `[n, k]`, whether all is finite."""
    finite: list[bool] = torch.isfinite(values).all(1).tolist()
    return finite


def _settle(group: list[Member], finite: Iterable[bool], made: Iterable[Any], results: Results) -> None:
    for member, ok, result in zip(group, finite, made, strict=True):
        results[member.job] = result if ok else _not_finite()


def _not_finite() -> NonFiniteOutput:
    return NonFiniteOutput("the model's output for this input is NaN or infinite; check the input and the adapter")
