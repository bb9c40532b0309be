"""Tensors: dtype, shape and bytes agree, or there is no tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmplex_broker.wire.tensors import DTYPES, Tensor
from tests.support.hanging import within
from tests.unit.broker.strategies import tensors


@given(tensors())
def test_numpy_and_lists_agree(tensor: Tensor) -> None:
    array = tensor.numpy()
    assert (str(array.dtype), array.shape) == (tensor.dtype, tensor.shape)
    np.testing.assert_array_equal(np.array(tensor.tolist(), dtype=tensor.dtype).reshape(tensor.shape), array)
    assert Tensor.of(array) == tensor


@given(tensors())
def test_numpy_shares_the_bytes_and_cannot_change_them(tensor: Tensor) -> None:
    array = tensor.numpy()
    assert not array.flags.writeable
    if array.size:
        assert np.shares_memory(array, np.frombuffer(tensor.data, dtype=np.uint8))


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3), st.integers(1, 9))
def test_bytes_must_fit_the_shape(dtype: str, shape: list[int], off: int) -> None:
    want = math.prod(shape) * DTYPES[dtype][0]
    for size in {want + off, max(0, want - off)} - {want}:
        with pytest.raises(ValueError, match=f"needs {want} bytes, got {size}"):
            Tensor(dtype, tuple(shape), bytes(size))


@pytest.mark.parametrize("dtype", ["float16", "bool", "", "Float32", "object", "<f4"])
def test_unknown_dtypes_are_named(dtype: str) -> None:
    with pytest.raises(ValueError, match="is not one of float32"):
        Tensor(dtype, (1,), bytes(8))


@pytest.mark.parametrize("shape", [(-1,), (1, -1), (True,), (1.0,), ("1",), (None,)])
def test_a_shape_is_whole_numbers(shape: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        Tensor("float32", shape, bytes(4))


@pytest.mark.parametrize("shape", [(1,) * 9, (2**63 - 1,) * 200_000, (0,) * 9])
def test_a_shape_has_few_dimensions(shape: tuple[int, ...]) -> None:
    """The product of 30,000 large ones takes seconds."""
    with within(20), pytest.raises(ValueError, match="at most 8 dimensions"):
        Tensor("float32", shape, bytes(4))
    assert Tensor("float32", (1,) * 8, bytes(4)).shape == (1,) * 8


@pytest.mark.parametrize("data", ["1234", [1, 2, 3, 4], bytearray(4), None])
def test_data_is_bytes(data: Any) -> None:
    with pytest.raises(ValueError, match="must be bytes"):
        Tensor("float32", (1,), data)


def test_nesting_of_lists() -> None:
    data = np.arange(6, dtype="int32").tobytes()
    assert Tensor("int32", (2, 3), data).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert Tensor("int32", (6,), data).tolist() == [0, 1, 2, 3, 4, 5]
    assert Tensor("int32", (), data[:4]).tolist() == 0
    assert Tensor("int32", (2, 0), b"").tolist() == [[], []]
    assert Tensor("int32", (0, 2), b"").tolist() == []


def test_of_takes_what_numpy_can_view() -> None:
    grid = np.arange(12, dtype="float32").reshape(3, 4)
    assert Tensor.of(grid.T).tolist() == grid.T.tolist()  # not contiguous
    assert Tensor.of(grid[:, ::2]).tolist() == grid[:, ::2].tolist()
    assert Tensor.of(np.float64(2.5)).shape == ()
    assert Tensor.of([1, 2]).dtype == "int64"
    with pytest.raises(ValueError, match="is not one of"):
        Tensor.of(np.zeros(2, dtype="float16"))


# --- as an array -----------------------------------------------------------------------------------------------------


@example(Tensor("float32", (), b"\x00\x00\x81\x7f"))
@given(tensors())
def test_numpy_takes_a_tensor_as_an_array(tensor: Tensor) -> None:
    array = np.asarray(tensor)
    assert (str(array.dtype), array.shape) == (tensor.dtype, tensor.shape)
    np.testing.assert_array_equal(array, tensor.numpy())
    copied = np.array(tensor)
    assert copied.flags.writeable or not copied.size
    assert np.stack([tensor, tensor]).shape == (2, *tensor.shape)
    with np.errstate(invalid="ignore"):  # numpy says so of its own arrays that hold a signalling NaN
        assert np.asarray(tensor, dtype="float64").dtype == np.float64


def test_an_array_of_a_tensor_is_a_view_where_it_can_be() -> None:
    tensor = Tensor.of(np.arange(6, dtype="float32"))
    assert np.shares_memory(np.asarray(tensor), np.frombuffer(tensor.data, dtype="uint8"))
    assert not np.asarray(tensor).flags.writeable
    assert np.array(tensor, copy=False) is not None
    with pytest.raises(ValueError, match="without a copy"):
        np.array(tensor, dtype="int64", copy=False)
    assert np.dot(tensor, np.ones(6)) == 15


@given(tensors())
def test_it_has_the_length_and_the_elements_of_its_list(tensor: Tensor) -> None:
    if not tensor.shape:
        for each in (len, list):
            with pytest.raises(TypeError, match="without dimensions"):
                each(tensor)  # type: ignore[operator]
        return
    assert len(tensor) == tensor.shape[0] == len(tensor.tolist())
    np.testing.assert_equal(list(tensor), tensor.tolist())


@given(tensors())
def test_it_is_shown_on_one_short_line(tensor: Tensor) -> None:
    shown = repr(tensor)
    assert "\n" not in shown
    assert len(shown) <= 250
    assert shown.startswith(f"Tensor({tensor.dtype}, {tensor.shape}, [")


def test_what_is_shown_of_a_tensor() -> None:
    vector = Tensor.of(np.arange(384, dtype="float32") / 7)
    assert repr(vector) == "Tensor(float32, (384,), [0, 0.1429, 0.2857, 0.4286, …])"
    assert repr(Tensor.of(np.array([[101, 30522]]))) == "Tensor(int64, (1, 2), [101, 30522])"
    assert repr({"embedding": Tensor("float32", (0, 3), b"")}) == "{'embedding': Tensor(float32, (0, 3), [])}"
