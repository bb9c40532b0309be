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
from fmplex_worker.heads.linear import apply_heads, project
from fmplex_worker.heads.loading import LoadedHead
from fmplex_worker.heads.pooling import pool
from fmplex_worker.heads.spans import spans


class HeadRequest(NamedTuple):
    """Request of one job to the heads of its vFM (name → head; the name of a single one is empty).

    `text` and `offsets` are there for tagging only: the caller's text, and which of its characters each token covers.
    """

    heads: Mapping[str, LoadedHead]
    dimensions: int | None = None
    top_k: int | None = None
    text: str = ""
    offsets: NDArray[np.int64] | None = None


class HeadCall(NamedTuple):
    """One head to run for one job: its place among the answers, the packed texts it reads (two for a similarity), and their
    rows among the pooled states if it pools."""

    at: int
    head: LoadedHead
    request: HeadRequest
    places: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of a pass: hidden `[tokens, width]`, and where each packed text's own tokens lie in it; `pooled`
    `[rows, width]`."""

    hidden: Tensor
    starts: Sequence[int]
    lengths: Sequence[int]
    pooled: Tensor


Results = list[Any]
_Runner = Callable[[States, list[HeadCall], Results], None]


def run_heads(
    hidden: Tensor,
    starts: Sequence[int],
    lengths: Sequence[int],
    requests: Sequence[HeadRequest],
    places: Sequence[tuple[int, ...]],
) -> Results:
    """Run the heads of all jobs. Returns one result per request: what its head gives; of several heads a mapping of names to
    that; or `NonFiniteOutput` for the job in which the values of any head are not finite. `places`: the packed texts of each
    job."""
    wanted: dict[tuple[int, Pooling], int] = {}  # (text, pooling) -> row of the pooled states
    groups: dict[_Runner, list[HeadCall]] = {}
    count = 0
    for request, where in zip(requests, places, strict=True):
        for head in request.heads.values():
            how: Pooling | None = getattr(head.spec, "pooling", None)
            rows = tuple(wanted.setdefault((place, how), len(wanted)) for place in where) if how is not None else ()
            groups.setdefault(_RUNNERS[head.spec.kind], []).append(HeadCall(count, head, request, where, rows))
            count += 1
    texts = [place for place, _ in wanted]
    spans_ = [starts[place] for place in texts], [lengths[place] for place in texts]
    states = States(hidden, starts, lengths, pool(hidden, *spans_, [how for _, how in wanted]))
    answered: Results = [None] * count
    for runner, calls in groups.items():
        runner(states, calls, answered)
    left = iter(answered)
    return [_joined({name: next(left) for name in request.heads}) for request in requests]


def _joined(named: dict[str, Any]) -> Any:
    """Join a job's answers to its result."""
    if failed := next((answer for answer in named.values() if isinstance(answer, NonFiniteOutput)), None):
        return failed
    return named.get("", named)  # a single head has no name


def _embedding(states: States, calls: list[HeadCall], results: Results) -> None:
    if plain := [call for call in calls if not call.head.layers]:
        _embed(states.pooled, [call.rows[0] for call in plain], plain, results)
    for group, heads, counts in _by_form([call for call in calls if call.head.layers], lambda _: 1):
        projected = project(states.pooled[[call.rows[0] for call in group]], heads, counts)
        _embed(projected, range(len(group)), group, results)


def _embed(rows: Tensor, at: Sequence[int], calls: list[HeadCall], results: Results) -> None:
    """Give each call its vector, of the row `at` the same place."""
    alike: dict[tuple[bool, int], list[int]] = {}
    for n, call in enumerate(calls):
        size = call.request.dimensions or rows.shape[1]
        alike.setdefault((bool(call.head.spec.normalize), size), []).append(n)  # type: ignore[union-attr]
    for (normalize, size), group in alike.items():
        vectors = rows[[at[n] for n in group], :size]
        if normalize:
            vectors = functional.normalize(vectors, dim=1)
        raw, width = vectors.cpu().numpy().tobytes(), 4 * size
        made = (WireTensor("float32", (size,), raw[i : i + width]) for i in range(0, len(raw), width))
        _settle([calls[n] for n in group], _finite(vectors), ({"embedding": vector} for vector in made), results)


