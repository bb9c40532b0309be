"""What pieces of texts cost, and how prompts are cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fmplex_worker.kvcache.pool import KvShape
from fmplex_worker.protocol import Piece
from fmplex_worker.workloads.generation.pricing import Pricing, pricing_of

pricings = st.builds(
    Pricing,
    chunk=st.integers(16, 600),
    reading=st.floats(1, 5000),
    decoding=st.floats(1, 500),
    drawing=st.floats(0, 20),
)
PLAIN = Pricing(chunk=100, reading=1000.0, decoding=100.0, drawing=3.0)


@given(pricings, st.integers(0, 40), st.integers(0, 3000), st.integers(0, 3000))
def test_the_pieces_of_a_prompt_follow_each_other_and_only_its_end_draws(
    pricing: Pricing, first: int, at: int, more: int
) -> None:
    end, begin = at + more, at
    pieces = list(pricing.prefill(first, at, end))
    assert len(pieces) <= 4
    for piece in pieces:
        assert piece.phase == "prefill"
        assert piece.tokens >= 1
        assert piece.units == pricing.units(at, piece.tokens, draws=at + piece.tokens == end)
        at += piece.tokens
    assert at == end or (at < end and len(pieces) == 4), "all of it, or as many pieces as a full pass has"
    assert bool(pieces) == (end > begin)


@given(pricings, st.integers(0, 3000), st.integers(1, 3000))
def test_the_deeper_in_the_text_the_shorter_the_pieces_but_never_shorter_than_sixteen_tokens(
    pricing: Pricing, at: int, more: int
) -> None:
    lengths = [piece.tokens for piece in pricing.prefill(0, at, at + more)]
    whole = lengths[:-1] if at + sum(lengths) == at + more else lengths
    assert whole == sorted(whole, reverse=True)
    for n in whole:
        assert n == max(16, int(pricing.chunk / (1 + at / pricing.reading)))
        at += n


@pytest.mark.parametrize(
    ("first", "at", "end", "lengths"),
    [
        (0, 0, 300, [100, 90, 84, 26]),
        (0, 0, 5, [5]),
        (0, 7, 7, []),
        (40, 0, 300, [140, 87, 73]),  # the soft prompt whole, and a full piece behind it
        (40, 0, 41, [41]),
        (40, 40, 300, [96, 88, 76]),
        (500, 0, 501, [501]),
        (0, 10_000, 20_000, [16, 16, 16, 16]),
    ],
)
def test_a_prompt_is_cut_like_this(first: int, at: int, end: int, lengths: list[int]) -> None:
    assert [piece.tokens for piece in PLAIN.prefill(first, at, end)] == lengths


@given(pricings, st.integers(0, 5000), st.integers(1, 2000), st.integers(1, 2000))
def test_cut_or_whole_a_prompt_costs_the_same_up_to_rounding(pricing: Pricing, at: int, a: int, b: int) -> None:
    whole = pricing.units(at, a + b, draws=False)
    cut = pricing.units(at, a, draws=False) + pricing.units(at + a, b, draws=False)
    assert whole <= cut + 1e-6 * whole
    assert cut <= whole + 1 + 1e-6 * whole


def test_what_a_prompt_costs_is_its_tokens_what_they_read_and_the_token_that_it_draws() -> None:
    assert PLAIN.units(0, 100, draws=False) == 105  # each reads 50 tokens on average, a twentieth of itself
    assert PLAIN.units(1000, 100, draws=False) == 205
    assert PLAIN.units(1000, 100) == 208
    assert Pricing(16, 1e9, 1e9, 0.25).units(0, 1) == 2, "rounded up"


def test_a_token_that_is_generated_pays_for_itself_for_drawing_and_for_its_context() -> None:
    assert PLAIN.decode(0) == Piece("decode", 1, 4)
    assert PLAIN.decode(1000) == Piece("decode", 1, 14)
    assert [PLAIN.decode(context).units for context in (40, 60)] == [4, 5], "rounded to the nearest"


@pytest.mark.parametrize(
    ("pass_units", "chunk"), [(1024, 256), (67, 16), (64, 16), (63, 16), (1, 16), (71, 17), (72, 18)]
)
def test_a_piece_is_a_quarter_of_a_pass_but_sixteen_units_at_least(pass_units: int, chunk: int) -> None:
    pricing = Pricing(0, 1.0, 1.0, 0.0)
    pricing.aim(pass_units)
    assert pricing.chunk == chunk


def backbone(tables: dict[str, nn.Module], width: int = 96, pass_units: int = 1024) -> Any:
    """A model of one square linear, with these tables; four attention heads."""
    model: Any = nn.ModuleDict({"linear": nn.Linear(width, width), "norm": nn.LayerNorm(width), **tables})
    model.config = SimpleNamespace(num_attention_heads=4)
    return SimpleNamespace(model=model, spec=SimpleNamespace(pass_units=pass_units))


def lm_head(width: int = 96, layers: int = 2, size: int = 8) -> Any:
    kv = KvShape(layers=layers, heads=2, size=size, dtype=torch.float32)
    return SimpleNamespace(head=nn.Linear(width, 200, bias=False), kv=kv)


def test_prices_of_a_model_are_counted_from_its_weights_and_heads() -> None:
    weights = 96 * 96
    pricing = pricing_of(backbone({}), lm_head())
    assert pricing.reading == weights / (2 * 2 * 4 * 8 * 3.0)
    assert pricing.decoding == pricing.reading / 10
    assert pricing.drawing == 96 * 200 / weights
    assert pricing.chunk == 256


@pytest.mark.parametrize("name", ["embed_tokens", "wte", "wpe"])
def test_tables_are_looked_up_and_cost_nothing(name: str) -> None:
    plain, tables = pricing_of(backbone({}), lm_head()), pricing_of(backbone({name: nn.Embedding(500, 96)}), lm_head())
    assert plain == tables or (plain.reading, plain.drawing) == (tables.reading, tables.drawing)
    other = pricing_of(backbone({"more": nn.Linear(96, 96)}), lm_head())
    assert other.reading == 2 * plain.reading


def test_however_small_the_model_context_never_costs_more_than_a_token_each() -> None:
    pricing = pricing_of(backbone({}, width=2), lm_head(width=2, layers=50))
    assert (pricing.reading, pricing.decoding) == (1.0, 1.0)
