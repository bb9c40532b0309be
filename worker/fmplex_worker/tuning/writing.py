"""Writing a package: complete in a hidden sibling folder first, checked there, then put in place by renaming."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor

from fmplex_broker.errors import Conflict, InvalidInput
from fmplex_broker.packages import ADAPTER, HEAD, MANIFEST, read_package
from fmplex_broker.specs import VfmSpec

_OURS = (MANIFEST, HEAD, ADAPTER)


def refuse_foreign(out: Path) -> None:
    """Raises `Conflict` (field `out`) if `out` holds something that is not a package, before any work is done."""
    if out.exists() and not out.is_dir():
        raise Conflict(f"{out} is a file; give a folder for the package", field="out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise Conflict(
            f"{out} is not empty and holds no {MANIFEST}; give a new folder or an older package", field="out"
        )


def write_package(out: Path, spec: VfmSpec, head: Mapping[str, Tensor], adapter: PeftModel | None) -> str:
    """Write or replace the package in `out`; its version. Other files in an older package's folder are kept.

    Raises `Conflict`, `InvalidInput` (field `out`: cannot be written) or what `read_package` raises; then `out` is as before.
    """
    out = out.resolve()
    refuse_foreign(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as e:
        raise InvalidInput(f"{out.parent} cannot be written ({e.strerror}); give another folder", field="out") from e
    try:
        new = scratch / "new"
        new.mkdir()
        if out.is_dir():
            _keep_others(out, new)
        (new / MANIFEST).write_text(manifest(spec), encoding="utf-8", newline="")
        if head:
            save_file(dict(head), new / HEAD)
        if adapter is not None:
            _save_adapter(adapter, new / ADAPTER)
        version = read_package(new).digest
        if out.is_dir():
            out.rename(scratch / "old")
        new.rename(out)
    except BaseException:
        if (scratch / "old").is_dir() and not out.exists():
            (scratch / "old").rename(out)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return version


def _keep_others(old: Path, new: Path) -> None:
    for path in old.iterdir():
        if path.name in _OURS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _save_adapter(model: PeftModel, folder: Path) -> None:
    config = model.peft_config["default"]
    # PEFT writes the set in hash order, which differs from process to process; the version must not.
    config.target_modules = sorted(config.target_modules)  # type: ignore[attr-defined]
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def manifest(spec: VfmSpec) -> str:
    """vfm.toml of a new vFM: what training decides; weight, limits and SLO are left at their defaults."""
    assert spec.head is not None
    head = "".join(f"{key} = {_toml(value)}\n" for key, value in _plain(spec.head).items())
    return f"name = {_toml(spec.name)}\nbackbone = {_toml(spec.backbone)}\n\n[head]\n{head}"


def _plain(model: BaseModel) -> dict[str, object]:
    return model.model_dump(mode="json")


def _toml(value: object) -> str:
    """A string, truth value or list of strings in TOML."""
    if isinstance(value, list):
        return "[" + "".join(f"\n  {_toml(item)}," for item in value) + "\n]"
    # JSON's strings are TOML's basic strings, but for DEL, which TOML wants escaped; `true` and `false` are the same.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
