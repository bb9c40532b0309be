"""Adapters that `from_peft` cannot convert: whatever is in them, the error is typed and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmplex.construct import from_peft, tensors
from fmplex_broker.errors import FmplexError, PackageRejected

STEM = "base_model.model."
QUERY = f"{STEM}roberta.encoder.layer.0.attention.self.query"
LAST = f"{STEM}classifier.out_proj"
SHAPES = {
    f"{QUERY}.lora_A.weight": (2, 4),
    f"{QUERY}.lora_B.weight": (4, 2),
    f"{STEM}classifier.dense.weight": (4, 4),
    f"{STEM}classifier.dense.bias": (4,),
    f"{LAST}.weight": (3, 4),
    f"{LAST}.bias": (3,),
}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}


def convert(folder: Path, change: dict[str, tuple[int, ...]] | None = None, **config: Any) -> Any:
    folder.mkdir(exist_ok=True)
    shapes = SHAPES | (change or {})
    stored = {name: tensors.as_float32(np.ones(shape, dtype=np.float32), name) for name, shape in shapes.items()}
    (folder / "adapter_model.safetensors").write_bytes(tensors.write(stored))
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return from_peft(folder, name="v", backbone="m", labels=("a", "b", "c"), out=folder / "out")


def test_one_that_is_right(tmp_path: Path) -> None:
    assert convert(tmp_path).spec.head.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{LAST}.weight": (12,)}, "is no linear layer"),
        ({f"{LAST}.weight": ()}, "is no linear layer"),
        ({f"{LAST}.weight": (3, 0)}, "is no linear layer"),
        ({f"{LAST}.bias": (4,)}, "is no linear layer"),
        ({f"{STEM}classifier.dense.bias": (4, 1)}, "is no linear layer"),
        ({f"{LAST}.lora_A.weight": (2, 4), f"{LAST}.lora_B.weight": (3, 5)}, "lora_A (2, 4), lora_B (3, 5)"),
        ({f"{LAST}.lora_A.weight": (2,), f"{LAST}.lora_B.weight": (3, 2)}, "is no linear layer"),
    ],
)
def test_layers_that_are_none(tmp_path: Path, change: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(PackageRejected) as caught:
        convert(tmp_path, change)
    assert says in caught.value.message
    assert caught.value.field == "adapter"


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*SHAPES, f"{LAST}.lora_A.weight", f"{LAST}.lora_B.weight", "x"]), shapes, max_size=3
    ),
    st.dictionaries(
        st.sampled_from(["r", "lora_alpha", "task_type", "rank_pattern", "modules_to_save", "base_model_name_or_path"]),
        st.sampled_from([1, 10**400, "SEQ_CLS", "TOKEN_CLS", None, [], {"out_proj": 10**400}, {"(a": 1}, "\0", 1e308]),
        max_size=2,
    ),
)
def test_no_adapter_raises_anything_else(
    tmp_path: Path, change: dict[str, tuple[int, ...]], config: dict[str, Any]
) -> None:
    error: FmplexError | None = None
    try:
        convert(tmp_path, change, **config)
    except FmplexError as e:
        error = e
    assert error is None or error.message
