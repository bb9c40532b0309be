"""The vFM versions that are resident on an engine, by digest."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from fmplex_broker.errors import PackageRejected
from fmplex_broker.heads import InputSpec
from fmplex_broker.packages import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD, Package
from fmplex_worker.adapters.loading import load_adapter
from fmplex_worker.adapters.segments import Adapter
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.heads.loading import LoadedHead, load_heads


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One loaded version; never changed. Jobs hold it, so it lives as long as the last of them, and its memory too: nothing
    else keeps its tensors."""

    digest: str
    heads: Mapping[str, LoadedHead]
    adapter: Adapter | None
    input: InputSpec

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(head.spec.kind for head in self.heads.values())

    @property
    def virtual(self) -> int:
        """Virtual tokens before each of its texts."""
        return self.adapter.virtual if self.adapter is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes of everything it holds on the device."""
        adapter = self.adapter.nbytes if self.adapter is not None else 0
        return adapter + sum(head.nbytes for head in self.heads.values())


class Versions:
    """Loads versions and finds them. Any thread: nothing that a running pass reads is ever written again."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._loaded: dict[str, Version] = {}
        self._numbers = itertools.count(1)
        self._loading = threading.Lock()

    def load(self, package: Package, digest: str) -> int:
        """Its bytes. Raises `PackageRejected`, and then nothing has changed."""
        with self._loading:
            if digest in self._loaded:
                return self._loaded[digest].nbytes
            spec, backbone = package.spec, self._backbone
            if spec.backbone != backbone.spec.name:
                raise PackageRejected(
                    f"vFM {spec.name!r} is made for backbone {spec.backbone!r}, this worker hosts {backbone.spec.name!r}",
                    field="backbone",
                )
            heads = load_heads(
                spec.outputs,
                package.files.get(HEAD),
                backbone.hidden,
                backbone.family.causal,
                backbone.device,
                self._numbers,
            )
            adapter = None
            if ADAPTER_CONFIG in package.files:
                config, weights = package.files[ADAPTER_CONFIG], package.files[ADAPTER_WEIGHTS]
                adapter = load_adapter(config, weights, backbone, next(self._numbers))
            version = self._loaded[digest] = Version(digest, heads, adapter, spec.input)
            return version.nbytes

    def unload(self, digest: str) -> None:
        self._loaded.pop(digest, None)

    def get(self, digest: str) -> Version | None:
        return self._loaded.get(digest)

    def sizes(self) -> dict[str, int]:
        return {version.digest: version.nbytes for version in list(self._loaded.values())}
