"""An agent's secrets: `secrets` shows where they are and rotates them; `preflight`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.output import AsJson, print_json, print_result, print_table
from lobstertrap.cli.running import Agent, load_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lobstertrap.config import Config
    from lobstertrap.inference import Preset
    from lobstertrap.repository import Repository


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (secrets, preflight):
        app.command()(command)


def secrets(
    agent: Agent,
    rotate: Annotated[
        bool,
        typer.Option(
            "--rotate", help="Bind what the references say now, and restart the agent."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where an agent's secrets are, or bind them anew; never a value.

    For every secret: whether its reference resolves here, and for every target whether
    it is there and the one that the reference gives now. Rotate after a key was changed
    at its provider. Example: lobstertrap secrets ada --rotate
    """
    config = load_config()
    config.agent(agent)
    if rotate:
        print_result(_rotate(config, agent), as_json=as_json)
        return
    report = _survey(config, agent)
    if as_json:
        print_json(report)
        return
    rows = [
        [
            row["name"],
            row["ref"],
            row["problem"] or "resolves",
            *(row["on"][target] for target in config.target_names),
        ]
        for row in report["secrets"]
    ]
    print_table(["secret", "reference", "here", *config.target_names], rows)


def preflight(
    agent: Agent,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="Where it is to run.",
        ),
    ],
    test_keys: Annotated[
        bool,
        typer.Option(
            "--test-keys",
            help="Ask every inference provider of the agent whether its key is good.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check what launching an agent on a target needs; changes nothing.

    Without --test-keys nobody but the target is asked; with it, each inference
    provider that the spec names gets one request that costs nothing.
    Example: lobstertrap preflight tally --on cluster --test-keys
    """
    from lobstertrap.errors import Refused  # noqa: PLC0415 - not for --help

    checks = _preflight(load_config(), agent, on, test_keys=test_keys)
    bad = [check["check"] for check in checks if not check["ok"]]
    if as_json:
        print_json({"agent": agent, "target": on, "ok": not bad, "checks": checks})
    else:
        rows = [[c["check"], "ok" if c["ok"] else "NOT OK", c["said"]] for c in checks]
        print_table(["check", "", "what was found"], rows)
    if bad and as_json:
        raise typer.Exit(Refused.exit_code)
    if bad:
        raise Refused(
            f"'{agent}' is not ready for '{on}': {', '.join(bad)}",
            hint="mend what the lines above say",
        )


def _rotate(config: Config, agent: str) -> dict[str, Any]:
    from lobstertrap import binding  # noqa: PLC0415 - not for --help
    from lobstertrap.cli import watch  # noqa: PLC0415

    with watch.shown(), config.hold(agent, "rotate secrets") as handle:
        status = binding.rotate(handle)
        target = handle.home()
    names = [*config.agent(agent).secrets]
    return {
        "agent": agent,
        "target": target,
        "phase": status.phase,
        "epoch": status.epoch,
        "secrets": names,
    }


def _survey(config: Config, agent: str) -> dict[str, Any]:
    from functools import partial  # noqa: PLC0415 - not for --help

    from lobstertrap import binding  # noqa: PLC0415
    from lobstertrap.lease import read_record  # noqa: PLC0415

    spec = config.agent(agent)
    rows = binding.survey(
        spec,
        config.look_up_secrets(spec, _open_repository(config)),
        read_record(config.open_store(), agent),
        {name: partial(config.target, name) for name in config.target_names},
    )
    return {"agent": agent, "secrets": [asdict(row) for row in rows]}


def _open_repository(config: Config) -> Repository | None:
    """Open the repository if that can be done: without it nothing can be compared."""
    from lobstertrap.errors import LobsterTrapError  # noqa: PLC0415 - not for --help

    with suppress(LobsterTrapError):
        return config.open_repository()
    return None


def _preflight(
    config: Config, agent: str, on: str, *, test_keys: bool
) -> list[dict[str, Any]]:
    from lobstertrap.errors import LobsterTrapError  # noqa: PLC0415 - not for --help
    from lobstertrap.secrets.key_trial import try_key  # noqa: PLC0415

    spec = config.agent(agent)
    checks: list[dict[str, Any]] = []

    def add(check: str, *, ok: bool, said: str) -> None:
        checks.append({"check": check, "ok": ok, "said": said})

    try:
        info = config.target(on).inspect()
        said = "; ".join([info.version, info.platform, *info.notes])
        add(f"target {on}", ok=True, said=said)
    except LobsterTrapError as error:
        add(f"target {on}", ok=False, said=error.message)
    found = config.look_up_secrets(spec)
    for name, ref in spec.secrets.items():
        problem = found.problems.get(name, "")
        said = "is to be on the target" if ref.source == "target" else "resolves"
        add(f"secret {name}", ok=not problem, said=problem or f"{ref} {said}")
    section = config.require_target(on)
    if section.kind == "kubernetes":
        for used in spec.inference:
            rules = [*section.egress, *spec.egress]
            ok, said = _way_to(used.preset, rules)
            add(f"way to {used.preset.name}", ok=ok, said=said)
    for used in spec.inference if test_keys else ():
        preset = used.preset
        key = found.values.get(preset.env)
        if key is None:
            add(f"key of {preset.name}", ok=False, said="its value is not known here")
        else:
            trial = try_key(preset, key)
            add(f"key of {preset.name}", ok=trial.accepted, said=trial.said)
    return checks


def _way_to(preset: Preset, rules: Sequence[str]) -> tuple[bool, str]:
    """Say whether a NetworkPolicy with these rules can let an agent reach a provider.

    Rules have addresses and a provider has a name, so only ports are compared.
    """
    from lobstertrap.agent import split_egress  # noqa: PLC0415 - not for --help

    where = preset.hosts[0]
    if preset.block is not None:
        return True, f"the NetworkPolicy lets it reach {where}"
    if {split_egress(rule)[1] for rule in rules} & {None, preset.port}:
        return True, f"egress has a rule for port {preset.port}, of {where}"
    return False, f"no egress of the agent or of the target can mean {where}"
