"""A package as one blob, for the wire and for the artifact store: a plain tar of `vfm.json` and the package's files.

The same package always gives the same bytes. Reading trusts nothing: only the names below, only regular files, and the
package is checked and its version computed anew.
"""

from __future__ import annotations

import io
import tarfile

from pydantic import ValidationError

from fmplex_broker.errors import PackageRejected, TooLarge
from fmplex_broker.packages import FILES, Package, make_package
from fmplex_broker.schema import invalid
from fmplex_broker.specs import VfmSpec

MEDIA_TYPE = "application/x-tar"
SUFFIX = ".fmplex"
_SPEC = "vfm.json"


def pack(package: Package) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {_SPEC: package.spec.model_dump_json().encode(), **package.files}.items():
            member = tarfile.TarInfo(name)  # owner, times and modes are tarfile's fixed defaults
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def unpack(blob: bytes, limit: int | None = None) -> Package:
    """Raises `PackageRejected` or `InvalidInput` (what is wrong with it), or `TooLarge`: more than `limit` bytes."""
    if limit is not None and len(blob) > limit:
        raise TooLarge(f"the package has {len(blob)} bytes, at most {limit} are taken (gateway.max_package_bytes)")
    files = _members(blob)
    if _SPEC not in files:
        raise PackageRejected(f"the archive holds no {_SPEC}; make it with `fmplex pack`", field="package")
    try:
        spec = VfmSpec.model_validate_json(files.pop(_SPEC))
    except ValidationError as e:
        raise invalid(e, _SPEC) from None
    return make_package(spec, files)


def _members(blob: bytes) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(blob), mode="r:") as tar:
            for member in tar:
                # A sparse file of a few bytes may say that it has many gigabytes.
                plain = member.isreg() and not member.issparse()
                if member.name not in (_SPEC, *FILES) or not plain or member.name in files:
                    raise PackageRejected(
                        f"the archive holds {member.name[:64]!r}; make it with `fmplex pack`", field="package"
                    )
                content = tar.extractfile(member)
                files[member.name] = content.read() if content is not None else b""
                if len(files[member.name]) != member.size:
                    raise PackageRejected("the archive is cut off; send it again", field="package")
    except (tarfile.TarError, EOFError, ValueError, OSError, OverflowError, RecursionError) as e:
        raise PackageRejected(
            f"not an archive that `fmplex pack` has made ({e}); give a package folder or such an archive",
            field="package",
        ) from e
    return files
