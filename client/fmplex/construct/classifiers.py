"""Heads from the classifiers of transformers' models, as PEFT saves them beside an adapter.

The layers between hidden states and logits differ by family; a row of `_SEQUENCES` says which. The head gives the same logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from fmplex.construct import tensors
from fmplex.construct.saved_adapters import WRAP, BaseModel, SavedAdapter
from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.packages.peft_lora import LoraConfig
from fmplex_broker.specs.heads import Activation

_OUTSIDE = "O"  # of token classification


class _Layout(NamedTuple):
    """The layers of a family's classifier: pooling, the linear layer before the last one if any, its activation, the last one,
    and the LayerNorm before that if any."""

    pooling: str
    before: str | None
    activation: str
    last: str
    norm: str | None = None


# By the first part of the modules' names. Encoders read the first token; decoders the last one.
_SEQUENCES = {
    "bert": _Layout("cls", "bert.pooler.dense", "tanh", "classifier"),
    "roberta": _Layout("cls", "classifier.dense", "tanh", "classifier.out_proj"),  # XLM-R and CamemBERT too
    "mpnet": _Layout("cls", "classifier.dense", "tanh", "classifier.out_proj"),
    "electra": _Layout("cls", "classifier.dense", "gelu", "classifier.out_proj"),
    "albert": _Layout("cls", "albert.pooler", "tanh", "classifier"),
    "deberta": _Layout("cls", "pooler.dense", "gelu", "classifier"),
    "distilbert": _Layout("cls", "pre_classifier", "relu", "classifier"),
}
_DECODER = _Layout("last", None, "relu", "score")
_NORM_EPS = 1e-5  # that of a head with `norm`


class Classifier(NamedTuple):
    """A head's keys in vfm.toml, its arrays, and which tensors of the adapter went into them."""

    head: dict[str, Any]
    arrays: dict[str, Any]
    used: set[str]


@dataclass(frozen=True)
class _LayerReader:
    """A reader of linear layers, from the adapter or the base model, LoRA merged. `used`: tensors of the adapter that it read."""

    saved: SavedAdapter
    base: BaseModel
    used: set[str] = field(default_factory=set)

    def linear(self, module: str) -> tuple[Any, Any]:
        """Read weight [out, in] and bias [out] of a module, as float64. Raises `PackageRejected`."""
        weight, bias = self._tensor(f"{module}.weight"), self._tensor(f"{module}.bias")
        if weight is None:
            raise _missing(module)
        _check_linear(module, weight, bias)
        matrix = tensors.as_numpy(weight)
        sides = [f"{WRAP}{module}.lora_{side}.weight" for side in "AB"]
        if isinstance(self.saved.config, LoraConfig) and all(key in self.saved.tensors for key in sides):
            a, b = (self.saved.tensors[key] for key in sides)
            if (*b.shape[:1], *a.shape[1:]) != weight.shape or b.shape[1:] != a.shape[:1]:
                raise _ill_shaped(f"{module} with lora_A {a.shape}, lora_B {b.shape}, weight {weight.shape}")
            matrix = matrix + self.saved.config.scaling(module) * (tensors.as_numpy(b) @ tensors.as_numpy(a))
            self.used.update(sides)
        left = [key for key in self.saved.tensors if key.startswith(f"{WRAP}{module}.") and key not in self.used]
        if left:
            raise PackageRejected(f"the adapter changes the classifier by {left[0]!r}; train with exclude_modules=[{module!r}]",
                                  field="adapter")  # fmt: skip
        zeros = tensors.need_numpy().zeros(len(matrix))
        return matrix, zeros if bias is None else tensors.as_numpy(bias)

    def norm(self, module: str) -> tuple[Any, Any]:
        """Read weight and bias [width] of a LayerNorm, as float64. Raises `PackageRejected`."""
        weight, bias = self._tensor(f"{module}.weight"), self._tensor(f"{module}.bias")
        if weight is None:
            raise _missing(module)
        if len(weight.shape) != 1 or (bias is not None and bias.shape != weight.shape):
            raise _ill_shaped(f"{module} with weight {weight.shape}, bias {None if bias is None else bias.shape}")
        return tensors.as_numpy(weight), 0.0 if bias is None else tensors.as_numpy(bias)

    def _tensor(self, name: str) -> tensors.StoredTensor | None:
        if WRAP + name in self.saved.tensors:
            self.used.add(WRAP + name)
            return self.saved.tensors[WRAP + name]
        return self.base.tensor(name)


