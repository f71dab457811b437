"""What a command reports: one JSON object, or text that fits the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from lobstertrap.cli.text import duration, printable, size

_NO_LIMIT = 10_000
"""Columns that no table needs."""


def _remember(context: typer.Context, wanted: bool) -> bool:
    """Let an error be reported as JSON too; see `lobstertrap.cli.app.run`."""
    context.ensure_object(dict)["json"] = wanted
    return wanted


AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object.", callback=_remember),
]


def print_json(value: Mapping[str, Any]) -> None:
    """Print exactly one JSON object, on one line."""
    print(json.dumps(value, default=str))  # noqa: T201 - this is the command line


def print_result(value: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what an operation returned: its fields, with sizes and times readable."""
    if as_json:
        print_json(value)
        return
    rows = [*_fields("", value)]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")  # noqa: T201 - this is the command line


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their headings: aligned lines, or what fits the terminal."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_on_terminal(columns, cells)
        return
    lines = [columns, *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())  # noqa: T201 - this is the command line


def _print_on_terminal(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, or a block for each row where even its words do not fit."""
    from rich.console import Console  # noqa: PLC0415 - rich only on a terminal
    from rich.measure import Measurement  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=sys.stdout, markup=False, highlight=False)
    unlimited = console.options.update(width=_NO_LIMIT)
    if Measurement.get(console, unlimited, table).minimum <= console.width:
        console.print(table)
        return
    width = max(map(len, columns))
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if cell not in ("", "-"):
                print(f"{column:<{width}}  {cell}")  # noqa: T201 - the command line
        print()  # noqa: T201


def _fields(prefix: str, value: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            rows += _fields(f"{prefix}{name} ", item)
        elif item not in (None, "", [], ()):
            label = f"{prefix}{name}".replace("_", " ").removesuffix(" seconds")
            rows.append((printable(label), _shown(name, item)))
    return rows


def _shown(name: str, item: object) -> str:
    number = isinstance(item, int | float) and not isinstance(item, bool)
    if number and "bytes" in name.split("_"):
        return size(float(str(item)))
    if number and (name.endswith("seconds") or name == "downtime"):
        return duration(float(str(item)))
    if number and name.endswith("_at"):
        when = datetime.fromtimestamp(float(str(item)), tz=UTC).astimezone()
        return when.isoformat(" ", "seconds")
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, list | tuple):
        return "; ".join(printable(part) for part in item)
    return printable(item)
