"""All heads of one pass: hidden states in, one result a job out, with as few tensor operations as the pass allows.

Heads are grouped by what they do, never by who owns them; each group is one matmul a layer, one check for values that are
not finite, and one copy to the host. A job of several heads is encoded once, and each of them reads its states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fmplex_broker.errors import NonFiniteOutput
from fmplex_broker.specs.heads import Pooling, Tagging
from fmplex_broker.wire.tensors import Tensor as WireTensor
from fmplex_worker.heads import answers
from fmplex_worker.heads.linear import apply_heads
from fmplex_worker.heads.loading import LoadedHead
from fmplex_worker.heads.pooling import pool
from fmplex_worker.heads.spans import spans


class HeadRequest(NamedTuple):
    """What one job wants of the heads of its vFM (name → head; the name of a single one is empty).

    `text` and `offsets` are there for tagging only: the caller's text, and which of its characters each token covers.
    """

    heads: Mapping[str, LoadedHead]
    dimensions: int | None = None
    top_k: int | None = None
    text: str = ""
    offsets: NDArray[np.int64] | None = None


class Member(NamedTuple):
    """A head of a job in a group: its place among the answers, the packed texts it reads (two for a similarity), and their
    rows among the pooled states if it pools."""

    at: int
    head: LoadedHead
    ask: HeadRequest
    places: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class States:
    """What the backbone gave: hidden `[tokens, width]`, and where each packed text's own tokens lie in it; `pooled`
    `[rows, width]`."""

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
    asks: Sequence[HeadRequest],
    places: Sequence[tuple[int, ...]],
) -> Results:
    """One result per ask: what its head gives; of several heads a mapping of names to that; or `NonFiniteOutput` for the job
    in which the values of any head are not finite."""
    wanted: dict[tuple[int, Pooling], int] = {}  # (text, pooling) -> row of the pooled states
    groups: dict[_Runner, list[Member]] = {}
    count = 0
    for ask, where in zip(asks, places, strict=True):
        for head in ask.heads.values():
            how: Pooling | None = getattr(head.spec, "pooling", None)
            rows = tuple(wanted.setdefault((place, how), len(wanted)) for place in where) if how is not None else ()
            groups.setdefault(_RUNNERS[head.spec.kind], []).append(Member(count, head, ask, where, rows))
            count += 1
    texts = [place for place, _ in wanted]
    spans_ = [starts[place] for place in texts], [lengths[place] for place in texts]
    states = States(hidden, starts, lengths, pool(hidden, *spans_, [how for _, how in wanted]))
    answered: Results = [None] * count
    for runner, members in groups.items():
        runner(states, members, answered)
    left = iter(answered)
    return [_joined({name: next(left) for name in ask.heads}) for ask in asks]


def _joined(named: dict[str, Any]) -> Any:
    """A job's answers as its result."""
    if failed := next((answer for answer in named.values() if isinstance(answer, NonFiniteOutput)), None):
        return failed
    return named.get("", named)  # a single head has no name


def _embedding(states: States, members: list[Member], results: Results) -> None:
    alike: dict[tuple[bool, int], list[Member]] = {}
    for member in members:
        size = member.ask.dimensions or states.pooled.shape[1]
        alike.setdefault((member.head.spec.normalize, size), []).append(member)  # type: ignore[union-attr]
    for (normalize, size), group in alike.items():
        vectors = states.pooled[[m.rows[0] for m in group], :size]
        if normalize:
            vectors = functional.normalize(vectors, dim=1)
        raw, width = vectors.cpu().numpy().tobytes(), 4 * size
        made = (WireTensor("float32", (size,), raw[i : i + width]) for i in range(0, len(raw), width))
        _settle(group, _finite(vectors), ({"embedding": vector} for vector in made), results)


def _similarity(states: States, members: list[Member], results: Results) -> None:
    left, right = (states.pooled[[m.rows[side] for m in members]] for side in (0, 1))
    cosine = functional.cosine_similarity(left, right)
    _settle(members, _finite(cosine.unsqueeze(1)), ({"score": score} for score in cosine.tolist()), results)


def _pooled_linear(states: States, members: list[Member], results: Results) -> None:
    """Classification, regression and ranking: one matmul per form and layer, whatever the kind."""
    for group, heads, counts in _by_form(members, lambda _: 1):
        rows = states.pooled[[m.rows[0] for m in group]]
        if scaled := [i for i, m in enumerate(group) if m.head.spec.normalize]:  # type: ignore[union-attr]
            rows[scaled] = functional.normalize(rows[scaled], dim=1)
        logits = apply_heads(rows, heads, counts)
        made = answers.of_logits([m.head.spec for m in group], [m.ask.top_k for m in group], logits)
        _settle(group, _finite(logits), made, results)


def _tagging(states: States, members: list[Member], results: Results) -> None:
    for group, heads, counts in _by_form(members, lambda m: states.lengths[m.places[0]]):
        logits = apply_heads(_token_rows(states, group).float(), heads, counts)
        shares, classes = logits.softmax(1).max(1)
        bounds = np.cumsum([0, *(states.lengths[m.places[0]] for m in group)]).tolist()
        finite, scores, best = _finite(logits), shares.tolist(), classes.tolist()
        for member, a, b in zip(group, bounds, bounds[1:], strict=False):
            made = {"spans": _spans(member, best[a:b], scores[a:b])}
            results[member.at] = made if all(finite[a:b]) else _not_finite()


def _spans(member: Member, best: list[int], scores: list[float]) -> list[dict[str, Any]]:
    ask, spec = member.ask, member.head.spec
    assert ask.offsets is not None
    assert isinstance(spec, Tagging)
    return spans(ask.text, ask.offsets.tolist(), best, scores, spec.labels)


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
HEAD_KINDS = frozenset(_RUNNERS)


def _token_rows(states: States, members: list[Member]) -> Tensor:
    """The hidden states of the members' texts, one after the other."""
    spans_ = ((states.starts[m.places[0]], states.lengths[m.places[0]]) for m in members)
    return torch.cat([states.hidden[start : start + length] for start, length in spans_])


def _by_form(
    members: list[Member], rows: Callable[[Member], int]
) -> Iterator[tuple[list[Member], list[LoadedHead], list[int]]]:
    """Members whose heads have one form, ordered by head; those heads; and how many `rows` each has."""
    alike: dict[tuple[object, ...], list[Member]] = {}
    for member in members:
        alike.setdefault(member.head.form, []).append(member)
    for group in alike.values():
        group.sort(key=lambda m: m.head.number)
        heads: list[LoadedHead] = []
        counts: list[int] = []
        for member in group:
            if not heads or heads[-1] is not member.head:
                heads.append(member.head)
                counts.append(0)
            counts[-1] += rows(member)
        yield group, heads, counts


def _finite(values: Tensor) -> list[bool]:
    """Per row of `[n, k]`, whether all is finite."""
    finite: list[bool] = torch.isfinite(values).all(1).tolist()
    return finite


def _settle(group: list[Member], finite: Iterable[bool], made: Iterable[Any], results: Results) -> None:
    for member, ok, result in zip(group, finite, made, strict=True):
        results[member.at] = result if ok else _not_finite()


def _not_finite() -> NonFiniteOutput:
    return NonFiniteOutput("the model's output for this input is NaN or infinite; check the input and the adapter")
