"""`lexloom serve`: find and load a model, and serve it until Ctrl-C."""

import contextlib
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import uvicorn
from cyclopts import Parameter

from lexloom.deployments.cli.models import Model
from lexloom.deployments.cli.servers import AllowHost, Host
from lexloom.deployments.model_server.app import ENDPOINTS, ServedModel, model_app
from lexloom.deployments.server.sockets import listen
from lexloom.flows.local_server.same_origin import LOOPBACK_NAMES, Address, is_ip
from lexloom.models.device import count_gpus, find_device
from lexloom.models.registry import ModelFamily, families, family_of_stage, read_kind
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.lineage import SHOWN_KEY
from lexloom.tasks.store.lookup import find_model_folder
from lexloom.tasks.store.names import names_of, read_names

KEY_VARIABLE = "LEXLOOM_API_KEY"
SHUTDOWN_SECONDS = 1
MAX_CONNECTIONS = 512  # most of them wait or are idle; each may hold a body of 1 MiB


def serve(
    model: Model,
    /,
    *,
    host: Host = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0 picks a free port.")] = 8000,
    allow_host: AllowHost = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Serve a model over HTTP (OpenAI-compatible for language models).

    If the environment variable LEXLOOM_API_KEY is set, requests must send this key. Serving other machines
    requires a key.

    Args:
        device: Device that runs the model.
    """
    api_key = read_key(host)
    for name in allow_host or ():
        Address.parse(name)
    listener = listen(host, port)
    with listener:
        served = load_served(model, usable_device(device))
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(
            f"serving {served.name} at http://{shown}:{bound}{ENDPOINTS[served.capability]}"
            " (press Ctrl-C to stop)",
            flush=True,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                model_app(served, host, allow_host or (), api_key),
                log_level="warning",
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                server_header=False,
            )
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def read_key(host: str) -> str | None:
    """Return the API key from the environment; None if it is not set.

    Raises:
        ValueError: the key is not valid, or it is not set although other machines are served.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        if not is_loopback(host):
            raise ValueError(
                f"with --host {host}, other machines can use the model: set {KEY_VARIABLE} to a key that"
                " their requests must send"
            )
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{KEY_VARIABLE} is set, but it is empty or has characters other than visible ASCII")
    return key


def usable_device(device: str) -> str:
    """Return the device that runs the model; raise ValueError if this machine does not have it."""
    if device == "cuda" and not count_gpus():
        raise ValueError("--device is cuda, but torch finds no GPU on this machine: use auto or cpu")
    return find_device(device)


def is_loopback(host: str) -> bool:
    return host in LOOPBACK_NAMES or (is_ip(host) and ip_address(host).is_loopback)


def load_served(name: str, device: str) -> ServedModel:
    """Find and load a model of any kind.

    Raises:
        FileNotFoundError: nothing has this name, or a file of the model is missing.
        ValueError: the name is ambiguous, or the folder does not contain a model of a known kind.
    """
    folder = find_model_folder(name, *(family.stage for family in families().values()))
    store, path = Store(), folder.resolve()
    place = path.parent.name, path.name
    family = family_of_stage(place[0]) if path == store.folder(*place).resolve() else None
    if family is not None:
        manifest = store.read_manifest(*place)
        names = [*names_of(place, read_names(store)), place[1][:SHOWN_KEY]]
        aliases = {*names, place[1], "/".join(place)}
        created = manifest.created.timestamp()
    else:
        family, names, aliases, created = find_kind(folder), [path.name], set(), path.stat().st_mtime
    return ServedModel(
        name=names[0],
        aliases=frozenset({name, *names, *aliases}),
        created=int(created),
        capability=family.capability,
        model=family.load(folder, device),
    )


def find_kind(folder: Path) -> ModelFamily:
    """Return the family of the model in a folder outside the store."""
    kind = read_kind(folder)
    if kind not in families():
        raise ValueError(
            f"{folder} does not name a known kind of model ({', '.join(families())}): it was not trained by"
            " Lexloom, or the package that adds its kind is missing"
        )
    return families()[kind]