def _similarity(states: States, calls: list[HeadCall], results: Results) -> None:
    left, right = (states.pooled[[m.rows[side] for m in calls]] for side in (0, 1))
    cosine = functional.cosine_similarity(left, right)
    _settle(calls, _finite(cosine.unsqueeze(1)), ({"score": score} for score in cosine.tolist()), results)


def _pooled_linear(states: States, calls: list[HeadCall], results: Results) -> None:
    """Run classification, regression and ranking heads: one matmul per form and layer, whatever the kind."""
    for group, heads, counts in _by_form(calls, lambda _: 1):
        rows = states.pooled[[m.rows[0] for m in group]]
        if scaled := [i for i, m in enumerate(group) if m.head.spec.normalize]:  # type: ignore[union-attr]
            rows[scaled] = functional.normalize(rows[scaled], dim=1)
        logits = apply_heads(rows, heads, counts)
        made = answers.from_logits([m.head.spec for m in group], [m.request.top_k for m in group], logits)
        _settle(group, _finite(logits), made, results)


def _tagging(states: States, calls: list[HeadCall], results: Results) -> None:
    for group, heads, counts in _by_form(calls, lambda m: states.lengths[m.places[0]]):
        logits = apply_heads(_token_rows(states, group).float(), heads, counts)
        shares, classes = logits.softmax(1).max(1)
        bounds = np.cumsum([0, *(states.lengths[m.places[0]] for m in group)]).tolist()
        finite, scores, best = _finite(logits), shares.tolist(), classes.tolist()
        for call, a, b in zip(group, bounds, bounds[1:], strict=False):
            made = {"spans": _spans(call, best[a:b], scores[a:b])}
            results[call.at] = made if all(finite[a:b]) else _not_finite()


def _spans(call: HeadCall, best: list[int], scores: list[float]) -> list[dict[str, Any]]:
    request, spec = call.request, call.head.spec
    assert request.offsets is not None
    assert isinstance(spec, Tagging)
    return spans(request.text, request.offsets.tolist(), best, scores, spec.labels)


def _features(states: States, calls: list[HeadCall], results: Results) -> None:
    hidden = _token_rows(states, calls).float().cpu().numpy()
    bounds = np.cumsum([states.lengths[m.places[0]] for m in calls])[:-1]
    parts = np.split(hidden, bounds)
    finite = [bool(np.isfinite(part).all()) for part in parts]
    _settle(calls, finite, ({"features": WireTensor.of(part)} for part in parts), results)


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


def _token_rows(states: States, calls: list[HeadCall]) -> Tensor:
    """Return the hidden states of the calls' texts, one after the other."""
    spans_ = ((states.starts[m.places[0]], states.lengths[m.places[0]]) for m in calls)
    return torch.cat([states.hidden[start : start + length] for start, length in spans_])


def _by_form(
    calls: list[HeadCall], rows: Callable[[HeadCall], int]
) -> Iterator[tuple[list[HeadCall], list[LoadedHead], list[int]]]:
    """Yield the calls whose heads have one form, ordered by head; those heads; and how many `rows` each has."""
    alike: dict[tuple[object, ...], list[HeadCall]] = {}
    for call in calls:
        alike.setdefault(call.head.form, []).append(call)
    for group in alike.values():
        group.sort(key=lambda m: m.head.number)
        heads: list[LoadedHead] = []
        counts: list[int] = []
        for call in group:
            if not heads or heads[-1] is not call.head:
                heads.append(call.head)
                counts.append(0)
            counts[-1] += rows(call)
        yield group, heads, counts


def _finite(values: Tensor) -> list[bool]:
    """Tell for each row of `[n, k]` whether all is finite."""
    finite: list[bool] = torch.isfinite(values).all(1).tolist()
    return finite


def _settle(group: list[HeadCall], finite: Iterable[bool], made: Iterable[Any], results: Results) -> None:
    for call, ok, result in zip(group, finite, made, strict=True):
        results[call.at] = result if ok else _not_finite()


def _not_finite() -> NonFiniteOutput:
    return NonFiniteOutput("the model's output for this input is NaN or infinite; check the input and the adapter")
