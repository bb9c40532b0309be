"""scikit-learn estimators as layers: weights and biases in float64, computed from their fitted attributes.

scikit-learn itself is not imported: estimators are known by their classes' names. A layer is (weight [out, in], bias [out]).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmplex_broker.errors import InvalidInput

Array = NDArray[np.float64]
Layer = tuple[Array, Array]

_REGRESSORS = (
    "LinearRegression Ridge RidgeCV Lasso LassoCV ElasticNet ElasticNetCV LinearSVR SGDRegressor HuberRegressor"
)
_CLASSIFIERS = (
    "LogisticRegression LogisticRegressionCV LinearSVC SGDClassifier RidgeClassifier RidgeClassifierCV Perceptron"
)
_SEARCHES = frozenset({"GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV"})


class LayerStack(NamedTuple):
    """An estimator as linear layers. `classes` None: a regression. `activation`: between layers. `normalize`: the model scales
    its input to length 1 itself, first of all."""

    layers: list[Layer]
    classes: list[Any] | None
    multi_label: bool = False
    activation: str = "relu"
    normalize: bool = False


def convert(model: Any) -> LayerStack:
    """Convert a fitted estimator to layers. Raises `InvalidInput` (field `model`) naming what cannot be taken, and what can."""
    kind = _kind(model)
    if kind in _SEARCHES:
        return convert(_fitted_attribute(model, "best_estimator_"))
    if kind == "Pipeline":
        return _pipeline(model)
    if kind not in _CONVERTERS:
        raise _refusal(
            f"{kind} cannot be taken; these can: {', '.join(sorted(_CONVERTERS))}, and a Pipeline of "
            f"{', '.join(sorted([*_SCALERS, 'Normalizer']))} before one of them"
        )
    stack = _CONVERTERS[kind](model)
    if (
        stack.classes is not None
        and len(stack.classes) == 2
        and not stack.multi_label
        and len(stack.layers[-1][1]) == 1
    ):
        *before, (weight, bias) = stack.layers  # softmax over 0 and z is the sigmoid of z
        two = (np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias]))
        stack = stack._replace(layers=[*before, two])
    if stack.classes is None and len(stack.layers[-1][1]) != 1:
        raise _refusal(f"{kind} has {len(stack.layers[-1][1])} targets and a regression has one; fit one a target")
    return stack


# --- linear models ---------------------------------------------------------------------------------------------------


def _linear(model: Any) -> Layer:
    weight = np.atleast_2d(_dense(_fitted_attribute(model, "coef_")))
    bias = np.broadcast_to(np.asarray(model.intercept_, dtype=np.float64).ravel(), len(weight)).copy()
    return weight, bias


def _regressor(model: Any) -> LayerStack:
    return LayerStack([_linear(model)], None)


def _classifier(model: Any) -> LayerStack:
    layer = _linear(model)
    return LayerStack([layer], list(model.classes_), multi_label=_is_multi_label(model))


def _one_vs_rest(model: Any) -> LayerStack:
    rows = []
    for estimator in _fitted_attribute(model, "estimators_"):
        stack = convert(estimator)
        if len(stack.layers) != 1 or stack.normalize:
            raise _refusal(f"OneVsRestClassifier of {_kind(estimator)} cannot be taken; use a linear model in it")
        rows.append(
            (stack.layers[0][0][-1:], stack.layers[0][1][-1:])
        )  # of a binary model: the row of its second class
    layer = np.vstack([weight for weight, _ in rows]), np.concatenate([bias for _, bias in rows])
    return LayerStack([layer], list(model.classes_), multi_label=bool(model.multilabel_))


# --- networks --------------------------------------------------------------------------------------------------------


def _network(model: Any) -> LayerStack:
    weights = [np.asarray(w, dtype=np.float64).T for w in _fitted_attribute(model, "coefs_")]
    layers = list(zip(weights, [np.asarray(b, dtype=np.float64) for b in model.intercepts_], strict=True))
    if model.activation == "identity":
        while len(layers) > 1:
            layers[:2] = [_compose(layers[1], layers[0])]
    if model.activation == "logistic":  # σ(x) = tanh(x / 2) / 2 + 1 / 2
        for i in range(len(layers) - 1):
            (weight, bias), (next_weight, next_bias) = layers[i], layers[i + 1]
            layers[i] = weight / 2, bias / 2
            layers[i + 1] = next_weight / 2, next_bias + next_weight.sum(1) / 2
    activation = {"logistic": "tanh", "identity": "relu"}.get(model.activation, model.activation)
    if hasattr(model, "classes_"):
        return LayerStack(layers, list(model.classes_), _is_multi_label(model), activation)
    if model.out_activation_ != "identity":
        raise _refusal(f"{_kind(model)} with loss={model.loss!r} cannot be taken; fit it with squared_error")
    return LayerStack(layers, None, activation=activation)


# --- what comes before -----------------------------------------------------------------------------------------------


def _pipeline(model: Any) -> LayerStack:
    *steps, last = (step for _, step in model.steps if step not in (None, "passthrough"))
    stack = convert(last)
    if stack.normalize:
        raise _refusal("a Normalizer can only be the first step")
    normalize = bool(steps) and _kind(steps[0]) == "Normalizer"
    if normalize and steps.pop(0).norm != "l2":
        raise _refusal("Normalizer is taken with norm='l2' only")
    layers = stack.layers
    for step in reversed(steps):
        if _kind(step) not in _SCALERS:
            raise _refusal(f"the step {_kind(step)} cannot be taken; these can: {', '.join(sorted(_SCALERS))}")
        layers = [_compose(layers[0], _SCALERS[_kind(step)](step)), *layers[1:]]
    return stack._replace(layers=layers, normalize=normalize)


def _compose(layer: Layer, before: Layer) -> Layer:
    """Compose `before` and then `layer` to one layer."""
    (weight, bias), (first, shift) = layer, before
    return weight @ first, bias + weight @ shift


def _standard(step: Any) -> Layer:
    size = int(_fitted_attribute(step, "n_features_in_"))
    scale = np.ones(size) if step.scale_ is None else np.asarray(step.scale_)
    mean = np.zeros(size) if step.mean_ is None or not step.with_mean else np.asarray(step.mean_)
    return np.diag(1 / scale), -mean / scale


def _max_abs(step: Any) -> Layer:
    scale = np.asarray(_fitted_attribute(step, "scale_"))
    if getattr(step, "clip", False):
        raise _refusal("MaxAbsScaler(clip=True) is not linear; fit it with clip=False")
    return np.diag(1 / scale), np.zeros(len(scale))


def _min_max(step: Any) -> Layer:
    if step.clip:
        raise _refusal("MinMaxScaler(clip=True) is not linear; fit it with clip=False")
    return np.diag(_fitted_attribute(step, "scale_")), np.asarray(step.min_)


def _pca(step: Any) -> Layer:
    weight = np.asarray(_fitted_attribute(step, "components_"), dtype=np.float64)
    if step.whiten:
        spread = np.sqrt(step.explained_variance_)
        weight = weight / np.maximum(spread, np.finfo(np.float64).eps)[:, None]
    return weight, -(weight @ step.mean_)


def _svd(step: Any) -> Layer:
    weight = np.asarray(_fitted_attribute(step, "components_"), dtype=np.float64)
    return weight, np.zeros(len(weight))


_SCALERS: dict[str, Callable[[Any], Layer]] = {
    "StandardScaler": _standard,
    "MaxAbsScaler": _max_abs,
    "MinMaxScaler": _min_max,
    "PCA": _pca,
    "TruncatedSVD": _svd,
}
_CONVERTERS: dict[str, Callable[[Any], LayerStack]] = {
    **dict.fromkeys(_REGRESSORS.split(), _regressor),
    **dict.fromkeys(_CLASSIFIERS.split(), _classifier),
    "OneVsRestClassifier": _one_vs_rest,
    "MLPClassifier": _network,
    "MLPRegressor": _network,
}


def _kind(model: Any) -> str:
    return type(model).__name__


def _is_multi_label(model: Any) -> bool:
    """Tell whether the model gives every text any number of labels."""
    binarizer = getattr(model, "_label_binarizer", None)
    return str(getattr(binarizer, "y_type_", "")).startswith("multilabel")


def _dense(value: Any) -> Array:
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=np.float64)


def _fitted_attribute(model: Any, attribute: str) -> Any:
    """Return an attribute that fitting sets. Raises `InvalidInput` if the model was not fitted."""
    if getattr(model, attribute, None) is None:
        raise _refusal(f"{_kind(model)} has no {attribute}; fit it first")
    return getattr(model, attribute)


def _refusal(message: str) -> InvalidInput:
    return InvalidInput(message, field="model")
