"""The real flows and tasks, run by a process of the small world without Prefect.

The code of flows/ and tasks/ runs as it is: only the names by which it reaches Prefect
and the configuration lead somewhere else. So the order tested is the flows' own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType, SimpleNamespace
from typing import Any

from prefect import Flow, Task

from flows.launch_agent import launch_agent
from flows.migrate_agent import migrate_agent
from flows.restore_agent import restore_agent
from flows.snapshot_agent import snapshot_agent
from lobstertrap import lifecycle
from lobstertrap.errors import Transient
from tests.chaos.parts import Process
from tests.chaos.world import AGENT

SILENT: dict[str, Any] = {
    "live_progress": lambda what: nullcontext(),
    **dict.fromkeys(
        ("create_markdown_artifact", "show_markdown", "show_table", "tell", "tell_all"),
        lambda *args, **kwargs: None,
    ),
}
"""What would reach Prefect's server, by the names that steps have for it."""

TRIES = 2
"""How often a step with a transient error is done; tasks/step.py says 4."""


def migrate(process: Process, to: str) -> dict[str, Any]:
    """Run `lobstertrap migrate ada --to TO`."""
    return _flow(process, migrate_agent)(AGENT.name, to)


def abort(process: Process) -> dict[str, Any]:
    """Run `lobstertrap migrate ada --abort`."""
    return _flow(process, migrate_agent)(AGENT.name, abort=True)


def launch(process: Process, on: str) -> dict[str, Any]:
    """Run `lobstertrap launch ada --on ON`."""
    return _flow(process, launch_agent)(on, AGENT.name)


def snapshot(process: Process) -> dict[str, Any]:
    """Run `lobstertrap snapshot ada`."""
    return _flow(process, snapshot_agent)(AGENT.name)


def restore(process: Process, to: str, snapshot: str) -> dict[str, Any]:
    """Run `lobstertrap restore ada --to TO --snapshot SNAPSHOT`."""
    return _flow(process, restore_agent)(to, AGENT.name, snapshot)


def take_over(process: Process, to: str, snapshot: str) -> dict[str, Any]:
    """Run `lobstertrap restore ada --to TO --snapshot SNAPSHOT --takeover`."""
    return _flow(process, restore_agent)(to, AGENT.name, snapshot, takeover=True)


def stop(process: Process) -> None:
    """Run `lobstertrap stop ada`, as cli/running.py does."""
    with hold(process, AGENT.name, "stop") as operation:
        handle = process.handle(operation)
        if handle.record().migration is not None:
            lifecycle.refuse_unfinished(handle)
        lifecycle.stop(handle, handle.home())


def remove(process: Process, on: str, *, volumes: bool = False) -> str | None:
    """Run `lobstertrap remove ada --on ON`, with `--volumes --yes` when asked."""
    process.world.given_up |= volumes
    with hold(process, AGENT.name, "remove") as operation:
        return lifecycle.remove(process.handle(operation), on, volumes=volumes)


@contextmanager
def hold(process: Process, agent: str, kind: str) -> Iterator[str]:
    """Hold the agent as tasks/step.py does, without its thread that renews."""
    lease = process.acquire(kind)
    try:
        yield lease.operation_id
    finally:
        process.lease = None
        lease.release()


def _flow(process: Process, flow: Flow[Any, Any]) -> Callable[..., Any]:
    names: dict[str, Any] = {
        name: _step(process, value)
        for name, value in flow.fn.__globals__.items()
        if isinstance(value, Task)
    }
    names["watched"] = nullcontext
    names["hold"] = lambda agent, kind: hold(process, agent, kind)
    return rebind(flow.fn, names)


def _step(process: Process, task: Task[Any, Any]) -> Callable[..., Any]:
    function = rebind(
        task.fn,
        {
            "open_handle": lambda agent, operation: process.handle(operation),
            "load_config": _Repository,
            **SILENT,
        },
    )

    def step(*args: Any, **kwargs: Any) -> Any:
        for _ in range(TRIES - 1):
            try:
                return function(*args, **kwargs)
            except Transient:
                process.sleep(1)
        return function(*args, **kwargs)

    return step


class _Repository:
    """Finds every snapshot by its full id."""

    def open_repository(self) -> _Repository:
        return self

    def find(self, snapshot: str, agent: str) -> SimpleNamespace:
        return SimpleNamespace(id=snapshot, agent=agent, created_at=0.0)

    def snapshot_names(self, agent: str) -> list[str]:
        return []


def rebind(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """Return a copy of `function` and of its module's others, which see `names`."""
    function = inspect.unwrap(function)  # what a step is wrapped in is about Prefect
    scope = {**function.__globals__}
    for name, value in function.__globals__.items():
        if isinstance(value, FunctionType) and value.__module__ == function.__module__:
            scope[name] = _copy(value, scope)
    scope.update(names)
    return _copy(function, scope)


def _copy(function: Any, scope: dict[str, Any]) -> Callable[..., Any]:
    copy = FunctionType(
        function.__code__,
        scope,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
