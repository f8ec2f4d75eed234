"""SIGTERM, and a worker killed, while callers call at a steady rate: who loses an answer, for how long."""

import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from findings import Findings
from right_answers import RightAnswers, questions
from running_server import RunningServer
from small_bundles import SmallVersion
from steady_callers import HEED_HEALTH, SteadyCallers, latency_ms, said

pytestmark = pytest.mark.transports("native", "grpcio")

RATE_PER_S = 200
GRACE_S = 10
HEARD_WITHIN_S = 1.0
"""On a busy machine, a client may hear so late that its connection is closed."""
VERSION = SmallVersion()


@pytest.fixture
def name(tmp_path: Path) -> str:
    return VERSION.publish(tmp_path)


@pytest.mark.parametrize("heeds_health", [True, False], ids=["heeding health", "plain"])
def test_sigterm_under_load(
    heeds_health: bool, tmp_path: Path, name: str, is_long: bool, findings: Findings
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
    with (
        RunningServer(tmp_path, "--num-processes", "2", "--max-queue-ms", "10000") as server,
        SteadyCallers(
            server.address, questions(VERSION.ids), rate_per_s=RATE_PER_S, num_callers=16
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
    assert len(failed) <= 16 * num_kills  # a caller has one call in flight
    assert not RightAnswers({name: VERSION}).wrong(calls)
