"""TLS: rejected clients, reports of unusable files, and a renewal that drops no call."""

import contextlib
import os
import re
import signal
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import grpc
import pytest
from certificates import DAY, Authority, Pair
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running_server import DEADLINE_S, PAUSE_S, RunningServer

from re4 import Connection, RetrievalClient
from re4.common.errors import SecurityError, ServerError, UsageError
from re4.serving.auth.certificates import CertificateFiles, read_certificates
from re4.serving.cli import serve
from re4.serving.settings import Access

pytestmark = pytest.mark.transports("native", "grpcio")
without_server = pytest.mark.transports()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    """An authority that the server does not trust."""
    return Authority(folder, "stranger")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue()


@pytest.fixture(scope="module")
def tls_server(bundles: Path, authority: Authority, pair: Pair, transport: str) -> Iterator[RunningServer]:
    """Two workers with mutual TLS, and a port for health alone."""
    options = (
        *("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)),
        *("--tls-client-ca", str(authority.path), "--num-processes", "2"),
        *("--health-address", "127.0.0.1:0"),
    )
    with RunningServer(bundles, *options) as running:
        yield running


def connection(authority: Authority, client: Pair | None = None) -> Connection:
    own = {} if client is None else {"certificate": client.certificate, "key": client.key}
    return Connection.read(ca=authority.path, **own)


def refused(address: str, how: Connection) -> str:
    with RetrievalClient(address, connection=how) as client, pytest.raises(ServerError) as error:
        client.info()
    return str(error.value)


def test_a_client_with_a_certificate_of_the_authority_is_served(
    tls_server: RunningServer, authority: Authority
) -> None:
    with RetrievalClient(
        tls_server.address, connection=connection(authority, authority.issue("me"))
    ) as client:
        assert client.info()["settings"]["tls_certificate"]["value"].endswith(".pem")


def test_plain_text_to_a_tls_port_is_refused(tls_server: RunningServer) -> None:
    assert "UNAVAILABLE" in refused(tls_server.address, Connection())


def test_strangers_cannot_fill_the_log(tls_server: RunningServer) -> None:
    """Every line is the server's own, whatever was sent to its port."""
    host, _, port = tls_server.address.rpartition(":")
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert stranger.recv(100) is not None
    assert all(
        re.match(r"20\d\d-\S+ \S+ (INFO|WARNING|ERROR) ", line) for line in tls_server.log.splitlines()
    )


def test_tls_to_a_plain_text_port_is_refused(server: RunningServer, authority: Authority) -> None:
    assert "UNAVAILABLE" in refused(server.address, connection(authority))


@pytest.mark.parametrize("which", ["none", "expired", "not begun", "of a stranger"])
def test_a_client_whose_certificate_is_no_good_is_refused(
    tls_server: RunningServer, authority: Authority, stranger: Authority, which: str
) -> None:
    own = {
        "none": None,
        "expired": authority.issue("late", begins=-2 * DAY, ends=-DAY),
        "not begun": authority.issue("early", begins=DAY, ends=2 * DAY),
        "of a stranger": stranger.issue("other"),
    }[which]
    assert "UNAVAILABLE" in refused(tls_server.address, connection(authority, own))


def test_a_client_refuses_a_server_of_a_stranger(
    tls_server: RunningServer, authority: Authority, stranger: Authority
) -> None:
    assert "UNAVAILABLE" in refused(tls_server.address, connection(stranger, authority.issue("me")))


def test_a_client_refuses_a_server_of_another_name(bundles: Path, authority: Authority) -> None:
    other = authority.issue(host="elsewhere.example")
    with RunningServer(
        bundles, "--tls-certificate", str(other.certificate), "--tls-key", str(other.key)
    ) as running:
        assert "UNAVAILABLE" in refused(running.address, connection(authority))


@without_server
def test_a_client_refuses_a_server_whose_certificate_has_ended(authority: Authority) -> None:
    """Ours would not start with one; it may end while a server runs."""
    late = authority.issue(begins=-2 * DAY, ends=-DAY)
    ended = grpc.server(ThreadPoolExecutor(1))
    pair = (late.key.read_bytes(), late.certificate.read_bytes())
    port = ended.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    ended.start()
    try:
        assert "UNAVAILABLE" in refused(f"127.0.0.1:{port}", connection(authority))
    finally:
        ended.stop(None).wait()


def test_probes_that_speak_no_tls_have_a_port_with_health_alone(tls_server: RunningServer) -> None:
    where = tls_server.wait_for(r"health on (\S+)").group(1)
    with grpc.insecure_channel(where) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="re4.v1.Retrieval"), timeout=DEADLINE_S
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/re4.v1.Retrieval/Info")(b"", timeout=DEADLINE_S)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def served_serial(address: str, authority: Authority) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(authority.path))
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=DEADLINE_S) as raw,
        context.wrap_socket(raw, server_hostname=host) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True)


