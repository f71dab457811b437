"""Runs real migrations in processes that die when they are told to.

Started once (`python -m tests.chaos.driver`), because the imports cost seconds; for
each line of JSON on its standard input it forks a process that runs the code of
flows/migrate_agent.py, without Prefect, on the lobstertrap.toml of its directory:

    {"agent": "tally", "to": "server", "abort": false, "kill": ["stop_source", "after"]}

It answers with the process's id when it starts, and with how it ended. With "suspend"
the process stops itself (SIGSTOP) when it has written the epoch: on a host before it
launches, on Podman when its container is made and the fence has let it pass. Before the
step "mark" it makes a file, and takes away the one that "hide" names.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import Task

from flows.migrate_agent import migrate_agent
from lobstertrap import lease
from lobstertrap.errors import Transient
from lobstertrap.targets.host import HostTarget
from lobstertrap.targets.podman import PodmanTarget
from tasks import step
from tests.chaos.commands import SILENT, rebind

log = logging.getLogger("chaos")

PAUSES = (0.5, 1.0, 2.0)
"""Seconds before a step with a transient error is tried again, as in tasks/step.py."""

STEPS = (
    "check_plan",
    "begin_migration",
    "stage_destination",
    "precopy_state",
    "stop_source",
    "transfer_state",
    "launch_destination",
    "await_destination",
    "commit_migration",
    "retire_source",
)
"""The steps of a migration in the flow's order."""


MARK = "mark"
"""The file that a process makes when it begins the step that it was told."""
AWAY = ".away"
"""What the name of a file that it hides gets."""


def main() -> None:
    """Serve requests until the input ends."""
    step.get_run_logger = lambda: log  # type: ignore[assignment]
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(request))
        _say({"pid": child})
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _say({"status": status})


def _run(request: dict[str, Any]) -> int:
    try:
        if request.get("suspend"):
            _suspend_before_launch()
        if request.get("machine"):
            lease._kernel = lambda: request["machine"]
        receipt = _flow(request)(request["agent"], request["to"], request["abort"])
        _say({"receipt": receipt})
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _suspend_before_launch() -> None:
    for kind, name in ((HostTarget, "launch"), (PodmanTarget, "_start")):
        setattr(kind, name, _late(getattr(kind, name)))


def _late(method: Callable[..., None]) -> Callable[..., None]:
    def late(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        method(*args, **kwargs)

    return late


def _flow(request: dict[str, Any]) -> Callable[..., Any]:
    names = {
        name: _step(name, value, request)
        for name, value in migrate_agent.fn.__globals__.items()
        if isinstance(value, Task)
    }
    return rebind(migrate_agent.fn, names)


def _step(name: str, task: Task[Any, Any], request: dict[str, Any]) -> Any:
    function, kill = rebind(task.fn, SILENT), request.get("kill")

    def run(*args: Any, **kwargs: Any) -> Any:
        if request.get("mark") == name:
            if request.get("hide"):
                Path(request["hide"]).rename(request["hide"] + AWAY)
            Path(MARK).touch()
        if kill == [name, "before"]:
            os.kill(os.getpid(), signal.SIGKILL)
        result = _again(function, args, kwargs)
        if kill == [name, "after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return run


def _again(function: Any, args: Any, kwargs: Any) -> Any:
    for pause in PAUSES:
        try:
            return function(*args, **kwargs)
        except Transient as error:
            log.warning("tried again: %s", error)
            time.sleep(pause)
    return function(*args, **kwargs)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
