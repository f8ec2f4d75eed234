"""Stops, restarts and kills while callers call at a steady rate: who loses an answer, for how long."""

import json
import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from findings import Findings
from right_answers import RightAnswers, questions
from running_server import DEADLINE_S, RunningServer
from small_bundles import SmallVersion
from steady_callers import HEED_HEALTH, SteadyCallers, latency_ms, said

pytestmark = pytest.mark.transports("native", "grpcio")

RATE_PER_S = 200
GRACE_S = 10
HEARD_WITHIN_S = 1.0
"""On a busy machine, a client may hear so late that its connection is closed."""
VERSION = SmallVersion()
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def documented_retries() -> str:
    """The service configuration of `docs/serving.md`, with time for a busy machine."""
    (text,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    config = json.loads(text)
    config["methodConfig"][0]["timeout"] = f"{DEADLINE_S}s"
    return json.dumps(config)


@pytest.fixture
def name(tmp_path: Path) -> str:
    return VERSION.publish(tmp_path)


@pytest.mark.parametrize("heeds_health", [True, False], ids=["heeding health", "plain"])
def test_sigterm_under_load(
    heeds_health: bool, transport: str, tmp_path: Path, name: str, is_long: bool, findings: Findings
) -> None:
    """Accepted is every call sent before the server said to go, by NOT_SERVING or by HTTP/2's GOAWAY."""
    proof = f"SIGTERM, callers {'heed health' if heeds_health else 'are plain'}"
    num_stops = 10 if is_long else 1
    num_calls = num_before = num_lost = num_wrong = 0
    longest_s = 0.0
    for _ in range(num_stops):
        options = ("--num-processes", "2", "--grace-s", str(GRACE_S), "--max-queue-ms", "10000")
        with (
            RunningServer(tmp_path, *options) as server,
            SteadyCallers(
                server.address,
                questions(VERSION.ids),
                rate_per_s=RATE_PER_S,
                num_callers=16,
                options=HEED_HEALTH if heeds_health else (),
            ) as callers,
        ):
            callers.wait_for_answers(10 if is_long else 2)
            stopped_at = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            longest_s = max(longest_s, time.monotonic() - stopped_at)
            callers.wait_for_failures()
        calls = callers.calls
        # Who is not connected, or heeds NOT_SERVING, sends nothing: UNAVAILABLE at once.
        lost = [call for call in calls if call.code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)]
        num_calls += len(calls)
        num_before += sum(not call.is_answered for call in calls if call.began < stopped_at)
        num_lost += len(lost)
        num_wrong += len(RightAnswers({name: VERSION}).wrong(calls))
        assert "Traceback" not in server.log
        assert all(call.code is grpc.StatusCode.CANCELLED for call in lost), said(lost)
    findings.add(proof, "stops", num_stops)
    findings.add(proof, "calls", num_calls)
    findings.add(proof, "failed calls of those sent before the signal", num_before, allowed="0")
    findings.add(
        proof,
        "calls that met the GOAWAY on their way (CANCELLED)",
        num_lost,
        allowed="0" if heeds_health else "",
    )
    findings.add(proof, "seconds to exit code 0, longest", longest_s, allowed=f"{GRACE_S} (the grace)")
    assert num_before == 0
    assert num_wrong == 0
    # In the short size the other tests may keep a caller from hearing of NOT_SERVING in time.
    assert not (heeds_health and is_long and num_lost)
    assert longest_s < GRACE_S


