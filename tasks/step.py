"""What every step shares: how it is retried, and how it opens what it works on."""

from __future__ import annotations

import functools
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from lobstertrap import config
from lobstertrap.errors import LobsterTrapError, Transient
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.redaction import redactor
from tasks.secret_blocks import read_block

log = logging.getLogger("lobstertrap.steps")
"""What a step has done, in words: the run's log, and the command line, show it."""

P = ParamSpec("P")
R = TypeVar("R")


def _may_pass(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Say whether a failed step may succeed later; a crash is not tried again."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, Transient)


def step(*, task_run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a Prefect task that is tried again only when its error is transient."""
    as_task: Callable[[Callable[P, R]], Task[P, R]] = task(
        task_run_name=task_run_name,
        cache_policy=NO_CACHE,  # the journal in the store is the truth, not a cache
        persist_result=False,
        retries=3,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_pass,
    )

    def make(work: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(work)
        def without_secrets(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return work(*args, **kwargs)
            except BaseException as error:
                redactor.clean(error)  # Prefect stores its text
                raise

        return as_task(without_secrets)

    return make


def run_name(template: str, **left_out: str) -> Callable[[], str]:
    """Return what names a flow's runs: the template without what was left out.

    `migrate {agent} -> {to}` is `migrate tally` where `to` is the only other target;
    `left_out` says what a parameter that was not given is called instead.
    """

    def name() -> str:
        given = flow_run.get_parameters()
        known = {k: v or left_out.get(k, "") for k, v in given.items()}
        text = template.format_map(defaultdict(str, known))
        return " ".join(text.removesuffix("-> ").replace("()", "").split())

    return name


def load_config() -> config.Config:
    """Load lobstertrap.toml from the working directory upwards."""
    return config.load(Path.cwd(), os.environ, {"prefect": read_block})


def open_handle(agent: str, operation: str) -> AgentHandle:
    """Return what a step of `operation` needs to act on `agent`.

    The process that holds the agent uses its handle in every step: opening a store and
    a target anew each time would cost seconds in which the agent is down.
    """
    held = _held.get(operation)
    return held or load_config().resume_hold(agent, operation)


_held: dict[str, AgentHandle] = {}
"""By operation: what this process holds."""


@contextmanager
def hold(agent: str, kind: str) -> Iterator[str]:
    """Hold the agent for one flow run, and give the operation's id to its steps."""
    with watched(), load_config().hold(agent, kind) as handle:
        operation = handle.lease.operation_id
        _held[operation] = handle
        try:
            yield operation
        finally:
            del _held[operation]


@contextmanager
def watched() -> Iterator[None]:
    """Let a flow run's log show what its steps do, no secret, and what to do next."""
    log.setLevel(logging.INFO)
    redactor.watch_loggers(
        "lobstertrap.steps", "prefect.flow_runs", "prefect.task_runs", "lobstertrap"
    )
    try:
        yield
    except BaseException as error:
        redactor.clean(error)  # Prefect stores its text
        # It shows the message, and nothing else of an error.
        if isinstance(error, LobsterTrapError) and error.hint:
            get_run_logger().error("what to do: %s", error.hint)
        raise
