"""Parameters of a statement that is put together: no value ever stands in its text. Pure."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Compiled:
    """SQL and the values of its parameters, in the order of their numbers."""

    sql: str
    parameters: list[Any]


class Parameters:
    """Numbers values from `first` on."""

    def __init__(self, first: int = 1) -> None:
        self._first = first
        self.values: list[Any] = []

    def add(self, value: Any, type_: str) -> str:
        """`$7::text` for a value of a PostgreSQL type."""
        self.values.append(value)
        return f"${self._first + len(self.values) - 1}::{type_}"

    def compiled(self, sql: str) -> Compiled:
        return Compiled(sql, self.values)
