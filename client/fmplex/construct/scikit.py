"""Packages from scikit-learn models that were fitted on embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmplex.construct import tensors
from fmplex.construct.building import WrittenPackage, build, head_tensors
from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.package import HEAD
from fmplex_broker.specs.heads import Pooling


def from_sklearn(
    model: Any,
    *,
    name: str,
    backbone: str,
    out: str | Path | None = None,
    pooling: Pooling | None = None,
    normalize: bool = False,
    labels: Sequence[str] = (),
    **spec: Any,
) -> WrittenPackage:
    """Write a package, to `out` (default: `vfms/NAME`), of a fitted scikit-learn `model`: linear, MLP, or a Pipeline of scalers
    and projections before one.

    `name`: of the vFM; `backbone`: the one it will live on.
    `pooling` and `normalize` say which embeddings it was fitted on: as the vFM that gave them has it (no pooling: the
    backbone's own). `labels`: names for its classes, in their order, if its own will not do. `spec`: other keys of vfm.toml
    (weight, limits, slo, input). The model is read as numbers, never pickled. Scores are softmax (sigmoid for several labels) of
    its margins, which is its `predict_proba` where that is defined so; labels are those of `predict`. Raises `InvalidInput` for
    what cannot be taken.
    """
    tensors.need_numpy()
    from fmplex.construct.estimators import convert

    stack = convert(model)
    head: dict[str, Any] = {} if pooling is None else {"pooling": pooling}
    head |= {"normalize": normalize or stack.normalize}
    if stack.classes is None:
        head["kind"] = "regression"
    else:
        names = _class_names(stack.classes, labels)
        head |= {"kind": "classification", "labels": names, "multi_label": stack.multi_label}
    *hidden, (weight, bias) = stack.layers
    arrays = {"weight": weight, "bias": bias}
    for i, (layer_weight, layer_bias) in enumerate(hidden):
        arrays |= {f"hidden.{i}.weight": layer_weight, f"hidden.{i}.bias": layer_bias}
    if hidden:
        head |= {"hidden": [len(layer_bias) for _, layer_bias in hidden], "activation": stack.activation}
    files = {HEAD: tensors.write(head_tensors(arrays))}
    return build(out, {"name": name, "backbone": backbone, "head": head, **spec}, files)


def _class_names(classes: list[Any], labels: Sequence[str]) -> list[str]:
    """Return the names of classes: `labels`, if there are any, else their own. Raises `InvalidInput`."""
    names = [str(label) for label in labels or classes]
    if len(names) != len(classes):
        raise InvalidInput(f"{len(names)} labels for {len(classes)} classes: {classes}", field="labels")
    if len(set(names)) < len(names):
        raise InvalidInput(f"two classes are called the same: {names}; give labels=", field="labels")
    return names
