import pytest

from lobstertrap.prefect_plugin import complete


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("deployment run migrate-agent", "deployment run migrate-agent/default"),
        ("deployment run snapshot-agent", "deployment run snapshot-agent/scheduled"),
        ("deployments run launch-agent", "deployments run launch-agent/default"),
        (
            "--profile p deployment run --param to=b migrate-agent --watch",
            "--profile p deployment run --param to=b migrate-agent/default --watch",
        ),
        (
            "deployment run --watch migrate-agent",
            "deployment run --watch migrate-agent/default",
        ),
        (
            "deployment run --name restore-agent",
            "deployment run --name restore-agent/default",
        ),
    ],
)
def test_a_bare_flow_name_means_its_deployment(typed, meant):
    assert complete(typed.split()) == meant.split()


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "deployment",
        "deployment run",
        "deployment run migrate-agent/default",
        "deployment run migrate-agent/other --tag migrate-agent",
        "deployment run --tag migrate-agent --flow-run-name migrate-agent",
        "deployment run something-else",
        "flow-run ls --flow-name migrate-agent",
        "deployment inspect migrate-agent",
    ],
)
def test_every_other_command_is_left_alone(typed):
    assert complete(typed.split()) == typed.split()
