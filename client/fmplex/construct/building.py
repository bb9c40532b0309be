"""Writing package folders from a specification and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fmplex.construct import tensors
from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages import writing
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD
from fmplex_broker.specs.heads import Head
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmSpec

PACKAGES = Path("vfms")  # where packages go that are given no folder


class WrittenPackage(NamedTuple):
    """A package on disk: its folder `out`, its digest as an `artifact`, and its `spec`."""

    out: Path
    artifact: str
    spec: VfmSpec


def write_package(
    out: str | Path,
    spec: VfmSpec | Mapping[str, Any],
    head: Mapping[str, Any] | None = None,
    adapter: str | Path | None = None,
) -> WrittenPackage:
    """Write a package from parts, or replace the one in `out`; return its folder, digest and spec.

    `spec` is what vfm.toml holds. `head` are its arrays (numpy, torch or nested lists): `weight` [outputs, hidden], `bias`
    [outputs], and for a stack `hidden.0.weight`, …; with several heads one such mapping a name. `adapter` is a folder that
    PEFT has saved. Raises `InvalidInput`, `PackageRejected` or `Conflict`, which say what is wrong; then `out` is as it was.
    """
    files = {HEAD: tensors.write(head_tensors(head))} if head else {}
    if adapter is not None:
        files |= adapter_files(Path(adapter))
    return build(out, spec, files)


def build(out: str | Path | None, spec: VfmSpec | Mapping[str, Any], files: Mapping[str, bytes]) -> WrittenPackage:
    """Write a package from its spec and files to `out`; None: a folder named like the vFM in `vfms/`.

    Raises `InvalidInput`, `PackageRejected` or `Conflict`.
    """
    checked = spec if isinstance(spec, VfmSpec) else parse(VfmSpec, dict(spec), source="spec")
    folder = PACKAGES / checked.name if out is None else Path(out)
    package = writing.write_package(folder, checked, files)
    return WrittenPackage(folder, package.digest, checked)


def head_keys(head: Head | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the keys of a head that the caller has said, and no defaults."""
    if head is None or isinstance(head, Mapping):
        return dict(head or {})
    return {"kind": head.kind, **head.model_dump(exclude_unset=True)}


def head_tensors(head: Mapping[str, Any]) -> dict[str, tensors.StoredTensor]:
    """Name the arrays of one head, or of several by name, as head.safetensors does. Raises `InvalidInput`."""
    flat: dict[str, Any] = {}
    for name, value in head.items():
        flat |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
    return {name: tensors.as_float32(value, name) for name, value in flat.items()}


def adapter_files(folder: Path) -> dict[str, bytes]:
    """Read `adapter_config.json` and `adapter_model.safetensors` of a folder that PEFT has saved. Raises `PackageRejected`."""
    files = {}
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        path = folder / Path(name).name
        try:
            files[name] = path.read_bytes()
        except OSError as e:
            pickled = (folder / "adapter_model.bin").exists() and name == ADAPTER_WEIGHTS
            advice = "load it with PEFT and save it with save_pretrained (safetensors)" if pickled else "check the path"
            raise PackageRejected(f"{path} cannot be read ({e.strerror}); {advice}", field="adapter") from e
    return files
