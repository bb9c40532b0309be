"""What a fit promises besides its score: reproducible, honest about the held-out part, nothing half-done, clear errors."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from fmplex_broker.errors import Conflict, InvalidInput
from fmplex_broker.packages.package import read_package
from fmplex_broker.specs.fitting import FitDone, FitEpoch, FitSpec
from fmplex_broker.specs.schema import load_toml
from fmplex_worker.tuning import fit
from fmplex_worker.tuning.slices import batches
from tests.unit.tuning import learnable
from tests.unit.tuning.conftest import SpecFor


def _fit(spec: FitSpec) -> FitDone:
    return fit(spec, lambda _: None)


# --- reproducible ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["classification", "tagging", "embedding"])
def test_the_same_seed_gives_the_same_version_and_another_does_not(
    spec_for: SpecFor, tmp_path: Path, head: str
) -> None:
    lora = {"r": 4, "dropout": 0.1}
    versions = [
        _fit(spec_for(head, lora=lora, epochs=3, seed=seed, out=tmp_path / str(i))).artifact
        for i, seed in enumerate((5, 5, 6))
    ]
    assert versions[0] == versions[1] != versions[2]


def test_a_fit_leaves_the_cached_backbone_and_the_callers_torch_as_they_were(spec_for: SpecFor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = _fit(spec_for("classification", out=tmp_path / "a")).artifact
    _fit(spec_for("classification", lora={"r": 4}, epochs=2, threads=2, out=tmp_path / "b"))
    assert _fit(spec_for("classification", out=tmp_path / "c")).artifact == before
    assert torch.get_num_threads() == 1
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["head", "lora"])
def test_held_out_lines_are_never_trained_on(spec_for: SpecFor, tmp_path: Path, lora: Any) -> None:
    lines = learnable.labelled()
    done = _fit(spec_for("classification", lines, lora=lora, epochs=3, out=tmp_path / "a"))
    turned = [*lines[:100], *({**line, "label": "mat"} for line in lines[100:])]
    other = _fit(spec_for("classification", turned, lora=lora, epochs=3, out=tmp_path / "b"))
    assert other.artifact == done.artifact
    assert other.score < done.score


def test_patience_ends_training_before_all_epochs(spec_for: SpecFor) -> None:
    events: list[Any] = []
    done = fit(spec_for("classification", epochs=1000, patience=2), events.append)
    epochs = [e for e in events if isinstance(e, FitEpoch)]
    best = max(range(len(epochs)), key=lambda i: epochs[i].score)
    assert done.epochs == len(epochs) < 1000
    assert best <= len(epochs) - 1


def test_every_example_is_in_one_batch_of_an_epoch_and_partners_share_one() -> None:
    strata = [str(i % 10) for i in range(50)]
    for partners in (False, True):
        made = batches(strata, 8, partners, torch.Generator().manual_seed(0))
        assert sorted(i for batch in made for i in batch) == [*range(50)]
        assert all(len(batch) <= 8 for batch in made)
    assert sum(len(batch) - len({strata[i] for i in batch}) for batch in made) >= 20  # of five in a group, two twos


# --- the package --------------------------------------------------------------------------------------------------


def test_peft_loads_the_adapter_and_it_never_touches_the_pooler(spec_for: SpecFor, model: Path) -> None:
    spec = spec_for("classification", lora={"r": 3, "alpha": 5.0}, epochs=2)
    _fit(spec)
    assert sorted(p.name for p in (spec.out / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = load_file(spec.out / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 6  # A and B of six linears in two blocks
    assert not any("pooler" in name for name in tensors)
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    config = json.loads((spec.out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], config.get("modules_to_save")) == (3, 5.0, "none", None)
    assert config["base_model_name_or_path"] == "tiny"  # not a path of this machine
    wrapped = PeftModel.from_pretrained(AutoModel.from_pretrained(model), spec.out / "adapter")
    ids = torch.tensor([[3, 5, 6, 4]])
    with torch.no_grad():
        states = wrapped(input_ids=ids).last_hidden_state
        with wrapped.disable_adapter():
            assert not torch.allclose(states, wrapped(input_ids=ids).last_hidden_state, atol=1e-4)


def test_targets_choose_linears_by_the_end_of_their_names(spec_for: SpecFor) -> None:
    spec = spec_for("classification", lora={"r": 2, "targets": ["query", "attention.output.dense"]}, epochs=1)
    _fit(spec)
    names = {name.rsplit(".lora_", 1)[0] for name in load_file(spec.out / "adapter" / "adapter_model.safetensors")}
    assert len(names) == 4
    assert all(name.endswith((".self.query", ".attention.output.dense")) for name in names)


def test_labels_with_quotes_newlines_and_emoji(spec_for: SpecFor) -> None:
    names = {"animal": 'say "cat" \\ \n', "place": "北京 🏠", "mat": "'''\x7f"}
    lines = [{**line, "label": names[line["label"]]} for line in learnable.labelled()]
    spec = spec_for("classification", lines)
    done = _fit(spec)
    package = read_package(spec.out)
    assert package.spec.head.labels == tuple(sorted(names.values()))  # type: ignore[union-attr]
    assert done.score > done.baseline + 0.2


# --- where it is written ------------------------------------------------------------------------------------------


def test_an_older_package_is_replaced_and_other_files_stay(spec_for: SpecFor) -> None:
    spec = spec_for("classification", lora={"r": 2}, epochs=1)
    old = _fit(spec).artifact
    (spec.out / "NOTES.md").write_text("mine")
    (spec.out / "data").mkdir()
    (spec.out / "data" / "more.jsonl").write_text("{}")
    new = _fit(spec_for("classification", out=spec.out)).artifact
    assert new != old
    assert sorted(p.name for p in spec.out.iterdir()) == ["NOTES.md", "data", "head.safetensors", "vfm.toml"]
    assert (spec.out / "data" / "more.jsonl").read_text() == "{}"
    assert stat.S_IMODE(spec.out.stat().st_mode) & 0o700 == 0o700
    assert [p.name for p in spec.out.parent.iterdir() if p.name.startswith(".")] == []


def test_an_empty_folder_and_missing_parents_are_fine(spec_for: SpecFor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _fit(spec_for("embedding", out=tmp_path / "empty"))
    _fit(spec_for("embedding", out=tmp_path / "a" / "b" / "c"))
    assert load_toml(tmp_path / "a" / "b" / "c" / "vfm.toml")["head"]["kind"] == "embedding"


def test_a_folder_that_is_no_package_is_refused(spec_for: SpecFor, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(Conflict, match="not empty") as e:
        _fit(spec_for("classification"))
    assert e.value.field == "out"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    with pytest.raises(Conflict, match="is a file"):
        _fit(spec_for("classification", out=tmp_path / "out" / "thesis.tex"))


def test_a_failed_write_leaves_the_older_package_whole(
    spec_for: SpecFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_for("classification")
    version = _fit(spec).artifact
    real = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk on fire")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="fire"):
        _fit(spec_for("classification", seed=2, epochs=1))
    assert read_package(spec.out).digest == version
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "out"]


def test_a_pickle_in_the_older_package_stops_the_write(spec_for: SpecFor) -> None:
    spec = spec_for("classification")
    version = _fit(spec).artifact
    (spec.out / "old.bin").write_bytes(b"")
    with pytest.raises(InvalidInput, match="pickle"):
        _fit(spec_for("classification", epochs=1))
    (spec.out / "old.bin").unlink()
    assert read_package(spec.out).digest == version
