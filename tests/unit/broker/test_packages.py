"""Packages: what is refused and why, and what a version is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.heads import Classification, Embedding, Features, Regression
from fmplex_broker.packages import ADAPTER_FILES, HEAD, MANIFEST, bare, read_package
from fmplex_broker.specs import VfmSpec

LABELS = 'labels = ["no", "yes"]'


def package(
    folder: Path,
    kind: str = "classification",
    *,
    more: str = "",
    head: bytes | None = b"weights",
    adapter: bool = False,
    labels: str = LABELS,
) -> Path:
    folder.mkdir(parents=True)
    lines = [
        'name = "v"',
        'backbone = "m"',
        more,
        "[head]",
        f'kind = "{kind}"',
        labels if kind == "classification" else "",
    ]
    (folder / MANIFEST).write_text("\n".join(lines))
    if head is not None:
        (folder / HEAD).write_bytes(head)
    if adapter:
        (folder / "adapter").mkdir()
        for name in ADAPTER_FILES:
            (folder / "adapter" / name).write_bytes(name.encode())
    return folder


def refused(folder: Path, roots: list[Path] | None = None) -> PackageRejected:
    with pytest.raises(PackageRejected) as caught:
        read_package(folder, roots)
    assert caught.value.field
    return caught.value


def test_a_whole_package(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", adapter=True)
    read = read_package(folder, [tmp_path])
    assert (read.spec.name, read.head, read.adapter) == ("v", folder / HEAD, folder / "adapter")
    assert len(read.digest) == 16


@pytest.mark.parametrize("kind", ["embedding", "similarity", "features"])
def test_heads_without_weights(tmp_path: Path, kind: str) -> None:
    read = read_package(package(tmp_path / "p", kind, head=None))
    assert (read.head, read.adapter) == (None, None)


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


def test_a_wrong_key_of_the_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"vfm\.toml: wieght: unknown key"):
        read_package(package(tmp_path / "p", more="wieght = 2"))
    with pytest.raises(InvalidInput, match="not valid TOML"):
        read_package(package(tmp_path / "q", more="weight ="))


@pytest.mark.parametrize("kind", ["classification", "regression", "ranking"])
def test_no_head(tmp_path: Path, kind: str) -> None:
    error = refused(package(tmp_path / "p", kind, head=None))
    assert (error.field, HEAD in error.message) == ("head", True)


@pytest.mark.parametrize("kind", ["embedding", "similarity", "features"])
def test_a_head_too_many(tmp_path: Path, kind: str) -> None:
    error = refused(package(tmp_path / "p", kind))
    assert error.field == "head"
    assert "remove" in error.message


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_half_an_adapter(tmp_path: Path, name: str) -> None:
    folder = package(tmp_path / "p", adapter=True)
    (folder / "adapter" / name).unlink()
    error = refused(folder)
    assert error.field == "adapter"
    assert name in error.message


@pytest.mark.parametrize("name", ["head.bin", "model.pt", "a.pth", "a.pkl", "a.pickle", "a.ckpt", "HEAD.BIN", "a.Pt"])
@pytest.mark.parametrize("where", [".", "adapter", "deep/er"])
def test_pickles(tmp_path: Path, name: str, where: str) -> None:
    folder = package(tmp_path / "p", adapter=True)
    (folder / where).mkdir(parents=True, exist_ok=True)
    (folder / where / name).write_bytes(b"x")
    error = refused(folder)
    assert name in error.message
    assert "safetensors" in error.message


def test_outside_the_roots(tmp_path: Path) -> None:
    folder = package(tmp_path / "elsewhere" / "p")
    (tmp_path / "root").mkdir()
    for path in (folder, tmp_path / "root" / ".." / "elsewhere" / "p"):
        assert "worker.roots" in refused(path, [tmp_path / "root"]).message
    assert "worker.roots" in refused(folder, []).message
    assert read_package(folder, [tmp_path / "root", tmp_path / "elsewhere"]).spec.name == "v"


def test_a_root_is_not_a_prefix(tmp_path: Path) -> None:
    folder = package(tmp_path / "rooted" / "p")
    (tmp_path / "root").mkdir()
    refused(folder, [tmp_path / "root"])


def test_a_symbolic_link_out_of_the_roots(tmp_path: Path) -> None:
    secret = package(tmp_path / "elsewhere" / "p")
    root = tmp_path / "root"
    root.mkdir()
    (root / "p").symlink_to(secret)
    refused(root / "p", [root])


@pytest.mark.parametrize("what", [HEAD, MANIFEST, "adapter/adapter_config.json", "adapter", "notes.txt", "more"])
def test_a_symbolic_link_out_of_the_package(tmp_path: Path, what: str) -> None:
    """Also within the roots: another team's files are not this one's, and a version must name its content."""
    other = package(tmp_path / "root" / "other", adapter=True)
    folder = package(tmp_path / "root" / "p", adapter=what != "adapter")
    if (folder / what).exists():
        (folder / what).unlink()
    source = other / what if (other / what).exists() else other
    (folder / what).symlink_to(source)
    refused(folder, [tmp_path / "root"])


def test_links_within_the_package_and_a_linked_root_are_fine(tmp_path: Path) -> None:
    folder = package(tmp_path / "real" / "p")
    (folder / "head-v2.safetensors").write_bytes(b"v2")
    (folder / HEAD).unlink()
    (folder / HEAD).symlink_to("head-v2.safetensors")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert read_package(tmp_path / "root" / "p", [tmp_path / "root"]).head


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
    adapted = package(tmp_path / "adapted", adapter=True)
    (adapted / "adapter" / ADAPTER_FILES[1]).write_bytes(b"trained on")
    versions = {
        digest(tmp_path, "p"),
        digest(tmp_path, "head", head=b"other weights"),
        digest(tmp_path, "adapter", adapter=True),
        digest(tmp_path, "labels", labels='labels = ["yes", "no"]'),
        read_package(adapted).digest,
        digest(tmp_path, "kind", kind="regression"),
    }
    assert len(versions) == 6


def test_notes_make_no_version(tmp_path: Path) -> None:
    first = digest(tmp_path, "p")
    (tmp_path / "p" / "README.md").write_text("notes")
    assert read_package(tmp_path / "p").digest == first


def test_files_cannot_pretend_to_be_each_other(tmp_path: Path) -> None:
    """The same bytes under other names are another version."""
    one = package(tmp_path / "one", "embedding", head=None, adapter=True)
    two = package(tmp_path / "two", "embedding", head=None, adapter=True)
    (two / "adapter" / ADAPTER_FILES[0]).write_bytes((one / "adapter" / ADAPTER_FILES[1]).read_bytes())
    (two / "adapter" / ADAPTER_FILES[1]).write_bytes((one / "adapter" / ADAPTER_FILES[0]).read_bytes())
    assert read_package(one).digest != read_package(two).digest


# --- without files ----------------------------------------------------------------------------------------------------


def test_bare(tmp_path: Path) -> None:
    spec = VfmSpec(name="v", backbone="m", head=Embedding())
    assert (bare(spec).head, bare(spec).adapter) == (None, None)
    assert bare(spec).digest == read_package(package(tmp_path / "p", "embedding", head=None)).digest
    assert bare(spec).digest != bare(VfmSpec(name="v", backbone="m", head=Features())).digest
    assert bare(spec).digest != bare(VfmSpec(name="v", backbone="other", head=Embedding())).digest


@pytest.mark.parametrize("head", [Classification(labels=("a", "b")), Regression()])
def test_bare_heads_need_weights(head: Any) -> None:
    with pytest.raises(PackageRejected) as caught:
        bare(VfmSpec(name="v", backbone="m", head=head))
    assert caught.value.field == "head"