def test_a_worker_killed_under_load(tmp_path: Path, name: str, is_long: bool, findings: Findings) -> None:
    proof = "kill -9 of a worker"
    num_kills = 10 if is_long else 1
    kills: list[float] = []
    away_s: list[float] = []
    # On a busy machine, gRPC's core ends calls that no worker accepts for a second.
    rate_per_s = RATE_PER_S if is_long else RATE_PER_S / 4
    with (
        RunningServer(tmp_path, "--num-processes", "2", "--max-queue-ms", "10000") as server,
        SteadyCallers(
            server.address, questions(VERSION.ids), rate_per_s=rate_per_s, num_callers=16
        ) as callers,
    ):
        callers.wait_for_answers(10 if is_long else 2)
        for number in range(num_kills):
            seen = server.num_lines
            workers = sorted(server.workers())
            kills.append(time.monotonic())
            os.kill(workers[number % 2], signal.SIGKILL)
            server.wait_for(rf"worker \d: serving {name}", after=seen)
            away_s.append(time.monotonic() - kills[-1])
            callers.wait_for_answers(10 if is_long else 2)
    calls = callers.calls
    failed = [call for call in calls if not call.is_answered]
    # In flight to the dead worker: until a client has heard of the end, it sends there.
    unexplained = [
        call
        for call in failed
        if call.code is not grpc.StatusCode.UNAVAILABLE
        or not any(call.began <= kill + HEARD_WITHIN_S and call.ended >= kill for kill in kills)
    ]
    outages_s = [
        max(
            (call.ended - kill for call in failed if call.began - HEARD_WITHIN_S <= kill <= call.ended),
            default=0.0,
        )
        for kill in kills
    ]
    findings.add(proof, "kills", num_kills)
    findings.add(proof, "calls", len(calls))
    findings.add(proof, "failed calls in all", len(failed))
    findings.add(
        proof, "failed calls that were not in flight to the killed worker", len(unexplained), allowed="0"
    )
    findings.add(proof, "seconds from a kill to the last failure, longest", max(outages_s))
    findings.add(proof, "seconds until the worker is replaced, longest", max(away_s))
    findings.add(proof, "latency p99, ms", latency_ms(calls, 99))
    assert not unexplained, said(unexplained)
    in_flight = [call for call in failed if any(call.began <= kill <= call.ended for kill in kills)]
    assert len(in_flight) <= 16 * num_kills  # a caller has one; further ones find no connection
    assert not RightAnswers({name: VERSION}).wrong(calls)


def start(bundles: Path, address: str = "127.0.0.1:0") -> RunningServer:
    options = ("--num-processes", "1", "--grace-s", str(GRACE_S), "--max-queue-ms", "10000")
    return RunningServer(bundles, *options, "--address", address)


# `many_days.py` starts servers with `grpcio` again and again.
@pytest.mark.transports("native")
@pytest.mark.parametrize("num_servers", [1, 2], ids=["restart of a server", "rolling update of two replicas"])
def test_restarts_under_load(
    num_servers: int, tmp_path: Path, name: str, is_long: bool, findings: Findings
) -> None:
    """Each server gets SIGTERM and is started again when it has ended, as systemd and Kubernetes do it."""
    proof = "rolling update" if num_servers > 1 else "restart"
    restarted = [*range(num_servers)] * 5 if is_long else [0]
    restarts_s: list[float] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(start(tmp_path)) for _ in range(num_servers)]
        addresses = [server.address for server in servers]
        with SteadyCallers(
            f"ipv4:{','.join(addresses)}",
            questions(VERSION.ids),
            rate_per_s=RATE_PER_S / 4,
            num_callers=4,
            options=(
                ("grpc.service_config", documented_retries()),
                ("grpc.default_authority", "re4-serve"),
            ),
        ) as callers:
            callers.wait_for_answers(2)
            for number in restarted:
                began = time.monotonic()
                servers[number].signal(signal.SIGTERM)
                assert servers[number].wait() == 0
                servers[number] = stack.enter_context(start(tmp_path, addresses[number]))
                restarts_s.append(time.monotonic() - began)
                callers.wait_for_answers(2)
    calls = callers.calls
    failed = [call for call in calls if not call.is_answered]
    findings.add(proof, "restarts", len(restarts_s))
    findings.add(proof, "seconds from SIGTERM to SERVING, longest", max(restarts_s))
    findings.add(proof, "calls", len(calls))
    findings.add(proof, "failed calls of clients that retry as documented", len(failed), allowed="0")
    findings.add(proof, "latency p99, ms", latency_ms(calls, 99))
    assert not failed, said(failed)
    assert not RightAnswers({name: VERSION}).wrong(calls)


@pytest.mark.transports("native")
def test_sighup_under_load(tmp_path: Path, name: str, findings: Findings) -> None:
    """As `systemctl reload` sends it."""
    with (
        start(tmp_path) as server,
        SteadyCallers(
            server.address, questions(VERSION.ids), rate_per_s=RATE_PER_S / 4, num_callers=4
        ) as callers,
    ):
        for _ in range(10):
            seen = server.num_lines
            server.signal(signal.SIGHUP)
            server.wait_for("SIGHUP: reading", after=seen)
            callers.wait_for_answers(1)
    failed = [call for call in callers.calls if not call.is_answered]
    findings.add("SIGHUP", "failed calls", len(failed), allowed="0")
    assert not failed, said(failed)
    assert not RightAnswers({name: VERSION}).wrong(callers.calls)
