"""Step: stop a copy that came back after its agent was taken over."""

from __future__ import annotations

from lobstertrap import takeover
from lobstertrap.errors import LobsterTrapError
from tasks.step import load_config, log, step


@step(task_run_name="stop the old copy of {agent} on {target}")
def stop_old_copy(agent: str, target: str) -> int | None:
    """Return the epoch of the copy that was stopped; that it fails is a warning."""
    config = load_config()
    try:
        with config.hold(agent, "stop an old copy", repository=False) as handle:
            epoch = takeover.stop_old_copy(handle, target)
    except LobsterTrapError as error:  # the next look tries again
        log.warning("%s: the old copy on %s still runs: %s", agent, target, error)
        return None
    if epoch is not None:
        log.warning(
            "%s: stopped an old copy on %s (epoch %d), which had come back; what it "
            "wrote since is in its volumes there",
            *(agent, target, epoch),
        )
    return epoch
