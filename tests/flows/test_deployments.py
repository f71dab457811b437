"""prefect.yaml: every entrypoint loads for real, and no key is a typing mistake."""

import inspect
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from lobstertrap.cli.checkout import enter_checkout, find_checkout
from lobstertrap.prefect_plugin import DEPLOYMENTS

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "prefect.yaml").read_text())
TEAM = yaml.safe_load((ROOT / "deployments/team/prefect.yaml").read_text())
KEYS = {
    *("name", "flow_name", "entrypoint", "description", "tags", "parameters"),
    *("work_pool", "pull", "schedules", "concurrency_limit"),
}
each_deployment = pytest.mark.parametrize(
    "deployment",
    FILE["deployments"] + TEAM["deployments"],
    ids=lambda d: f"{d['flow_name']}/{d['name']}",
)


def load_flow(deployment):
    return load_flow_from_entrypoint(
        str(ROOT / deployment["entrypoint"]), use_placeholder_flow=False
    )


def test_prefect_yaml_has_no_unknown_key():
    assert FILE.keys() == TEAM.keys() == {"name", "definitions", "deployments"}


@each_deployment
def test_a_deployment_has_no_unknown_key(deployment):
    assert deployment.keys() <= KEYS
    assert deployment["work_pool"].keys() <= {"name", "work_queue_name"}
    for schedule in deployment.get("schedules", []):
        assert schedule.keys() == {"slug", "cron", "timezone"}
    ConcurrencyLimitConfig.model_validate(
        deployment.get("concurrency_limit", {"limit": 1}), extra="forbid"
    )


@each_deployment
def test_an_entrypoint_loads_for_real_and_bears_its_flows_name(deployment):
    assert load_flow(deployment).name == deployment["flow_name"]


@each_deployment
def test_a_deployments_parameters_are_the_flows(deployment):
    known = inspect.signature(load_flow(deployment).fn).parameters

    assert deployment["parameters"].keys() <= known.keys()


@each_deployment
def test_the_form_in_the_ui_explains_every_parameter(deployment):
    schema = parameter_schema(load_flow(deployment))

    assert schema.properties
    assert all(field.get("description") for field in schema.properties.values())


def test_the_form_offers_the_agents_and_targets_that_there_are(monkeypatch):
    monkeypatch.setenv("LOBSTERTRAP_CONFIG", str(ROOT / "lobstertrap.example.toml"))
    deployment = next(
        d for d in FILE["deployments"] if d["flow_name"] == "restore-agent"
    )

    fields = parameter_schema(load_flow(deployment)).properties

    assert fields["to"]["enum"] == ["desk", "laptop"]
    assert "tally" in fields["agent"]["anyOf"][0]["enum"]


def test_without_a_configuration_the_form_takes_any_name(monkeypatch, tmp_path):
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)

    schema = parameter_schema(load_flow(FILE["deployments"][0]))

    assert schema.properties["to"]["anyOf"][0] == {"type": "string"}


def test_a_bare_name_is_known_for_every_flow():
    served = {d["flow_name"]: d["name"] for d in FILE["deployments"]}

    assert served == DEPLOYMENTS


def test_a_team_has_every_flow_in_each_pool_and_one_upkeep():
    served = sorted((d["flow_name"], d["name"]) for d in TEAM["deployments"])
    flows = {d["flow_name"] for d in FILE["deployments"]}
    everywhere = flows - {"maintain-repository", "migrate-fleet"}

    assert all(d["name"] == d["work_pool"]["name"] for d in TEAM["deployments"])
    assert served == sorted(
        [(flow, pool) for flow in everywhere for pool in ("cluster", "laptop")]
        + [("maintain-repository", "cluster"), ("migrate-fleet", "laptop")]
    )


def test_the_pull_step_enters_the_checkout_of_the_machine_where_it_runs():
    assert all(
        d["pull"] == [{"lobstertrap.cli.checkout.enter_checkout": {}}]
        for d in FILE["deployments"] + TEAM["deployments"]
    )
    assert enter_checkout() == {"directory": str(find_checkout())}
    assert (find_checkout() / "flows" / "migrate_agent.py").is_file()
