"""Packages that are not what they should be: what is done to a good one, and what must be said of it."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from tests.support.packages import head_weights, lora, write_adapter, write_manifest

CLASSES = {"kind": "classification", "labels": ["a", "b"]}
Vandal = Callable[[Path, Path], None]  # what is done to a good package: (package folder, a folder elsewhere)


def _no_head(package: Path, _: Path) -> None:
    (package / "head.safetensors").unlink()


def _no_manifest(package: Path, _: Path) -> None:
    (package / "vfm.toml").unlink()


def _unknown_key(package: Path, _: Path) -> None:
    with (package / "vfm.toml").open("a") as file:
        file.write('colour = "red"\n')


def _broken_toml(package: Path, _: Path) -> None:
    (package / "vfm.toml").write_text("name = \n")


def _other_backbone(package: Path, _: Path) -> None:
    write_manifest(package, {"name": package.name, "backbone": "another", "head": CLASSES})


def _pickled_head(package: Path, _: Path) -> None:
    (package / "head.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))


def _pickle_beside(package: Path, _: Path) -> None:
    (package / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps({}))


def _pickled_adapter(package: Path, _: Path) -> None:
    (package / "adapter" / "adapter_model.safetensors").write_bytes(pickle.dumps({}))


def _truncate(package: Path, part: str) -> None:
    file = package / part
    file.write_bytes(file.read_bytes()[:-100])


def _cut_head(package: Path, _: Path) -> None:
    _truncate(package, "head.safetensors")


def _cut_adapter(package: Path, _: Path) -> None:
    _truncate(package, "adapter/adapter_model.safetensors")


def _huge_header(package: Path, _: Path) -> None:
    (package / "head.safetensors").write_bytes((2**63 - 1).to_bytes(8, "little") + b"{}")


def _empty_head(package: Path, _: Path) -> None:
    (package / "head.safetensors").write_bytes(b"")


def _nan_head(package: Path, _: Path) -> None:
    weights = head_weights(2)
    weights["weight"][1, 3] = math.nan
    save_file(weights, package / "head.safetensors")


def _wide_head(package: Path, _: Path) -> None:
    save_file(head_weights(2, hidden=768), package / "head.safetensors")


def _more_labels(package: Path, _: Path) -> None:
    save_file(head_weights(3), package / "head.safetensors")


def _adapter(package: Path, **kind: Any) -> None:
    (package / "adapter").rename(package.parent / f"{package.name}-old-adapter")
    write_adapter(package / "adapter", **kind)


def _wider_adapter(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4, hidden=768), r=4, lora_alpha=8)


def _deeper_adapter(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4, layers=12), r=4, lora_alpha=8)


def _dora(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4), r=4, lora_alpha=8, use_dora=True)


def _wrong_rank(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4), r=8, lora_alpha=8)


def _endless_pattern(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4), r=4, lora_alpha=8, rank_pattern={".?" * 60 + "!": 1})


def _long_pattern(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4), r=4, lora_alpha=8, alpha_pattern={"q" * 100_000: 1})


def _infinite_shape(package: Path, _: Path) -> None:
    header = b'{"weight": {"dtype": "F32", "shape": [1e999, 384], "data_offsets": [0, 3072]}}'
    (package / "head.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3072))


def _many_tensors(package: Path, _: Path) -> None:
    header = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(20_000))
    (package / "head.safetensors").write_bytes((len(header) + 2).to_bytes(8, "little") + f"{{{header}}}".encode())


def _linked(package: Path, outside: Path, part: str) -> None:
    """`part` moves out of the package, and a link is left in its place."""
    moved = outside / part.replace("/", "-")
    (package / part).rename(moved)
    (package / part).symlink_to(moved)


def _linked_adapter(package: Path, outside: Path) -> None:
    _linked(package, outside, "adapter")


def _linked_adapter_file(package: Path, outside: Path) -> None:
    _linked(package, outside, "adapter/adapter_model.safetensors")


def _linked_head(package: Path, outside: Path) -> None:
    _linked(package, outside, "head.safetensors")


def _linked_manifest(package: Path, outside: Path) -> None:
    _linked(package, outside, "vfm.toml")


def _no_package(package: Path, outside: Path) -> None:
    package.rename(outside / package.name)


def _looping_link(package: Path, _: Path) -> None:
    (package / "adapter" / "loop").symlink_to(package / "adapter" / "loop")


# What is wrong -> field, what the message must say, what is done.
Kind = dict[str, tuple[str | None, str, Vandal]]
# … with the folder: refused where it is read.
FOLDERS: Kind = {
    "a package without its manifest": ("package", "`fmplex fit` writes one", _no_manifest),
    "an unknown key": ("colour", "unknown key; remove it", _unknown_key),
    "a manifest that is no TOML": (None, "not valid TOML", _broken_toml),
    "a pickle beside the adapter": ("package", "is a pickle; convert it to safetensors", _pickle_beside),
    "an adapter folder that is a link": ("package", "link out of the package; put what it leads to there", _linked_adapter),
    "an adapter file that is a link": ("package", "link out of the package; put what it leads to there", _linked_adapter_file),
    "a head that is a link": ("package", "link out of the package; put what it leads to there", _linked_head),
    "a manifest that is a link": ("package", "link out of the package; put what it leads to there", _linked_manifest),
    "a link that leads to itself": ("package", "cannot be followed", _looping_link),
    "a folder that is not there": ("package", "is not a folder; give the folder that holds vfm.toml", _no_package),
}  # fmt: skip
# … with a file: refused where the package is read, and by the gateway should it get there.
FILES: Kind = {
    "a package without its head": ("head", "needs head.safetensors", _no_head),
    "a pickle for a head": ("head", "not a whole safetensors file", _pickled_head),
    "a pickle for an adapter": ("adapter", "not a whole safetensors file", _pickled_adapter),
    "a truncated head": ("head", "not a whole safetensors file", _cut_head),
    "a truncated adapter": ("adapter", "not a whole safetensors file", _cut_adapter),
    "a head that lies about its size": ("head", "not a whole safetensors file", _huge_header),
    "an empty head": ("head", "not a whole safetensors file", _empty_head),
    "a head with more rows than labels": ("head", "needed: weight (2, 384)", _more_labels),
    "a DoRA": ("adapter", "DoRA is not served", _dora),
    "an adapter with a pattern that never ends": ("adapter", "rank_pattern: pattern '.?.?", _endless_pattern),
    "an adapter with a pattern of pages": ("adapter", "100000 characters, at most 256", _long_pattern),
    "a head of infinite shape": ("head", "not a whole safetensors file", _infinite_shape),
    "a head of 20,000 tensors": ("head", "holds 20000 tensors, at most 8192", _many_tensors),
    "an adapter whose rank is another": ("adapter", "has rank 4, adapter_config.json says 8", _wrong_rank),
}  # fmt: skip
# … only beside the backbone: refused by the worker.
MISFITS: Kind = {
    "a package for another backbone": ("backbone", "no worker has ever hosted backbone 'another'", _other_backbone),
    "a head with NaN": ("head", "NaN or infinite values", _nan_head),
    "a head for another backbone": ("head", "needed: weight (2, 384)", _wide_head),
    "an adapter for a wider backbone": ("adapter", "made for another backbone", _wider_adapter),
    "an adapter for a deeper backbone": ("adapter", "made for another backbone", _deeper_adapter),
}  # fmt: skip
