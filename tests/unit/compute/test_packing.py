"""The layout of a packed row, and attention within it."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fmplex_worker.packed import attention
from fmplex_worker.packed.row import Pack, TokenSpan, current, pack, packed_order, running
from fmplex_worker.packed.segments import Adapter

CPU = torch.device("cpu")
ADAPTERS = [None, *(Adapter(i, (None,)) for i in (1, 2, 3))]


@given(texts=st.lists(st.tuples(st.integers(1, 6), st.sampled_from(ADAPTERS)), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_layout(texts: list[tuple[int, Adapter | None]]) -> None:
    owned = [TokenSpan(*text) for text in texts]
    order = packed_order(owned)
    assert sorted(order) == list(range(len(owned)))
    row = pack([owned[i] for i in order], CPU, None)
    token_owner = [owned[i].adapter for i in order for _ in range(owned[i].length)]
    assert row.tokens == len(token_owner)
    assert row.boundaries.tolist() == [*row.starts, row.tokens]
    # Segments: every adapter once, over exactly its tokens; the rest has none.
    assert len(set(row.segments.adapters)) == len(row.segments.adapters)
    by_segment = [a for a, n in zip(row.segments.adapters, row.segments.sizes, strict=False) for _ in range(n)]
    assert by_segment == token_owner[: len(by_segment)]
    assert not any(token_owner[len(by_segment) :])
    assert sum(row.segments.sizes) == row.tokens
    # Runs: the texts again, equal neighbours together.
    assert [run.length for run in row.runs for _ in range(run.texts)] == list(row.lengths)
    assert [run.start + i * run.length for run in row.runs for i in range(run.texts)] == list(row.starts)
    assert all(a.length != b.length for a, b in pairwise(row.runs))


def test_the_pass_is_gone_after_a_failure() -> None:
    row = pack([TokenSpan(3, None)], CPU, None)
    with contextlib.suppress(ZeroDivisionError), running(row):
        assert current() is row
        raise ZeroDivisionError
    with pytest.raises(LookupError):
        current()


def qkv(tokens: int, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """As projections give them: `[1, heads, tokens, size]` views of `[1, tokens, heads, size]`."""
    q, k, v = (torch.randn(1, tokens, n, 8).transpose(1, 2) for n in (heads, kv_heads, kv_heads))
    return q, k, v


def attend(row: Pack, q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
    with running(row):
        out, _ = attention.packed_attention(
            cast(Any, SimpleNamespace(is_causal=causal)),
            q,
            k,
            v,
            None,
            scaling=0.3,
            sliding_window=window,
        )
    return out


def naive(row: Pack, q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
    """One dense mask over the row, written down from the definition."""
    text = torch.repeat_interleave(torch.arange(len(row.lengths)), torch.tensor(row.lengths))
    distance = torch.arange(row.tokens)[:, None] - torch.arange(row.tokens)[None, :]
    seen = text[:, None] == text[None, :]
    if causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance.abs() < window
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3).transpose(1, 2)


cases = pytest.mark.parametrize("causal", [False, True])
windows = pytest.mark.parametrize("window", [None, 1, 3, 8, 100])


@cases
@windows
def test_attention(causal: bool, window: int | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(attention, "_BLOCK", 5)
    row = pack([TokenSpan(n, None) for n in (1, 4, 4, 8, 9, 21)], CPU, None)
    q, k, v = qkv(row.tokens)
    torch.testing.assert_close(attend(row, q, k, v, causal, window), naive(row, q, k, v, causal, window))


@cases
@windows
def test_varlen_arguments(causal: bool, window: int | None, monkeypatch: Any) -> None:
    """The CUDA path with its kernel replaced by one that follows torch's documented arguments."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:  # fmt: skip
        left, right = window_size
        bounds = cu_seq_q.tolist()
        assert max_q == max_k == max(b - a for a, b in pairwise(bounds))
        assert cu_seq_q.dtype is torch.int32
        out = torch.empty_like(query)
        for a, b in zip(bounds, cu_seq_k[1:].tolist(), strict=False):
            ahead = torch.arange(b - a)[None, :] - torch.arange(b - a)[:, None]
            seen = ((left < 0) | (-ahead <= left)) & ((right < 0) | (ahead <= right))
            q, k, v = (t[a:b].transpose(0, 1) for t in (query, key, value))
            out[a:b] = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(0, 1)
        return out

    monkeypatch.setattr(attention, "_VARLEN", kernel)
    monkeypatch.setattr(attention, "_varlen_takes", lambda query: True)
    row = pack([TokenSpan(n, None) for n in (1, 4, 4, 9)], CPU, None)
    q, k, v = qkv(row.tokens)
    torch.testing.assert_close(attend(row, q, k, v, causal, window), naive(row, q, k, v, causal, window))


def test_varlen_is_not_used_on_cpu() -> None:
    assert not attention._varlen_takes(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16))


def test_rows_of_another_shape_are_refused() -> None:
    row = pack([TokenSpan(3, None)], CPU, None)
    with pytest.raises(RuntimeError, match="packed row of 3 tokens"):
        attend(row, *qkv(4), causal=False, window=None)
