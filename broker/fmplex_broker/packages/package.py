"""vFM packages: a folder with `vfm.toml` and, as the task needs, `adapter/` (PEFT format) and `head.safetensors`.

A package is read once, whole; its digest is that of exactly those bytes, and exactly those bytes are
loaded. Pure: whoever packs, stores or serves a package checks it here. What needs a backbone (shapes) is the worker's job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.peft import check_adapter
from fmplex_broker.packages.weights import check_head
from fmplex_broker.specs.heads import outputs
from fmplex_broker.specs.schema import load_toml, parse
from fmplex_broker.specs.vfm import VfmSpec

MANIFEST = "vfm.toml"
HEAD = "head.safetensors"
ADAPTER = "adapter"
ADAPTER_CONFIG = f"{ADAPTER}/adapter_config.json"
ADAPTER_WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"
# All files that a package may bring to a worker.
FILES = (HEAD, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
Data = bytes | memoryview  # of a file: in memory, or looked at where it lies on disk
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


@dataclass(frozen=True, slots=True)
class Package:
    """A checked package: its spec, its digest as an artifact, and its files by their name in the folder (see `FILES`)."""

    spec: VfmSpec
    digest: str
    files: Mapping[str, Data] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(len(data) for data in self.files.values())


def make_package(spec: VfmSpec, files: Mapping[str, Data] | None = None) -> Package:
    """Check that spec and files belong together and give the package its digest. Raises `PackageRejected` that names the part
    and what to do."""
    files = {name: files[name] for name in FILES if name in files} if files else {}
    weights = sorted(head.kind for head in spec.outputs.values() if outputs(head))
    if weights and HEAD not in files:
        raise PackageRejected(f"a {weights[0]} head needs {HEAD}, and there is none", field="head")
    if not weights and HEAD in files:
        raise PackageRejected(f"a {' and '.join(sorted(spec.kinds))} head has no weights; remove {HEAD}", field="head")
    if HEAD in files:
        check_head(spec.outputs, files[HEAD])
    if (ADAPTER_CONFIG in files) != (ADAPTER_WEIGHTS in files):
        gone = next(name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name not in files)
        raise PackageRejected(f"{gone} is missing; save the adapter with PEFT's save_pretrained", field="adapter")
    if ADAPTER_CONFIG in files:
        check_adapter(bytes(files[ADAPTER_CONFIG]), files[ADAPTER_WEIGHTS])
    return Package(spec, _digest(spec, files), files)


def bare(spec: VfmSpec) -> Package:
    """Make the package of a vFM without files: the bare backbone with heads that have no weights."""
    return make_package(spec)


def read_package(folder: Path) -> Package:
    """Read the package in a folder. Raises `PackageRejected` (layout, links out of it, pickles, what cannot be served) or
    `InvalidInput` (a wrong key of vfm.toml)."""
    folder = _real(folder)
    if not folder.is_dir():
        raise PackageRejected(f"{folder} is not a folder; give the folder that holds {MANIFEST}", field="package")
    if not (folder / MANIFEST).is_file():
        raise PackageRejected(_no_manifest(folder), field="package")
    for path in sorted(folder.rglob("*")):
        # A linked folder is listed but not walked into, so it is the link that must be checked.
        if not _real(path).is_relative_to(folder):
            raise PackageRejected(f"{path} is a link out of the package; put what it leads to there", field="package")
        if path.suffix.lower() in _PICKLES and path.is_file():
            raise PackageRejected(f"{path.name} is a pickle; convert it to safetensors and remove it", field="package")
    spec = parse(VfmSpec, load_toml(folder / MANIFEST), source=str(folder / MANIFEST))
    if (folder / ADAPTER).exists() and not any((folder / name).is_file() for name in FILES[1:]):
        raise PackageRejected(
            f"{folder / ADAPTER} has no adapter_config.json; save it with PEFT's save_pretrained", field="adapter"
        )
    if _is_adapter(folder) and not (folder / ADAPTER).exists():
        raise PackageRejected(
            f"{folder} has its adapter beside {MANIFEST}; put what PEFT has saved into {folder / ADAPTER}",
            field="adapter",
        )
    return make_package(spec, {name: _bytes(folder / name) for name in FILES if (folder / name).is_file()})


def _is_adapter(folder: Path) -> bool:
    return (folder / Path(ADAPTER_CONFIG).name).is_file()


def _no_manifest(folder: Path) -> str:
    if _is_adapter(folder):
        return (
            f"{folder} is an adapter, not yet a package: `fmplex deploy {folder} --name NAME` takes it; or make one in Python: "
            f'fmplex.from_peft({str(folder)!r}, name=…, backbone=…, head={{"kind": "generation"}}), or by hand: a folder '
            f'with {MANIFEST} (name, backbone, head = {{ kind = "generation" }}; or another kind) and these files in {ADAPTER}/'
        )
    return f"{folder} has no {MANIFEST}; `fmplex fit` writes one"


def _real(path: Path) -> Path:
    try:
        real = path.resolve()
        real.exists()  # a name that is too long resolves, and then fails whatever is asked of it
        return real
    except (OSError, RuntimeError, ValueError) as e:  # a loop of links, a NUL in the name
        raise PackageRejected(f"{str(path)!r} cannot be followed ({e}); check the path", field="package") from e


def _digest(spec: VfmSpec, files: Mapping[str, Data]) -> str:
    """Compute the digest: 16 hex digits of SHA-256 over backbone, heads, input template, and the bytes of the files.

    Values that are the default are left out, so that a new option does not make new artifacts of everything.
    """
    heads = {name: _non_defaults(head) | {"kind": head.kind} for name, head in spec.outputs.items()}
    for head in heads.values():
        if not head.keys() & {"hidden", "projection"}:
            head.pop("activation", None)  # of nothing
            head.pop("norm", None)
    content = hashlib.sha256(json.dumps([spec.backbone, heads, _non_defaults(spec.input)], sort_keys=True).encode())
    for name, data in files.items():
        content.update(b"\0" + name.encode() + b"\0" + hashlib.sha256(data).digest())
    return content.hexdigest()[:16]


def _non_defaults(part: BaseModel) -> dict[str, object]:
    return part.model_dump(mode="json", exclude_defaults=True)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise PackageRejected(f"{path} cannot be read ({e.strerror}); check its permissions", field="package") from e
