"""`fmplex deploy`: a vFM from a package, or from an adapter as PEFT has saved it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fmplex.cli.common import ApiKey, AsJson, Url, open_client, out, print_json
from fmplex.construct import from_peft
from fmplex.construct.building import adapter_files
from fmplex.fitting import DEFAULT_FLEET
from fmplex.running import running
from fmplex_broker.errors import Conflict, InvalidInput
from fmplex_broker.packages.archive import open_package
from fmplex_broker.packages.package import ADAPTER_CONFIG, MANIFEST
from fmplex_broker.packages.peft import read_options
from fmplex_broker.specs.fleet import BackboneSpec, load_fleet

_CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS")  # `from_peft` reads their heads
_GENERATES = re.compile(r"ForCausalLM$|LMHeadModel$")  # classes of models
_EMBEDS = re.compile(r"(?<!LMHead)Model$")
_PYTHON = re.compile(r"\b(name|backbone|head|labels|model)=")  # as messages name arguments

PackagePath = Annotated[
    Path,
    typer.Argument(help="Package folder (with vfm.toml), archive of `fmplex pack`, or folder that PEFT has saved."),
]
Labels = Annotated[str | None, typer.Option(help="Of an adapter's classifier, in the order of its outputs: a,b,c.")]
BaseModel = Annotated[
    str | None, typer.Option(help="Of an adapter's classifier: folder of the model it was trained on.")
]
Fleet = Annotated[Path | None, typer.Option("--config", "-c", help="Fleet file, to find an adapter's backbone. Default: "
                  f"that of `fmplex up` here, or {DEFAULT_FLEET}.")]  # fmt: skip


def deploy(
    package: PackagePath,
    update: Annotated[bool, typer.Option("--update", help="Make it a new version if the vFM exists.")] = False,
    name: Annotated[str | None, typer.Option(help="Of an adapter: name of the vFM.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Of an adapter. Default: the one it was trained on.")] = None,
    head: Annotated[str | None, typer.Option(help="Of an adapter: kind of head. Default: as it was trained.")] = None,
    labels: Labels = None,
    model: BaseModel = None,
    config: Fleet = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Deploy a vFM; returns when it serves. An adapter of PEFT is taken as it is, with a --name."""
    options = {"name": name, "backbone": backbone, "head": head, "labels": labels, "model": model}
    with _as_package(package, options, config) as folder, open_client(url, api_key) as client:
        try:
            deployed = client.vfms.deploy(folder)
        except Conflict as e:
            if not update:
                raise Conflict(f"{e.message.partition(';')[0]}; --update makes this its new version") from None
            deployed = client.vfms.update(open_package(folder).spec.name, folder)
    if as_json:
        print_json(deployed.plain())
    else:
        out.print(f"[bold]{deployed.name}[/] serves version {deployed.version} on {deployed.backbone}")


@contextmanager
def _as_package(path: Path, options: dict[str, str | None], config: Path | None) -> Iterator[Path]:
    """Give a package as it is, or the one made of an adapter as `options` say. Raises `InvalidInput`, `PackageRejected`."""
    if (path / MANIFEST).exists() or not (path / Path(ADAPTER_CONFIG).name).is_file():
        given = [f"--{option}" for option, value in options.items() if value is not None]
        if given:
            raise InvalidInput(
                f"{given[0]} is for adapters that PEFT has saved (adapter_config.json); a package says it in {MANIFEST}",
                field=given[0].removeprefix("--"),
            )
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fmplex-deploy-") as scratch:
        folder = Path(scratch) / "package"
        try:
            _write(path, folder, options, config)
        except InvalidInput as e:
            raise type(e)(_PYTHON.sub(r"--\1", e.message), field=e.field) from None
        yield folder


def _write(adapter: Path, folder: Path, options: dict[str, str | None], config: Path | None) -> None:
    """Write the package of an adapter. Raises `InvalidInput` that names the option that is missing, or `PackageRejected`."""
    if options["name"] is None:
        raise InvalidInput(
            f"{adapter} is an adapter that PEFT has saved; give --name, what the vFM is to be called", field="name"
        )
    saved = read_options(adapter_files(adapter)[ADAPTER_CONFIG])
    backbone, weights = options["backbone"], None
    if backbone is None:
        found = _backbone_of(saved, config)
        backbone, weights = found.name, found.model if Path(found.model).is_dir() else None
    kind = options["head"] or _head_of(saved, adapter)
    labels = tuple(label.strip() for label in (options["labels"] or "").split(",") if label.strip())
    written = from_peft(
        adapter, name=options["name"], backbone=backbone, head=None if kind is None else {"kind": kind},
        labels=labels, model=options["model"] or weights, out=folder,
    )  # fmt: skip
    if (
        kind is None
        and getattr(written.spec.head, "kind", "") == "embedding"
        and saved.get("task_type") in _CLASSIFIERS
    ):
        raise InvalidInput(
            f"{adapter} was trained as {saved['task_type']} but holds no classifier; give --head, for example embedding",
            field="head",
        )
    if labels and not hasattr(written.spec.head, "labels"):
        raise InvalidInput("--labels is for an adapter that holds a classifier; leave it out", field="labels")


def _backbone_of(saved: dict[str, Any], config: Path | None) -> BackboneSpec:
    """Find the backbone of the fleet file that an adapter was trained on. Raises `InvalidInput`."""
    base = saved.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InvalidInput(
            "the adapter does not say what it was trained on; give --backbone, its name", field="backbone"
        )
    path = config or Path(running().get("config") or DEFAULT_FLEET)
    if config is None and not path.is_file():
        raise InvalidInput(
            f"which backbone is {base!r}, which the adapter was trained on? Give --backbone, its name, or --config, the "
            "fleet file",
            field="backbone",
        )
    hosted = load_fleet(path).hosted
    found = [b for b in hosted if _is_same(base, b.model)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{b.name} ({b.model})" for b in found or hosted)
    which = "is more than one backbone" if found else "is no backbone"
    raise InvalidInput(
        f"{base!r}, which the adapter was trained on, {which} of {path}: {names}; give --backbone, the name of the one "
        "with the same weights",
        field="backbone",
    )


def _is_same(base: str, model: str) -> bool:
    return base == model or (Path(base).is_dir() and Path(model).is_dir() and Path(base).samefile(model))


def _head_of(saved: dict[str, Any], adapter: Path) -> str | None:
    """Return the kind of head that an adapter was trained for; None: what `from_peft` makes of it, a classifier or an embedding.
    Raises `InvalidInput`."""
    task = saved.get("task_type")
    trained_on = str((saved.get("auto_mapping") or {}).get("base_model_class", "")) if task is None else ""
    if task == "CAUSAL_LM" or _GENERATES.search(trained_on):
        return "generation"
    sentences = task is None and (adapter / "modules.json").is_file()  # sentence-transformers
    if task in _CLASSIFIERS or task == "FEATURE_EXTRACTION" or sentences or _EMBEDS.search(trained_on):
        return None
    raise InvalidInput(
        f"the adapter was trained as {task or trained_on or 'nothing that it says'}, from which no head follows; give "
        "--head, its kind",
        field="head",
    )
