"""scikit-learn models become heads that answer as they do: labels as `predict`, scores as `predict_proba`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC, LinearSVR

import fmplex
from fmplex_broker.errors import InvalidInput
from tests.unit.client.heads import logits, scores, spec_of

pytestmark = pytest.mark.filterwarnings("ignore")  # tiny fits do not converge, and nobody minds

Array = NDArray[Any]
WIDTH = 12
RNG = np.random.default_rng(0)
ROWS = RNG.normal(0.3, 1.0, (240, WIDTH))
PLANE = ROWS @ RNG.normal(size=(WIDTH, 4)) + RNG.normal(0, 0.3, (240, 4))
TWO = np.where(PLANE[:, 0] > 0, "yes", "no")
MANY = np.array(["red", "green", "blue", "grey"])[PLANE.argmax(1)]
SETS = (PLANE > 0.5).astype(int)
VALUE = PLANE[:, 0] * 3 + 7
TRAIN, TEST = slice(0, 160), slice(160, None)


def build(model: Any, answers: Array, out: Path, **more: Any) -> Any:
    model.fit(ROWS[TRAIN], answers[TRAIN])
    fmplex.from_sklearn(model, name="v", backbone="m", out=out, **more)
    return model


def chosen(folder: Path) -> Array:
    names = np.array(spec_of(folder)["head"]["labels"])
    return np.asarray(names[scores(folder, ROWS[TEST]).argmax(1)])


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "LogisticRegression": lambda: LogisticRegression(),
    "no intercept": lambda: LogisticRegression(fit_intercept=False),
    "LogisticRegressionCV": lambda: LogisticRegressionCV(
        Cs=2, cv=2, l1_ratios=(0.0,), scoring="accuracy", use_legacy_attributes=False
    ),
    "LinearSVC": lambda: LinearSVC(),
    "SGD hinge": lambda: SGDClassifier(random_state=0),
    "SGD log": lambda: SGDClassifier(loss="log_loss", random_state=0),
    "RidgeClassifier": lambda: RidgeClassifier(),
    "Perceptron": lambda: Perceptron(),
    "sparse": lambda: LogisticRegression(),
    "OneVsRest": lambda: OneVsRestClassifier(LogisticRegression()),
    "OneVsRest SVC": lambda: OneVsRestClassifier(LinearSVC()),
    "OneVsRest of a pipeline": lambda: OneVsRestClassifier(make_pipeline(StandardScaler(), LinearSVC())),
    "MLP relu": lambda: MLPClassifier((9,), max_iter=50, random_state=0),
    "MLP tanh deep": lambda: MLPClassifier((9, 5), activation="tanh", max_iter=50, random_state=0),
    "MLP logistic": lambda: MLPClassifier((9, 5, 4), activation="logistic", max_iter=80, random_state=0),
    "MLP identity": lambda: MLPClassifier((9, 5), activation="identity", max_iter=50, random_state=0),
    "search": lambda: GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2),
    "scaled": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "without mean": lambda: make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
    "without spread": lambda: make_pipeline(StandardScaler(with_std=False), LogisticRegression()),
    "max abs": lambda: make_pipeline(MaxAbsScaler(), LogisticRegression()),
    "min max": lambda: make_pipeline(MinMaxScaler((-2, 3)), LogisticRegression()),
    "PCA": lambda: make_pipeline(StandardScaler(), PCA(5), LogisticRegression()),
    "whitened": lambda: make_pipeline(PCA(5, whiten=True), "passthrough", MinMaxScaler(), LogisticRegression()),
    "SVD": lambda: make_pipeline(TruncatedSVD(5), StandardScaler(), LogisticRegression()),
    "unit length": lambda: make_pipeline(Normalizer(), StandardScaler(), LogisticRegression()),
    "MLP behind a scaler": lambda: make_pipeline(
        StandardScaler(), PCA(6), MLPClassifier((9,), max_iter=50, random_state=0)
    ),
    "pipeline in a pipeline": lambda: make_pipeline(
        StandardScaler(), make_pipeline(PCA(6), LogisticRegression())
    ),
}  # fmt: skip


@pytest.mark.parametrize("answers", [TWO, MANY], ids=["two", "many"])
@pytest.mark.parametrize("case", CLASSIFIERS)
def test_labels_are_those_of_predict(tmp_path: Path, case: str, answers: Array) -> None:
    model = CLASSIFIERS[case]()
    if case == "sparse":
        model.fit(ROWS[TRAIN], answers[TRAIN]).sparsify()
        fmplex.from_sklearn(model, name="v", backbone="m", out=tmp_path)
    else:
        build(model, answers, tmp_path)
    assert (chosen(tmp_path) == model.predict(ROWS[TEST])).all()
    # One against the rest and SGD share their probabilities out in ways of their own.
    softmax = hasattr(model, "predict_proba") and not (answers is MANY and case in ("OneVsRest", "SGD log"))
    if softmax:
        np.testing.assert_allclose(scores(tmp_path, ROWS[TEST]), model.predict_proba(ROWS[TEST]), atol=2e-5)


MULTI_LABEL: dict[str, Callable[[], Any]] = {
    "OneVsRest": lambda: OneVsRestClassifier(LogisticRegression()),
    "OneVsRest SVC": lambda: OneVsRestClassifier(LinearSVC()),
    "RidgeClassifier": lambda: RidgeClassifier(),
    "MLP": lambda: MLPClassifier((9,), max_iter=50, random_state=0),
    "scaled": lambda: make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression())),
}


@pytest.mark.parametrize("case", MULTI_LABEL)
def test_several_labels(tmp_path: Path, case: str) -> None:
    model = build(MULTI_LABEL[case](), SETS, tmp_path, labels=["a", "b", "c", "d"])
    assert spec_of(tmp_path)["head"]["multi_label"] is True
    assert ((scores(tmp_path, ROWS[TEST]) >= 0.5) == model.predict(ROWS[TEST])).all()
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(scores(tmp_path, ROWS[TEST]), model.predict_proba(ROWS[TEST]), atol=2e-5)


REGRESSORS: dict[str, Callable[[], Any]] = {
    "LinearRegression": lambda: LinearRegression(),
    "Ridge": lambda: Ridge(),
    "Lasso": lambda: Lasso(0.01),
    "ElasticNet": lambda: ElasticNet(0.01),
    "LinearSVR": lambda: LinearSVR(),
    "SGDRegressor": lambda: SGDRegressor(random_state=0),
    "MLP": lambda: MLPRegressor(hidden_layer_sizes=(9, 4), max_iter=80, random_state=0),
    "MLP logistic": lambda: MLPRegressor(hidden_layer_sizes=(9,), activation="logistic", max_iter=80, random_state=0),
    "scaled": lambda: make_pipeline(StandardScaler(), PCA(6), Ridge()),
    "no intercept": lambda: Ridge(fit_intercept=False),
}


@pytest.mark.parametrize("case", REGRESSORS)
def test_values_are_those_of_predict(tmp_path: Path, case: str) -> None:
    model = build(REGRESSORS[case](), VALUE, tmp_path)
    assert spec_of(tmp_path)["head"]["kind"] == "regression"
    np.testing.assert_allclose(logits(tmp_path, ROWS[TEST])[:, 0], model.predict(ROWS[TEST]), rtol=1e-4, atol=1e-4)


# --- what is written -------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_was_asked(tmp_path: Path) -> None:
    model = LogisticRegression().fit(ROWS, (TWO == "yes").astype(int))
    built = fmplex.from_sklearn(
        model, name="spam", backbone="minilm", out=tmp_path / "p", pooling="cls", normalize=True, labels=["ham", "spam"],
        weight=2.0, slo={"deadline_ms": 500},
    )  # fmt: skip
    assert built.spec.weight == 2.0
    assert built.spec.slo.deadline_ms == 500
    assert spec_of(built.out)["head"] == {
        "kind": "classification", "labels": ["ham", "spam"], "multi_label": False, "pooling": "cls", "normalize": True,
    }  # fmt: skip
    again = fmplex.from_sklearn(
        model, name="spam", backbone="minilm", out=tmp_path / "q", pooling="cls", normalize=True, labels=["ham", "spam"]
    )
    assert again.artifact == built.artifact
    assert sorted(path.name for path in built.out.iterdir()) == ["head.safetensors", "vfm.toml"]


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    built = fmplex.from_sklearn(Ridge().fit(ROWS, VALUE), name="stars", backbone="m")
    assert built.out == Path("vfms/stars")
    assert (tmp_path / "vfms" / "stars" / "vfm.toml").is_file()


def test_classes_that_are_numbers_become_text(tmp_path: Path) -> None:
    build(LogisticRegression(), PLANE.argmax(1), tmp_path)
    assert spec_of(tmp_path)["head"]["labels"] == ["0", "1", "2", "3"]


# --- what is refused -------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], Any], Array, dict[str, Any], str, str]] = {
    "forest": (lambda: RandomForestClassifier(2), TWO, {}, "model", "RandomForestClassifier.*LogisticRegression"),
    "kernel": (lambda: SVC(), TWO, {}, "model", "SVC cannot be taken"),
    "dummy": (lambda: DummyClassifier(), TWO, {}, "model", "DummyClassifier"),
    "step": (lambda: make_pipeline(RobustScaler(), Ridge()), VALUE, {}, "model", "RobustScaler.*StandardScaler"),
    "features": (lambda: make_pipeline(PolynomialFeatures(), Ridge()), VALUE, {}, "model", "PolynomialFeatures"),
    "clip": (lambda: make_pipeline(MinMaxScaler(clip=True), Ridge()), VALUE, {}, "model", "clip"),
    "l1": (lambda: make_pipeline(Normalizer("l1"), Ridge()), VALUE, {}, "model", "l2"),
    "late": (lambda: make_pipeline(StandardScaler(), Normalizer(), Ridge()), VALUE, {}, "model", "Normalizer"),
    "targets": (lambda: Ridge(), PLANE, {}, "model", "4 targets"),
    "labels": (lambda: LogisticRegression(), TWO, {"labels": ["a"]}, "labels", "1 labels for 2 classes"),
    "twice": (lambda: LogisticRegression(), TWO, {"labels": ["a", "a"]}, "labels", "called the same"),
    "forests": (lambda: OneVsRestClassifier(RandomForestClassifier(2)), MANY, {}, "model", "RandomForest"),
    "networks": (lambda: OneVsRestClassifier(MLPClassifier((2,), max_iter=2)), MANY, {}, "model", "MLPClassifier"),
    "spec": (lambda: Ridge(), VALUE, {"wieght": 2}, "wieght", "unknown key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_taken_is_named(tmp_path: Path, case: str) -> None:
    model, answers, more, field, what = WRONG[case]
    with pytest.raises(InvalidInput, match=what) as caught:
        build(model(), answers, tmp_path / "out", **more)
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", [LogisticRegression(), Ridge(), MLPClassifier(), StandardScaler(), object(), None])
def test_not_a_fitted_model(tmp_path: Path, model: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        fmplex.from_sklearn(model, name="v", backbone="m", out=tmp_path / "out")
    assert caught.value.field == "model"


def test_unfitted_steps(tmp_path: Path) -> None:
    for step in (StandardScaler(), MaxAbsScaler(), MinMaxScaler(), PCA(), TruncatedSVD()):
        model = make_pipeline(step, Ridge().fit(ROWS, VALUE))
        with pytest.raises(InvalidInput, match="fit it first"):
            fmplex.from_sklearn(model, name="v", backbone="m", out=tmp_path / "out")


def test_a_model_that_diverged(tmp_path: Path) -> None:
    model = Ridge().fit(ROWS, VALUE)
    model.coef_[0] = np.nan
    with pytest.raises(InvalidInput, match="NaN"):
        fmplex.from_sklearn(model, name="v", backbone="m", out=tmp_path / "out")
