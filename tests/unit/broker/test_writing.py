"""The one writer of packages: what it writes is what it was given, whole or not at all."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import Conflict, InvalidInput, PackageRejected
from fmplex_broker.packages.package import HEAD, read_package
from fmplex_broker.packages.writing import manifest, write_package
from fmplex_broker.specs.heads import (
    Classification,
    Embedding,
    Features,
    Generation,
    Head,
    InputSpec,
    Ranking,
    Regression,
    Similarity,
    Tagging,
)
from fmplex_broker.specs.vfm import Limits, Slo, VfmSpec
from tests.unit.broker import made

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
labels = st.lists(text, min_size=2, max_size=5, unique=True).map(tuple)
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")
layers = {
    "hidden": st.lists(st.integers(1, 65_536), max_size=3).map(tuple),
    "activation": st.sampled_from(["relu", "gelu", "tanh"]),
}
pooled = {**layers, "pooling": st.sampled_from(["mean", "cls", "last"]), "normalize": st.booleans()}
weightless = st.builds(Embedding, normalize=st.booleans()) | st.builds(Features)
classifications = st.builds(Classification, labels=labels, multi_label=st.booleans(), **pooled)
named: st.SearchStrategy[Head] = weightless | classifications | st.builds(Regression, **pooled)
generating = st.builds(
    Generation, max_tokens=st.integers(1, 10**6), system=st.just("") | text, chat_template=st.none() | text
)
heads: st.SearchStrategy[Head] = (
    named
    | st.builds(Tagging, labels=labels, **layers)
    | st.builds(Ranking, **pooled)
    | st.builds(Similarity)
    | generating
)
around = st.tuples(text, text).filter(lambda t: "{text" not in t[0] + t[1])
common: dict[str, Any] = {
    "name": names,
    "backbone": names,
    "weight": st.floats(1e-3, 1e6),
    "input": st.builds(lambda t: InputSpec(template=f"{t[0]}{{text}}{t[1]}"), around) | st.just(InputSpec()),
    "limits": st.builds(Limits, max_pending=st.integers(1, 10**6), rate=st.none() | st.floats(1e-3, 1e12)),
    "slo": st.builds(Slo, deadline_ms=st.integers(1, 86_400_000), ttft_ms=st.none() | st.integers(1, 86_400_000)),
}
specs = st.builds(VfmSpec, head=heads, **common) | st.builds(
    VfmSpec, heads=st.dictionaries(names, named, min_size=1, max_size=4), **common
)


@given(specs)
def test_any_spec_survives_the_manifest(spec: VfmSpec) -> None:
    assert VfmSpec.model_validate(tomllib.loads(manifest(spec))) == spec


def test_a_manifest_is_short() -> None:
    spec = VfmSpec(name="spam", backbone="minilm", head=Classification(labels=("no", "yes")), weight=2.0)
    assert manifest(spec).splitlines() == [
        'name = "spam"',
        'backbone = "minilm"',
        "weight = 2.0",
        "",
        "[head]",
        *[
            "normalize = false",
            'kind = "classification"',
            "labels = [",
            '  "no",',
            '  "yes",',
            "]",
            "multi_label = false",
        ],
    ]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    package = made.package()
    assert write_package(tmp_path / "a" / "b", package.spec, package.files) == package
    assert read_package(tmp_path / "a" / "b") == package


def test_a_package_that_would_be_refused_is_not_written(tmp_path: Path) -> None:
    for files, error in (({}, PackageRejected), ({"evil.pkl": b""}, InvalidInput)):
        with pytest.raises(error):
            write_package(tmp_path / "out", made.spec(), files)
    assert list(tmp_path.iterdir()) == []


def test_an_older_package_gives_way_and_other_files_stay(tmp_path: Path) -> None:
    package = made.package()
    write_package(tmp_path / "p", package.spec, package.files)
    (tmp_path / "p" / "NOTES.md").write_text("mine")
    write_package(tmp_path / "p", made.spec(), {HEAD: made.head()})
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["NOTES.md", HEAD, "vfm.toml"]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_what_is_no_package_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for out, what in ((tmp_path, "not empty"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(Conflict, match=what) as caught:
            write_package(out, made.spec("embedding"), {})
        assert caught.value.field == "out"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_where_a_parent_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written") as caught:
        write_package(tmp_path / "file" / "out", made.spec("embedding"), {})
    assert caught.value.field == "out"
