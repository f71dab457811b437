"""What agents/openclaw says, without OpenClaw itself: its spec, template and image."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from lobstertrap.agent import load_agent
from lobstertrap.image import context_entries
from tests.fixtures.openclaw import AGENT
from tests.openclaw.base import version

TEMPLATE = json.loads((AGENT / "openclaw.json").read_text("utf-8"))


def secrets_in(value: Any, key: str = "") -> Iterator[Any]:
    """Yield what stands where OpenClaw keeps a secret."""
    if isinstance(value, dict) and key not in {"token", "apiKey"}:
        for name, below in value.items():
            yield from secrets_in(below, name)
    elif key in {"token", "apiKey", "password"}:
        yield value


def test_the_template_has_references_to_the_specs_secrets_and_no_value() -> None:
    spec = load_agent(AGENT / "agent.yaml")

    found = list(secrets_in(TEMPLATE))

    assert {ref["id"] for ref in found} == set(spec.secrets)
    for ref in found:
        assert ref == {"source": "env", "provider": "default", "id": ref["id"]}


def test_the_spec_the_containerfile_and_the_template_agree() -> None:
    spec = load_agent(AGENT / "agent.yaml")
    containerfile = (AGENT / "Containerfile").read_text("utf-8")

    assert spec.build is not None
    assert spec.build.args == {"OPENCLAW": version()}
    assert f"USER {spec.security.user}:{spec.security.group}" in containerfile
    assert not re.search(r"^(VOLUME|HEALTHCHECK)\b", containerfile, re.MULTILINE)
    assert spec.port("gateway").port == TEMPLATE["gateway"]["port"]
    home = re.search(r"HOME=(\S+)", containerfile)
    assert home is not None
    assert [v.path for v in spec.volumes] == [f"{home[1]}/.openclaw"]


def test_every_command_of_the_spec_is_in_the_image() -> None:
    spec = load_agent(AGENT / "agent.yaml")
    programs = AGENT / "bin"
    assert spec.verify is not None
    ours = [spec.snapshot.before[0], spec.snapshot.after[0]]
    ours += [words[0] for words in spec.verify.commands if words[0] != "openclaw"]

    assert {f"bin/{name}" for name in ours} <= {e.name for e in context_entries(spec)}
    assert all(os.access(programs / name, os.X_OK) for name in ours)
