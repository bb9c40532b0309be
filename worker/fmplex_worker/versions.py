"""The vFM versions that are resident on an engine, by digest."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD, Package
from fmplex_broker.specs.heads import InputSpec
from fmplex_worker.adapters.loading import load_adapter
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.heads.defaults import input_of, with_defaults
from fmplex_worker.heads.loading import LoadedHead, load_heads
from fmplex_worker.packed.placing import place_on
from fmplex_worker.packed.segments import Adapter


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One version, fitted to the backbone; never changed. Jobs hold it, so it lives as long as the last of them, and its
    memory too: nothing else keeps its tensors but, for as long as it likes, the cache in host memory."""

    digest: str
    heads: Mapping[str, LoadedHead]
    adapter: Adapter | None
    input: InputSpec
    nbytes: int  # of all tensors that it holds, wherever they are

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of its heads."""
        return frozenset(head.spec.kind for head in self.heads.values())

    @property
    def segment(self) -> int:
        """Number of the adapter segment of its jobs; 0 if they need none."""
        return self.adapter.segment if self.adapter is not None else 0

    @property
    def virtual(self) -> int:
        """Virtual tokens before each of its texts."""
        return self.adapter.virtual if self.adapter is not None else 0

    def on(self, device: torch.device) -> Version:
        """Return it with its tensors on a device; itself where the host's memory is the device's."""
        if device.type == "cpu":
            return self
        place = place_on(device)
        heads = {name: head.placed(place) for name, head in self.heads.items()}
        return replace(self, heads=heads, adapter=None if self.adapter is None else self.adapter.placed(place))


class Versions:
    """Loads versions and finds them. Any thread: nothing that a running pass reads is ever written again."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._loaded: dict[str, Version] = {}
        self._numbers = itertools.count(1)

    def fit(self, package: Package) -> Version:
        """Make a version of a package, in host memory, ready to be placed. Raises `PackageRejected`."""
        spec, backbone = package.spec, self._backbone
        if spec.backbone != backbone.spec.name:
            raise PackageRejected(
                f"vFM {spec.name!r} is made for backbone {spec.backbone!r}, this worker hosts {backbone.spec.name!r}",
                field="backbone",
            )
        if "generation" in spec.kinds and backbone.lm_head is None:
            raise PackageRejected(
                f"backbone {spec.backbone!r} has no language-model head, so vFM {spec.name!r} cannot generate; host a checkpoint "
                "of a causal language model (architectures: …ForCausalLM)",
                field="head",
            )
        weights = bytes(package.files[HEAD]) if HEAD in package.files else None
        outputs = {name: with_defaults(name, head, backbone.sentence) for name, head in spec.outputs.items()}
        around = input_of(spec, backbone.sentence, backbone.max_tokens)
        heads = load_heads(outputs, weights, backbone.hidden, backbone.family.causal, self._numbers)
        adapter = None
        if ADAPTER_CONFIG in package.files:
            config, weights = bytes(package.files[ADAPTER_CONFIG]), bytes(package.files[ADAPTER_WEIGHTS])
            adapter = load_adapter(config, weights, backbone, next(self._numbers))
        nbytes = sum(part.nbytes for part in (*heads.values(), adapter) if part is not None)
        return Version(package.digest, heads, adapter, around, nbytes)

    def load(self, version: Version) -> None:
        """Place a version on the device and make it resident; again is a no-op."""
        if version.digest not in self._loaded:
            self._loaded[version.digest] = version.on(self._backbone.device)

    def unload(self, digest: str) -> None:
        """Forget a version (unknown: no-op)."""
        self._loaded.pop(digest, None)

    def get(self, digest: str) -> Version | None:
        """Return a resident version; None if it is not here."""
        return self._loaded.get(digest)

    def sizes(self) -> dict[str, int]:
        """Map the digest of every resident version to its bytes. A snapshot."""
        return {version.digest: version.nbytes for version in list(self._loaded.values())}
