"""`fmplex pack`, `inspect`, `schema`: packages on disk, without a fleet."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fmplex.cli.app import app
from fmplex.cli.pack import schema_text
from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.packages.archive import open_package, pack
from fmplex_broker.packages.package import HEAD
from fmplex_broker.packages.writing import manifest, write_package
from tests.unit.broker import made

REPO = Path(__file__).resolve().parents[3]


def run(*args: object) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = made.package()
    write_package(tmp_path / "mine", package.spec, package.files)
    (tmp_path / "mine" / "NOTES.md").write_text("notes")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def test_pack_writes_what_unpack_reads(folder: Path, tmp_path: Path) -> None:
    package = made.package()
    told = run("pack", folder, "-o", tmp_path / "a.fmplex").output
    for part in ("v", package.digest, HEAD, "adapter_config.json", "a.fmplex", "bytes"):
        assert part in told
    assert open_package(tmp_path / "a.fmplex") == package
    said = json.loads(run("pack", folder, "--json").output)
    assert said == {
        "name": "v",
        "artifact": package.digest,
        "files": list(package.files),
        "bytes": len(pack(package)),
        "archive": "v.fmplex",
    }
    assert (tmp_path / "v.fmplex").read_bytes() == (tmp_path / "a.fmplex").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fmplex", "mine", "v.fmplex"]


def test_pack_refuses_what_cannot_be_served(folder: Path, tmp_path: Path) -> None:
    for name, data in made.adapter(use_dora=True).items():
        (folder / name).write_bytes(data)
    with pytest.raises(PackageRejected, match="DoRA"):
        run("pack", folder)
    with pytest.raises(PackageRejected, match="not a folder"):
        run("pack", tmp_path / "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_archive_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "none" / "a.fmplex", tmp_path / "mine"):
        with pytest.raises(InvalidInput, match="cannot be written"):
            run("pack", folder, "-o", target)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_inspect_tells_the_same_of_folder_and_archive(folder: Path, tmp_path: Path) -> None:
    run("pack", folder, "-o", tmp_path / "a.fmplex")
    said = json.loads(run("inspect", folder, "--json").output)
    assert said == json.loads(run("inspect", tmp_path / "a.fmplex", "--json").output)
    package = made.package()
    assert (said["name"], said["artifact"], said["bytes"]) == ("v", package.digest, package.nbytes)
    assert said["spec"] == package.spec.model_dump(mode="json")
    assert said["files"] == {name: len(data) for name, data in package.files.items()}
    assert said["tensors"][HEAD] == {
        "weight": {"dtype": "F32", "shape": [2, 4]},
        "bias": {"dtype": "F32", "shape": [2]},
    }
    assert said["adapter"] == {"kind": "LORA", "ranks": [2], "targets": ["query"], "modules": 1}


def test_inspect_in_words(folder: Path, tmp_path: Path) -> None:
    told = run("inspect", folder).output
    for part in (
        "artifact",
        "on m",
        "classification",
        "no",
        "adapter: kind LORA, ranks 2, targets query, modules 1",
        HEAD,
        "2 × 4",
        "F32",
    ):
        assert part in told
    write_package(tmp_path / "bare", made.spec("embedding"), {})
    assert "embedding" in run("inspect", tmp_path / "bare").output
    assert json.loads(run("inspect", tmp_path / "bare", "--json").output)["adapter"] is None


def test_the_published_schema_is_that_of_the_code() -> None:
    """`fmplex schema > docs/vfm.schema.json` after a change."""
    assert run("schema").output == schema_text() == (REPO / "docs" / "vfm.schema.json").read_text()


def test_the_schema_knows_every_key_of_a_manifest() -> None:
    schema = json.loads(schema_text())
    written = tomllib.loads(manifest(made.package(weight=2.0, limits={"rate": 5}, slo={"deadline_ms": 5}).spec))
    assert set(written) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
