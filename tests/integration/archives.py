"""Archives as nobody should send them, made by hand."""

from __future__ import annotations

import io
import json
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import httpx

from fmplex_broker.packages.archive import MEDIA_TYPE
from fmplex_broker.packages.package import FILES

SPEC = {"name": "bad", "backbone": "minilm", "head": {"kind": "embedding"}}
VFM_JSON = json.dumps(SPEC).encode()


def archive(*members: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of files (name and content) and other members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def folder_archive(package: Path) -> bytes:
    """What is in a package folder, unchecked."""
    spec = json.dumps(tomllib.loads((package / "vfm.toml").read_text())).encode()
    files = [(name, (package / name).read_bytes()) for name in FILES if (package / name).is_file()]
    return archive(("vfm.json", spec), *files)


def upload(http: httpx.Client, package: Path | bytes, path: str = "/v1/vfms", kind: str = MEDIA_TYPE) -> httpx.Response:
    """Sends an archive, or what is in a folder."""
    content = package if isinstance(package, bytes) else folder_archive(package)
    return http.post(path, content=content, headers={"Content-Type": kind})


def member(name: str, **attributes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member's header alone."""
    return member(name, size=size, type=kind).tobuf(tarfile.GNU_FORMAT)


def sparse(nbytes: int) -> bytes:
    """A head of many gigabytes, all of them holes, in two kilobytes."""
    says = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0", "GNU.sparse.size": str(nbytes)}
    head = member("head.safetensors", pax_headers=says | {"GNU.sparse.name": "head.safetensors"})
    return archive(("vfm.json", VFM_JSON), head, format=tarfile.PAX_FORMAT)


def chain(kind: bytes, content: bytes) -> bytes:
    """Three thousand headers, each of which only says something of the next."""
    return (header("x", len(content), kind) + content.ljust(512, b"\0")) * 3000 + header("vfm.json", 0)


GOOD = archive(("vfm.json", VFM_JSON))
# what -> archive, field, what the message must say
HOSTILE: dict[str, tuple[bytes, str | None, str]] = {
    "nothing": (b"", "package", "archive"),
    "noise": (b"\x93NUMPY" * 1000, "package", "archive"),
    "JSON": (json.dumps({"spec": SPEC}).encode(), "package", "archive"),
    "an empty archive": (archive(), "package", "holds no vfm.json"),
    "a head alone": (archive(("head.safetensors", b"x")), "package", "holds no vfm.json"),
    "cut off in a header": (GOOD[:100], "package", "archive"),
    "cut off in a file": (archive(("vfm.json", VFM_JSON), ("head.safetensors", b"x" * 4096))[:3000], "package", "archive"),
    "a file above": (archive(("vfm.json", VFM_JSON), ("../head.safetensors", b"x")), "package", "'../head.safetensors'"),
    "a file below": (archive(("vfm.json", VFM_JSON), ("adapter/../../x", b"x")), "package", "'adapter/../../x'"),
    "a file of the system": (archive(("vfm.json", VFM_JSON), ("/etc/passwd", b"x")), "package", "passwd'"),
    "a name with a NUL": (archive(("vfm.json\0x", VFM_JSON), ("a\0", b"")), "package", "archive holds"),
    "a file of Python": (archive(("vfm.json", VFM_JSON), ("modeling.py", b"import os")), "package", "'modeling.py'"),
    "a pickle": (archive(("vfm.json", VFM_JSON), ("adapter/adapter_model.bin", b"x")), "package", "adapter_model.bin"),
    "a folder": (archive(("vfm.json", VFM_JSON), member("adapter", type=tarfile.DIRTYPE)), "package", "'adapter'"),
    "a link": (
        archive(("vfm.json", VFM_JSON), member("head.safetensors", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "package", "'head.safetensors'",
    ),
    "a hard link": (
        archive(("vfm.json", VFM_JSON), member("head.safetensors", type=tarfile.LNKTYPE, linkname="vfm.json")),
        "package", "'head.safetensors'",
    ),
    "a device": (archive(("vfm.json", VFM_JSON), member("head.safetensors", type=tarfile.CHRTYPE)), "package", "head"),
    "a file twice": (archive(("vfm.json", VFM_JSON), ("vfm.json", VFM_JSON)), "package", "vfm.json"),
    "a size that lies": (header("vfm.json", 8 << 30) + b"{}", "package", "archive"),
    "a sparse file": (sparse(8 << 30), "package", "archive holds"),
    "a sparse file without end": (sparse(1 << 62), "package", "archive holds"),
    "long names without end": (chain(tarfile.GNUTYPE_LONGNAME, b"abcde"), "package", "archive"),
    "words on words without end": (chain(tarfile.XHDTYPE, b"11 a=bcdef\n"), "package", "archive"),
    "a spec that is no JSON": (archive(("vfm.json", b"name = 1")), "(whole)", "JSON"),
    "a spec without a head": (archive(("vfm.json", b'{"name": "bad", "backbone": "minilm"}')), None, "head"),
    "a spec with more": (archive(("vfm.json", json.dumps(SPEC | {"x": 1}).encode())), "x", "unknown key"),
    "a name that is none": (archive(("vfm.json", json.dumps(SPEC | {"name": "a:b"}).encode())), "name", "pattern"),
    "a head that is not needed": (archive(("vfm.json", VFM_JSON), ("head.safetensors", b"x")), "head", "has no weights"),
    "half an adapter": (
        archive(("vfm.json", VFM_JSON), ("adapter/adapter_config.json", b"{}")), "adapter", "safetensors is missing"
    ),
    "an adapter that is none": (
        archive(("vfm.json", VFM_JSON), ("adapter/adapter_config.json", b"[" * 9999), ("adapter/adapter_model.safetensors", b"")),
        "adapter", "not a PEFT config",
    ),
}  # fmt: skip
