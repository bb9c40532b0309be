"""`fmplex pack`, `fmplex inspect`, `fmplex schema`: packages on disk; no fleet is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Table

from fmplex.cli.common import AsJson, out, print_json
from fmplex.construct.describe import describe
from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages import archive
from fmplex_broker.packages.package import read_package
from fmplex_broker.specs.vfm import VfmSpec


def pack(
    folder: Annotated[Path, typer.Argument(help="Package folder (with vfm.toml).")],
    output: Annotated[Path | None, typer.Option("--out", "-o", help="The archive. Default: NAME.fmplex here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a package and write it as one file, which `deploy` takes like the folder."""
    package = read_package(folder)
    target = output or Path(package.spec.name + archive.SUFFIX)
    blob = archive.pack(package)
    _write(target, blob)
    facts = {"name": package.spec.name, "artifact": package.digest, "files": list(package.files), "bytes": len(blob)}
    if as_json:
        print_json({**facts, "archive": str(target)})
        return
    files = ", ".join(package.files) or "no files (the bare backbone)"
    out.print(
        f"[bold]{package.spec.name}[/] artifact {package.digest}: {files}\n{escape(str(target))} has {len(blob):,} bytes"
    )


def _write(target: Path, blob: bytes) -> None:
    """Write a file whole or not at all. Raises `InvalidInput`."""
    scratch = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        try:
            scratch.write_bytes(blob)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as e:
        raise InvalidInput(f"{target} cannot be written ({e.strerror}); give another -o FILE", field="out") from e


def inspect(
    package: Annotated[Path, typer.Argument(help="Package folder or archive.")],
    as_json: AsJson = False,
) -> None:
    """Show what is in a package: specification, digest, files, tensors, adapter."""
    found = archive.open_package(package)
    facts = describe(found)
    if as_json:
        print_json(facts)
        return
    out.print(
        f"[bold]{facts['name']}[/] artifact {facts['artifact']} on {found.spec.backbone}, {facts['bytes']:,} bytes"
    )
    for name, head in found.spec.outputs.items():
        options = head.model_dump(mode="json", exclude_defaults=True)
        keys = ", ".join(f"{key} {value}" for key, value in options.items() if key != "kind")
        out.print(f"head {name}".rstrip() + f": {head.kind}" + (f" ({keys})" if keys else ""), markup=False)
    if adapter := facts["adapter"]:
        out.print("adapter: " + ", ".join(f"{key} {_words(value)}" for key, value in adapter.items()), markup=False)
    for name, tensors in facts["tensors"].items():
        out.print(_table(name, facts["files"][name], tensors))


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(name: str, size: int, tensors: dict[str, Any]) -> Table:
    table = Table("tensor", "dtype", "shape", title=f"{name}, {size:,} bytes", title_justify="left", box=None)
    for key, entry in tensors.items():
        table.add_row(key, entry["dtype"], " × ".join(map(str, entry["shape"])))
    return table


def schema() -> None:
    """Print the JSON schema of vfm.toml, for editors and for checks in other languages."""
    typer.echo(schema_text(), nl=False)


def schema_text() -> str:
    """Return the JSON schema of vfm.toml, which docs/vfm.schema.json publishes."""
    text = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **VfmSpec.model_json_schema(),
        "title": "vfm.toml",
    }
    return json.dumps(text, indent=2) + "\n"
