"""Addresses to listen on: parse HOST:PORT, recognise loopback, reserve a port.

Several worker processes listen on one port (SO_REUSEPORT). The kernel would also share it with an unrelated
server of the same user, so the port is first bound without sharing.
"""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from re4.common.errors import ServerError, UsageError


@dataclass(frozen=True, kw_only=True)
class Address:
    """A numeric address and port."""

    host: str
    """IPv4 or IPv6 address, without brackets."""
    port: int
    """0 to let the system choose."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback


def parse_address(text: str) -> Address:
    """Return the address of `HOST:PORT`; of a host name, the first address that the resolver returns.

    Raises:
        UsageError: not of that form, a port out of range, or a name that is not known.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(
            f"address {text!r}: expected HOST:PORT, such as 127.0.0.1:8700 or [::1]:8700, with a port from 0 "
            "(the system chooses) to 65535"
        )
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"address {text!r}: the host {host!r} is not known here ({error})") from None
    return Address(host=str(found[0][4][0]), port=int(port))


@contextmanager
def reserve_port(address: Address) -> Iterator[Address]:
    """Reserve a port for this process's workers while the block runs.

    Yields:
        The address; its port is the system's choice where 0 was requested.

    Raises:
        ServerError: something else listens there, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as reserved:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as exclusive:
                # SO_REUSEADDR ignores connections that are being closed, never a listener.
                exclusive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                exclusive.bind((address.host, address.port))
                port = exclusive.getsockname()[1]
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((address.host, port))
        except OSError as error:
            raise ServerError(
                f"cannot listen on {address}: {error.strerror}. Stop what listens there, or choose another "
                "address (port 0 lets the system choose)"
            ) from None
        yield Address(host=address.host, port=port)
