"""Specifications that an operator writes down: backbones, workers, fleets. Pydantic; TOML on disk.

An unknown key is an error that names it. Everything here is immutable: a change is a new value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.broker_url import check_broker_url
from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.specs.schema import Name, Spec, load_toml, parse
from fmplex_broker.specs.vfm import VfmSpec

S = TypeVar("S", bound=Spec)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
BACKBONE_BYTES = 1_000_000_000


def _unless_auto(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise ValueError('give a number of bytes, or "auto"')
    return None if value == "auto" else value


# None, in a fleet file "auto": bytes of a device are what other parts leave there (docs/scheduling.md#memory-of-a-device).
_AUTO = BeforeValidator(_unless_auto)


class ResidencySpec(Spec):
    """Room for adapters and heads on a worker, in bytes: on the device, ready for the device in host
    memory (on a CPU these are the same bytes), as files in `cache` on disk (not used when the artifact store itself is a local
    folder). The least recently used go first.

    `steal_ms`: a vFM that is resident on another worker is left to it until its oldest job has waited that long.
    """

    device_bytes: Annotated[Annotated[int, Field(ge=1)] | None, _AUTO] = None
    host_bytes: int = Field(default=1 << 30, ge=0)
    disk_bytes: int = Field(default=16 << 30, ge=0)
    cache: Path = Path("~/.cache/fmplex/artifacts")
    steal_ms: int = Field(default=50, ge=0)


class TuningSpec(Spec):
    """Training between the passes of a worker (docs/scheduling.md). `enabled`: whether it takes tuning jobs, two at a time;
    `bytes` of device memory for both: what of their activations does not fit is computed twice.

    `spend`: the part of a latency or first-token target that training may use up, `spend_tokens`: of a target for the gap between
    two tokens; `unit_ms`: how long the device may be lent where nobody has a target; `trickle`: of device time, also while work
    without targets never ends; `idle_share`: training's part of what interactive work leaves, if offline jobs want it too.
    """

    enabled: bool = False
    bytes: Annotated[Annotated[int, Field(ge=1 << 20)] | None, _AUTO] = None
    spend: float = Field(default=0.5, ge=0, le=1)
    spend_tokens: float = Field(default=0.9, ge=0, le=1)
    unit_ms: float = Field(default=50.0, gt=0)
    trickle: float = Field(default=0.02, ge=0, lt=1)
    idle_share: float = Field(default=0.5, ge=0, le=1)


class WorkerSpec(Spec):
    """One GPU process.

    `policy`: "drr" shares the device by weight (docs/scheduling.md); "fifo" claims and runs jobs in order of arrival, whatever
    the weights, with claim room for each class. `lease_ms`: how long a silent worker keeps its jobs;
    `max_attempts`: deaths of workers with a job in hand, or at the loading of a version, until that is given up; `kv_bytes`: keys
    and values of texts that are being generated, and of prompts kept for the next one that begins alike; `window_passes`: passes'
    worth of work it holds. Offline jobs get what interactive ones leave, and `offline_trickle` of the device's time always; while
    interactive jobs come in passes no longer than `offline_slice_ms`. `tuning`: of vFMs, beside inference.

    `memory_bytes`: of the device that one worker may use for all it does; `auto`: nine tenths of what it finds there.
    """

    memory_bytes: Annotated[Annotated[int, Field(ge=1)] | None, _AUTO] = None
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1)
    policy: Literal["drr", "fifo"] = "drr"
    residency: ResidencySpec = ResidencySpec()
    lease_ms: int = Field(default=3000, ge=200)
    max_attempts: int = Field(default=3, ge=1)
    kv_bytes: Annotated[Annotated[int, Field(ge=1 << 16)] | None, _AUTO] = None
    drain_s: float = Field(default=30.0, gt=0)
    window_passes: int = Field(default=3, ge=1, le=16)
    offline_trickle: float = Field(default=0.05, ge=0, lt=1)
    offline_slice_ms: float = Field(default=50.0, gt=0)
    tuning: TuningSpec = TuningSpec()


class BackboneSpec(Spec):
    """A foundation model to host. `model` is a local folder, a hub id (whatever transformers loads), or `package://NAME/FOLDER`:
    a folder inside an installed Python package.

    `dtype` of the weights: `auto` is bfloat16 where the device computes in it, else float32. `max_tokens` bounds one text
    (default: what the model can take, with YaRN as far as it scales; scaled positions may be given more); `pass_units` is the
    pass budget in packed tokens, which latency targets of vFMs may shorten. `max_pending_bytes`: of all jobs that wait or run
    on it, in the broker. `workers`: how many processes `fmplex up` starts for it; `worker`: settings of theirs that differ
    from the fleet's.
    """

    name: Name
    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Dtype = "float32"
    max_tokens: int | None = Field(default=None, ge=1)
    pass_units: int = Field(default=2048, ge=16, le=1_000_000)
    max_pending_bytes: int = Field(default=BACKBONE_BYTES, ge=1024, le=1_000_000_000_000)
    workers: int = Field(default=1, ge=1, le=1024)
    worker: WorkerSpec = WorkerSpec()


class FleetSpec(Spec):
    """A fleet file: where the broker is, the backbones (one to a worker process), and vFMs to deploy at start.

    `broker` is a URL (`redis://`, `rediss://`, `unix://`) or `embedded` (a child valkey-server; one machine only).
    `artifacts` is where gateways put deployed packages and workers fetch them: a folder or any URL that fsspec takes
    (`s3://bucket/prefix`); by default a folder of this user's for the fleets of that broker. One `backbone`, or several
    `backbones`; `worker`: settings of the workers of all of them. `vfms` are bare specs without files; `packages` are package
    folders.
    """

    broker: str = "embedded"
    artifacts: str | None = Field(default=None, min_length=1)
    worker: WorkerSpec = WorkerSpec()
    backbone: BackboneSpec | None = None
    backbones: tuple[BackboneSpec, ...] = ()
    gateway: GatewaySpec = GatewaySpec()
    vfms: tuple[VfmSpec, ...] = ()
    packages: tuple[Path, ...] = ()

    @field_validator("broker")
    @classmethod
    def _is_a_broker(cls, url: str) -> str:
        return url if url == "embedded" else check_broker_url(url)

    @model_validator(mode="after")
    def _belongs_together(self) -> FleetSpec:
        if (self.backbone is None) == (not self.backbones):
            raise InvalidInput("give either one [backbone], or [[backbones]]", field="backbones")
        _refuse_twice("backbones", [b.name for b in self.backbones])
        _refuse_twice("vfms", [v.name for v in self.vfms])
        for i, vfm in enumerate(self.vfms):
            if vfm.backbone not in self.names:
                raise InvalidInput(
                    f"vFM {vfm.name!r} wants backbone {vfm.backbone!r}, this fleet hosts {', '.join(self.names)}",
                    field=f"vfms.{i}.backbone",
                )
        return self

    @property
    def hosted(self) -> tuple[BackboneSpec, ...]:
        """The backbones, each with the settings of its workers: its own, and the fleet's where it has none."""
        listed = self.backbones if self.backbone is None else (self.backbone,)
        return tuple(b.model_copy(update={"worker": _overlay(self.worker, b.worker)}) for b in listed)

    @property
    def names(self) -> list[str]:
        """Names of the backbones."""
        return [b.name for b in self.backbones] if self.backbone is None else [self.backbone.name]

    def find(self, name: str | None) -> BackboneSpec:
        """Return the backbone of a name, as in `hosted`; None: the only one. Raises `InvalidInput`."""
        if name is None and len(self.names) > 1:
            raise InvalidInput(
                f"the fleet file has several backbones; say which: {', '.join(self.names)}", field="backbone"
            )
        for backbone in self.hosted:
            if name in (None, backbone.name):
                return backbone
        raise InvalidInput(f"the fleet file has no backbone {name!r}; it has {', '.join(self.names)}", field="backbone")


