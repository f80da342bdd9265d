"""A missing Ray cluster is reported quickly, with the variable and its value."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from lexloom.training.ray import address as ray_address
from lexloom.training.ray.address import require_cluster


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that handles one connection with the function."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        thread = Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def like_grpc(connection: socket.socket) -> None:
    assert connection.recv(1024).startswith(b"PRI * HTTP/2.0")
    connection.sendall(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes(6))


def test_grpc_server_is_accepted() -> None:
    with answering(like_grpc) as address:
        require_cluster(address)


@pytest.mark.parametrize(
    "answer",
    [
        lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        lambda connection: None,
    ],
    ids=["HTTP/1.1", "nothing"],
)
def test_other_server_is_rejected(answer: Callable[[socket.socket], None]) -> None:
    with (
        answering(answer) as address,
        pytest.raises(ConnectionError, match=rf"--ray-address is '{address}', but no Ray cluster responds"),
    ):
        require_cluster(address)


def test_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(ConnectionError, match="no response within 0 s"),
    ):
        require_cluster(f"127.0.0.1:{listener.getsockname()[1]}")


def test_closed_port_error_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ConnectionError) as refused:
        require_cluster("127.0.0.1:9")
    assert str(refused.value) == (
        "RAY_ADDRESS is '127.0.0.1:9', but no Ray cluster responds there (Connection refused): start one with"
        " `ray start --head`, correct the address, or unset it to train on this machine"
    )


def test_unknown_host_is_reported() -> None:
    with pytest.raises(ConnectionError, match=r"--ray-address is 'no-such-host\.invalid', but no Ray"):
        require_cluster("no-such-host.invalid")


@pytest.mark.parametrize("address", ["ray://head:10001", "head:port", "head:", ":6379", "http://head:8265"])
def test_invalid_address_is_rejected(address: str) -> None:
    with pytest.raises(ValueError, match=r"use HOST:PORT of the cluster's head, such as 10\.0\.0\.1:6379"):
        require_cluster(address)