def _check_linear(module: str, weight: tensors.StoredTensor, bias: tensors.StoredTensor | None) -> None:
    """Check that weight and bias are those of a linear layer. Raises `PackageRejected`."""
    if len(weight.shape) != 2 or not all(weight.shape) or (bias is not None and bias.shape != weight.shape[:1]):
        raise _ill_shaped(f"{module} with weight {weight.shape}, bias {None if bias is None else bias.shape}")


def _missing(module: str) -> PackageRejected:
    return PackageRejected(
        f"the classifier needs {module}, which the adapter does not hold; give model=, the folder of the base model "
        f"it was trained on, or train with modules_to_save naming it",
        field="model",
    )


def _ill_shaped(made: str) -> PackageRejected:
    return PackageRejected(f"the classifier's {made} is no linear layer; save it again", field="adapter")


def classifier(saved: SavedAdapter, base: BaseModel, labels: tuple[str, ...], wanted: Mapping[str, Any]) -> Classifier:
    """Convert the classifier in an adapter to a head. `labels`: in the order of its outputs, if given; `wanted`: keys of the head
    that the caller decides. Raises `PackageRejected` or `InvalidInput`."""
    task = {"tagging": "TOKEN_CLS"}.get(wanted.get("kind", ""), saved.options.get("task_type"))
    if task not in ("SEQ_CLS", "TOKEN_CLS"):
        raise PackageRejected(
            f"the adapter holds whole modules ({', '.join(sorted(saved.modules))}) and its task_type is {task}; only the "
            "classifiers of SEQ_CLS and TOKEN_CLS become heads: train without modules_to_save",
            field="adapter",
        )
    layers = _LayerReader(saved, base)
    layout = _layout(saved, base, task)
    head, arrays = _stack(layers, layout)
    bias = arrays["bias"]
    names = labels or tuple(wanted.get("labels", ())) or _labels_of(base, len(bias))
    if task == "TOKEN_CLS":
        order, named = _outside_first(_check_labels(names, len(bias)))
        arrays |= {key: arrays[key][order] for key in ("weight", "bias")}
        head |= {"kind": "tagging", "labels": named}
    else:
        head |= _of_sequences(base.config.get("problem_type"), names, len(bias), wanted)
    return Classifier(_merge_head(head, wanted), arrays, layers.used)


