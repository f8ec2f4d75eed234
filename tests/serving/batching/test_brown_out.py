"""Before calls are rejected, searches run at a lower effort: at which, when, and that replies state it."""

import asyncio
import gc
import weakref
from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process_server import call, drive, serving
from running_server import DEADLINE_S

from re4.bundle.manifest import FrontierPoint, IndexInfo
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.server import RetrievalServer
from re4.serving.batching import brown_out
from re4.serving.batching.brown_out import BrownOut, lowest_effort
from re4.serving.retrieval.indexes.kinds import scaled
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")
without_server = pytest.mark.transports()


def point(recall: float, **parameters: int | float) -> FrontierPoint:
    return FrontierPoint(
        search_parameters=parameters, recall=recall, request_us=1000 * recall, bytes_per_item=1.0
    )


IVF = IndexInfo(
    kind="ivf",
    search_parameters={"nprobe": 16},
    frontier=(point(0.7, nprobe=4), point(0.85, nprobe=8), point(0.95, nprobe=16), point(0.99, nprobe=64)),
)


@without_server
def test_the_lowest_effort_that_keeps_the_floor() -> None:
    assert lowest_effort(IVF, 0.9) is None
    assert lowest_effort(IVF, 0.8) == 0.5
    assert lowest_effort(IVF, 0.5) == 0.25
    assert lowest_effort(IndexInfo(kind="flat"), 0.5) is None


@without_server
def test_no_parameter_goes_below_those_of_a_setting_that_was_measured() -> None:
    refined = IndexInfo(
        kind="ivf-refined",
        search_parameters={"nprobe": 16, "k_factor": 4},
        frontier=(point(0.85, nprobe=4, k_factor=3), point(0.95, nprobe=16, k_factor=4)),
    )
    assert lowest_effort(refined, 0.8) == 0.75


@without_server
def test_with_one_budget_for_all_interests_only_that_budget_counts() -> None:
    shared = IndexInfo(
        kind="ivf",
        search_parameters={"nprobe": 16, "shared_nprobe": 40, "reach_drop": 0.6},
        frontier=(
            point(0.85, shared_nprobe=20, reach_drop=0.5),
            point(0.95, shared_nprobe=40, reach_drop=0.6),
        ),
    )
    effort = lowest_effort(shared, 0.8)
    assert effort == 0.5
    used = scaled(shared.search_parameters, effort)
    assert used["shared_nprobe"] == 20
    assert 0.5 <= used["reach_drop"] < 0.6


@without_server
@given(
    st.lists(st.tuples(st.integers(1, 512), st.integers(1, 32), st.floats(0, 1)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_the_scaled_setting_covers_a_measured_point_that_keeps_the_floor(
    measured: list[tuple[int, int, float]], floor: float
) -> None:
    frontier = tuple(
        point(max(recall, 1e-3), nprobe=nprobe, k_factor=factor) for nprobe, factor, recall in measured
    )
    info = IndexInfo(kind="ivf-refined", search_parameters=frontier[0].search_parameters, frontier=frontier)
    effort = lowest_effort(info, floor)
    if effort is None:
        return
    used = scaled(info.search_parameters, effort)
    assert any(
        each.recall >= floor
        and all(used[name] >= value - 1e-9 for name, value in each.search_parameters.items())
        for each in frontier
    )


@without_server
def test_it_begins_at_half_of_the_wait_allowed_and_ends_after_a_calm_second() -> None:
    now_s = 0.0
    state = BrownOut(200.0, 0.9, lambda: now_s)
    state.observe(99.0)
    assert not state.is_on
    state.observe(100.0)
    assert state.is_on
    state.observe(10.0)
    now_s = 0.9
    state.observe(10.0)
    assert state.is_on
    state.observe(50.0)  # not calm: the second begins anew
    now_s = 1.5
    state.observe(0.0)
    now_s = 2.4
    state.observe(0.0)
    assert state.is_on
    now_s = 2.5
    state.observe(0.0)
    assert not state.is_on


@pytest.mark.parametrize(("floor", "effort"), [(0.8, 0.5), (0.9, 1.0), (None, 1.0)])
def test_replies_and_info_state_the_search_effort(
    snapshot: Snapshot, floor: float | None, effort: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brown_out, "_CALM_S", DEADLINE_S)
    manifest = snapshot.manifest.model_copy(update={"index": IVF})
    own = pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"]), num_candidates=5, search_effort=2)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        assert (await call(channel)).search_effort == 1
        server._service._brown_out.observe(1e9)  # a long wait
        reply, on_own_terms = await asyncio.gather(call(channel), call(channel, own.SerializeToString()))
        info = channel.unary_unary("/re4.v1.Retrieval/Info")
        facts = pb.InfoReply.FromString(await info(b""))
        assert facts.is_browned_out == (floor is not None)
        assert facts.brown_out_effort == (0 if floor is None else effort)
        assert facts.thread_pools["onnxruntime"] == 1
        assert reply.search_effort == effort
        assert len(reply.items.strings) == 5
        assert on_own_terms.search_effort == 2
        counted = server.metrics.registry.get_sample_value("re4_browned_out_total")
        assert (counted > 0) == (effort < 1)

    drive(serving(replace(snapshot, manifest=manifest)), test, brown_out_recall_floor=floor)


def test_a_version_that_was_replaced_is_freed(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files would stay mapped until the next brown-out, if the state referred to it."""
    monkeypatch.setattr(brown_out, "_CALM_S", DEADLINE_S)
    live = serving(replace(snapshot, manifest=snapshot.manifest.model_copy(update={"index": IVF})))
    replaced = weakref.ref(live.current())

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        server._service._brown_out.observe(1e9)  # a long wait
        assert (await call(channel)).search_effort == 0.5
        live.swap(snapshot)
        gc.collect()
        assert replaced() is None

    drive(live, test, brown_out_recall_floor=0.8)
