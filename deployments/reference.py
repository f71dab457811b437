"""Writes docs/reference: every command and every field, as the code has them now.

    make reference

tests/unit/test_reference.py fails when what is committed says anything else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from lobstertrap.cli.app import app
from lobstertrap.cli.shapes import SHAPES, meanings, sections

_NOTE = "<!-- Written by `make reference`; edit the source instead. -->"
_INTRODUCTION = (
    "What `lobstertrap COMMAND --help` says, on one page. [cli.md](../cli.md) has exit "
    "codes, the fields of `--json` and how output looks."
)
_EXAMPLES = re.compile(r"\s*Examples?: (?P<lines>.*)", re.DOTALL)
Command = Any  # typer has a click of its own, without public types
_WIDTH = 200
"""No usage line is broken, whatever terminal this runs in."""

_TYPES = {"str": "text", "int": "number", "float": "number", "bool": "true or false"}


def main() -> int:
    """Write every page into the directory that is named."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - this program and a directory
        print("usage: reference.py DIRECTORY")
        return 2
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, "utf-8")
        print(directory / name)
    return 0


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {
        "commands.md": commands_page(),
        "agent-yaml.md": shape_page(
            "agent.yaml", "agent", "[agents.md](../agents.md) explains them."
        ),
        "lobstertrap-toml.md": shape_page(
            "lobstertrap.toml",
            "config",
            "[configuration.md](../configuration.md) explains them.",
        ),
    }


def commands() -> dict[str, Command]:
    """Return every command by what is typed, such as `key add`."""
    program = typer.main.get_command(app)
    return dict(_commands("", program))


def _commands(prefix: str, group: Command) -> Iterator[tuple[str, Command]]:
    found = getattr(group, "commands", None)
    if found is None:
        yield prefix, group
        return
    for name, command in found.items():
        yield from _commands(f"{prefix} {name}".strip(), command)


def commands_page() -> str:
    """Return the page of all commands."""
    parts = [
        "# Every command",
        _NOTE,
        _INTRODUCTION,
    ]
    for name, command in commands().items():
        parts += command_section(name, command)
    return "\n\n".join(parts) + "\n"


def command_section(name: str, command: Command) -> Iterator[str]:
    """Yield the paragraphs of one command."""
    whole = f"lobstertrap {name}"
    context = command.make_context(
        whole, [], resilient_parsing=True, terminal_width=_WIDTH
    )
    yield f"## {name}"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```"
    said = (command.help or "").replace("\f", "").strip()
    examples = _EXAMPLES.search(said)
    yield said[: examples.start()].strip() if examples else said
    rows = [_parameter(one, context) for one in command.params]
    yield _table(("argument or option", "meaning"), [row for row in rows if row])
    if examples:
        yield "```sh\n" + "\n".join(_lines(examples["lines"])) + "\n```"


def _lines(text: str) -> list[str]:
    return [line.strip() for line in " ".join(text.split()).split(";")]


def _parameter(one: Any, context: Any) -> tuple[str, str] | None:
    record = one.get_help_record(context)
    if record is None:
        return None
    name, said = record
    return f"`{name.partition(' <')[0]}`", said.replace("[required]", "").strip()


def shape_page(title: str, shape: str, more: str) -> str:
    """Return the page of a file's fields, a table for each section."""
    parts = [
        f"# Every field of {title}",
        _NOTE,
        f"{more} `lobstertrap schema {shape}` prints the same as a JSON Schema.",
    ]
    found = sections(SHAPES[shape])
    for section in found:
        parts += [f"## {section.__name__}", *_section(section, set(found))]
    return "\n\n".join(parts) + "\n"


def _section(section: type[BaseModel], known: set[type[BaseModel]]) -> Iterator[str]:
    yield re.sub(r"\s+", " ", section.__doc__ or "").strip()
    said = meanings(section)
    yield _table(
        ("field", "kind", "without it", "meaning"),
        [
            (
                f"`{field.alias or name}`",
                _written(field) or _kind(field.annotation, known),
                _default(field),
                said[name],
            )
            for name, field in section.model_fields.items()
        ],
    )


def _kind(annotation: Any, known: set[type[BaseModel]]) -> str:
    """Return what a value looks like, in words, with links to sections of the page."""
    if annotation in known:
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if hasattr(annotation, "__metadata__"):
        return _kind(annotation.__origin__, known)
    kinds = [_kind(part, known) for part in parts if part is not type(None)]
    if origin is list:
        return f"list of {kinds[0]}"
    if origin is dict:
        return f"name -> {kinds[1]}"
    return " or ".join(kinds) or _TYPES[annotation.__name__]


def _written(field: FieldInfo) -> str | None:
    """Return examples of a value that is written in another way than it is kept."""
    for one in field.metadata:
        if isinstance(one, WithJsonSchema):
            examples = (one.json_schema or {})["examples"]
            return "such as " + ", ".join(f"`{example}`" for example in examples)
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if value in (None, [], {}):
        return "-"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if _written(field):
        shown = f"{value:g}s" if isinstance(value, float) else f"{value / 2**30:g}Gi"
        return f"`{shown}`"
    return f"`{value}`"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main())
