"""vFM packages: a folder with `vfm.toml` and, as the task needs, `adapter/` (PEFT format) and `head.safetensors`.

Pure file handling, shared by the client (to check before sending) and the worker (to check before loading). What needs
tensors (shapes, finiteness, batchability) is the worker's job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmplex_broker.errors import PackageRejected
from fmplex_broker.specs import VfmSpec, load_toml, parse

MANIFEST = "vfm.toml"
HEAD = "head.safetensors"
ADAPTER = "adapter"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Heads that are a linear layer need weights; the others are a function of the hidden states.
HEADS_WITH_WEIGHTS = frozenset({"classification", "regression", "tagging", "ranking"})
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True, slots=True)
class Package:
    """A checked package: its spec, its version and where its files are (None: the vFM does not have that part)."""

    spec: VfmSpec
    digest: str
    adapter: Path | None = None
    head: Path | None = None


def bare(spec: VfmSpec) -> Package:
    """The package of a vFM without files: the bare backbone with a head that has no weights."""
    if spec.head.kind in HEADS_WITH_WEIGHTS:
        raise PackageRejected(
            f"a {spec.head.kind} head needs weights: deploy a package folder with {HEAD}, or use an embedding head",
            field="head",
        )
    return Package(spec, _digest(spec, ()))


def read_package(folder: Path, roots: Sequence[Path] | None = None) -> Package:
    """Check the folder's layout and compute its version.

    With `roots`, the folder must lie inside one of them after all symbolic links are followed, and so must every file of
    it. Raises `PackageRejected` (layout, location, pickles) or `InvalidInput` (a wrong key of vfm.toml).
    """
    folder = _inside(folder, roots)
    if not folder.is_dir():
        raise PackageRejected(f"{folder} is not a folder; give the folder that holds {MANIFEST}", field="package")
    if not (folder / MANIFEST).is_file():
        raise PackageRejected(f"{folder} has no {MANIFEST}; `fmplex fit` writes one", field="package")
    for path in sorted(folder.rglob("*")):
        # A linked folder is listed but not walked into, so it is the link that must be checked.
        if not _real(path).is_relative_to(folder):
            raise PackageRejected(f"{path} is a link out of the package; put what it leads to there", field="package")
        if path.suffix.lower() in _PICKLES and path.is_file():
            raise PackageRejected(f"{path.name} is a pickle; convert it to safetensors and remove it", field="package")
    spec = parse(VfmSpec, load_toml(folder / MANIFEST), source=str(folder / MANIFEST))
    head = folder / HEAD if (folder / HEAD).is_file() else None
    if spec.head.kind in HEADS_WITH_WEIGHTS and head is None:
        raise PackageRejected(f"{folder}: a {spec.head.kind} head needs {HEAD}, and there is none", field="head")
    if spec.head.kind not in HEADS_WITH_WEIGHTS and head is not None:
        raise PackageRejected(f"{folder}: a {spec.head.kind} head has no weights; remove {HEAD}", field="head")
    adapter = folder / ADAPTER if (folder / ADAPTER).exists() else None
    used = [head] if head else []
    if adapter is not None:
        for name in ADAPTER_FILES:
            if not (adapter / name).is_file():
                raise PackageRejected(f"{adapter} has no {name}; save it with PEFT's save_pretrained", field="adapter")
            used.append(adapter / name)
    return Package(spec, _digest(spec, used), adapter, head)


def _real(path: Path) -> Path:
    try:
        real = path.resolve()
        real.exists()  # a name that is too long resolves, and then fails whatever is asked of it
        return real
    except (OSError, RuntimeError, ValueError) as e:  # a loop of links, a NUL in the name
        raise PackageRejected(f"{str(path)!r} cannot be followed ({e}); check the path", field="package") from e


def _inside(path: Path, roots: Sequence[Path] | None) -> Path:
    real = _real(path)
    if roots is None:
        return real
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        raise PackageRejected(
            f"{path} lies outside the folders this worker may load from; add its folder to worker.roots "
            "(symbolic links are followed before the check)",
            field="package",
        )
    return real


def _digest(spec: VfmSpec, files: Sequence[Path]) -> str:
    """16 hex digits of SHA-256 over what makes a version: backbone, head spec, and the bytes of the files."""
    content = hashlib.sha256(json.dumps([spec.backbone, spec.head.model_dump(mode="json")], sort_keys=True).encode())
    for path in files:
        content.update(b"\0" + path.name.encode() + b"\0" + hashlib.sha256(_bytes(path)).digest())
    return content.hexdigest()[:16]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise PackageRejected(f"{path} cannot be read ({e.strerror}); check its permissions", field="package") from e
