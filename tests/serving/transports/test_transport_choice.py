"""The transport of a server: what `auto` takes, and which demands are refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from running_server import RunningServer

from re4.common import extras
from re4.common.errors import UsageError
from re4.serving.settings import Access, ServerSettings, TransportName
from re4.serving.transports import choice
from re4.serving.transports.choice import choose_transport

TLS = Access(tls_certificate=Path("server.crt"), tls_key=Path("server.key"))
NATIVE, GRPCIO = TransportName.NATIVE, TransportName.GRPCIO


@pytest.mark.parametrize(
    ("settings", "name", "reason"),
    [
        (ServerSettings(), NATIVE, "it supports all settings"),
        (ServerSettings(access=TLS), NATIVE, "it supports all settings"),
        (ServerSettings(transport=GRPCIO), GRPCIO, "by the settings"),
        (ServerSettings(transport=NATIVE, address="0.0.0.0:8700"), NATIVE, "by the settings"),
    ],
)
def test_the_choice_and_its_reason(settings: ServerSettings, name: TransportName, reason: str) -> None:
    chosen, why = choose_transport(settings)
    assert chosen is name
    assert reason in why


def test_the_log_names_the_transport_and_the_reason(server: RunningServer) -> None:
    assert "transport native: it supports all settings" in server.log


def test_without_the_package_auto_takes_grpcio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda _: None)
    assert choose_transport(ServerSettings()) == (
        GRPCIO,
        "the package ngh2 of native, faster and safer from floods, is not installed",
    )


def test_without_the_package_native_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="not installed"):
        choose_transport(ServerSettings(transport=NATIVE))


def test_a_worker_of_the_native_transport_loads_no_grpc_library() -> None:
    """It would take 5 MB of every worker."""
    code = (
        "import sys; import re4.serving.api.server, re4.serving.processes.worker_commands, "
        "re4.serving.transports.native_transport; sys.exit('grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
