"""From the body of a request to what is ordered: on what it trains, which head, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass

from fmplex_broker.errors import InvalidInput, UnknownVfm, VfmClosed
from fmplex_broker.examples.checking import head_of
from fmplex_broker.examples.files import rows_of
from fmplex_broker.packages.files import FileStore
from fmplex_broker.specs.deployments import BackboneInfo, VfmStatus
from fmplex_broker.specs.files import FileRecord
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.tuning import Base, TuneFit, TuneHead, TuneSpec, new_tune_id, split_checkpoint_id
from fmplex_broker.specs.versions import stale_error
from fmplex_broker.streams.catalog import unknown_vfm
from fmplex_broker.streams.registry import Registry
from fmplex_broker.streams.tunes import Tunes
from fmplex_gateway.access import Principal
from fmplex_gateway.files.keeping import Files
from fmplex_gateway.files.off_loop import StoreCalls
from fmplex_gateway.fine_tuning.publishing import publishing
from fmplex_gateway.fine_tuning.shapes import TuneBody
from fmplex_gateway.fine_tuning.starts import Start, naming

MOST_LINE_BYTES = 4 << 20  # of a training file, and of an array
_OF_GENERATION, _OF_HEADS = ("system", "chat_template"), ("hidden", "pooling", "shuffle", "input")
_WITHOUT_WEIGHTS = frozenset({"embedding", "similarity"})


@dataclass(frozen=True, slots=True)
class Desk:
    """What orders are checked against."""

    registry: Registry
    tunes: Tunes
    files: Files


async def ordered(body: TuneBody, who: Principal, desk: Desk) -> TuneSpec:
    """Return what a body orders. Raises `UnknownFile`, `UnknownVfm`, `Forbidden`, `InvalidInput`, `Conflict`, and what the store
    raises; each names the field."""
    training = await _file(desk.files, body.training_file, who, "training_file")
    if body.validation_file is not None:
        await _file(desk.files, body.validation_file, who, "validation_file")
    start = await _start(body.model, who, desk)
    head = _head(body.fit, start)
    if head is None:
        async with naming("training_file"):
            head = await StoreCalls()(_head_in, desk.files.store, training)
    fit = body.fit.model_copy(update={"head": head})
    _check_fit(fit, start)
    if (backbone := (await desk.registry.backbones()).get(start.backbone)) is not None:
        _check_backbone(fit, backbone)
    fit = _continued(fit, start)
    job = new_tune_id()
    return TuneSpec(
        id=job,
        owner=who.name,
        backbone=start.backbone,
        model=body.model,
        base=start.base,
        training_file=body.training_file,
        validation_file=body.validation_file,
        hyperparameters=body.wanted,
        fit=fit,
        suffix=body.suffix,
        seed=body.seed or 0,
        metadata=body.metadata,
        weight=body.weight,
        publish=await publishing(body, start, job, who, desk.registry),
    )


# --- files ---


async def _file(files: Files, file: str, who: Principal, field: str) -> FileRecord:
    async with naming(field):
        record = await files.list.find(file, who.name)
    if record.purpose != "fine-tune":
        raise InvalidInput(
            f"{field}: {record.id} has purpose {record.purpose!r}; upload what is to be learnt with 'fine-tune'",
            field=field,
        )
    if not record.bytes:
        raise InvalidInput(f"{field}: {record.id} is empty; upload it again", field=field)
    return record


def _head_in(store: FileStore, file: FileRecord) -> TuneHead:
    """Return the head that a file is for. What is wrong with the file is told later."""
    with store.open(file.id) as content:
        try:
            row = next(rows_of(content, file.filename, MOST_LINE_BYTES), None)
        except InvalidInput:
            row = None
    return head_of(None if row is None else row.value)


# --- the model ---


async def _start(model: str, who: Principal, desk: Desk) -> Start:
    """Find what a model names: a vFM that the key may use, also `NAME@VERSION` or `NAME@CHECKPOINT`, or a backbone."""
    name, _, at = model.partition("@")
    try:
        vfm = await desk.registry.show(name) if who.may_use(name) else None
    except UnknownVfm:
        vfm = None
    if vfm is None:
        if name not in await desk.registry.backbones():
            raise _unknown_model(name)
        if at:
            raise InvalidInput(
                f"model: {name!r} is a backbone, which has neither versions nor checkpoints; leave @{at[:64]} out",
                field="model",
            )
        return Start(name)
    if vfm.status == "stale":
        raise stale_error(name, vfm.version, vfm.hosted)
    if vfm.status != "serving":
        raise VfmClosed(f"vFM {name!r} is {vfm.status}; it can be trained further while it is serving", field="model")
    return Start(vfm.backbone, vfm, await _base(vfm, at, who, desk.tunes))


async def _base(vfm: VfmStatus, at: str, who: Principal, tunes: Tunes) -> Base:
    """Return the version, or the checkpoint, of a vFM that training goes on from."""
    checkpoint = split_checkpoint_id(at)
    if checkpoint is None:
        if at not in {"", vfm.version, *(past.version for past in vfm.past)}:
            raise InvalidInput(
                f"model: vFM {vfm.name!r} has never served a version {at[:64]!r}; GET /v1/vfms/{vfm.name} lists them",
                field="model",
            )
        return Base(vfm=vfm.name, version=at or vfm.version)
    job, step = checkpoint
    async with naming("model"):
        record = await tunes.find(job, who.name)
    if record.spec.backbone != vfm.backbone or all(one.step != step for one in record.checkpoints):
        raise InvalidInput(
            f"model: checkpoint {at} is not kept (the best and the last two are), or is for another backbone",
            field="model",
        )
    return Base(vfm=vfm.name, version=vfm.version, checkpoint=at)


def _unknown_model(name: str) -> UnknownVfm:
    error = unknown_vfm(name)
    error.message = f"{error.message}; neither is it a backbone"
    error.field = "model"
    return error


# --- what is trained ---


def _head(fit: TuneFit, start: Start) -> TuneHead | None:
    """Return the head: what is said, or that of the vFM; None where the data must tell. Raises `InvalidInput`."""
    if start.vfm is None:
        return fit.head
    own = start.vfm.spec.head
    if own is None or own.kind == "features":
        what = "several heads" if own is None else "a features head"
        raise InvalidInput(
            f"model: vFM {start.vfm.name!r} has {what}, which cannot be trained; give a backbone", field="model"
        )
    if fit.head not in (None, own.kind):
        raise InvalidInput(
            f"fit.head: that of vFM {start.vfm.name!r} is {own.kind}; leave it out, or train a new vFM on its backbone",
            field="fit.head",
        )
    return own.kind


def _continued(fit: TuneFit, start: Start) -> TuneFit:
    """Return what is wanted, as far as nothing is said as the vFM has it that is gone on with: it was trained like that."""
    if start.vfm is None:
        return fit
    spec = start.vfm.spec
    if isinstance(spec.head, Generation):
        own = {name: getattr(spec.head, name) for name in ("system", "chat_template", "max_tokens")}
    else:
        own = {"input": spec.input, **{name: getattr(spec.head, name, None) for name in ("pooling", "hidden")}}
    said = fit.model_fields_set
    return fit.model_copy(update={name: value for name, value in own.items() if value is not None and name not in said})


def _idle(fit: TuneFit) -> str:
    """Return the first part that says nothing to the head, empty if there is none."""
    foreign = _OF_HEADS if fit.head == "generation" else _OF_GENERATION
    plain = TuneFit()
    return next((name for name in foreign if getattr(fit, name) != getattr(plain, name)), "")


def _check_fit(fit: TuneFit, start: Start) -> None:
    """Refuse parts that do not go together, would have no effect, or leave nothing to train."""
    if idle := _idle(fit):
        raise InvalidInput(f"fit.{idle}: a head of kind {fit.head} has none; leave it out", field=f"fit.{idle}")
    if fit.hidden and fit.head in _WITHOUT_WEIGHTS:
        raise InvalidInput(
            f"fit.hidden: a head of kind {fit.head} has no weights, so no hidden layers; leave hidden out",
            field="fit.hidden",
        )
    bare = fit.lora is None and fit.ia3 is None and start.base is None
    if bare and fit.head in ("embedding", "similarity"):
        raise InvalidInput(
            f"fit.lora: a head of kind {fit.head} has no weights, so without an adapter there is nothing to train; give "
            'fit = {"lora": {"r": 8}}, or ia3',
            field="fit.lora",
        )


def _check_backbone(fit: TuneFit, backbone: BackboneInfo) -> None:
    """Refuse what the backbone cannot do: better now than after the training."""
    if fit.head == "generation" and not backbone.generates:
        raise InvalidInput(
            f"model: backbone {backbone.name!r} has no language-model head and generates no text, which these data, or fit.head, "
            "are for; give a decoder, or examples with labels",
            field="model",
        )
    for field, most in (("fit.max_tokens", fit.max_tokens), ("fit.input.max_tokens", fit.input.max_tokens)):
        if fit.head != "generation" and most is not None and most > backbone.max_tokens:
            raise InvalidInput(
                f"{field}: {most} are more than backbone {backbone.name!r} takes of a text, {backbone.max_tokens}; lower it",
                field=field,
            )
