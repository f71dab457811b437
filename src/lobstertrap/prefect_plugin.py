"""A plugin for Prefect's own command: a bare flow name means its deployment.

`prefect deployment run` wants FLOW/DEPLOYMENT. With it (entry point group
`prefect.plugins`, switched on in pyproject.toml) `prefect deployment run migrate-agent`
works too. Prefect calls it when it is imported, which is before it reads its arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath

from prefect.plugins import HookContext, register_hook

DEPLOYMENTS = {
    "launch-agent": "default",
    "maintain-repository": "weekly",
    "migrate-agent": "default",
    "migrate-fleet": "default",
    "restore-agent": "default",
    "snapshot-agent": "scheduled",
    "watch-agents": "every-ten-minutes",
}
"""The deployment that a bare flow name means; prefect.yaml has them all."""

_FLAGS = {"--watch", "--no-watch"}


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Complete a bare name in this process's arguments, if it is `prefect`."""
    del ctx
    if PurePath(sys.argv[0]).name in ("prefect", "-m"):
        sys.argv[1:] = complete(sys.argv[1:])


def complete(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `deployment run NAME` as `NAME/DEPLOYMENT`."""
    done = list(arguments)
    expects_value = ""
    for place in range(_after_run(done), len(done)):
        word = done[place]
        if expects_value not in ("", "--name"):
            expects_value = ""
        elif word.startswith("-"):
            expects_value = "" if "=" in word or word in _FLAGS else word
        else:
            if word in DEPLOYMENTS:
                done[place] = f"{word}/{DEPLOYMENTS[word]}"
            break
    return done


def _after_run(arguments: Sequence[str]) -> int:
    """Return the place of the first argument of `deployment run`, or the end."""
    for place, pair in enumerate(pairwise(arguments)):
        if pair[0] in ("deployment", "deployments") and pair[1] == "run":
            return place + 2
    return len(arguments)
