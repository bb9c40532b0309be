"""Writing a package folder: complete in a hidden sibling folder first, checked there, then put in place by renaming.

The one writer: training, conversion and hand-made packages all end here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmplex_broker.errors import Conflict, InvalidInput
from fmplex_broker.packages.package import ADAPTER, FILES, HEAD, MANIFEST, Package, make_package, read_package
from fmplex_broker.specs.heads import Head
from fmplex_broker.specs.schema import Spec
from fmplex_broker.specs.vfm import VfmSpec

_OURS = (MANIFEST, HEAD, ADAPTER)
# Keys of heads that are written only where they say something.
_QUIET = ("hidden", "projection", "activation", "norm", "stop", "stop_token_ids")


def refuse_foreign(out: Path) -> None:
    """Refuse an `out` that holds something other than a package, before any work is done. Raises `Conflict` (field `out`)."""
    if out.exists() and not out.is_dir():
        raise Conflict(f"{out} is a file; give a folder for the package", field="out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise Conflict(
            f"{out} is not empty and holds no {MANIFEST}; give a new folder or an older package", field="out"
        )


def write_package(out: Path, spec: VfmSpec, files: Mapping[str, bytes]) -> Package:
    """Write or replace the package in `out`. `files` by their names in the folder (`packages.FILES`); others that lie in an
    older package's folder are kept.

    Raises `Conflict`, `InvalidInput` (field `out`: cannot be written) or what `make_package` raises; then `out` is as before.
    """
    if unknown := sorted(set(files) - set(FILES)):
        raise InvalidInput(f"a package has no file {unknown[0]!r}; it may have {', '.join(FILES)}", field="files")
    make_package(spec, files)  # nothing is written of a package that would be refused
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
        for name, data in files.items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_bytes(data)
        package = read_package(new)
        if out.is_dir():
            out.rename(scratch / "old")
        new.rename(out)
    except BaseException:
        if (scratch / "old").is_dir() and not out.exists():
            (scratch / "old").rename(out)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return package


def _keep_others(old: Path, new: Path) -> None:
    for path in old.iterdir():
        if path.name in _OURS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def manifest(spec: VfmSpec) -> str:
    """Write a spec as the text of a vfm.toml. Heads are written out, all else only where it is not the default."""
    tables: list[tuple[str, dict[str, Any]]] = [("", {"name": spec.name, "backbone": spec.backbone})]
    if spec.weight != VfmSpec.model_fields["weight"].default:
        tables[0][1]["weight"] = spec.weight
    if spec.head is not None:
        tables.append(("head", _head(spec.head)))
    tables += [(f"heads.{_key(name)}", _head(head)) for name, head in spec.heads.items()]
    parts: dict[str, Spec] = {"input": spec.input, "limits": spec.limits, "slo": spec.slo}
    tables += [(name, values) for name, part in parts.items() if (values := _non_defaults(part))]
    return "\n".join(
        (f"[{name}]\n" if name else "") + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
        for name, values in tables
    )


def _head(head: Head) -> dict[str, Any]:
    given = head.model_dump(exclude_defaults=True)
    values = head.model_dump(mode="json", exclude_none=True)
    return {key: value for key, value in values.items() if key not in _QUIET or key in given}


def _non_defaults(part: Spec) -> dict[str, Any]:
    return part.model_dump(exclude_defaults=True)


def _key(name: str) -> str:
    return f'"{name}"' if "." in name else name


def _toml(value: object) -> str:
    """Write a string, truth value, number or list of them in TOML."""
    if isinstance(value, list | tuple):
        if all(isinstance(item, int) for item in value):
            return "[" + ", ".join(map(_toml, value)) + "]"
        return "[" + "".join(f"\n  {_toml(item)}," for item in value) + "\n]"
    if isinstance(value, float):
        return repr(value)  # unlike JSON's, it knows inf
    # JSON's strings are TOML's basic strings, but for DEL, which TOML wants escaped; `true` and `false` are the same.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
