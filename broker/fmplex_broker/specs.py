"""What an operator or a team writes down: backbones, vFMs, workers, gateways, fleets. Pydantic; TOML on disk.

An unknown key is an error that names it. Everything here is immutable: a change is a new value.
"""

from __future__ import annotations

import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from fmplex_broker.errors import InvalidInput

# Names become parts of Redis keys: none of `: # { }` may appear.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Pooling = Literal["mean", "cls", "last"]
# Virtual time advances by units / weight: a weight near zero would carry it beyond what a float can tell apart.
Weight = Annotated[float, Field(ge=1e-3, le=1e6)]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- heads -----------------------------------------------------------------------------------------------------------


class Embedding(Spec):
    """Pooled hidden state, [hidden]. Has no weights."""

    kind: Literal["embedding"] = "embedding"
    pooling: Pooling = "mean"
    normalize: bool = True


class Classification(Spec):
    """Scores per label from a linear layer on the pooled state: softmax, or one sigmoid a label if `multi_label`."""

    kind: Literal["classification"] = "classification"
    labels: tuple[Label, ...] = Field(min_length=2, max_length=10_000)
    multi_label: bool = False
    pooling: Pooling = "mean"


class Regression(Spec):
    """One number from a linear layer on the pooled state."""

    kind: Literal["regression"] = "regression"
    pooling: Pooling = "mean"


class Tagging(Spec):
    """Labelled spans of the text, from a linear layer on every token. The weight has 1 + len(labels) rows; row 0 means
    'outside'. Neighbouring tokens of one label make one span."""

    kind: Literal["tagging"] = "tagging"
    labels: tuple[Label, ...] = Field(min_length=1, max_length=1_000)


class Similarity(Spec):
    """Cosine of the pooled states of `text` and `text_pair`, each encoded by itself (bi-encoder). Has no weights."""

    kind: Literal["similarity"] = "similarity"
    pooling: Pooling = "mean"


class Ranking(Spec):
    """Relevance of `text_pair` to `text`, both encoded together (cross-encoder): sigmoid of a linear layer, [1, hidden]."""

    kind: Literal["ranking"] = "ranking"
    pooling: Pooling = "cls"


class Features(Spec):
    """The raw hidden states of every token, [tokens, hidden]. Has no weights."""

    kind: Literal["features"] = "features"


Head = Annotated[
    Embedding | Classification | Regression | Tagging | Similarity | Ranking | Features, Field(discriminator="kind")
]


# --- vFMs ------------------------------------------------------------------------------------------------------------


class Limits(Spec):
    """What a vFM may take. `max_pending` counts jobs waiting or running; `rate` is units (tokens) per second;
    `max_input_bytes` bounds one input (the default: 256 embedded tokens of width 768)."""

    max_pending: int = Field(default=4096, ge=1, le=1_000_000)
    rate: float | None = Field(default=None, gt=0)
    max_input_bytes: int = Field(default=786_432, ge=1, le=16_777_216)


class Slo(Spec):
    """`deadline_ms`: how long a caller waits if the request does not say; an older job is answered, not run."""

    deadline_ms: int = Field(default=60_000, ge=1, le=86_400_000)


class VfmSpec(Spec):
    """One virtual FM, as in a package's `vfm.toml`.

    The version (content digest) covers `backbone`, `head` and the package's files; weight, limits and SLO can change
    without making a version.
    """

    name: Name
    backbone: Name
    head: Head
    weight: Weight = 1.0
    limits: Limits = Limits()
    slo: Slo = Slo()


class VfmChange(Spec):
    """What PATCH may change. `package` makes a new version; the rest takes effect at once."""

    weight: Weight | None = None
    limits: Limits | None = None
    slo: Slo | None = None
    package: str | None = None


# --- fleets ----------------------------------------------------------------------------------------------------------


