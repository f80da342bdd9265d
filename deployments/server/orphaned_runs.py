"""Mark the flow runs of dead workers as crashed, before the work pool's only worker starts.

When a worker is killed, its flow runs die without reporting it. Prefect would list them as running forever,
and they would count towards the pool's concurrency limit.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from httpx import HTTPError

from lexloom.deployments.server.register import POOL
from lexloom.flows.command import error_message

ACTIVE_STATES = ("PENDING", "RUNNING", "CANCELLING")


def main(argv: list[str] | None = None) -> int:
    """Mark the runs; return the exit status."""
    from prefect.client.orchestration import get_client

    build_parser().parse_args(argv)
    try:
        with get_client(sync_client=True) as client:
            mark_crashed(client)
    except (OSError, HTTPError) as error:
        print(f"error: {error_message(error)}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="python -m lexloom.deployments.server.orphaned_runs")


def mark_crashed(client: Any) -> None:
    """Mark all active runs as crashed, or as cancelled if they were being cancelled."""
    from prefect.states import Cancelled, Crashed

    message = "The worker of this run has ended. Run it again to resume after its finished stages."
    while found := read_runs(client, ACTIVE_STATES):  # the server returns at most 200
        for run in found:
            end = Cancelled if run.state.is_cancelling() else Crashed
            client.set_flow_run_state(run.id, end(message=message), force=True)


def read_runs(client: Any, states: Sequence[str], limit: int | None = None) -> list[Any]:
    """Return the pool's runs in these states, the latest first."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    found: list[Any] = client.read_flow_runs(
        work_pool_filter=filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[POOL])),
        flow_run_filter=filters.FlowRunFilter(
            state=filters.FlowRunFilterState(
                type=filters.FlowRunFilterStateType(any_=[StateType(state) for state in states])
            )
        ),
        sort=FlowRunSort.START_TIME_DESC,
        limit=limit,
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
