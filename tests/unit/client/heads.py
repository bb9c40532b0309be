"""What a written head gives, computed plainly: the reference for conversions."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float64]


def spec_of(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "vfm.toml").read_text())


def logits(folder: Path, rows: Any) -> Array:
    """The head of a package on pooled states [n, hidden]."""
    head, tensors = spec_of(folder)["head"], load_file(folder / "head.safetensors")
    state = np.asarray(rows, dtype=np.float64)
    if head.get("normalize"):
        state = state / np.linalg.norm(state, axis=1, keepdims=True)
    for i in range(len(head.get("hidden", ()))):
        state = state @ tensors[f"hidden.{i}.weight"].T.astype(np.float64) + tensors[f"hidden.{i}.bias"]
        state = _ACTIVATIONS[head.get("activation", "relu")](state)
        if head.get("norm"):
            state = (state - state.mean(1, keepdims=True)) / np.sqrt(state.var(1, keepdims=True) + 1e-5)
    return np.asarray(state @ tensors["weight"].T.astype(np.float64) + tensors["bias"])


def scores(folder: Path, rows: Any) -> Array:
    """Softmax over the labels, or a sigmoid each."""
    out = logits(folder, rows)
    if spec_of(folder)["head"]["multi_label"]:
        return np.asarray(1 / (1 + np.exp(-out)))
    shares = np.exp(out - out.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _gelu(x: Array) -> Array:
    from scipy.special import erf  # type: ignore[import-untyped]

    return np.asarray(x * 0.5 * (1 + erf(x / np.sqrt(2))))


_ACTIVATIONS = {"relu": _relu, "gelu": _gelu, "tanh": np.tanh}
