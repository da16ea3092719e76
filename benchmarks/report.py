"""What a benchmark leaves: a line of JSON for each run, and tables for a terminal and for README."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

LINE = 40  # characters that a cell of a table has at most in one line of a terminal
MISSED = 3  # exit status of a benchmark that measured all, and found something not as promised


@dataclass
class Results:
    """Files `NAME.jsonl`, `NAME.md`, `NAME.svg` in one directory, written anew by every run of the benchmark.

    With `resumed` the lines of an earlier run stay, and are in `lines`; of a run of another tree (`machine.tree`),
    where `tree` says which one is wanted, they do not.
    """

    directory: Path
    name: str
    console: Console
    tables: list[str] = field(default_factory=list)
    resumed: bool = False
    lines: list[dict[str, Any]] = field(default_factory=list)
    tree: str = ""

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.path(".jsonl")
        if self.resumed and file.exists():
            # Without its end, what was being written when the earlier run was stopped is no line.
            whole = file.read_text().rpartition("\n")[0].splitlines(keepends=True)
            lines = [json.loads(line) for line in whole]
            if not self.tree or trees_of(lines) <= {self.tree}:
                self.lines = lines
                file.write_text("".join(line.rstrip("\n") + "\n" for line in whole))
                return
            file.write_text("")
        else:
            file.write_text("")

    def path(self, suffix: str) -> Path:
        return self.directory / (self.name + suffix)

    def line(self, **fields: object) -> None:
        with self.path(".jsonl").open("a") as file:
            file.write(json.dumps(fields) + "\n")

    def text(self, text: str) -> None:
        self.console.print(text, highlight=False)
        self.tables.append(text)
        self._write()

    def table(self, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for index, head in enumerate(heads):
            widest = max(map(len, [head, *(row[index] for row in rows)]))
            table.add_column(head, justify="right" if index else "left", no_wrap=widest <= LINE)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        rule = ["---", *["---:"] * (len(heads) - 1)]
        self.tables.append("\n".join([f"**{title}**", "", *map(_row, [heads, rule, *rows])]))
        self._write()

    def picture(self, svg: str) -> None:
        self.path(".svg").write_text(svg)

    def _write(self) -> None:
        self.path(".md").write_text(f"# {self.name}\n\n" + "\n\n".join(self.tables) + "\n")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of the rounds."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        if self.low == self.high:
            return format(self.middle, spec)
        return f"{self.middle:{spec}} ({self.low:{spec}}–{self.high:{spec}})"


def trees_of(lines: Sequence[Mapping[str, Any]]) -> set[str]:
    """The trees that the lines of some results are of."""
    return {line["machine"].get("tree", "") for line in lines if "machine" in line}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that `share` (0 to 1) of them do not exceed: nearest rank, nothing in between is made up."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def machine_line(machine: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in machine.items())
