"""Archives: the same package always gives the same bytes, and what comes from outside is trusted in nothing."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmplex_broker.errors import InvalidInput, PackageRejected, TooLarge
from fmplex_broker.packages.archive import open_package, pack, unpack
from fmplex_broker.packages.package import FILES, HEAD, make_package
from fmplex_broker.packages.writing import write_package
from tests.unit.broker import made

SPEC = {"name": "v", "backbone": "m", "head": {"kind": "embedding"}}
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unpacking is done in memory: whatever an archive holds, no file appears."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert list((tmp_path / "here").iterdir()) == []


def archive(*members: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg() and not info.size:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(name: str, kind: bytes, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


def spec_member(**change: Any) -> tuple[str, bytes]:
    return "vfm.json", json.dumps(SPEC | change).encode()


# --- what we make ----------------------------------------------------------------------------------------------------


@given(names, st.floats(1e-3, 1e6), st.sampled_from(["classification", "regression", "embedding"]))
def test_there_and_back(name: str, weight: float, kind: str) -> None:
    package = made.package(kind, name=name, weight=weight)
    blob = pack(package)
    assert unpack(blob) == package
    assert pack(unpack(blob)) == blob


@given(st.permutations(FILES))
def test_packing_is_deterministic(order: list[str]) -> None:
    package = made.package()
    again = make_package(package.spec, {name: package.files[name] for name in order})
    assert pack(again) == pack(package)


def test_time_owner_and_place_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = made.package()
    blobs = set()
    for i, folder in enumerate(("a", "b/c")):
        write_package(tmp_path / folder, package.spec, package.files)
        monkeypatch.setattr("time.time", lambda i=i: 1e9 + i)
        blobs.add(pack(open_package(tmp_path / folder)))
    assert len(blobs) == 1
    with tarfile.open(fileobj=io.BytesIO(blobs.pop())) as tar:
        assert next((m.name, m.mtime, m.uid, m.mode) for m in tar) == ("vfm.json", 0, 0, 0o644)


def test_a_path_may_be_a_folder_or_an_archive(tmp_path: Path) -> None:
    package = made.package()
    write_package(tmp_path / "p", package.spec, package.files)
    (tmp_path / "p.fmplex").write_bytes(pack(package))
    assert open_package(tmp_path / "p") == open_package(tmp_path / "p.fmplex") == package
    for path in (tmp_path / "nothing", Path("\0"), tmp_path / ("x" * 5000)):
        with pytest.raises(PackageRejected):
            open_package(path)


def test_a_wrong_file_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "vfm.toml").write_text('name = "v"')
    with pytest.raises(PackageRejected, match="fmplex pack"):
        open_package(tmp_path / "vfm.toml")


# --- what others send ------------------------------------------------------------------------------------------------


def test_larger_than_allowed() -> None:
    blob = pack(made.package())
    assert unpack(blob, len(blob)).spec.name == "v"
    with pytest.raises(TooLarge, match="max_package_bytes"):
        unpack(blob, len(blob) - 1)


def pax(**headers: str) -> bytes:
    info = tarfile.TarInfo(HEAD)
    info.pax_headers = headers
    info.size = 4
    return archive(spec_member(), (info, b"1234"), format=tarfile.PAX_FORMAT)


def bomb(size: int) -> bytes:
    """A header that promises more than there is."""
    info = tarfile.TarInfo(HEAD)
    info.size = size
    return archive(spec_member())[:1024] + info.tobuf(tarfile.GNU_FORMAT)


def gnu_long() -> bytes:
    return archive(spec_member(), ("x" * 300, b"1"), format=tarfile.GNU_FORMAT)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "absolute": lambda: archive(spec_member(), ("/etc/passwd", b"root")),
    "above": lambda: archive(spec_member(), ("../../x", b"1")),
    "above, known name": lambda: archive(spec_member(), (f"../{HEAD}", made.head())),
    "dot": lambda: archive(spec_member(), (f"./{HEAD}", made.head())),
    "symbolic link": lambda: archive(spec_member(), (special(HEAD, tarfile.SYMTYPE, linkname="/etc/passwd"), b"")),
    "hard link": lambda: archive(spec_member(), (special(HEAD, tarfile.LNKTYPE, linkname="vfm.json"), b"")),
    "device": lambda: archive(spec_member(), (special(HEAD, tarfile.CHRTYPE, devmajor=1, devminor=5), b"")),
    "block device": lambda: archive(spec_member(), (special(HEAD, tarfile.BLKTYPE), b"")),
    "fifo": lambda: archive(spec_member(), (special(HEAD, tarfile.FIFOTYPE), b"")),
    "folder": lambda: archive(spec_member(), (special("adapter", tarfile.DIRTYPE), b"")),
    "contiguous": lambda: archive(spec_member(), (special(HEAD, tarfile.CONTTYPE), b"")),
    "sparse": lambda: archive(spec_member(), (special(HEAD, tarfile.GNUTYPE_SPARSE), b"")),
    "another file": lambda: archive(spec_member(), ("evil.pkl", b"1")),
    "twice": lambda: archive(spec_member(), (HEAD, made.head()), (HEAD, made.head(value=2.0))),
    "two specs": lambda: archive(spec_member(), spec_member(name="w")),
    "promised terabytes": lambda: bomb(1 << 40),
    "promised less than nothing": lambda: bomb(-512),
    "pax": lambda: pax(comment="x" * 1000),
    "pax size": lambda: pax(size=str(1 << 50)),
    "pax negative size": lambda: pax(size="-1024"),
    "pax path": lambda: pax(path="../../x"),
    "pax sparse": lambda: pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}),
    "gnu long name": gnu_long,
    "after the end": lambda: pack(made.package()) + archive(("evil", b"1")),
    "zeros after the end": lambda: pack(made.package()) + bytes(1_000_000),
    "nothing": lambda: b"",
    "zeros": lambda: bytes(10_240),
    "text": lambda: b"name = 'v'" * 1000,
    "gzip": lambda: b"\x1f\x8b" + bytes(2000),
    "zip": lambda: b"PK\x03\x04" + bytes(2000),
    "no spec": lambda: archive((HEAD, made.head())),
    "wrong checksum": lambda: b"V" + pack(made.package())[1:],
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(case: str) -> None:
    with pytest.raises(PackageRejected) as caught:
        unpack(HOSTILE[case]())
    assert caught.value.field == "package"
    assert "fmplex pack" in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("cut", [1, 511, 512, 513, 600, 1023, 1024, 2000])
def test_cut_off(cut: int) -> None:
    blob = pack(made.package())
    with pytest.raises(PackageRejected):
        unpack(blob[:cut])


@given(st.integers(0))
def test_cut_off_anywhere_is_refused_or_whole(cut: int) -> None:
    """tar pads with zeros: what is cut of those, nobody misses."""
    package = made.package()
    blob = pack(package)
    with contextlib.suppress(PackageRejected):
        assert unpack(blob[: cut % len(blob)]) == package


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "(whole)"),
        (b"{", "(whole)"),
        (b"[]", "(whole)"),
        (b"\xff", "(whole)"),
        (json.dumps(SPEC | {"wieght": 1}).encode(), "wieght"),
        (json.dumps(SPEC | {"weight": 0}).encode(), "weight"),
        (json.dumps(SPEC | {"name": "../x"}).encode(), "name"),
        (b"[" * 100_000, "(whole)"),
    ],
)
def test_a_wrong_spec_names_its_key(content: bytes, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        unpack(archive(("vfm.json", content)))
    assert caught.value.field == field
    assert caught.value.message.startswith("vfm.json: ")


def test_what_no_package_may_hold_no_archive_may(tmp_path: Path) -> None:
    with pytest.raises(PackageRejected, match="remove"):
        unpack(archive(spec_member(), (HEAD, made.head())))
    with pytest.raises(PackageRejected, match="needs"):
        unpack(archive(spec_member(head={"kind": "regression"})))


@given(st.integers(0), st.integers(0, 255))
@example(0, 0)
def test_one_wrong_byte_is_refused_or_is_another_package(at: int, value: int) -> None:
    """Never a crash, and never what was packed under a digest that is not its own."""
    package = made.package()
    blob = bytearray(pack(package))
    at %= len(blob)
    blob[at] = value
    try:
        read = unpack(bytes(blob))
    except InvalidInput:
        return
    same = dict(read.files) == dict(package.files) and read.spec.outputs == package.spec.outputs
    assert (read.digest == package.digest) == (same and read.spec.backbone == package.spec.backbone)


@given(st.binary(max_size=3000))
def test_any_bytes(blob: bytes) -> None:
    with pytest.raises(InvalidInput):
        unpack(blob)
