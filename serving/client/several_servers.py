"""Addresses of several servers: gRPC's target, its service configuration, and its channel options.

gRPC sends calls to the servers in turn, and leaves out those that are away, that are not healthy, or that
fail most calls, such as one that hangs. `attempts.py` sends single calls again.
"""

import json
from ipaddress import ip_address
from typing import Any, Final

from re4.common.errors import UsageError
from re4.protos.v1 import retrieval_pb2

_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:")
_SERVICE: Final = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name
_KEEPALIVE_MS: Final = 20_000
_KEEPALIVE_TIMEOUT_MS: Final = 5_000

SERVICE_CONFIG: Final[dict[str, Any]] = {
    "loadBalancingConfig": [
        {
            "outlier_detection_experimental": {
                "interval": "1s",
                "baseEjectionTime": "5s",
                "maxEjectionTime": "30s",
                "maxEjectionPercent": 40,
                # Attempts that a call gave up for a faster one are failures as well: a server that hangs
                # fails all of them. One that is overloaded answers some, and stays.
                "failurePercentageEjection": {
                    "threshold": 99,
                    "enforcementPercentage": 100,
                    "minimumHosts": 2,
                    "requestVolume": 4,
                },
                "childPolicy": [{"round_robin": {}}],
            }
        }
    ],
    "healthCheckConfig": {"serviceName": _SERVICE},
    "methodConfig": [{"name": [{"service": _SERVICE}], "waitForReady": True}],
}
"""Of a channel to several servers."""


def is_several(address: str) -> bool:
    """Return whether an address can stand for several servers: a list, or a target such as `dns:///NAME`."""
    return "," in address or address.startswith(_SCHEMES)


def target_of(address: str) -> str:
    """Return gRPC's target of an address.

    Raises:
        UsageError: a list that holds anything but IP addresses with ports.
    """
    if not is_several(address) or address.startswith(_SCHEMES):
        return address
    versions = set()
    for each in address.split(","):
        host, _, port = each.strip().rpartition(":")
        try:
            versions.add(ip_address(host.strip("[]")).version)
            int(port)
        except ValueError:
            raise UsageError(
                f"address {address!r}: {each!r} is not IP:PORT. A list takes IP addresses of one family; "
                "for a name with several addresses give dns:///NAME:PORT"
            ) from None
    if len(versions) > 1:
        raise UsageError(f"address {address!r} mixes IPv4 and IPv6 addresses; give those of one family")
    return f"ipv{versions.pop()}:{address.replace(' ', '')}"


def several_options(address: str, *, needs_name: bool) -> list[tuple[str, Any]]:
    """Return the channel options of an address of several servers.

    Args:
        address: The address.
        needs_name: Whether certificates are compared with the address, because no name was given.

    Raises:
        UsageError: it holds different hosts, and gRPC compares all certificates with one name.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        # A server that hangs keeps its connections: pings find it where no call is made.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ]
    if "," in address:  # gRPC would take the list as the name of the host
        hosts = {
            each.strip().rpartition(":")[0].strip("[]")
            for each in target_of(address).partition(":")[2].split(",")
        }
        if needs_name and len(hosts) > 1:
            raise UsageError(
                f"address {address!r} has several hosts, but TLS compares the certificates of all "
                "servers with one name: give the name that all of them have (--tls-server-name, server_name)"
            )
        options.append(("grpc.default_authority", hosts.pop() if needs_name else "re4"))
    return options
