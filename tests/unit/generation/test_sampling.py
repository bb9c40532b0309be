"""Tokens are drawn as transformers' `generate` would draw them, and by nobody's luck but their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fmplex_broker.specs.sampling import GenerationParams
from fmplex_worker.workloads.generation import sampling
from fmplex_worker.workloads.generation.sampling import Sampler, draw

_VOCABULARY = 40


def _logits(seed: int, rows: int = 1, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, _VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def _sampler(seed: int = 0, **params: Any) -> Sampler:
    return Sampler(GenerationParams(**params), seed)


def _theirs(logits: torch.Tensor, params: GenerationParams) -> torch.Tensor:
    """The probabilities of transformers' warpers, in the order in which `generate` has them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])  # type: ignore[no-untyped-call]
    if params.top_k:
        warpers.append(TopKLogitsWarper(min(params.top_k, _VOCABULARY)))  # type: ignore[no-untyped-call]
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))  # type: ignore[no-untyped-call]
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(params.min_p))  # type: ignore[no-untyped-call]
    shares: torch.Tensor = warpers(torch.zeros(1, 1, dtype=torch.long), logits.double()).softmax(1)[0]  # type: ignore[operator]
    return shares


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.9),
    candidates=st.sampled_from([4, 256]),
)
@settings(deadline=None)
def test_as_transformers_would_draw(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, candidates: int
) -> None:
    params = GenerationParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = _logits(seed)
    shares = _theirs(logits, params)
    n = 2000
    chances = ((torch.arange(n) + 0.5) / n).double()
    before, sampling._CANDIDATES = sampling._CANDIDATES, candidates
    try:
        row = Sampler(params, 0)
        if row.filtered:
            tokens = sampling._filtered((logits / temperature).expand(n, -1), [params] * n, chances)
        else:
            tokens = sampling._fall((logits / temperature).softmax(1).double().expand(n, -1), chances).tolist()
    finally:
        sampling._CANDIDATES = before
    counted = torch.bincount(torch.tensor(tokens), minlength=_VOCABULARY) / n
    assert float((counted - shares).abs().max()) < 2 / n + 1e-4


@given(seed=st.integers(-(2**40), 2**40), others=st.integers(0, 5), at=st.integers(0, 5))
@settings(deadline=None)
def test_a_row_draws_the_same_whoever_shares_the_pass(seed: int, others: int, at: int) -> None:
    mine = _logits(1)
    kinds = [{}, {"temperature": 0}, {"top_p": 0.5}, {"top_k": 3, "logprobs": 2}, {"frequency_penalty": 1}]
    for params in kinds:
        alone = draw(mine.clone(), [_sampler(seed, **params)])[0]
        rows = [_sampler(i, **kinds[i % len(kinds)]) for i in range(others)]
        rows.insert(min(at, others), _sampler(seed, **params))
        logits = _logits(2, others + 1)
        logits[min(at, others)] = mine[0]
        together = draw(logits, rows)[min(at, others)]
        assert alone is not None
        assert together is not None
        assert together.token == alone.token
        assert together.logprob == pytest.approx(alone.logprob)


def test_only_rows_that_need_more_candidates_look_at_the_whole_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[int, int]] = []
    topk = torch.Tensor.topk

    def counting(logits: torch.Tensor, k: int, **how: Any) -> Any:
        looked.append((len(logits), k))
        return topk(logits, k, **how)

    monkeypatch.setattr(torch.Tensor, "topk", counting)
    monkeypatch.setattr(sampling, "_CANDIDATES", 4)
    kinds: list[dict[str, Any]] = [{"top_k": 2}, {"top_k": 30}, {"top_p": 0.1}, {"temperature": 50, "top_p": 0.99}]
    logits = _logits(8, len(kinds))
    together = draw(logits.clone(), [_sampler(7, **kind) for kind in kinds])
    assert looked == [(4, 4), (2, _VOCABULARY)]
    assert together == [draw(logits[i : i + 1].clone(), [_sampler(7, **kind)])[0] for i, kind in enumerate(kinds)]


@given(seed=st.integers(0, 1000), temperature=st.floats(0, 9e-6), top_k=st.sampled_from([0, 5]))
@settings(deadline=None)
def test_hardly_any_temperature_is_none(seed: int, temperature: float, top_k: int) -> None:
    logits = _logits(seed)
    got = draw(logits.clone(), [_sampler(seed, temperature=temperature, top_k=top_k)])[0]
    assert got is not None
    assert got.token == int(logits.argmax())


def test_steps_and_seeds_draw_anew() -> None:
    row = _sampler(7)
    drawn = []
    for _ in range(50):
        got = draw(torch.zeros(1, _VOCABULARY), [row])[0]
        assert got is not None
        row.advance(got.token)
        drawn.append(got.token)
    assert len(set(drawn)) > 15
    first = [draw(torch.zeros(1, _VOCABULARY), [_sampler(seed)])[0] for seed in range(50)]
    assert len({d.token for d in first if d is not None}) > 15


def test_penalties_are_openais_and_transformers() -> None:
    logits = _logits(3)
    row = _sampler(presence_penalty=0.5, frequency_penalty=0.25)
    for token in (4, 4, 9):
        row.advance(token)
    ours = logits.clone()
    sampling._penalise(ours[0], row)
    change = (logits - ours)[0]
    assert change[4].item() == pytest.approx(0.5 + 2 * 0.25)
    assert change[9].item() == pytest.approx(0.5 + 0.25)
    assert int((change != 0).sum()) == 2
    row = Sampler(GenerationParams(repetition_penalty=1.3), 0, frozenset({1, 2}))
    row.advance(5)
    ours = logits.clone()
    sampling._penalise(ours[0], row)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[1, 2, 5]]), logits.clone())  # type: ignore[no-untyped-call]
    assert torch.allclose(ours, theirs)


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = _logits(4)
    raw = logits.log_softmax(1)[0]
    got = draw(logits.clone(), [_sampler(temperature=0.1, top_k=1, logprobs=3)])[0]
    assert got is not None
    assert got.logprob == pytest.approx(float(raw[got.token]))
    assert [t for t, _ in got.top] == raw.topk(3).indices.tolist()
    assert math.isclose(got.top[0][1], float(raw.max()), rel_tol=1e-6)


def test_rows_that_are_not_finite_fail_alone() -> None:
    logits = _logits(5, 3)
    logits[1, 7] = float("nan")
    got = draw(logits, [_sampler(1), _sampler(2), _sampler(3, temperature=0)])
    assert got[1] is None
    assert got[0] is not None
    assert got[2] is not None
