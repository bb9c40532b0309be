"""Packages: what is refused and why, and what a version is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.packages.package import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    HEAD,
    MANIFEST,
    bare,
    make_package,
    read_package,
)
from fmplex_broker.specs.heads import Classification, Embedding, Features, Generation, Regression
from fmplex_broker.specs.vfm import VfmSpec
from tests.unit.broker import made

LABELS = 'labels = ["no", "yes"]'


def package(
    folder: Path,
    kind: str = "classification",
    *,
    more: str = "",
    head: bytes | None = None,
    adapter: bool = False,
    labels: str = LABELS,
) -> Path:
    """A package folder; a head that needs weights gets some."""
    folder.mkdir(parents=True)
    lines = [
        'name = "v"',
        'backbone = "m"',
        more if "[" not in more else "",
        "[head]",
        f'kind = "{kind}"',
        labels if kind == "classification" else "",
        more if "[" in more else "",
    ]
    (folder / MANIFEST).write_text("\n".join(lines))
    rows = {"classification": 2, "regression": 1, "ranking": 1}.get(kind, 0)
    if head is not None or rows:
        (folder / HEAD).write_bytes(made.head(rows) if head is None else head)
    if adapter:
        (folder / "adapter").mkdir()
        for name, data in made.adapter().items():
            (folder / name).write_bytes(data)
    return folder


def refused(folder: Path) -> PackageRejected:
    with pytest.raises(PackageRejected) as caught:
        read_package(folder)
    assert caught.value.field
    return caught.value


def test_a_whole_package_is_read_into_memory(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", adapter=True)
    (folder / "README.md").write_text("notes stay behind")
    read = read_package(folder)
    assert read.spec.name == "v"
    assert read.files == {HEAD: made.head(), **made.adapter()}
    assert read.nbytes == sum(map(len, read.files.values()))
    assert len(read.digest) == 16


@pytest.mark.parametrize("kind", ["embedding", "similarity", "features", "generation"])
def test_heads_without_weights(tmp_path: Path, kind: str) -> None:
    assert read_package(package(tmp_path / "p", kind)).files == {}


# --- what is refused --------------------------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    assert "not a folder" in refused(tmp_path / "nothing").message
    (tmp_path / "file").write_text("x")
    assert "not a folder" in refused(tmp_path / "file").message


def test_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    assert MANIFEST in refused(tmp_path / "p").message
    (tmp_path / "p" / MANIFEST).mkdir()
    assert MANIFEST in refused(tmp_path / "p").message


def test_a_bare_adapter_is_told_how_it_becomes_a_package(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    message = refused(tmp_path).message
    assert f"fmplex.from_peft({str(tmp_path)!r}, name=" in message
    assert 'head = { kind = "generation" }' in message
    assert "fmplex fit" not in message


def test_an_adapter_beside_the_manifest_is_not_left_out_silently(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    (folder / "adapter_config.json").write_text("{}")
    error = refused(folder)
    assert (error.field, "has its adapter beside vfm.toml" in error.message) == ("adapter", True)


def test_a_wrong_key_of_the_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"vfm\.toml: wieght: unknown key"):
        read_package(package(tmp_path / "p", more="wieght = 2"))
    with pytest.raises(InvalidInput, match="not valid TOML"):
        read_package(package(tmp_path / "q", more="weight ="))


@pytest.mark.parametrize("kind", ["classification", "regression", "ranking"])
def test_no_head(tmp_path: Path, kind: str) -> None:
    folder = package(tmp_path / "p", kind)
    (folder / HEAD).unlink()
    error = refused(folder)
    assert (error.field, HEAD in error.message) == ("head", True)


@pytest.mark.parametrize("kind", ["embedding", "similarity", "features", "generation"])
def test_a_head_too_many(tmp_path: Path, kind: str) -> None:
    error = refused(package(tmp_path / "p", kind, head=made.head()))
    assert error.field == "head"
    assert "remove" in error.message


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"", "cut off"),
        (b"\xff" * 64, "not a whole safetensors file"),
        (made.head()[:-1], "cut off"),
        (made.head() + b"x", "cut off"),
        (made.head(3), r"weight \(3, 4\).*needed: weight \(2, 4\)"),
        (made.head(extra=(1,)), "extra"),
        (save({"bias": np.zeros(2, dtype=np.float32)}), "weight"),
        (save({"weight": np.zeros((2, 4), dtype=np.int64)}), "float32"),
    ],
)
def test_a_head_that_does_not_fit(tmp_path: Path, head: bytes, what: str) -> None:
    with pytest.raises(PackageRejected, match=what) as caught:
        read_package(package(tmp_path / "p", head=head))
    assert caught.value.field == "head"


def test_a_stack_needs_all_its_layers(tmp_path: Path) -> None:
    more = LABELS + "\nhidden = [3]"
    shapes = {"hidden.0.weight": (3, 4), "hidden.0.bias": (3,), "weight": (2, 3), "bias": (2,)}
    tensors = {name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()}
    assert read_package(package(tmp_path / "p", labels=more, head=save(tensors))).digest
    del tensors["hidden.0.weight"]
    with pytest.raises(PackageRejected, match=r"hidden\.0\.weight"):
        read_package(package(tmp_path / "q", labels=more, head=save(tensors)))


def test_several_heads_have_names() -> None:
    spec = VfmSpec(name="v", backbone="m", heads={"a": Classification(labels=("x", "y")), "b": Embedding()})
    tensors = {"a.weight": np.ones((2, 4), dtype=np.float32)}
    assert make_package(spec, {HEAD: save(tensors)}).spec.kinds == {"classification", "embedding"}
    with pytest.raises(PackageRejected, match=r"a\.weight"):
        make_package(spec, {HEAD: made.head()})


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
def test_half_an_adapter(tmp_path: Path, name: str) -> None:
    folder = package(tmp_path / "p", adapter=True)
    (folder / name).unlink()
    error = refused(folder)
    assert error.field == "adapter"
    assert name in error.message


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"peft_type": "IA4"}, "IA4"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["classifier"]}, "head.safetensors"),
        ({"new_in_peft_99": 1}, "not known"),
        ({"r": 0}, "r:"),
    ],
)
def test_what_cannot_be_batched_is_refused_by_name(config: dict[str, Any], what: str) -> None:
    with pytest.raises(PackageRejected, match=what) as caught:
        make_package(made.spec("embedding"), made.adapter(**config))
    assert caught.value.field == "adapter"


def test_an_empty_adapter_folder(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    (folder / "adapter").mkdir()
    assert "save_pretrained" in refused(folder).message


@pytest.mark.parametrize("name", ["head.bin", "model.pt", "a.pth", "a.pkl", "a.pickle", "a.ckpt", "HEAD.BIN", "a.Pt"])
@pytest.mark.parametrize("where", [".", "adapter", "deep/er"])
def test_pickles(tmp_path: Path, name: str, where: str) -> None:
    folder = package(tmp_path / "p", adapter=True)
    (folder / where).mkdir(parents=True, exist_ok=True)
    (folder / where / name).write_bytes(b"x")
    error = refused(folder)
    assert name in error.message
    assert "safetensors" in error.message


@pytest.mark.parametrize("what", [HEAD, MANIFEST, "adapter/adapter_config.json", "adapter", "notes.txt", "more"])
def test_a_symbolic_link_out_of_the_package(tmp_path: Path, what: str) -> None:
    """Another team's files are not this one's, and a version must name its content."""
    other = package(tmp_path / "root" / "other", adapter=True)
    folder = package(tmp_path / "root" / "p", adapter=what != "adapter")
    if (folder / what).exists():
        (folder / what).unlink()
    source = other / what if (other / what).exists() else other
    (folder / what).symlink_to(source)
    refused(folder)


def test_links_within_the_package_are_fine(tmp_path: Path) -> None:
    folder = package(tmp_path / "real" / "p")
    (folder / "head-v2.safetensors").write_bytes(made.head(value=2.0))
    (folder / HEAD).unlink()
    (folder / HEAD).symlink_to("head-v2.safetensors")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert read_package(tmp_path / "linked" / "p").files == {HEAD: made.head(value=2.0)}


def test_loops_and_impossible_names(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    (folder / "loop").symlink_to("loop")
    refused(folder)
    refused(Path("\0"))
    refused(tmp_path / ("x" * 5000))


# --- versions ---------------------------------------------------------------------------------------------------------


def digest(tmp_path: Path, name: str, **parts: Any) -> str:
    return read_package(package(tmp_path / name, **parts)).digest


def test_a_version_is_stable(tmp_path: Path) -> None:
    first = digest(tmp_path, "p", adapter=True)
    assert first == digest(tmp_path, "somewhere/else", adapter=True)
    os.utime(tmp_path / "p" / HEAD, (1, 1))
    assert read_package(tmp_path / "p").digest == first


@pytest.mark.parametrize("more", ["weight = 7.5", "[limits]\nmax_pending = 5\nrate = 9", "[slo]\ndeadline_ms = 5"])
def test_operating_values_make_no_version(tmp_path: Path, more: str) -> None:
    assert digest(tmp_path, "p") == digest(tmp_path, "q", more=more)


def test_content_makes_a_version(tmp_path: Path) -> None:
    versions = {
        digest(tmp_path, "p"),
        digest(tmp_path, "head", head=made.head(value=2.0)),
        digest(tmp_path, "adapter", adapter=True),
        digest(tmp_path, "labels", labels='labels = ["yes", "no"]'),
        digest(tmp_path, "pooling", labels=LABELS + '\npooling = "cls"'),
        digest(tmp_path, "normalize", labels=LABELS + "\nnormalize = true"),
        digest(tmp_path, "template", more='[input]\ntemplate = "query: {text}"'),
        digest(tmp_path, "kind", kind="regression"),
        make_package(made.spec(backbone="other"), {HEAD: made.head()}).digest,
        make_package(made.spec(), {HEAD: made.head(), **made.adapter(2.0)}).digest,
        make_package(made.spec(), {HEAD: made.head(), **made.adapter(lora_alpha=5)}).digest,
    }
    assert len(versions) == 11


def test_how_a_vfm_generates_makes_a_version() -> None:
    heads: list[dict[str, Any]] = [
        {},
        {"max_tokens": 100},
        {"system": "Be brief."},
        {"chat_template": "{{ messages }}"},
    ]
    versions = {bare(VfmSpec(name="v", backbone="m", head=Generation(**head))).digest for head in heads}
    assert len(versions) == 4
    assert bare(VfmSpec(name="v", backbone="m", head=Generation(max_tokens=256))).digest in versions


def test_saying_a_default_makes_no_version(tmp_path: Path) -> None:
    """Or a new option would make new versions of everything."""
    said = LABELS + '\nnormalize = false\nhidden = []\nactivation = "tanh"'
    template = "[input]\ntruncate = false\ntoken_ids = false"
    assert digest(tmp_path, "p") == digest(tmp_path, "q", labels=said) == digest(tmp_path, "r", more=template)


def test_notes_make_no_version(tmp_path: Path) -> None:
    first = digest(tmp_path, "p")
    (tmp_path / "p" / "README.md").write_text("notes")
    assert read_package(tmp_path / "p").digest == first


def test_versions_stay_what_they_were() -> None:
    """Written down: a change of these would make every deployed vFM another version."""
    assert bare(made.spec("embedding")).digest == "f9785447033f2e8c"
    assert bare(made.spec("generation")).digest == "02310ca7d80dc818"
    head = json.dumps({"weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}).encode()
    data = len(head).to_bytes(8, "little") + head + bytes(8)
    assert make_package(made.spec(), {HEAD: data}).digest == "8fd14104c313d341"


operating = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
        "weight": st.floats(1e-3, 1e6),
        "limits": st.fixed_dictionaries({"max_pending": st.integers(1, 10**6), "rate": st.floats(0.1, 1e9)}),
        "slo": st.fixed_dictionaries({"deadline_ms": st.integers(1, 86_400_000)}),
    },
)


@given(operating)
def test_what_can_change_while_it_serves_makes_no_version(change: dict[str, Any]) -> None:
    assert made.package(**change).digest == made.package().digest


@given(st.permutations([HEAD, ADAPTER_CONFIG, ADAPTER_WEIGHTS]), st.booleans())
def test_neither_order_nor_other_files_make_a_version(order: list[str], notes: bool) -> None:
    given_ = made.package()
    files = {name: given_.files[name] for name in order} | ({"notes.txt": b"mine"} if notes else {})
    again = make_package(made.spec(), files)
    assert (again.digest, dict(again.files)) == (given_.digest, dict(given_.files))


# --- without files ----------------------------------------------------------------------------------------------------


def test_bare(tmp_path: Path) -> None:
    spec = VfmSpec(name="v", backbone="m", head=Embedding())
    assert bare(spec).files == {}
    assert bare(spec).digest == read_package(package(tmp_path / "p", "embedding")).digest
    assert bare(spec).digest != bare(VfmSpec(name="v", backbone="m", head=Features())).digest
    assert bare(spec).digest != bare(VfmSpec(name="v", backbone="other", head=Embedding())).digest


@pytest.mark.parametrize("head", [Classification(labels=("a", "b")), Regression()])
def test_bare_heads_need_weights(head: Any) -> None:
    with pytest.raises(PackageRejected) as caught:
        bare(VfmSpec(name="v", backbone="m", head=head))
    assert caught.value.field == "head"
