"""Hosts with a network of their own on this machine: network namespaces on one bridge."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_NEW_NETWORK = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def why_none() -> str | None:
    """Return why there can be no such hosts here; None where there can."""
    if shutil.which("ip") is None:
        return "there is no program ip (Debian package iproute2)"
    if os.geteuid():
        return "they need root"
    name = f"re4p{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.SubprocessError):
        return "network namespaces are not allowed"
    return None


class Host:
    """A host with an address."""

    def __init__(self, name: str, address: str) -> None:
        self._name = name
        self.address = address

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Let the processes that the block starts be on this host."""
        with (
            Path("/proc/thread-self/ns/net").open() as before,
            Path(f"/run/netns/{self._name}").open() as own,
        ):
            _enter(own.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Cut the host's cable while the block runs: packets are lost without an answer."""
        _ip("link", "set", self._name, "down")
        try:
            yield
        finally:
            _ip("link", "set", self._name, "up")


@contextmanager
def hosts(number: int) -> Iterator[tuple[str, list[Host]]]:
    """Make hosts; yield the address of this one for them, and them."""
    net, tag = f"198.18.{os.getpid() % 250}", f"re4{os.getpid()}"
    bridge = f"{tag}b"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_quietly, "link", "del", bridge)
        _ip("addr", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        found = []
        for place in range(number):
            name, address = f"{tag}h{place}", f"{net}.{place + 2}"
            _ip("netns", "add", name)
            stack.callback(_quietly, "netns", "del", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            found.append(Host(name, address))
        yield f"{net}.1", found


def _quietly(*words: str) -> None:
    with suppress(subprocess.SubprocessError):
        _ip(*words)


def _enter(descriptor: int) -> None:
    """Move this thread, and what it starts, to a network."""
    if _LIBC.setns(descriptor, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")
