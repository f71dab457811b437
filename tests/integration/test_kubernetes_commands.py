"""Commands in an agent's pod: with the right to it, and without."""

from __future__ import annotations

import gc

import pytest

from lobstertrap.agent import load_agent
from lobstertrap.errors import AccessDenied, NotFound, TimedOut
from lobstertrap.redaction import SecretValue
from tests.fixtures.cluster import Namespace
from tests.fixtures.tally import AGENT, TOKEN

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.podman,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


def test_commands_run_in_the_pod_only_with_the_right_to_it(
    namespace: Namespace,
) -> None:
    spec = load_agent(AGENT / "agent.yaml")
    target = namespace.open()
    secrets = {"TALLY_TOKEN": SecretValue(TOKEN)}
    assert not target.inspect().commands
    with pytest.raises(NotFound, match="does not run on 'there'"):
        target.run_command(spec, ["true"], seconds=60)
    image = target.ensure_image(spec)
    target.bind_secrets(spec, secrets)
    target.launch(spec, epoch=1, image=image, secrets=secrets)
    pod = "pod/lobstertrap-tally-0"
    namespace.kubectl("wait", "--for=condition=Ready", pod, "--timeout=240s")

    with pytest.raises(AccessDenied, match="commands may not be run") as denied:
        target.run_command(spec, ["true"], seconds=60)
    namespace.allow_commands()
    said = target.run_command(spec, ["sh", "-c", "id -u; exit 3"], seconds=60)
    with pytest.raises(TimedOut, match="sleep did not end within"):
        target.run_command(spec, ["sleep", "60"], seconds=0.5)
    gc.collect()  # a connection that was left open would be found now
    target.stop(spec)
    target.remove(spec, volumes=True)

    assert "role-commands.yaml" in str(denied.value.hint)
    assert said == (3, "1000\n")
