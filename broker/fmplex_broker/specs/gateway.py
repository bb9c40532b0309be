"""The specification of a gateway: where it listens, how much it takes, and which API keys it knows. Pydantic; TOML on disk.

A key shows in no text that is made here: neither in an error nor in a `repr`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.schema import Label, Name, Spec

Scope: TypeAlias = Literal["infer", "deploy", "admin"]
Page: TypeAlias = Literal["metrics", "docs"]
ANONYMOUS = "anonymous"  # who asks where no keys are asked for
_UNNAMED = "api_keys"
_SHORTEST, _LONGEST = 8, 1024
_CHARACTERS = re.compile(r"[!-~]*")  # what every header carries as it is


def _wrong_with(key: str) -> str | None:
    """Say what is wrong with a key, without showing it; None if nothing is."""
    if not _CHARACTERS.fullmatch(key):
        return "a key is made of printable ASCII characters without spaces"
    if not _SHORTEST <= len(key) <= _LONGEST:
        return f"a key has {_SHORTEST} to {_LONGEST} characters"
    return None


def _checked(key: SecretStr) -> SecretStr:
    if wrong := _wrong_with(key.get_secret_value()):
        raise PydanticCustomError("api_key", wrong)
    return key


Key = Annotated[SecretStr, AfterValidator(_checked)]


class KeySpec(Spec):
    """An API key, and what its holder may do.

    Give the `key` itself, or a `key_file` that holds nothing else (the end of its line does not count). `scopes`: "infer" calls
    vFMs; "deploy" makes, changes and removes them; "admin" does everything, with every vFM. `models`: patterns (`*`, `?`, `[…]`)
    of the names of vFMs that it may use.
    """

    name: Name
    key: Key | None = None
    key_file: Path | None = None
    scopes: frozenset[Scope] = Field(min_length=1)
    models: tuple[Label, ...] = Field(default=("*",), min_length=1)

    @field_validator("models")
    @classmethod
    def _admins_use_all(cls, models: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if models != ("*",) and "admin" in info.data.get("scopes", ()):
            raise PydanticCustomError(
                "models", "an admin may use every vFM; leave models out, or give scopes without admin"
            )
        return models

    @model_validator(mode="after")
    def _one_key(self) -> KeySpec:
        if (self.key is None) == (self.key_file is None):
            raise PydanticCustomError("api_key", "give either key, or key_file")
        return self


class GatewaySpec(Spec):
    """The HTTP server. Loopback by default; with `keys` or `api_keys` calls need `Authorization: Bearer`.

    `api_keys` have no names: they are admins' keys. `public`: pages that need no key all the same, `metrics` (which names all
    vFMs) and `docs`.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    api_keys: tuple[Key, ...] = ()
    keys: tuple[KeySpec, ...] = ()
    public: frozenset[Page] = frozenset()
    max_body_bytes: int = Field(default=33_554_432, ge=1024)
    max_package_bytes: int = Field(default=536_870_912, ge=1024)
    max_file_bytes: int = Field(default=209_715_200, ge=1024)

    @model_validator(mode="after")
    def _names_differ(self) -> GatewaySpec:
        first: dict[str, int] = {}
        for i, key in enumerate(self.keys):
            if key.name == ANONYMOUS or key.name.startswith(f"{_UNNAMED}."):
                raise _wrong_at(("keys", i, "name"), "keys without a name are called that; give it another")
            if (other := first.setdefault(key.name, i)) != i:
                raise _wrong_at(("keys", i, "name"), f"gateway.keys.{other} has this name too; give it another")
        return self

    @model_validator(mode="after")
    def _secrets_differ(self) -> GatewaySpec:
        places: list[tuple[tuple[str | int, ...], SecretStr | None]] = [
            *(((_UNNAMED, i), key) for i, key in enumerate(self.api_keys)),
            *((("keys", i, "key"), key.key) for i, key in enumerate(self.keys)),
        ]
        first: dict[SecretStr, tuple[str | int, ...]] = {}
        for at, secret in places:
            if secret is not None and (other := first.setdefault(secret, at)) != at:
                where = ".".join(str(part) for part in ("gateway", *other))
                raise _wrong_at(at, f"{where} is the same key; give everybody one of their own")
        return self

    def located(self, base: Path) -> GatewaySpec:
        """Return the spec with the places of its key files: relative ones are relative to `base`, `~/file` to the home folder."""
        keys = tuple(
            key.model_copy(update={"key_file": base / _at_home(key.key_file)}) if key.key_file else key
            for key in self.keys
        )
        return self.model_copy(update={"keys": keys})


def _wrong_at(place: tuple[str | int, ...], what: str) -> ValidationError:
    """Make the error that names a place further inside than the validator that raises it."""
    details = InitErrorDetails(type=PydanticCustomError("api_key", what), loc=place, input=None)
    return ValidationError.from_exception_data("gateway", [details])


def _at_home(path: Path) -> Path:
    return path.expanduser() if path.parts[:1] == ("~",) else path


def read_keys(spec: GatewaySpec) -> list[tuple[KeySpec, SecretStr]]:
    """Return all keys of a gateway, each with its secret; those in files are read. `api_keys` are admins, `api_keys.0` and so on.

    Raises `InvalidInput` naming the `key_file` that cannot be read, holds no key, or holds one that is another's too.
    """
    found = [
        (KeySpec(name=f"{_UNNAMED}.{i}", key=key, scopes=frozenset({"admin"})), key)
        for i, key in enumerate(spec.api_keys)
    ]
    found += [(key, key.key) for key in spec.keys if key.key is not None]
    owners = {secret: key.name for key, secret in found}
    for i, key in enumerate(spec.keys):
        if key.key_file is not None:
            field = f"gateway.keys.{i}.key_file"
            secret = _read(key.key_file, field)
            if (other := owners.setdefault(secret, key.name)) != key.name:
                raise InvalidInput(f"{field}: {other!r} has the same key; give everybody one of their own", field=field)
            found.append((key, secret))
    return found


def _read(path: Path, field: str) -> SecretStr:
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST + 3)
    except (OSError, ValueError) as e:  # no such file, or no such name
        raise InvalidInput(f"{field}: it cannot be read ({e}); check the path and its permissions", field=field) from e
    text = raw.decode("ascii", "replace").rstrip("\r\n")
    if wrong := _wrong_with(text):
        raise InvalidInput(f"{field}: {wrong}, and {path} holds something else", field=field)
    return SecretStr(text)
