"""Make the automations of a Prefect server: dead runs end, and problems are told.

Run it again at any time: what is there already is changed, and nothing is made twice.

    export PREFECT_API_URL=http://127.0.0.1:4200/api
    python deployments/automations.py --webhook https://example.com/hook
    python deployments/automations.py --block slack-webhook/operators

Without either, only dead runs are ended. `--webhook` gets a JSON object with `subject`
and `text` by POST; `--block` is any notification block that the server has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events import AutomationCore, EventTrigger, Posture
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict

Teller = Callable[[str, str], CallWebhook | SendNotification]
"""Makes the action that tells a subject and a text."""

PREFIX = "lobstertrap: "
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = [f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Crashed")]
ENDS += ["prefect.flow-run.Cancelled", "prefect.flow-run.Suspended"]
WEBHOOK = "lobstertrap"
"""The name of the block that keeps the webhook's address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One kind of problem, and which events say that there is one."""

    name: str
    events: tuple[str, ...]
    subject: str
    text: str
    tag: str = ""
    """Of the runs that it is about; none for events of our own."""

    def trigger(self, quiet: timedelta) -> EventTrigger:
        """Return what fires at once, and then not again for `quiet` about the same."""
        role = {"prefect.resource.role": "tag"}
        related = {**role, "prefect.resource.id": f"prefect.tag.{self.tag}"}
        return EventTrigger(
            expect=set(self.events),
            match_related=related if self.tag else {},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=quiet,
        )


FAILED = ("prefect.flow-run.Failed", "prefect.flow-run.Crashed")
_RUN = "{{ flow_run.name }}: {{ flow_run.state.message }}"
_AGENT = "{{ event.resource.name }}"
ALARMS = (
    Alarm(
        name="a snapshot failed",
        events=FAILED,
        tag="snapshot",
        subject="A snapshot failed",
        text=_RUN,
    ),
    Alarm(
        name="a migration failed",
        events=FAILED,
        tag="migrate",
        subject="A migration failed",
        text=_RUN,
    ),
    Alarm(
        name="the upkeep failed",
        events=FAILED,
        tag="maintain",
        subject="The check of the repository failed",
        text=_RUN,
    ),
    Alarm(
        name="no fresh snapshot",
        events=("lobstertrap.agent.stale",),
        subject=f"{_AGENT} has no fresh snapshot",
        text="The last one is {{ event.payload.age_hours }} hours old.",
    ),
    Alarm(
        name="drift",
        events=("lobstertrap.agent.drifted",),
        subject=f"{_AGENT} is not as it should be",
        text="On {{ event.payload.where }}: {{ event.payload.drift }}",
    ),
)


def main() -> int:
    """Make everything and say what was made."""
    asked = _arguments()
    with get_client(sync_client=True) as client:
        wanted = [dead_runs(timedelta(minutes=asked.dead_after))]
        tell = _teller(client, asked)
        if tell is not None:
            quiet = timedelta(hours=asked.quiet)
            wanted += [_told(alarm, quiet, tell) for alarm in ALARMS]
            wanted.append(_told_when_nobody_looks(timedelta(hours=asked.unseen), tell))
        for automation in wanted:
            print(f"{put(client, automation)}: {automation.name}")
        for name in remove_others(client, {one.name for one in wanted}):
            print(f"removed: {name}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    to = parser.add_mutually_exclusive_group()
    to.add_argument("--webhook", metavar="URL", help="tell it by POST")
    to.add_argument("--block", metavar="TYPE/NAME", help="tell this block")
    for name, default, what in (
        ("--dead-after", 10.0, "minutes without a heartbeat until a run is Crashed"),
        ("--quiet", 12.0, "hours until the same problem is told again"),
        ("--unseen", 3.0, "hours without `watch-agents` until that is told"),
    ):
        parser.add_argument(name, type=float, default=default, metavar="N", help=what)
    return parser.parse_args()


def dead_runs(after: timedelta) -> AutomationCore:
    """Return what ends a run that gives no sign of life: its process is gone."""
    return AutomationCore(
        name=f"{PREFIX}end runs whose process is gone",
        description="A flow run sends heartbeats. After the last one, it is Crashed.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDS},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=after,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message="it gave no sign of life; run it again, and it goes on",
            )
        ],
    )


def _told(alarm: Alarm, quiet: timedelta, tell: Teller) -> AutomationCore:
    return AutomationCore(
        name=PREFIX + alarm.name,
        trigger=alarm.trigger(quiet),
        actions=[tell(alarm.subject, alarm.text)],
    )


def _told_when_nobody_looks(after: timedelta, tell: Teller) -> AutomationCore:
    return AutomationCore(
        name=f"{PREFIX}nobody looks",
        trigger=EventTrigger(
            after={"lobstertrap.watched"},
            expect={"lobstertrap.watched"},
            posture=Posture.Proactive,
            threshold=1,
            within=after,
        ),
        actions=[
            tell(
                "Nobody looks at the agents any more",
                "watch-agents has not run: does its runner or worker still run?",
            )
        ],
    )


def _teller(client: SyncPrefectClient, asked: argparse.Namespace) -> Teller | None:
    if asked.webhook:
        json = SecretDict({"Content-Type": "application/json"})
        block = Webhook(url=asked.webhook, headers=json)
        return partial(_call, UUID(str(block.save(WEBHOOK, overwrite=True))))
    if asked.block:
        kind, _, name = asked.block.partition("/")
        try:
            found = client.read_block_document_by_name(name, kind)
        except ObjectNotFound:
            sys.exit(f"the server has no block {asked.block}: make it in the UI first")
        return partial(_send, found.id)
    return None


def _call(block: UUID, subject: str, text: str) -> CallWebhook:
    payload = (
        f"{{% set subject %}}{subject}{{% endset %}}"
        f"{{% set text %}}{text}{{% endset %}}"
        '{"subject": {{ subject | tojson }}, "text": {{ text | tojson }}}'
    )
    return CallWebhook(block_document_id=block, payload=payload)


def _send(block: UUID, subject: str, text: str) -> SendNotification:
    return SendNotification(block_document_id=block, subject=subject, body=text)


def put(client: SyncPrefectClient, automation: AutomationCore) -> str:
    """Make it, or change the one with its name; says which."""
    there = client.read_automations_by_name(automation.name)
    if not there:
        client.create_automation(automation)
        return "made"
    first, *others = there
    for double in others:
        client.delete_automation(double.id)
    automation.enabled = first.enabled  # a person may have switched it off
    client.update_automation(first.id, automation)
    return "kept"


def remove_others(client: SyncPrefectClient, wanted: set[str]) -> Iterator[str]:
    """Delete ours that are not wanted any more, and name them."""
    for automation in client.read_automations():
        if automation.name.startswith(PREFIX) and automation.name not in wanted:
            client.delete_automation(automation.id)
            yield automation.name


if __name__ == "__main__":
    sys.exit(main())
