"""A quick check that a Ray cluster responds: Ray itself retries for many minutes and ignores signals."""

import os
import socket

PORT = 6379
SECONDS = 5.0
# HTTP/2 (RFC 9113): the client's preface (3.4) and an empty SETTINGS frame (6.5); gRPC servers reply at once
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER_BYTES, SETTINGS = 9, 4


def require_cluster(address: str, head: str | None = None) -> None:
    """Check that a gRPC server, such as Ray's head, answers at `host` or `host:port`.

    `head` is where to connect if `address` is an alias, such as `auto`.

    Raises:
        ValueError: the address has another form.
        ConnectionError: nothing answers there, or something that is not a Ray head.
    """
    name = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") == address else "--ray-address"
    setting, head = f"{name} is {address!r}", head or address
    host, _, digits = head.rpartition(":") if ":" in head else (head, "", str(PORT))
    if not host or not digits.isdecimal() or "/" in host:
        raise ValueError(f"{setting}: use HOST:PORT of the cluster's head, such as 10.0.0.1:{PORT}")
    try:
        with socket.create_connection((host.strip("[]"), int(digits)), timeout=SECONDS) as connection:
            connection.sendall(PREFACE)
            found = connection.recv(FRAME_HEADER_BYTES)
            problem = None if found[3:4] == bytes([SETTINGS]) else "the service there is not Ray"
    except TimeoutError:
        problem = f"no response within {SECONDS:.0f} s"
    except (OSError, OverflowError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    if problem is not None:
        raise ConnectionError(
            f"{setting}, but no Ray cluster responds there ({problem}): start one with `ray start --head`,"
            " correct the address, or unset it to train on this machine"
        )
