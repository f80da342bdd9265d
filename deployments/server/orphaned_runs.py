"""Marks the runs of dead workers as crashed, before the pool's only worker starts.

A worker that is killed takes its runs along, and they could not say so: they would be at work for ever, and
take the places of others.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from httpx import HTTPError

from lexloom.deployments.server.register import POOL
from lexloom.flows.command import error_message

AT_WORK = ("PENDING", "RUNNING", "CANCELLING")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    from prefect.client.orchestration import get_client

    build_parser().parse_args(argv)
    try:
        with get_client(sync_client=True) as client:
            bury_the_dead(client)
    except (OSError, HTTPError) as error:
        print(f"error: {error_message(error)}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="python -m lexloom.deployments.server.orphaned_runs")


def bury_the_dead(client: Any) -> None:
    """All runs at work become crashed, or cancelled where that was asked for."""
    from prefect.states import Cancelled, Crashed

    message = "Its worker has ended. Run it again: it goes on from its finished stages."
    while found := runs(client, AT_WORK):  # a server hands out 200 at most
        for run in found:
            end = Cancelled if run.state.is_cancelling() else Crashed
            client.set_flow_run_state(run.id, end(message=message), force=True)


def runs(client: Any, states: Sequence[str], most: int | None = None) -> list[Any]:
    """The pool's runs in these states, the latest first."""
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
        limit=most,
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
