"""Published numbers: bench/papers/published.csv, a row each, with how sure we are of it."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from bench.errors import BenchError

PAPERS = Path(__file__).parent / "papers"
CERTAINTIES = ("noted", "repository", "recalled")  # in notes on the paper; in a public repository or page; in nobody's
UNCHECKED = "† not checked against the paper; no verdict rests on it"


class PublishedError(BenchError, ValueError):
    """A file of published numbers that cannot be used."""


@dataclass(frozen=True)
class Published:
    """One number as published; `value` as written, which may hold ~ or <."""

    group: str
    place: str
    paper: str
    data: str
    method: str
    setting: str
    metric: str
    value: str
    unit: str
    certainty: str
    source: str

    @property
    def dagger(self) -> str:
        """As `dagger`."""
        return dagger(self.certainty)

    def __str__(self) -> str:
        return f"{self.who}, {self.data}: {self.metric} {self.shown}"

    @property
    def who(self) -> str:
        """Method and setting, as the paper names them."""
        return ", ".join(part for part in (self.method, self.setting) if part)

    @property
    def shown(self) -> str:
        """The value with its unit and, where it was recalled, a dagger."""
        unit = "" if self.unit == "-" else f" {self.unit}"
        return f"{self.value}{unit}{self.dagger}"


def dagger(certainty: str) -> str:
    """A dagger on what was recalled rather than read."""
    return " †" if certainty == "recalled" else ""


@cache
def published(path: Path = PAPERS / "published.csv") -> tuple[Published, ...]:
    """Every row, in the order of the file.

    Raises:
        PublishedError: other columns than those of `Published`, or a certainty that is none of `CERTAINTIES`.
    """
    names = [field.name for field in fields(Published)]
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise PublishedError(f"{path}: columns {reader.fieldnames}; they want to be {names}")
        rows = tuple(Published(**row) for row in reader)
    for line, row in enumerate(rows, 2):
        if row.certainty not in CERTAINTIES:
            raise PublishedError(f"{path}, line {line}: certainty '{row.certainty}'; allowed: {', '.join(CERTAINTIES)}")
    return rows


def of_groups(groups: Iterable[str]) -> list[Published]:
    """The rows of some groups, group by group."""
    return [row for group in groups for row in published() if row.group == group]