def test_certificates_are_replaced_while_calls_flow(
    bundles: Path, authority: Authority, tmp_path: Path
) -> None:
    """Old connections go on, new ones see the new certificate; a broken renewal changes nothing."""
    pair = Authority.issue(authority, "renewed")
    options = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key), "--num-processes", "2")
    stop = threading.Event()
    failures: list[Exception] = []
    num_answered = [0, 0, 0]

    def call_without_end(number: int) -> None:
        """One caller keeps its connection, the others make a new one for each call."""
        how = connection(authority)
        kept = RetrievalClient(running.address, connection=how)
        while not stop.wait(PAUSE_S):
            try:
                if number == 0:
                    kept.info()
                else:
                    with RetrievalClient(running.address, connection=how) as fresh:
                        fresh.info()
                num_answered[number] += 1
            except Exception as error:
                failures.append(error)
        kept.close()

    with RunningServer(bundles, *options) as running:
        callers = [threading.Thread(target=call_without_end, args=(number,)) for number in range(3)]
        for caller in callers:
            caller.start()
        try:
            seen = {served_serial(running.address, authority)}
            for _ in range(4):
                pair.replace(authority.issue("next"))
                shown = served_serial(running.address, authority)
                assert shown not in seen
                seen.add(shown)
            key = pair.key.read_bytes()
            pair.key.write_bytes(b"half a ke")
            # A worker without a handshake since the last renewal keeps the good one that it read before.
            assert served_serial(running.address, authority) in seen
            running.wait_for(r"the certificates in use stay: .*\.key does not hold a PEM private key")
            pair.key.write_bytes(key)
        finally:
            stop.set()
            for caller in callers:
                caller.join()
        assert failures == []
        assert min(num_answered) > 0
        running.wait_for("reloaded ")


def bad_content(path: Path) -> None:
    path.write_bytes(b"junk")


@pytest.mark.parametrize("damage", [bad_content, Path.unlink])
def test_workers_that_start_while_the_files_are_bad_serve_the_last_good_ones(
    tls_server: RunningServer, authority: Authority, pair: Pair, damage: Callable[[Path], None]
) -> None:
    """The supervisor hands them over by a pipe: the key is in no file, environment or command line."""
    how = connection(authority, authority.issue("me"))
    seen = tls_server.num_lines
    pair.replace(authority.issue())
    tls_server.wait_for(r"server: reloaded ", after=seen)
    good = {path: path.read_bytes() for path in (pair.certificate, pair.key, authority.path)}
    seen = tls_server.num_lines
    try:
        for path in good:
            damage(path)
        for worker in tls_server.workers():
            os.kill(worker, signal.SIGKILL)
        for number in (1, 2):
            tls_server.wait_for(
                f"worker {number}: the certificates in use stay: .*{pair.certificate}", after=seen
            )
            tls_server.wait_for(rf"worker {number}: serving \S+: \w+ encoder", after=seen)
        with RetrievalClient(tls_server.address, connection=how) as client:
            client.info()
    finally:
        for path, content in good.items():
            path.write_bytes(content)
    secret = good[pair.key].splitlines()[1][:40]
    seen_by_others = [
        Path(f"/proc/{pid}/{what}") for pid in tls_server.workers() for what in ("environ", "cmdline")
    ]
    shared = [path for path in Path(gettempdir()).glob("re4-serve-*/**/*") if path.is_file()]
    for path in (*seen_by_others, *shared):
        with contextlib.suppress(FileNotFoundError):  # of another server
            content = path.read_bytes()
            assert secret not in content
            assert b64encode(good[pair.key])[:60] not in content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no certificate", r"certificate \S+ cannot be read: No such file"),
        ("no key", r"key \S+ cannot be read: No such file"),
        ("not a certificate", "does not hold PEM certificates"),
        ("not a key", "does not hold a PEM private key"),
        ("a certificate as key", "does not hold a PEM private key"),
        ("an unknown version", r"does not hold PEM certificates \(InvalidVersion\)"),
        ("another key", r"key \S+ does not belong to certificate"),
        ("expired", r"ended on 20\d\d-.* put a renewed one there"),
        ("not begun", r"begins on 20\d\d-.* only"),
        ("no client authority", "certificate of authorities .* cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named_at_start(
    change: str, message: str, authority: Authority, tmp_path: Path, bundles: Path
) -> None:
    good, other = authority.issue(), authority.issue()
    (tmp_path / "junk").write_text("SECRET-KEY-BYTES")
    absent, junk, unknown = tmp_path / "absent", tmp_path / "junk", tmp_path / "unknown"
    der = ssl.PEM_cert_to_DER_cert(good.certificate.read_text())
    version, of_no_standard = bytes.fromhex("a003020102"), bytes.fromhex("a003020107")
    unknown.write_text(ssl.DER_cert_to_PEM_cert(der.replace(version, of_no_standard, 1)))
    late, early = authority.issue(begins=-2 * DAY, ends=-DAY), authority.issue(begins=DAY, ends=2 * DAY)
    changes: dict[str, dict[str, Any]] = {
        "no certificate": {"certificate": absent},
        "no key": {"key": absent},
        "not a certificate": {"certificate": junk},
        "not a key": {"key": junk},
        "a certificate as key": {"key": good.certificate},
        "an unknown version": {"certificate": unknown},
        "another key": {"key": other.key},
        "expired": {"certificate": late.certificate, "key": late.key},
        "not begun": {"certificate": early.certificate, "key": early.key},
        "no client authority": {"client_ca": absent},
    }
    chosen = {"certificate": good.certificate, "key": good.key, "client_ca": None} | changes[change]
    with pytest.raises(SecurityError, match=message) as error:
        read_certificates(CertificateFiles(**chosen))
    assert "SECRET" not in str(error.value)
    given = {f"tls_{name}": path for name, path in chosen.items()}
    with pytest.raises(SecurityError, match=message):
        serve(bundles=bundles, address="127.0.0.1:0", **given)


