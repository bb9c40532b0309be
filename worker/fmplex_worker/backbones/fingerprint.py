"""Taking the fingerprint of a backbone: cheap at start, whatever its size.

Weights are read whole up to 512 MiB; of larger checkpoints every tensor is sampled, at places that depend on its size alone. So a
fine-tuned, merged, quantised or differently initialised copy is seen. What is not: a change of single numbers between the samples
of a large checkpoint, and whatever is not in the files (other versions of torch or transformers, other kernels).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from transformers.utils.hub import cached_file

from fmplex_broker.packages.sentences import SentenceModel
from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_worker.backbones.backbone import Backbone

_WHOLE = 512 << 20  # bytes of weights that are read in half a second
_SAMPLES, _BLOCK = 16, 4096  # of each tensor of larger ones
_CHUNK = 8 << 20
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# Keys of config.json that say where it came from, not what it is; the dtype is told by itself.
_INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def take_fingerprint(backbone: Backbone) -> Fingerprint:
    """Take the fingerprint of a model that has just been loaded: its files are on this machine."""
    spec, config = backbone.spec, backbone.model.config
    found = cached_file(spec.model, "config.json", revision=spec.revision or "main")
    assert found is not None, "it has been loaded from there"
    folder = Path(found).parent
    return Fingerprint(
        model=spec.model,
        config=_digest_configs(folder, backbone.sentence),
        weights=digest_weights(folder),
        tokenizer=_digest_files(folder, _TOKENIZER),
        dtype=str(backbone.dtype).removeprefix("torch."),
        revision=getattr(config, "_commit_hash", None) or "",
        device=backbone.device.type,
    )


def digest_weights(folder: Path, whole: int = _WHOLE) -> str:
    """Compute the digest of the safetensors in a folder: names, types, shapes and bytes of the tensors, whatever files they are
    in; beyond `whole` bytes in all, samples of each tensor."""
    paths = _shards(folder)
    sampled = sum(path.stat().st_size for path in paths) > whole
    tensors: dict[str, bytes] = {}
    for path in paths:
        with path.open("rb") as file:
            tensors |= _digest_tensors(file, sampled)
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name])
    return digest.hexdigest()


def _shards(folder: Path) -> list[Path]:
    """List the files that transformers reads: the single one, else those of the index."""
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _digest_tensors(file: BinaryIO, sampled: bool) -> dict[str, bytes]:
    """Map the name of each tensor of a safetensors file (8 bytes: length of the header; the header, JSON; data) to its digest."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        digest = hashlib.blake2b(json.dumps([entry["dtype"], entry["shape"]]).encode(), digest_size=16)
        for at, size in _blocks(end - start) if sampled else _chunks(end - start):
            file.seek(8 + length + start + at)
            digest.update(file.read(size))
        found[name] = digest.digest()
    return found


def _chunks(size: int) -> list[tuple[int, int]]:
    return [(at, min(_CHUNK, size - at)) for at in range(0, size, _CHUNK)]


def _blocks(size: int) -> list[tuple[int, int]]:
    """Place the samples of a tensor of `size` bytes: evenly, the first and the last bytes among them."""
    if size <= _SAMPLES * _BLOCK:
        return [(0, size)]
    return [(i * (size - _BLOCK) // (_SAMPLES - 1), _BLOCK) for i in range(_SAMPLES)]


def _digest_configs(folder: Path, sentence: SentenceModel | None) -> str:
    """Compute the digest of what the configuration files say, in whatever order they say it, those of sentence-transformers
    too."""
    digest = hashlib.blake2b(digest_size=8)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept = {key: value for key, value in said.items() if key not in _INCIDENTAL}
        digest.update(json.dumps([name, kept], sort_keys=True).encode())
    if sentence is not None:
        digest.update(json.dumps(asdict(sentence), sort_keys=True).encode())
    return digest.hexdigest()


def _digest_files(folder: Path, names: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        path = folder / name
        if path.exists():
            digest.update(name.encode() + b"\0" + hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
    return digest.hexdigest()
