"""What can travel: values that msgpack and our tensors carry."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from fmplex_broker.wire.tensors import DTYPES, Tensor

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
scalars: st.SearchStrategy[Any] = st.none() | st.booleans() | numbers | st.text(max_size=20) | st.binary(max_size=20)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    size = math.prod(shape) * DTYPES[dtype][0]
    return Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


values: st.SearchStrategy[Any] = st.recursive(
    scalars | tensors(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
