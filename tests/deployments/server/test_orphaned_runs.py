"""Active runs of a killed worker are ended when the next worker starts; other runs are not changed."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.states import State

from lexloom.deployments.server.orphaned_runs import mark_crashed
from lexloom.deployments.server.register import POOL

ENDS = {
    "PENDING": "CRASHED",
    "RUNNING": "CRASHED",
    "CANCELLING": "CANCELLED",
    "SCHEDULED": "SCHEDULED",
    "COMPLETED": "COMPLETED",
}


@pytest.fixture(scope="module")
def client(prefect_server: None) -> Iterator[Any]:
    with get_client(sync_client=True) as client:
        yield client


@flow
def some_flow() -> None: ...


def test_runs_of_a_dead_worker_are_marked_as_crashed_with_a_reason(client: Any) -> None:
    client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    deployment = client.create_deployment(client.create_flow(some_flow), "one", work_pool_name=POOL)
    runs = {}
    for state in ENDS:
        runs[state] = client.create_flow_run_from_deployment(deployment).id
        for step in ("RUNNING", state):  # one that has not begun is cancelled without a worker
            client.set_flow_run_state(runs[state], State(type=StateType(step)), force=True)
    mark_crashed(client)
    found = {state: client.read_flow_run(run).state for state, run in runs.items()}
    assert {state: end.type.value for state, end in found.items()} == ENDS
    for state in ("PENDING", "RUNNING", "CANCELLING"):
        assert str(found[state].message).startswith("The worker of this run has ended. Run it again")
