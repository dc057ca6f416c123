"""The table of tables and figures, for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mplus_cli.evaluation.report import Table
from mplus_cli.reproduction.entry import PAPERS, Entry
from mplus_cli.reproduction.found import Found
from mplus_cli.reproduction.rates import Rate

_LARGE, _PLACES = 1e9, 4  # from where powers of ten are shown; most decimal places
STATES = {
    "yes": "reproducible with the tools and the weights",
    "partly": "in part, or otherwise; the row says why",
    "no": "not with the tools; the row says why",
    "drawing": "shows no result",
}


def overview(chosen: Sequence[Entry], found: Found) -> Table:
    """One line for each table and figure."""
    width = max(len(entry.id) for entry in chosen)
    rows = []
    for entry in chosen:
        compared = sum(bool(found.numbers(value.ours)) for value in entry.values)
        memory = f"{entry.memory_mb / 1e3:.0f} GB" if entry.memory_mb else "-"
        values = f"{compared} of {len(entry.values)}" if entry.values else "-"
        rows.append([f"{entry.id.ljust(width)}  {entry.title}", entry.state, memory, values])
    return Table("tables and figures of both papers", ["", "reproducible", "GPU memory", "ours beside published"], rows)


def details(entry: Entry, found: Found, rate: Rate) -> list[str]:
    """Everything about one table or figure but its numbers, as lines of `name: text`."""
    lines = [f"data: {command}" for command in entry.data]
    lines += [f"run: {command}" for command in entry.commands]
    needs = [f"weights {', '.join(entry.weights)}"] if entry.weights else []
    needs += [f"a GPU with {entry.memory_mb / 1e3:.0f} GB (published)"] if entry.memory_mb else []
    lines += [f"needs: {'; '.join(needs)}"] if needs else []
    time = rate.time(entry)
    lines += [f"time: {time}"] if time else []
    lines += [f"note: {entry.why}"] if entry.why else []
    return lines


def values(entry: Entry, found: Found) -> Table | None:
    """Published numbers and ours; None where the paper prints none."""
    if not entry.values:
        return None
    if entry.values[0].column:
        return _grid(entry, found)
    rows, printed = [], _printed(entry)
    for value in entry.values:
        text = "; ".join(f"{one.text} ({one.model})" for one in found.numbers(value.ours))
        rows.append([value.row, printed(value.published), text or "-"])
    return Table(f"{entry.id}: published and ours", ["", "published", "ours"], rows)


def _grid(entry: Entry, found: Found) -> Table:
    """The table as it is published, below each of its rows ours: one line for every model and folder."""
    columns = list(dict.fromkeys(value.column for value in entry.values))
    rows: list[list[str]] = []
    printed = _printed(entry)
    for name in dict.fromkeys(value.row for value in entry.values):
        of = {value.column: value for value in entry.values if value.row == name}
        rows.append([name, *(printed(of[column].published) if column in of else "-" for column in columns)])
        ours = {column: found.numbers(of[column].ours) for column in of}
        for source, model in {one.source: one.model for numbers in ours.values() for one in numbers}.items():
            cells = {column: one.text for column, numbers in ours.items() for one in numbers if one.source == source}
            rows.append([f"  ours, {model}", *(cells.get(column, "-") for column in columns)])
    return Table(f"{entry.id}: published and ours", ["", *columns], rows)


def markdown(chosen: Sequence[Entry], found: Found, rate: Rate) -> str:
    """The whole table as one document."""
    parts = ["# Reproduction of M+ and MemoryLLM", overview(chosen, found).markdown()]
    parts.append("\n".join(f"- {state}: {text}" for state, text in STATES.items()))
    parts.append(f"Times are by {rate.source}.")
    for entry in chosen:
        parts.append(f"## {entry.paper} ({PAPERS[entry.paper]}), {entry.place}: {entry.title}")
        shell = [*entry.data, *entry.commands]
        if shell:
            parts.append("\n".join(["```sh", *shell, "```"]))
        rest = [line for line in details(entry, found, rate) if not line.startswith(("data: ", "run: "))]
        if rest:
            parts.append("\n".join(f"- {line}" for line in rest))
        table = values(entry, found)
        if table is not None:
            parts.append(table.markdown())
    return "\n\n".join(parts) + "\n"


def as_json(chosen: Sequence[Entry], found: Found, rate: Rate) -> dict[str, Any]:
    """The same as plain JSON."""
    rows = []
    for entry in chosen:
        row = asdict(entry) | {"id": entry.id, "time": rate.time(entry)}
        row["values"] = [
            {
                "row": value.row,
                "column": value.column,
                "published": value.published,
                "measured": value.ours is not None,
                "ours": [asdict(one) for one in found.numbers(value.ours)],
            }
            for value in entry.values
        ]
        rows.append(row)
    return {"papers": PAPERS, "rate": asdict(rate), "entries": rows}


def _printed(entry: Entry) -> Callable[[float], str]:
    """Writes the published numbers of a table, all with as many places as the longest of them."""
    numbers = [value.published for value in entry.values]
    if max(numbers) >= _LARGE:
        return lambda value: f"{value:.2e}"
    places = max(len(f"{value:.{_PLACES}f}".rstrip("0").partition(".")[2]) for value in numbers)
    return lambda value: f"{value:,.{places}f}"