@without_server
def test_a_certificate_that_will_have_ended(authority: Authority, pair: Pair) -> None:
    files = CertificateFiles(certificate=pair.certificate, key=pair.key, client_ca=None)
    not_after = read_certificates(files).not_after
    with pytest.raises(SecurityError, match="ended on"):
        read_certificates(files, now=not_after + timedelta(seconds=1))


@without_server
@pytest.mark.parametrize("given", [{"tls_certificate": "a"}, {"tls_key": "a"}, {"tls_client_ca": "a"}])
def test_halves_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--tls-certificate"):
        Access(**{name: Path(value) for name, value in given.items()})
    with pytest.raises(UsageError, match="--certificate and --key belong together"):
        Connection.read(certificate=Path("a"))


def test_tls_may_listen_where_others_reach_it(bundles: Path, pair: Pair, authority: Authority) -> None:
    options = (
        "--tls-certificate",
        str(pair.certificate),
        "--tls-key",
        str(pair.key),
        "--address",
        "0.0.0.0:0",
    )
    with RunningServer(bundles, *options) as running:
        port = running.address.rpartition(":")[2]
        with RetrievalClient(f"127.0.0.1:{port}", connection=connection(authority)) as client:
            client.info()


def test_tls_does_not_protect_the_metrics_page(bundles: Path, pair: Pair) -> None:
    with pytest.raises(
        UsageError, match=r"--metrics-address 0\.0\.0\.0:0 can be reached from other machines"
    ):
        serve(
            bundles=bundles,
            address="0.0.0.0:0",
            metrics_address="0.0.0.0:0",
            tls_certificate=pair.certificate,
            tls_key=pair.key,
        )


def test_several_servers_by_address(tls_server: RunningServer, authority: Authority, pair: Pair) -> None:
    """Certificates are compared with the host of the list, or with the one name that is given."""
    port = tls_server.address.rpartition(":")[2]
    own = connection(authority, pair)
    with RetrievalClient(f"{tls_server.address},{tls_server.address}", connection=own) as client:
        version = client.info()["version"]
    address = f"{tls_server.address},127.0.0.9:{port}"  # the second one is away
    with pytest.raises(UsageError, match="--tls-server-name"):
        RetrievalClient(address, connection=own)
    with RetrievalClient(address, connection=replace(own, server_name="127.0.0.1")) as client:
        assert client.info()["version"] == version
    wrong = replace(own, server_name="re4.example")
    assert "UNAVAILABLE" in refused(tls_server.address, wrong)
