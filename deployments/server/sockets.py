"""Listening sockets of the servers."""

import errno
import socket


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address.

    Raises:
        OSError: one sentence; the port is in use, or the address is not this machine's.
        ValueError: there is no such port.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port is {port}: it must be between 1 and 65535, or 0 for any free port")
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        if listener is not None:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"port {port} on {host} is in use: choose another with --port (0 for any free port)"
            ) from error
        raise OSError(f"can't listen on {host}:{port} ({error.strerror or error})") from error
    return listener
