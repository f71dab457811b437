"""docs/reference says what the commands and the models say today."""

from __future__ import annotations

import json

import pytest

from deployments.reference import commands, pages
from lobstertrap.cli.app import run
from lobstertrap.cli.checkout import find_checkout
from lobstertrap.cli.shapes import SHAPES, meanings, sections

REFERENCE = find_checkout() / "docs" / "reference"


def test_what_is_committed_is_what_the_code_says() -> None:
    made = pages()

    assert {page.name for page in REFERENCE.iterdir()} == made.keys()
    for name, text in made.items():
        assert (REFERENCE / name).read_text() == text, f"{name}: run `make reference`"


def test_every_command_has_an_example_of_itself() -> None:
    for name, command in commands().items():
        assert f"lobstertrap {name}" in command.help, name
        assert "Example" in command.help, name


def test_every_command_that_shows_something_can_give_it_as_json() -> None:
    text_by_nature = {"cat", "export", "logs", "manifests", "open", "schema", "demo"}

    without = {
        name
        for name, command in commands().items()
        if "--json" not in {flag for one in command.params for flag in one.opts}
    }

    assert without <= text_by_nature


@pytest.mark.parametrize("shape", SHAPES)
def test_every_field_of_a_file_is_explained(shape, capsys) -> None:
    assert run(["schema", shape]) == 0

    told = json.loads(capsys.readouterr().out)
    for section in sections(SHAPES[shape]):
        assert meanings(section).keys() >= section.model_fields.keys()
        node = told["$defs"].get(section.__name__, told)
        assert all(field["description"] for field in node["properties"].values())
