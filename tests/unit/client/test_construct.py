"""Packages from parts: arrays of any library, the safetensors format, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

import fmplex
from fmplex.construct import tensors
from fmplex_broker.errors import Conflict, InvalidInput, PackageRejected
from fmplex_broker.packages.package import read_package
from fmplex_broker.packages.weights import tensor_shapes
from tests.unit.broker import made

SPEC = {"name": "v", "backbone": "m", "head": {"kind": "classification", "labels": ["no", "yes"]}}
names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=8)  # others are refused
floats = arrays.arrays(np.float32, arrays.array_shapes(max_side=4), elements=st.floats(-1e3, 1e3, width=32))


@given(st.dictionaries(names.filter(lambda name: name != "__metadata__"), floats, max_size=4))
def test_the_format_is_that_of_safetensors(values: dict[str, Any]) -> None:
    ours = tensors.write({name: tensors.as_float32(array, name) for name, array in values.items()})
    theirs = load(ours)
    assert theirs.keys() == values.keys()
    assert all(np.array_equal(theirs[name], values[name]) for name in values)
    read = tensors.read(save(values)) if values else {}
    assert {name: raw.shape for name, raw in read.items()} == {name: array.shape for name, array in values.items()}
    assert tensors.write(dict(reversed(read.items()))) == tensors.write(read)
    assert tensor_shapes(ours, "x", "x") == {name: array.shape for name, array in values.items()}


VALUES = [[0.5, -1.0, 2.0], [0.0, 3.0, 1.5]]


@pytest.mark.parametrize(
    "value",
    [
        VALUES,
        tuple(map(tuple, VALUES)),
        np.array(VALUES),
        np.array(VALUES, dtype=np.float16),
        np.asfortranarray(VALUES),
        torch.tensor(VALUES),
        torch.tensor(VALUES, dtype=torch.bfloat16, requires_grad=True),
        fmplex.Tensor.of(np.array(VALUES, dtype=np.float32)),
    ],
)
def test_arrays_of_any_library(value: Any) -> None:
    raw = tensors.as_float32(value, "weight")
    assert (raw.dtype, raw.shape) == ("F32", (2, 3))
    assert np.array_equal(tensors.as_numpy(raw), VALUES)


@pytest.mark.parametrize(
    "value",
    [[[1.0], [1.0, 2.0]], "text", [["a"]], None, {"a": 1}, [float("nan")], np.array([np.inf]), [1e60], object()],
)
def test_what_is_no_array_is_named(value: Any) -> None:
    with pytest.raises(InvalidInput, match="weight") as caught:
        tensors.as_float32(value, "weight")
    assert caught.value.field == "weight"


def test_a_file_whose_shapes_lie() -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]}}).encode()
    with pytest.raises(PackageRejected, match="save it again"):
        tensors.read(len(header).to_bytes(8, "little") + header + bytes(20))


def test_a_package_from_parts(tmp_path: Path) -> None:
    head = {"weight": np.ones((2, 4)), "bias": [0.0, 1.0]}
    for name, data in made.adapter().items():
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / Path(name).name).write_bytes(data)
    built = fmplex.write_package(tmp_path / "p", SPEC | {"weight": 2.0}, head=head, adapter=tmp_path / "mine")
    package = read_package(built.out)
    assert (package.digest, package.spec) == (built.artifact, built.spec)
    assert package.spec.weight == 2.0
    assert {name: data for name, data in package.files.items() if "adapter" in name} == made.adapter()
    again = fmplex.write_package(tmp_path / "p", built.spec, head=head)
    assert read_package(again.out).digest == again.artifact != built.artifact


def test_several_heads(tmp_path: Path) -> None:
    spec = {
        "name": "v",
        "backbone": "m",
        "heads": {"topic": SPEC["head"], "urgent": {"kind": "regression"}, "vector": {"kind": "embedding"}},
        "input": {"template": "mail: {text}"},
    }
    head = {"topic": {"weight": np.ones((2, 4))}, "urgent": {"weight": np.ones((1, 4)), "bias": [0.5]}}
    built = fmplex.write_package(tmp_path / "p", spec, head=head)
    assert set(load((built.out / "head.safetensors").read_bytes())) == {"topic.weight", "urgent.weight", "urgent.bias"}
    assert read_package(built.out).spec.input.template == "mail: {text}"


def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        (SPEC | {"wieght": 1}, {"weight": np.ones((2, 4))}, InvalidInput, "spec: wieght: unknown key"),
        (SPEC, {"weight": np.ones((3, 4))}, PackageRejected, r"weight \(3, 4\)"),
        (SPEC, None, PackageRejected, "needs head.safetensors"),
    ]
    for spec, head, error, what in wrong:
        with pytest.raises(error, match=what):
            fmplex.write_package(tmp_path / "p", spec, head=head)
    with pytest.raises(PackageRejected, match="cannot be read"):
        fmplex.write_package(tmp_path / "p", SPEC, adapter=tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "thesis").write_text("years")
    with pytest.raises(Conflict):
        fmplex.write_package(tmp_path, SPEC, head={"weight": np.ones((2, 4))})
