"""The fields of agent.yaml and lobstertrap.toml, each with what it means."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from lobstertrap.agent import AgentSpec
from lobstertrap.config_file import ConfigFile

SHAPES: dict[str, type[BaseModel]] = {"agent": AgentSpec, "config": ConfigFile}


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a model, with the meaning of every field."""
    made = model.model_json_schema(mode="validation")
    for section in sections(model):
        node = made if section is model else made["$defs"][section.__name__]
        said = meanings(section)
        for name, field in section.model_fields.items():
            shown = node["properties"][field.alias or name]
            shown.setdefault("description", said[name])
    return made


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the model and every model that is used in it, in order, each once."""
    found = [model]
    for section in found:  # which grows while it is walked
        for field in section.model_fields.values():
            found += [m for m in _models(field.annotation) if m not in found]
    return found


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """Return what the source says below each field of a model."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(section)))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    said = {}
    for field, below in pairwise(body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                said[name] = " ".join(text.split())
    return said


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
