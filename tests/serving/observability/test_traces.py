"""Traces: a span for each call, with its stages inside; and the library only where it is asked for."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from running_server import DEADLINE_S, RunningServer

from re4 import RetrievalClient
from re4.common.errors import UsageError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.server import RetrievalServer
from re4.serving.host.addresses import Address
from re4.serving.observability.tracing import Tracer, check_installed
from re4.serving.settings import ServerSettings
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")

REQUEST = pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"]), num_candidates=5).SerializeToString()
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def spans_of(
    snapshot: Snapshot, calls: Sequence[tuple[str, bytes, str | None]], sampler: Sampler = ALWAYS_ON
) -> list[ReadableSpan]:
    """The spans of calls, each given by method, request and `traceparent`."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(sampler), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    live = LiveVersion()
    live.swap(snapshot)

    async def main() -> None:
        server = RetrievalServer(live, ServerSettings(max_batch_size=8, grace_s=1), tracer=Tracer(provider))
        address = await server.start(Address(host="127.0.0.1", port=0))
        async with grpc.aio.insecure_channel(str(address)) as channel:
            for method, data, parent in calls:
                metadata = () if parent is None else (("traceparent", parent),)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await channel.unary_unary(f"/re4.v1.Retrieval/{method}")(
                        data, timeout=DEADLINE_S, metadata=metadata
                    )
        await server.stop()

    asyncio.run(main())
    return list(kept.get_finished_spans())


def test_a_call_is_a_span_under_its_callers_with_its_stages_inside(snapshot: Snapshot) -> None:
    spans = spans_of(snapshot, [("Retrieve", REQUEST, f"00-{TRACE}-{PARENT}-01")])
    *stages, call = spans
    assert call.name == "re4.v1.Retrieval/Retrieve"
    assert f"{call.parent.span_id:016x}" == PARENT
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert call.attributes["rpc.grpc.status_code"] == "OK"
    assert [stage.name for stage in stages] == [
        "check",
        "queue",
        "gather",
        "encode",
        "search",
        "merge",
        "reply",
    ]
    for stage in stages:
        assert stage.parent.span_id == call.context.span_id
        assert call.start_time <= stage.start_time <= stage.end_time
    for earlier, later in pairwise(stages):
        assert abs(earlier.end_time - later.start_time) <= 1
    assert stages[-1].end_time == call.end_time


def test_a_batch_has_the_stages_of_each_of_its_parts(snapshot: Snapshot) -> None:
    """Eight users share a run, so that twenty take three."""
    request = pb.BatchRetrieveRequest(users=[pb.RetrieveRequest.FromString(REQUEST)] * 20)
    *stages, call = spans_of(snapshot, [("BatchRetrieve", request.SerializeToString(), None)])
    assert call.name == "re4.v1.Retrieval/BatchRetrieve"
    assert [stage.name for stage in stages].count("search") == 3
    assert {stage.parent.span_id for stage in stages} == {call.context.span_id}


def test_the_callers_decision_counts(snapshot: Snapshot) -> None:
    unwanted, wanted = (f"00-{TRACE}-{PARENT}-{flag}" for flag in ("00", "01"))
    assert spans_of(snapshot, [("Retrieve", REQUEST, unwanted)], ALWAYS_ON) == []
    assert spans_of(snapshot, [("Retrieve", REQUEST, None)], ALWAYS_OFF) == []
    assert len(spans_of(snapshot, [("Retrieve", REQUEST, wanted)], ALWAYS_OFF)) == 8


def test_a_parent_that_is_none_begins_a_trace(snapshot: Snapshot) -> None:
    (call,) = spans_of(snapshot, [("Info", b"", "00-nonsense")])
    assert call.parent is None


def test_a_refused_call_says_what_it_was_told(snapshot: Snapshot) -> None:
    (call,) = spans_of(snapshot, [("Retrieve", b"\xff", None)])
    assert call.attributes["rpc.grpc.status_code"] == "INVALID_ARGUMENT"
    assert call.attributes["x-request-id"]


def test_a_collector_that_is_not_there_hurts_nobody(bundles: Path) -> None:
    options = ("--trace-endpoint", "http://127.0.0.1:1", "--trace-fraction", "1", "--num-processes", "1")
    with RunningServer(bundles, *options) as running:
        with RetrievalClient(running.address) as client:
            client.retrieve(["item-1-é"], 3)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans in as a collector does."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_a_collector_before_a_server_stops(bundles: Path, tmp_path: Path) -> None:
    collector = Collector()
    taking = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, taking)
    port = taking.add_insecure_port("127.0.0.1:0")
    taking.start()
    try:
        options = ("--trace-endpoint", f"http://127.0.0.1:{port}", "--trace-fraction", "1")
        store = ("--histories", str(tmp_path / "histories"))
        with RunningServer(bundles, *options, *store, "--num-processes", "1") as running:
            with RetrievalClient(running.address) as client:
                client.retrieve(["item-1-é"], 3)
                client.record_events(["nobody-may-see"], ["item-1-é"])
                client.retrieve(user_id="nobody-may-see")
                client.get_history("nobody-may-see")
                client.forget_user("nobody-may-see")
            running.signal(signal.SIGTERM)
            assert running.wait() == 0
    finally:
        taking.stop(None).wait()
    assert not [sent for sent in collector.requests if b"nobody-may-see" in sent.SerializeToString()]
    (resource,) = (each for request in collector.requests for each in request.resource_spans)
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "re4"
    assert {span.name for scope in resource.scope_spans for span in scope.spans} >= {
        "re4.v1.Retrieval/Retrieve",
        "search",
    }


def test_a_listener_that_fails_is_not_the_calls_business(snapshot: Snapshot) -> None:
    class Failing:
        def ended(self, *_: object) -> None:
            raise ZeroDivisionError

        def close(self) -> None:
            pass

    live = LiveVersion()
    live.swap(snapshot)

    async def main() -> None:
        server = RetrievalServer(live, ServerSettings(max_batch_size=8, grace_s=1), tracer=Failing())
        address = await server.start(Address(host="127.0.0.1", port=0))
        async with grpc.aio.insecure_channel(str(address)) as channel:
            data = await channel.unary_unary("/re4.v1.Retrieval/Retrieve")(REQUEST, timeout=DEADLINE_S)
        await server.stop()
        assert len(pb.RetrieveReply.FromString(data).scores) == 5

    asyncio.run(main())


def test_the_library_is_loaded_only_where_it_is_asked_for() -> None:
    code = "import sys, re4.serving.api.server; sys.exit('opentelemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(UsageError, match=r"pip install 're4-retrieval\[otel\]'"):
        check_installed()
