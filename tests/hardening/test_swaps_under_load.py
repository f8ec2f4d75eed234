"""Hot swaps under constant load: no call fails, no answer mixes versions, nothing is kept of the old ones."""

from pathlib import Path

import numpy as np
from findings import Findings
from footprint import Footprint, footprint
from right_answers import RightAnswers, questions
from running_server import RunningServer
from small_bundles import SmallVersion
from steady_callers import SteadyCallers, latency_ms, said

PROOF = "hot swaps"
NUM_WORKERS = 2
NUM_SETTLING = 5
"""Swaps until allocators have grown to their usual size; growth is measured from there on."""
MAX_GROWTH_BYTES = 128 << 10
"""A swap: the line fitted to memory over swaps. A version that a worker kept would be several times that."""


def version_of(number: int) -> SmallVersion:
    """Versions of different sizes and seeds: rows, answers and scores of one mean nothing in another."""
    return SmallVersion(seed=number, num_items=2000 + 10 * number)


def test_swaps_under_load(tmp_path: Path, is_long: bool, findings: Findings) -> None:
    num_swaps, rate_per_s = (50, 200) if is_long else (2, 100)
    first = version_of(0)
    versions = {first.publish(tmp_path): first}
    footprints: list[Footprint] = []
    options = ("--num-processes", str(NUM_WORKERS), "--poll-interval-s", "0.05", "--max-queue-ms", "10000")
    with (
        RunningServer(tmp_path, *options) as server,
        SteadyCallers(server.address, questions(first.ids), rate_per_s=rate_per_s) as callers,
    ):
        callers.wait_for_answers(3)
        before = footprint(server.pid)
        for number in range(1, num_swaps + 1):
            seen = server.num_lines
            version = version_of(number)
            name = version.publish(tmp_path)
            versions[name] = version
            for worker in range(1, NUM_WORKERS + 1):
                server.wait_for(f"worker {worker}: serving {name}", after=seen)
            callers.wait_for_answers(2)
            footprints.append(footprint(server.pid))
        callers.wait_for_answers(2)
        after = footprint(server.pid)
    calls = callers.calls
    failed = [call for call in calls if not call.is_answered]
    wrong = RightAnswers(versions).wrong(calls)
    answered_by = {call.reply for call in calls}

    findings.add(PROOF, "swaps", num_swaps)
    findings.add(PROOF, "calls", len(calls))
    findings.add(PROOF, "failed calls", len(failed), allowed="0")
    findings.add(PROOF, "answers not wholly of the version that they name", len(wrong), allowed="0")
    findings.add(PROOF, "latency p50, ms", latency_ms(calls, 50))
    findings.add(PROOF, "latency p99, ms", latency_ms(calls, 99))
    findings.add(PROOF, "versions held at the end", len(after.versions), allowed="1")
    findings.add(
        PROOF, "open files after less before", after.num_open_files - before.num_open_files, allowed="0"
    )
    findings.add(PROOF, "PSS before, MiB", before.pss_bytes / 2**20)
    settled = footprints[NUM_SETTLING:]
    if is_long:
        findings.add(PROOF, f"PSS after swap {NUM_SETTLING}, MiB", footprints[NUM_SETTLING].pss_bytes / 2**20)
    findings.add(PROOF, "PSS after all, MiB", after.pss_bytes / 2**20)
    assert not failed, said(failed)
    assert not wrong
    assert len(answered_by) > num_swaps  # the callers saw the versions come and go
    assert after.versions == {name}
    assert after.num_open_files == before.num_open_files
    assert "Traceback" not in server.log
    if is_long:
        for what in ("pss_bytes", "rss_bytes"):
            growth = np.polyfit(range(len(settled)), [getattr(each, what) for each in settled], 1)[0]
            findings.add(
                PROOF,
                f"growth of {what[:3].upper()} a swap, KiB",
                growth / 1024,
                allowed=f"at most {MAX_GROWTH_BYTES // 1024}",
            )
            assert growth <= MAX_GROWTH_BYTES
