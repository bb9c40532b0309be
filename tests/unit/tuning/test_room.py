"""A training keeps to the memory that it is given, also when that changes on its way, and learns the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fmplex_broker.errors import TooLarge
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.opening import open_run
from tests.unit.tuning import learnable
from tests.unit.tuning.conftest import SpecFor

MUCH = 1 << 40


@pytest.fixture(scope="module")
def bert(model: Path) -> Backbone:
    return load_backbone(BackboneSpec(name="tiny", model=str(model)), "cpu")


@pytest.fixture
def order(spec_for: SpecFor) -> TuneOrder:
    lines = learnable.MAKERS["classification"]()[:40]
    return TuneOrder(spec_for("classification", lines, epochs=2, lora={"r": 2, "dropout": 0.1}), memory=MUCH)


def test_limits_that_change_on_its_way_change_no_bit_of_what_is_learnt(order: TuneOrder, bert: Backbone) -> None:
    alone = open_run(order, bert, None)
    while unit := alone.next():
        unit.run()
    run, kinds, n = open_run(order, bert, None), dict[str, int](), 0
    assert run.needs == alone.needs
    assert run.holds == run.needs.most
    while unit := run.next():
        unit.run()
        kinds[unit.kind] = kinds.get(unit.kind, 0) + 1
        n += 1
        least = n % 7 < 3
        run.limit(run.needs.least if least else run.needs.most)
    assert kinds["backward"]
    assert run.package() == alone.package()


def test_what_runs_is_held_until_it_has_ended(order: TuneOrder, bert: Backbone) -> None:
    run = open_run(order, bert, None)
    unit = run.next()
    while unit is not None and unit.kind != "forward":
        unit.run()
        unit = run.next()
    assert unit is not None
    run.limit(run.needs.least)
    assert run.holds == run.needs.most, "a micro-batch is under way"
    while unit is not None and unit.kind != "step":
        unit.run()
        unit = run.next()
    assert run.holds == run.needs.least < run.needs.most


def test_no_training_opens_that_needs_more_than_there_is(order: TuneOrder, bert: Backbone) -> None:
    needs = open_run(order, bert, None).needs
    assert open_run(replace(order, memory=needs.least), bert, None).holds == needs.least
    with pytest.raises(TooLarge) as refusal:
        open_run(replace(order, memory=needs.least - 1), bert, None)
    assert refusal.value.field == "worker.tuning.bytes"


def test_what_a_head_alone_reads_counts(spec_for: SpecFor, bert: Backbone) -> None:
    lines = learnable.MAKERS["classification"]()[:40]
    order = TuneOrder(spec_for("classification", lines, epochs=2), memory=MUCH)
    needs = open_run(order, bert, None).needs
    assert needs.least == needs.most == 3 * 40 * bert.hidden * 4
    with pytest.raises(TooLarge, match="fewer examples"):
        open_run(replace(order, memory=needs.least - 1), bert, None)