def _overlay(base: S, over: S) -> S:
    """Return a spec with the values of `over` that were given, and those of `base` for the others."""
    given = {key: getattr(over, key) for key in over.model_fields_set}
    inner = {key: _overlay(getattr(base, key), value) for key, value in given.items() if isinstance(value, Spec)}
    return base.model_copy(update=given | inner)


def _refuse_twice(key: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidInput(f"there are two {key} of the name {name!r}; rename one", field=f"{key}.{i}.name")


def load_fleet(path: Path) -> FleetSpec:
    """Read a fleet file. Relative paths in it are relative to the file."""
    fleet = parse(FleetSpec, load_toml(path), source=str(path))
    base = path.resolve().parent
    backbone, *_ = _located([fleet.backbone], base) if fleet.backbone else (None,)
    backbones = tuple(_located(fleet.backbones, base))
    packages = tuple(base / package for package in fleet.packages)
    artifacts = fleet.artifacts
    if artifacts is not None and artifacts.startswith("."):
        artifacts = str((base / artifacts).resolve())
    located = {"backbone": backbone, "backbones": backbones, "artifacts": artifacts, "packages": packages}
    return fleet.model_copy(update={**located, "gateway": fleet.gateway.located(base)})


def _located(backbones: Iterable[BackboneSpec], base: Path) -> list[BackboneSpec]:
    return [b.model_copy(update={"model": locate_model(b.model, base)}) for b in backbones]


def artifacts_of(fleet: FleetSpec, broker: str) -> str:
    """Return where the artifacts of a fleet are: as the fleet file says; else in a folder that is only for the fleet of this
    broker (host, port and database; `broker` is its URL), so that no fleet prunes what another one serves."""
    if fleet.artifacts is not None:
        return fleet.artifacts
    url = urlsplit(broker)
    place = f"{url.hostname or ''}:{url.port or ''}{url.path}"
    return f"~/.local/share/fmplex/artifacts/{hashlib.blake2b(place.encode(), digest_size=6).hexdigest()}"


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
