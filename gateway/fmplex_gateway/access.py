"""Who asks, and what they may do: an API key is a principal, and every route says what it requires of one.

A vFM that a principal may not use looks exactly like one that is not there.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fastapi import APIRouter, Depends, Request, params
from starlette.types import Scope as RequestScope

from fmplex_broker.errors import Forbidden, Unauthorized
from fmplex_broker.specs.gateway import ANONYMOUS, GatewaySpec, Scope, read_keys
from fmplex_broker.streams.catalog import unknown_vfm

# Paths that never ask for a key, and those that `gateway.public` opens.
_HEALTH = frozenset({"/healthz", "/readyz"})
_PAGES = {"metrics": {"/metrics"}, "docs": {"/docs", "/redoc", "/openapi.json"}}
_DEPLOY: frozenset[Scope] = frozenset({"deploy"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the `name` of their key, its `scopes`, and patterns of the vFMs (`models`) that it may use. An admin may do
    everything."""

    name: str
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ("*",)

    @property
    def admin(self) -> bool:
        """True if nothing is forbidden."""
        return "admin" in self.scopes

    @property
    def uses_all(self) -> bool:
        """True if every vFM may be used, those to come too."""
        return self.admin or "*" in self.models

    @property
    def sees_prompts(self) -> bool:
        """True if what teams have written as prompts may be read: by those who could have written it."""
        return self.has_any(_DEPLOY)

    def has_any(self, scopes: frozenset[Scope]) -> bool:
        """Tell whether one of these scopes is there; an admin has them all."""
        return self.admin or not scopes.isdisjoint(self.scopes)

    def may_use(self, vfm: str) -> bool:
        """Tell whether a vFM of this name may be used."""
        return self.uses_all or any(fnmatchcase(vfm, pattern) for pattern in self.models)


_ANONYMOUS = Principal(ANONYMOUS, frozenset({"admin"}))
_PUBLIC = Principal("public", frozenset())  # who asks for a path that needs no key


class Access:
    """Tells who sends a request, by the keys of a gateway; without any keys everybody is an admin.

    Raises `InvalidInput` when a key cannot be read.
    """

    def __init__(self, spec: GatewaySpec) -> None:
        self._keys = [
            (_digest(secret.get_secret_value().encode()), Principal(key.name, key.scopes, key.models))
            for key, secret in read_keys(spec)
        ]
        self._open = _HEALTH.union(*(_PAGES[page] for page in spec.public))

    def principal(self, scope: RequestScope) -> Principal:
        """Return who sends a request. Raises `Unauthorized`."""
        if not self._keys:
            return _ANONYMOUS
        if scope["path"] in self._open:
            return _PUBLIC
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, given = header.partition(b" ")
        # Every key is compared, in constant time, so that timing reveals nothing. Digests: nor does the length.
        digest = _digest(given)
        found = [who for key, who in self._keys if hmac.compare_digest(digest, key)]
        if scheme.lower() != b"bearer" or not found:
            raise Unauthorized("give an API key: Authorization: Bearer <key>")
        return found[0]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def principal_of(request: Request) -> Principal:
    """Return who sends a request, as the middleware has found out."""
    who: Principal = request.state.principal
    return who


@dataclass(frozen=True, slots=True)
class _Requirement:
    """What a route requires of who calls it: one of `scopes` (none: no particular one), the right to use the vFM in its path if
    there is one, and with `all_models` to use all there are."""

    scopes: frozenset[Scope] = frozenset()
    all_models: bool = False

    async def check(self, request: Request) -> None:
        """Raise `Forbidden` or `UnknownVfm` if the call must not be made. Reads no body."""
        who = principal_of(request)
        if self.scopes and not who.has_any(self.scopes):
            wanted, has = " or ".join(sorted(self.scopes)), ", ".join(sorted(who.scopes))
            raise Forbidden(f"this needs scope {wanted}; the key {who.name!r} has {has}")
        if self.all_models and not who.uses_all:
            raise Forbidden(f"this names every vFM; the key {who.name!r} may use {', '.join(who.models)} only")
        if "name" in request.path_params:
            _require_model(request, request.path_params["name"])


def requires(*scopes: Scope) -> params.Depends:
    """Make the dependency of a route that is for principals with one of these scopes who may use the vFM in its path, `{name}`.

    It is checked before the body is read.
    """
    return _depends(_Requirement(frozenset(scopes)))


def requires_all_models() -> params.Depends:
    """Make the dependency of a route that shows something of every vFM."""
    return _depends(_Requirement(all_models=True))


def _depends(requirement: _Requirement) -> params.Depends:
    made: params.Depends = Depends(requirement.check)
    return made


def _require_model(request: Request, vfm: str) -> None:
    """Check that who asks may use a vFM. Raises `UnknownVfm`, whether or not there is one of that name."""
    if not principal_of(request).may_use(vfm):
        raise unknown_vfm(vfm)


def require_name(who: Principal, vfm: str) -> None:
    """Check that who asks may deploy a vFM under a name of their choice. Raises `Forbidden`, which says what names they may."""
    if not who.may_use(vfm):
        allowed = ", ".join(who.models)
        raise Forbidden(f"{vfm!r} is no name for the key {who.name!r}, which may use {allowed}", field="name")


def check_declared(router: APIRouter) -> None:
    """Raise `RuntimeError` for a route that does not say what it requires, so that none is forgotten."""
    for route in router.routes:
        declared = [given.dependency for given in getattr(route, "dependencies", ())]
        required = any(isinstance(getattr(check, "__self__", None), _Requirement) for check in declared)
        path = getattr(route, "path", str(route))
        if not required and path not in _HEALTH:
            raise RuntimeError(f"{path} does not say who may call it: dependencies=[requires(…)]")