def _stack(layers: _LayerReader, layout: _Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the classifier's layers: what they make of the head in vfm.toml, and its arrays."""
    weight, bias = layers.linear(layout.last)
    head: dict[str, Any] = {"pooling": layout.pooling} if layout.pooling else {}
    if layout.before is None:
        return head, {"weight": weight, "bias": bias}
    before, before_bias = layers.linear(layout.before)
    head |= {"hidden": [len(before_bias)], "activation": layout.activation}
    if layout.norm is not None:
        scale, shift = layers.norm(layout.norm)
        if scale.shape != weight.shape[1:]:
            raise _ill_shaped(f"{layout.norm} with weight {scale.shape}")
        weight, bias = weight * scale, bias + (weight * shift).sum(1)
        head |= {"norm": True}
    return head, {"weight": weight, "bias": bias, "hidden.0.weight": before, "hidden.0.bias": before_bias}


def _of_sequences(
    problem: str | None, names: tuple[str, ...], outputs: int, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Return kind and labels of the head of a SEQ_CLS classifier. Raises `InvalidInput` for a problem that no head answers."""
    several = problem == "multi_label_classification"
    if "kind" not in wanted and ((several and outputs == 1) or (problem == "regression" and outputs > 1)):
        raise InvalidInput(
            f"problem_type {problem} with {outputs} output(s) is not served; give head= with the kind that you want",
            field="head.kind",
        )
    if outputs == 1 and not names:
        return {"kind": "regression"}
    return {"kind": "classification", "labels": _check_labels(names, outputs), "multi_label": several}


def _layout(saved: SavedAdapter, base: BaseModel, task: str) -> _Layout:
    """Return the layers of the classifier; of token classification without a pooling. Raises `PackageRejected`."""
    if "score" in saved.modules:
        return _DECODER._replace(pooling="" if task == "TOKEN_CLS" else "last")
    if any(m.partition(".")[0] == "classifier" for m in saved.modules):
        # ModernBERT's modules are called `model.…`, as those of decoders are.
        if base.config.get("model_type") == "modernbert":
            return _modernbert(base.config, task)
        if saved.family in _SEQUENCES:
            return _Layout("", None, "relu", "classifier") if task == "TOKEN_CLS" else _SEQUENCES[saved.family]
    raise PackageRejected(
        f"the classifier of this model ({saved.family or 'unknown'}; saved: {', '.join(sorted(saved.modules))}) is not known; "
        f"known are {', '.join(sorted(_SEQUENCES))}, modernbert (give model=, the folder of the base model) and decoders with "
        "`score`. Fit a head on the adapter's embeddings instead: save it without modules_to_save, then from_peft and "
        "from_sklearn",
        field="adapter",
    )


def _modernbert(config: Mapping[str, Any], task: str) -> _Layout:
    """Return the layers of ModernBERT's classifier, as the base model's config has them. Raises `PackageRejected`."""
    activation, eps = config.get("classifier_activation", "gelu"), config.get("norm_eps", _NORM_EPS)
    if activation not in get_args(Activation) or eps != _NORM_EPS:
        raise PackageRejected(
            f"a classifier with classifier_activation {activation!r} and norm_eps {eps} is not served; only "
            f"{', '.join(get_args(Activation))} and {_NORM_EPS} are",
            field="model",
        )
    pooling = "" if task == "TOKEN_CLS" else config.get("classifier_pooling", "cls")
    return _Layout(pooling, "head.dense", activation, "classifier", "head.norm")


def _merge_head(head: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Put the keys that the caller wants over those of the classifier. Raises `InvalidInput` for those that it fixes."""
    kind = wanted.get("kind", head["kind"])
    if kind != head["kind"]:
        head = {key: value for key, value in head.items() if key not in ("labels", "multi_label")}
    fixed = [
        key for key in ("pooling", "hidden", "activation", "norm") if key in wanted and wanted[key] != head.get(key)
    ]
    if fixed:
        raise InvalidInput(f"head.{fixed[0]} is what the adapter's classifier makes it ({head.get(fixed[0])}); leave it out",
                           field=f"head.{fixed[0]}")  # fmt: skip
    more = {key: value for key, value in wanted.items() if key != "labels"}
    return head | more | {"kind": kind}


def _labels_of(base: BaseModel, outputs: int) -> tuple[str, ...]:
    """Return the base model's names of its outputs, unless those are the names that transformers makes up."""
    id2label = base.config.get("id2label", {})
    names = tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    return names if len(names) == outputs and not all(name == f"LABEL_{i}" for i, name in enumerate(names)) else ()


def _check_labels(labels: tuple[str, ...], outputs: int) -> list[str]:
    """Return the labels if there is one for each output. Raises `InvalidInput`."""
    if len(labels) != outputs:
        raise InvalidInput(
            f"the classifier has {outputs} outputs and {len(labels)} labels are known; give labels= in their order",
            field="labels",
        )
    return list(labels)


def _outside_first(labels: list[str]) -> tuple[list[int], list[str]]:
    """Return the order of rows that puts 'outside' first, as tagging wants it, and the other labels. Raises `InvalidInput`."""
    if _OUTSIDE not in labels:
        raise InvalidInput(
            f"one label of token classification must be {_OUTSIDE!r} (outside); got {labels}", field="labels"
        )
    first = labels.index(_OUTSIDE)
    order = [first, *(i for i in range(len(labels)) if i != first)]
    return order, [labels[i] for i in order[1:]]
