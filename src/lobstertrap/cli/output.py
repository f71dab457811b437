"""What a command reports: one JSON object, or text that fits the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lobstertrap.cli.text import duration, printable, size

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 10_000
"""Columns when nobody looks: a pipe gets one line for each row."""


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
    """Print rows under their headings; as blocks where the terminal is too narrow."""
    from rich.table import Table  # noqa: PLC0415 - rich only when a table is shown
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column)
    cells = [[printable(cell) for cell in row] for row in rows]
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console = _console()
    if console.measure(table).minimum <= console.width:
        console.print(table)
        return
    width = max(map(len, columns))
    for row in cells:
        for column, cell in zip(columns, row, strict=True):
            if cell:
                print(f"{column:<{width}}  {cell}")  # noqa: T201 - the command line
        print()  # noqa: T201


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - rich only when it is needed

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(file=sys.stdout, width=width, markup=False, highlight=False)


def _fields(prefix: str, value: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            rows += _fields(f"{prefix}{name} ", item)
        elif item not in (None, [], ()):
            label = f"{prefix}{name}".replace("_", " ").removesuffix(" seconds")
            rows.append((printable(label), _shown(name, item)))
    return rows


def _shown(name: str, item: object) -> str:
    number = isinstance(item, int | float) and not isinstance(item, bool)
    if number and name.endswith("bytes"):
        return size(float(str(item)))
    if number and (name.endswith("seconds") or name == "downtime"):
        return duration(float(str(item)))
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, list | tuple):
        return "; ".join(printable(part) for part in item)
    return printable(item)
