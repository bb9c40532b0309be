"""Specifications that an operator writes down: backbones, workers, fleets. Pydantic; TOML on disk.

An unknown key is an error that names it. Everything here is immutable: a change is a new value.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.specs.schema import Name, Spec, load_toml, parse
from fmplex_broker.specs.vfm import VfmSpec


class BackboneSpec(Spec):
    """A foundation model to host. `model` is a local folder, a hub id (whatever transformers loads), or `package://NAME/FOLDER`:
    a folder inside an installed Python package.

    `max_tokens` bounds one text (default: what the model can take); `pass_units` is the pass budget in packed
    tokens, which latency targets of vFMs may shorten.
    """

    name: Name
    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_tokens: int | None = Field(default=None, ge=1)
    pass_units: int = Field(default=2048, ge=16, le=1_000_000)


class ResidencySpec(Spec):
    """Room for adapters and heads on a worker, in bytes: on the device, ready for the device in host
    memory (on a CPU these are the same bytes), as files in `cache` on disk (not used when the artifact store itself is a local
    folder). The least recently used go first.

    `steal_ms`: a vFM that is resident on another worker is left to it until its oldest job has waited that long.
    """

    device_bytes: int = Field(default=2 << 30, ge=1)
    host_bytes: int = Field(default=1 << 30, ge=0)
    disk_bytes: int = Field(default=16 << 30, ge=0)
    cache: Path = Path("~/.cache/fmplex/artifacts")
    steal_ms: int = Field(default=50, ge=0)


class WorkerSpec(Spec):
    """One GPU process.

    `policy`: "drr" shares the device by weight (docs/scheduling.md); "fifo" claims and runs jobs in order of arrival, whatever
    the weights, with claim room for each class. `lease_ms`: how long a silent worker keeps its jobs;
    `max_attempts`: runs of a job that kills its worker; `kv_bytes`: keys and values of texts that are being generated, and of
    prompts kept for the next one that begins alike; `window_passes`: passes' worth of work it holds. Offline jobs get what
    interactive ones leave, and `offline_trickle` of the device's time always, in passes no longer than `offline_slice_ms`.
    """

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1)
    policy: Literal["drr", "fifo"] = "drr"
    residency: ResidencySpec = ResidencySpec()
    lease_ms: int = Field(default=3000, ge=200)
    max_attempts: int = Field(default=3, ge=1)
    kv_bytes: int = Field(default=1 << 30, ge=1 << 16)
    drain_s: float = Field(default=30.0, gt=0)
    window_passes: int = Field(default=3, ge=1, le=16)
    offline_trickle: float = Field(default=0.05, ge=0, lt=1)
    offline_slice_ms: float = Field(default=50.0, gt=0)


class FleetSpec(Spec):
    """A fleet file: where the broker is, one backbone per worker process, and vFMs to deploy at start.

    `broker` is a URL (`redis://`, `rediss://`, `unix://`) or `embedded` (a child valkey-server; one machine only).
    `artifacts` is where gateways put deployed packages and workers fetch them: a folder or any URL that fsspec takes
    (`s3://bucket/prefix`); `vfms` are bare specs without files; `packages` are package folders.
    """

    broker: str = Field(default="embedded", pattern=r"^(embedded|(redis|rediss|unix)://.+)$")
    artifacts: str = Field(default="~/.local/share/fmplex/artifacts", min_length=1)
    backbone: BackboneSpec
    worker: WorkerSpec = WorkerSpec()
    gateway: GatewaySpec = GatewaySpec()
    vfms: tuple[VfmSpec, ...] = ()
    packages: tuple[Path, ...] = ()

    @model_validator(mode="after")
    def _one_backbone(self) -> FleetSpec:
        for vfm in self.vfms:
            if vfm.backbone != self.backbone.name:
                raise ValueError(
                    f"vFM {vfm.name!r} wants backbone {vfm.backbone!r}, this fleet hosts {self.backbone.name!r}"
                )
        return self


def load_fleet(path: Path) -> FleetSpec:
    """Read a fleet file. Relative paths in it are relative to the file."""
    fleet = parse(FleetSpec, load_toml(path), source=str(path))
    base = path.resolve().parent
    backbone = fleet.backbone.model_copy(update={"model": locate_model(fleet.backbone.model, base)})
    packages = tuple(base / package for package in fleet.packages)
    artifacts = str((base / fleet.artifacts).resolve()) if fleet.artifacts.startswith(".") else fleet.artifacts
    gateway = fleet.gateway.located(base)
    return fleet.model_copy(
        update={"backbone": backbone, "artifacts": artifacts, "gateway": gateway, "packages": packages}
    )


def locate_model(model: str, base: Path) -> str:
    """Resolve where a backbone's files are: `./folder` is relative to `base`, `~/folder` to the home folder,
    `package://NAME/FOLDER` lies in an installed package; anything else (an absolute path, a hub id) stays as it is. Raises
    `InvalidInput` when the package is not installed."""
    if model.startswith("."):
        return str((base / model).resolve())
    if model.startswith("~/"):
        return str(Path(model).expanduser())
    if not model.startswith("package://"):
        return model
    name, _, folder = model.removeprefix("package://").partition("/")
    found = find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise InvalidInput(f"the Python package {name!r} is not installed; pip install it", field="backbone.model")
    return str(Path(found.submodule_search_locations[0]) / folder)
