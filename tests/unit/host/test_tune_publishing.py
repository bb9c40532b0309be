"""From what a tuning job has learnt to a version that serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fmplex_broker.packages.package import bare
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.tuning import Publish
from fmplex_broker.specs.versions import version_of
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.registry import Registry
from fmplex_worker.host import tune_publishing
from fmplex_worker.host.tune_publishing import Publisher
from tests.support.hosting import HOSTED

PACKAGE = bare(VfmSpec(name="mine", backbone="tiny", head=Embedding()))
VERSION = version_of(PACKAGE.digest, HOSTED.digest)


class UnderVote:
    """A registry where a version has been offered, on which workers vote for `looks` more looks; nothing may be offered there."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    async def show(self, name: str) -> Any:
        self.looks -= 1
        if self.looks >= 0:
            return SimpleNamespace(version="before", candidate=(VERSION, 0), past=(), generation=4, status="serving")
        return SimpleNamespace(version=VERSION, candidate=None, past=(), generation=5, status="serving")


@pytest.mark.parametrize("how", ["as", "update", "canary"])
async def test_what_workers_vote_on_is_not_offered_again(monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    """The worker that offered it died meanwhile, and the job is another one's now."""
    monkeypatch.setattr(tune_publishing, "_POLL_S", 0.001)
    registry = UnderVote(looks=3)
    publisher = Publisher(cast(Registry, registry), HOSTED.digest)
    assert await publisher.publish(Publish(how=how, vfm="mine", generation=4), PACKAGE) == ("mine", VERSION)
    assert registry.looks == -1
