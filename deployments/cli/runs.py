"""The latest runs of Lexloom's flows, from Prefect's records.

They are read from the server that PREFECT_API_URL (or Prefect's profile) names. Without one, they are read
from Prefect's database file on this machine, since starting a server takes seconds.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from httpx import HTTPError, HTTPStatusError
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterStartTime,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import get_current_settings
from pydantic import BaseModel

from lexloom.flows.command import error_message

PATIENCE_SECONDS = 5.0
SQLITE = "sqlite+aiosqlite:///"
LATEST = """
    select flow.name as flow, run.name as name, run.state_name as state, run.start_time as started,
           run.end_time as ended, state.message as message
    from flow_run as run join flow on flow.id = run.flow_id
         left join flow_run_state as state on state.id = run.state_id
    where run.start_time is not null and flow.name in ({})
    order by run.start_time desc limit ?
"""


class FlowRun(BaseModel):
    """One run of a flow."""

    flow: str
    name: str
    state: str
    started: datetime
    ended: datetime | None
    message: str | None


def latest_runs(flows: Sequence[str], limit: int) -> tuple[str, list[FlowRun]]:
    """Return where runs are recorded, and the latest `limit` runs of these flows, latest first.

    Raises:
        OSError: the server does not respond or rejects the login, or the database can't be read.
    """
    settings = get_current_settings()
    if settings.api.url is not None:
        return str(settings.api.url), ask_server(str(settings.api.url), flows, limit)
    address = settings.server.database.connection_url
    given = str(address.get_secret_value()) if address is not None else ""
    if not given.startswith(SQLITE):
        raise OSError("Prefect's database is not a local SQLite file: set PREFECT_API_URL to its server")
    file = Path(given.removeprefix(SQLITE).partition("?")[0])
    return str(file), read_database(file, flows, limit)


def ask_server(url: str, flows: Sequence[str], limit: int) -> list[FlowRun]:
    named = FlowFilter(name=FlowFilterName(any_=list(flows)))
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": PATIENCE_SECONDS}) as client:
            runs = client.read_flow_runs(
                flow_filter=named,
                flow_run_filter=FlowRunFilter(start_time=FlowRunFilterStartTime(is_null_=False)),
                sort=FlowRunSort.START_TIME_DESC,
                limit=limit,
            )
            ids = list({run.flow_id for run in runs})
            found = client.read_flows(flow_filter=FlowFilter(id=FlowFilterId(any_=ids))) if ids else []
    except (HTTPError, RuntimeError) as error:
        if isinstance(error, HTTPStatusError) and error.response.status_code == 401:
            raise OSError(error_message(error)) from error
        raise OSError(
            f"the Prefect server at {url} does not respond ({error}): check PREFECT_API_URL"
        ) from error
    names = {flow.id: flow.name for flow in found}
    return [
        FlowRun(
            flow=names[run.flow_id],
            name=run.name,
            state=run.state_name or "",
            started=run.start_time,
            ended=run.end_time,
            message=run.state.message if run.state else None,
        )
        for run in runs
        if run.start_time
    ]


def read_database(file: Path, flows: Sequence[str], limit: int) -> list[FlowRun]:
    if not file.exists():
        return []
    query = LATEST.format(", ".join("?" for _ in flows))
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            rows: list[Any] = database.execute(query, [*flows, limit]).fetchall()
    except sqlite3.Error as error:
        raise OSError(f"Prefect's database {file} can't be read ({error})") from error
    return [
        FlowRun.model_validate(
            {**row, "started": in_utc(row["started"]), "ended": in_utc(row["ended"])}, strict=False
        )
        for row in rows
    ]


def in_utc(text: str | None) -> datetime | None:
    """Parse a timestamp of the database, which is in UTC."""
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC)
