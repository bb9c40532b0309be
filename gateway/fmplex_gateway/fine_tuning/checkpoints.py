"""Checkpoints of tuning jobs as packages, to be deployed by their ids."""

from __future__ import annotations

from fmplex_broker.errors import InvalidInput, UnknownFile
from fmplex_broker.packages.archive import unpack
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.packages.package import Package, make_package
from fmplex_broker.specs.tuning import split_checkpoint_id
from fmplex_broker.streams.tunes import Tunes
from fmplex_gateway.files.off_loop import StoreCalls


async def checkpoint_package(checkpoint: str, vfm: str, owner: str, tunes: Tunes, store: CheckpointStore) -> Package:
    """Return the package of a checkpoint (an id) of one of an owner's jobs, as the vFM of a name.

    Raises `InvalidInput` for what is no such id, `UnknownTune`, `UnknownFile` if it is not kept, and what the store raises.
    """
    found = split_checkpoint_id(checkpoint)
    if found is None:
        raise InvalidInput(
            f"checkpoint: {checkpoint[:64]!r} is not the id of one; they begin with ftckpt-", field="checkpoint"
        )
    job, step = found
    record = await tunes.find(job, owner)
    kept = next((one for one in record.checkpoints if one.step == step), None)
    if kept is None:
        raise UnknownFile(
            f"tuning job {job} does not keep checkpoint {checkpoint}: the best and the last two are kept",
            field="checkpoint",
        )
    calls = StoreCalls()
    blob = await calls(store.get, job, kept.name, "package")
    package = await calls(unpack, blob)
    return make_package(package.spec.model_copy(update={"name": vfm}), package.files)
