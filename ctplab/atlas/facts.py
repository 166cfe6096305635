"""The embedded world's facts: tables in ``data/atlas/*.csv``, sentence templates in ``data/atlas/*.toml``.

A *fact* is one non-empty cell: (table, name, attribute) -> value, e.g. (countries, Peru, capital) -> Lima.
Everything else in the embedded world (three registers of text, the questions) is generated from these facts.
"""

import csv
import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from ctplab.disk import data_dir

REGISTERS = ("web", "wiki", "news")


@dataclass(frozen=True)
class Fact:
    """One cell of one table."""

    table: str
    name: str
    attribute: str
    value: str

    @property
    def held_out(self) -> bool:
        """True for the half of the facts that no training text states as a question with its answer."""
        key = f"{self.table}/{self.name}/{self.attribute}".encode()
        return hashlib.sha256(key).digest()[0] % 2 == 0


@dataclass(frozen=True)
class Table:
    """One topic: its entities with their attributes, and how each attribute is put into words."""

    key: str
    noun: str
    plural: str
    facts: tuple[Fact, ...]
    templates: dict[str, dict[str, tuple[str, ...]]]  # attribute -> question | web | wiki | news -> templates

    @cached_property
    def seen(self) -> tuple[Fact, ...]:
        """The facts that training text also asks about."""
        return tuple(fact for fact in self.facts if not fact.held_out)

    @cached_property
    def entities(self) -> dict[str, tuple[Fact, ...]]:
        """Facts by entity name, in the table's order."""
        grouped: dict[str, list[Fact]] = {}
        for fact in self.facts:
            grouped.setdefault(fact.name, []).append(fact)
        return {name: tuple(facts) for name, facts in grouped.items()}


def read_table(path: Path) -> Table:
    """Read ``path`` (a .csv) and the .toml beside it."""
    words = tomllib.loads(path.with_suffix(".toml").read_text(encoding="utf-8"))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    facts = tuple(
        Fact(path.stem, row["name"], attribute, value)
        for row in rows
        for attribute, value in row.items()
        if attribute != "name" and value
    )
    templates = {
        attribute: {kind: tuple(lines) for kind, lines in section.items()}
        for attribute, section in words.items()
        if isinstance(section, dict)
    }
    return Table(path.stem, words["noun"], words["plural"], facts, templates)


@cache
def tables() -> tuple[Table, ...]:
    """All tables, sorted by file name."""
    return tuple(read_table(path) for path in sorted(data_dir().glob("*.csv")))


@cache
def facts() -> tuple[Fact, ...]:
    """All facts, in the tables' order."""
    return tuple(fact for table in tables() for fact in table.facts)
