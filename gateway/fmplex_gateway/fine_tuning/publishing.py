"""What becomes of what a tuning job learns: a new vFM, the next version of one, or a canary beside one."""

from __future__ import annotations

from fmplex_broker.errors import Conflict, InvalidInput, UnknownVfm
from fmplex_broker.specs.tuning import Publish
from fmplex_broker.streams.catalog import unknown_vfm
from fmplex_broker.streams.registry import Registry
from fmplex_gateway.access import Principal, require_name
from fmplex_gateway.fine_tuning.shapes import TuneBody
from fmplex_gateway.fine_tuning.starts import Start, naming

_LONGEST_NAME = 128


async def publishing(body: TuneBody, start: Start, job: str, who: Principal, registry: Registry) -> Publish:
    """Return what becomes of the best checkpoint, with the generation that the vFM must still have."""
    wanted, field = body.publish, "publish.vfm"
    if wanted is not None and body.suffix is not None and wanted.vfm != body.suffix:
        raise InvalidInput("suffix: publish names the vFM already; leave one of the two out", field="suffix")
    if wanted is None:
        wanted, field = _usual(body, start, job), "suffix" if start.vfm is None or body.suffix else "model"
    if wanted.vfm is None:
        return wanted
    async with naming(field):
        if wanted.how == "as":
            await _check_new(wanted.vfm, who, registry)
            return wanted
        return await _of_one(wanted, wanted.vfm, start, who, registry)


def _usual(body: TuneBody, start: Start, job: str) -> Publish:
    if start.vfm is not None and body.suffix is None:
        return Publish(how="update", vfm=start.vfm.name)
    end = f"-{job[-8:]}"
    return Publish(how="as", vfm=body.suffix or start.backbone[: _LONGEST_NAME - len(end)] + end)


async def _check_new(vfm: str, who: Principal, registry: Registry) -> None:
    require_name(who, vfm)
    try:
        await registry.find(vfm)
    except UnknownVfm:
        return
    raise Conflict(f"there is already a vFM {vfm!r}; give another name, or publish it as that one's update")


async def _of_one(wanted: Publish, vfm: str, start: Start, who: Principal, registry: Registry) -> Publish:
    """Check an update of a vFM, or a canary beside it."""
    if not who.may_use(vfm):
        raise unknown_vfm(vfm)
    now = await registry.show(vfm)
    if now.backbone != start.backbone:
        raise InvalidInput(
            f"vFM {vfm!r} lives on {now.backbone!r}, and this trains on {start.backbone!r}; give another"
        )
    if wanted.generation not in (None, now.generation):
        raise Conflict(
            f"vFM {vfm!r} was changed meanwhile: its generation is {now.generation}, not {wanted.generation}; look at it again"
        )
    return wanted.model_copy(update={"generation": now.generation})
