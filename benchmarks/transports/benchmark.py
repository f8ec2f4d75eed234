"""Null calls and Retrieves through each transport, in turns, by h2load, which costs less than a server.

h2load sends one request again and again: the figures compare transports, not requests. CPU time is that
of the server's processes; other work on the machine hardly changes it.
"""

import os
import re
import shlex
import shutil
import statistics
import struct
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from re4.benchmarks.common.machine import describe_idle_machine
from re4.benchmarks.common.pinning import on_core, two_cores
from re4.benchmarks.common.report import now_utc, write_report
from re4.benchmarks.common.resources import Meter
from re4.benchmarks.load_generator.null_server import null_server
from re4.benchmarks.load_generator.requests import choose_histories
from re4.benchmarks.load_generator.server import running_server, sample_reply, server_info
from re4.benchmarks.load_generator.transport import METHOD
from re4.benchmarks.transports.options import TransportOptions
from re4.common.errors import Re4Error, UsageError
from re4.serving.auth.certificates import CertificateFiles
from re4.serving.settings import TransportName

JSON_FILE: Final = "transports.json"
_SCHEMA_VERSION: Final = 1
_TRANSPORTS: Final = (TransportName.NATIVE, TransportName.GRPCIO)
_CALLERS: Final = (1, 4, 16, 64)
_CALLERS_PER_CONNECTION: Final = 16
_WARM_UP_S: Final = 0.5

Figures = dict[str, float]


def run(options: TransportOptions) -> dict[str, Any]:
    """Measure, write `transports.json`, and return it."""
    if shutil.which("h2load") is None:
        raise UsageError("this needs h2load, which is not installed: apt install nghttp2-client")
    if shutil.which("openssl") is None:
        raise UsageError("this needs openssl, which is not installed: apt install openssl")
    with TemporaryDirectory() as folder:
        return _run(options, _self_signed(Path(folder)))


def _run(options: TransportOptions, certificates: CertificateFiles) -> dict[str, Any]:
    server_core, client_core = two_cores()
    machine, load_average = describe_idle_machine(), os.getloadavg()[0]
    found: defaultdict[tuple[str, str, int], list[Figures]] = defaultdict(list)
    for _ in range(options.num_rounds):
        for transport in _TRANSPORTS:
            with ExitStack() as stack:
                with on_core(server_core):
                    serving = (*shlex.split(options.server_options), "--transport", transport)
                    address, pid = stack.enter_context(
                        running_server(options.bundles, *serving, num_processes=1)
                    )
                info = server_info(address)
                histories = choose_histories(
                    info, data=options.data, ids=None, bundles=options.bundles, seed=options.seed
                )
                payloads = histories.payloads(num_candidates=options.num_candidates, exclude_history=False)
                reply = sample_reply(address, payloads)
                stack.enter_context(on_core(client_core))
                for callers in _CALLERS:
                    figures = _measure(address, pid, payloads[0], callers, options.seconds)
                    found[transport, "Retrieve", callers].append(figures)
            for calls, files in (("null", None), ("null over TLS", certificates)):
                with ExitStack() as stack:
                    with on_core(server_core):
                        null = null_server(reply, name=transport, certificates=files)
                        address, pid = stack.enter_context(null)
                    stack.enter_context(on_core(client_core))
                    for callers in _CALLERS:
                        figures = _measure(
                            address, pid, payloads[0], callers, options.seconds, is_tls=files is not None
                        )
                        found[transport, calls, callers].append(figures)
    report = {
        "schema_version": _SCHEMA_VERSION,
        "created_at": now_utc(),
        "machine": machine,
        "load_average": load_average,
        "num_rounds": options.num_rounds,
        "seconds": options.seconds,
        "server": {
            "version": info["version"],
            "num_items": info["num_items"],
            "options": shlex.split(options.server_options),
        },
        "rows": [
            {"transport": transport, "calls": calls, "callers": callers, "figures": _medians(rounds)}
            for (transport, calls, callers), rounds in sorted(found.items())
        ],
    }
    write_report(options.out, {JSON_FILE: report})
    return report


def _self_signed(folder: Path) -> CertificateFiles:
    """Make a certificate, which h2load does not check."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=bench"
    subprocess.run(
        [*command.split(), "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True
    )
    return CertificateFiles(certificate=certificate, key=key, client_ca=None)


def _measure(
    address: str, pid: int, payload: bytes, callers: int, seconds: float, *, is_tls: bool = False
) -> Figures:
    """Call with so many concurrent callers for a time."""
    connections = max(1, callers // _CALLERS_PER_CONNECTION)
    with TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(b"\0" + struct.pack(">I", len(payload)) + payload)
        command = ["h2load", "--data", str(body), "--clients", str(connections)]
        command += ["--max-concurrent-streams", str(callers // connections)]
        command += ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        target = f"{'https' if is_tls else 'http'}://{address}{METHOD}"
        _h2load([*command, "--duration", _milliseconds(_WARM_UP_S), target])
        meter = Meter([pid])
        printed = _h2load([*command, "--duration", _milliseconds(seconds), "--log-file", str(log), target])
        usage = meter.read()
        times_us = [int(line.split("\t")[2]) for line in log.read_text().splitlines()]
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", printed)
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", printed)
    if usage is None or rate is None or not times_us or failed is None or any(map(int, failed.groups())):
        raise Re4Error(f"the load failed; h2load reports: {printed}")
    times_us.sort()
    return {
        "calls_per_s": float(rate.group(1)),
        "p50_ms": times_us[len(times_us) // 2] / 1e3,
        "p99_ms": times_us[len(times_us) * 99 // 100] / 1e3,
        "cpu_us": 1e6 * usage.cpu_s / len(times_us),
    }


def _h2load(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Re4Error(f"h2load ended with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}ms"


def _medians(rounds: Sequence[Figures]) -> Figures:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