class BackboneSpec(Spec):
    """A foundation model to host. `model` is a local folder, a hub id (whatever transformers loads), or `package://NAME/FOLDER`:
    a folder inside an installed Python package.

    `max_tokens` bounds one text (default: what the model can take); `pass_units` is the pass budget in packed tokens.
    """

    name: Name
    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_tokens: int | None = Field(default=None, ge=1)
    pass_units: int = Field(default=2048, ge=16, le=1_000_000)


class WorkerSpec(Spec):
    """One GPU process. `roots`: the only folders (with what lies below) that packages are loaded from.

    `lease_ms`: how long a silent worker keeps its jobs; `max_attempts`: runs of a job that kills its worker; `window_passes`:
    passes' worth of work it holds.
    """

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1)
    policy: Literal["drr", "fifo"] = "drr"
    roots: tuple[Path, ...] = ()
    lease_ms: int = Field(default=3000, ge=200)
    max_attempts: int = Field(default=3, ge=1)
    drain_s: float = Field(default=30.0, gt=0)
    window_passes: int = Field(default=3, ge=1, le=16)


class GatewaySpec(Spec):
    """The HTTP front. Loopback unless told otherwise; with `api_keys` every /v1 call needs `Authorization: Bearer`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    api_keys: tuple[Annotated[str, StringConstraints(min_length=8)], ...] = ()
    max_body_bytes: int = Field(default=33_554_432, ge=1024)


class FleetSpec(Spec):
    """A fleet file: where the broker is, one backbone per worker process, and vFMs to deploy at start.

    `broker` is a URL (`redis://`, `rediss://`, `unix://`) or `embedded` (a child valkey-server; one machine only).
    `vfms` are bare specs without files; `packages` are package folders.
    """

    broker: str = Field(default="embedded", pattern=r"^(embedded|(redis|rediss|unix)://.+)$")
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


S = TypeVar("S")


def parse(kind: type[S], value: Any, *, source: str = "") -> S:
    """Validate a mapping as `kind`. Raises `InvalidInput` whose `field` and message name the first wrong key."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as e:
        raise invalid(e, source) from None


def invalid(error: ValidationError, source: str = "") -> InvalidInput:
    """A pydantic error as ours: the path of the wrong key, and what is wrong with it."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "(whole)"
    what = "unknown key; remove it or mend its spelling" if first["type"] == "extra_forbidden" else first["msg"]
    return InvalidInput(f"{source + ': ' if source else ''}{field}: {what}", field=field)


def load_toml(path: Path) -> dict[str, Any]:
    """Raises `InvalidInput` when the file is missing or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InvalidInput(f"{path}: cannot be read ({e.strerror}); check the path") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise InvalidInput(f"{path}: not valid TOML: {e}") from e


def load_fleet(path: Path) -> FleetSpec:
    """Read a fleet file. Relative paths in it are relative to the file."""
    fleet = parse(FleetSpec, load_toml(path), source=str(path))
    base = path.resolve().parent
    backbone = fleet.backbone.model_copy(update={"model": locate_model(fleet.backbone.model, base)})
    worker = fleet.worker.model_copy(update={"roots": tuple(base / root for root in fleet.worker.roots)})
    packages = tuple(base / package for package in fleet.packages)
    return fleet.model_copy(update={"backbone": backbone, "worker": worker, "packages": packages})


def locate_model(model: str, base: Path) -> str:
    """Where a backbone's files are: `./folder` is relative to `base`, `package://NAME/FOLDER` lies in an installed package,
    anything else (an absolute path, a hub id) stays as it is. Raises `InvalidInput` when the package is not installed."""
    if model.startswith("."):
        return str((base / model).resolve())
    if not model.startswith("package://"):
        return model
    name, _, folder = model.removeprefix("package://").partition("/")
    found = find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise InvalidInput(f"the Python package {name!r} is not installed; pip install it", field="backbone.model")
    return str(Path(found.submodule_search_locations[0]) / folder)
