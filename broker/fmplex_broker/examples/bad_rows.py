"""What is wrong with the rows of a file, as far as one error can name it. Pure."""

from __future__ import annotations

from fmplex_broker.errors import InvalidInput

SHOWN = 10  # things named in one error


class BadRows:
    """What is wrong with the bad rows of a file: the first ten, and how many more there are."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._many = 0

    def add(self, place: str, wrong: str) -> None:
        """Note a bad row."""
        self._many += 1
        if self._many <= SHOWN:
            self._told.append(f"{place}: {wrong}")

    def check(self, name: str) -> None:
        """Raise `InvalidInput` (field `data`) if the file `name` has any."""
        if self._many:
            more = [f"(and {self._many - SHOWN} more)"] if self._many > SHOWN else []
            raise InvalidInput(f"{name}: {self._many} bad line(s)\n" + "\n".join([*self._told, *more]), field="data")
