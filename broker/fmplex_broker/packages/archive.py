"""A package as one blob, for the wire and for the artifact store: a plain tar of `vfm.json` and the package's files.

The same package always gives the same bytes. Reading trusts nothing: only the names below, only regular files, and the
package is checked and its digest computed anew.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from fmplex_broker.errors import PackageRejected, TooLarge
from fmplex_broker.packages.package import FILES, Data, Package, make_package, read_package
from fmplex_broker.specs.schema import invalid
from fmplex_broker.specs.vfm import VfmSpec

MEDIA_TYPE = "application/x-tar"
SUFFIX = ".fmplex"
_SPEC = "vfm.json"
# Bytes of a spec. It is read by every gateway and worker; with all the labels that a fleet has ever seen it has a few thousand.
MAX_SPEC_BYTES = 4_194_304


def pack(package: Package) -> bytes:
    """Write a package as an archive: the same package always gives the same bytes. Raises `PackageRejected` for a spec that is
    too long."""
    out = io.BytesIO()
    write_archive(package, out)
    return out.getvalue()


def write_archive(package: Package, out: IO[bytes]) -> None:
    """Write a package as `pack` does, into a file; its files are not copied in memory."""
    spec, size = _bounded_spec(package.spec.model_dump_json().encode()), 0
    for name, data in {_SPEC: spec, **package.files}.items():
        member = tarfile.TarInfo(name)  # owner, times and modes are tarfile's fixed defaults
        member.size = len(data)
        for part in (member.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % tarfile.BLOCKSIZE)):
            out.write(part)
            size += len(part)
    out.write(bytes(2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))


def unpack(blob: bytes | memoryview, limit: int | None = None) -> Package:
    """Read an archive; the files of the package are parts of a `blob` that is a view, else copies.

    Raises `PackageRejected` or `InvalidInput` (what is wrong with it), `TooLarge`: more than `limit` bytes.
    """
    if limit is not None and len(blob) > limit:
        raise TooLarge(f"the package has {len(blob)} bytes, at most {limit} are taken (gateway.max_package_bytes)")
    files = _members(blob)
    if _SPEC not in files:
        raise _rejected(f"the archive holds no {_SPEC}")
    try:
        spec = VfmSpec.model_validate_json(_bounded_spec(bytes(files.pop(_SPEC))))
    except ValidationError as e:
        raise invalid(e, _SPEC) from None
    return make_package(spec, files)


def open_package(path: Path) -> Package:
    """Read the package at a path: a folder, or an archive that `pack` has made. Raises as `read_package` and `unpack` do."""
    try:
        archived = path.is_file()
        blob = path.read_bytes() if archived else b""
    except (OSError, ValueError) as e:
        raise PackageRejected(f"{str(path)!r} cannot be read ({e}); check the path", field="package") from e
    return unpack(blob) if archived else read_package(path)


def _members(blob: bytes | memoryview) -> dict[str, Data]:
    """Split an archive into name → content. It takes only what `pack` writes: plain headers in a row, each with its file, then
    nothing but zeros.

    The headers are walked here, because `tarfile` would follow extensions (sparse files, pax records) that make much of little.
    """
    files: dict[str, Data] = {}
    at = 0
    while (header := bytes(blob[at : at + tarfile.BLOCKSIZE])).strip(b"\0"):
        try:
            member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as e:
            raise _rejected(f"not an archive that can be read ({e})") from e
        start, at = at + tarfile.BLOCKSIZE, at + tarfile.BLOCKSIZE * (1 - -member.size // tarfile.BLOCKSIZE)
        if member.name not in (_SPEC, *FILES) or member.type != tarfile.REGTYPE:
            raise _rejected(f"the archive holds {member.name[:64]!r}, which no package has")
        if member.name in files:
            raise _rejected(f"the archive holds {member.name} twice")
        if member.size < 0 or at > len(blob):
            raise _rejected("the archive is cut off")
        files[member.name] = blob[start : start + member.size]
    # `tarfile` pads to whole records; whatever is beyond would only be carried about.
    if not header or len(blob) - at > 2 * tarfile.RECORDSIZE or bytes(blob[at:]).strip(b"\0"):
        raise _rejected("the archive is cut off" if not header else "the archive goes on after its end")
    return files


def _bounded_spec(spec: bytes) -> bytes:
    if len(spec) > MAX_SPEC_BYTES:
        raise PackageRejected(
            f"{_SPEC} has {len(spec)} bytes, at most {MAX_SPEC_BYTES} are taken; give the vFM fewer labels or shorter ones",
            field="package",
        )
    return spec


def _rejected(what: str) -> PackageRejected:
    return PackageRejected(f"{what}; give a package folder, or an archive that `fmplex pack` has made", field="package")
