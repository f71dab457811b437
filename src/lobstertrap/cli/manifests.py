"""What a launch would apply to a cluster, for people who review first: `manifests`."""

from __future__ import annotations

from typing import Annotated

import typer

from lobstertrap.cli import complete
from lobstertrap.cli.running import Agent, load_config
from lobstertrap.errors import InvalidInput


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(manifests)


def manifests(
    agent: Agent,
    target: Annotated[
        str,
        typer.Option(
            "--on",
            "--target",
            metavar="TARGET",
            autocompletion=complete.targets,
            help="A Kubernetes target.",
        ),
    ],
) -> None:
    """Print the YAML that launching an agent on a cluster applies; no secret values.

    The agent's image is built and pushed, as a launch would, because its digest is in
    the YAML; nothing is made in the cluster.
    Example: lobstertrap manifests tally --on cluster
    """
    import yaml  # noqa: PLC0415 - only here

    from lobstertrap.targets.kubernetes import KubernetesTarget  # noqa: PLC0415

    config = load_config()
    spec, opened = config.agent(agent), config.target(target)
    if not isinstance(opened, KubernetesTarget):
        raise InvalidInput(
            f"target '{target}' is not a Kubernetes target",
            hint='name one with kind = "kubernetes"',
        )
    image = opened.ensure_image(spec)
    documents = opened.manifests(spec, image=image)
    typer.echo(yaml.safe_dump_all(documents, sort_keys=False), nl=False)
