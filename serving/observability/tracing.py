"""Spans of calls and their stages, sent by OpenTelemetry, which is imported only where traces are on.

Spans are made after a call has ended, from times that are measured anyway, so a call whose trace is not kept
costs almost nothing. The caller's `traceparent` is the parent, and its sampling decision is respected.
"""

from importlib.util import find_spec
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Final

from re4 import __version__
from re4.common.errors import UsageError
from re4.serving.observability.call_context import REQUEST_ID, Call

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from re4.serving.observability.call_context import Stage

_SERVER_FAULTS: Final = (
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "DEADLINE_EXCEEDED",
    "UNKNOWN",
    "UNIMPLEMENTED",
)
"""Statuses that make a server's span an error, by OpenTelemetry's conventions for RPC."""
_EXPORT_TIMEOUT_S: Final = 3


def check_installed() -> None:
    """Check for OpenTelemetry before any process is started.

    Raises:
        UsageError: it is missing; the message has the command that installs it.
    """
    try:
        missing = find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter.otlp") is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise UsageError(
            "--trace-endpoint needs OpenTelemetry, which is not installed: pip install 're4-retrieval[otel]'"
        )


def otlp_provider(endpoint: str, fraction: float) -> "TracerProvider":
    """Return a provider that sends spans to a collector.

    Args:
        endpoint: OTLP/gRPC address of the collector, such as `http://127.0.0.1:4317`.
        fraction: Share of traces to keep, 0 to 1, of calls without a sampling decision of the caller.
    """
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(fraction)),
        resource=Resource.create({"service.name": "re4", "service.version": __version__}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Tracer:
    """The spans of one process."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("re4.serving", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, call: Call, code: str, details: str, seconds: float) -> None:
        """Record the span of a call that ended just now.

        Args:
            call: The call; its `stages` become the span's children.
            code: Name of its gRPC status.
            details: Details of an error status; empty where it succeeded.
            seconds: Duration of the call.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        now_s, now_ns = perf_counter(), time_ns()

        def at(moment_s: float) -> int:
            return now_ns - round((now_s - moment_s) * 1e9)

        headers = {key: value for key, value in call.metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            f"re4.v1.Retrieval/{call.method}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=at(now_s - seconds),
            attributes={"rpc.system": "grpc", "rpc.service": "re4.v1.Retrieval", "rpc.method": call.method},
        )
        if span.is_recording():
            span.set_attribute("rpc.grpc.status_code", code)
            span.set_attribute(REQUEST_ID, call.request_id)
            if call.caller is not None:
                span.set_attribute("re4.caller", call.caller.name)
            if code in _SERVER_FAULTS:
                span.set_status(Status(StatusCode.ERROR, details))
            inside = set_span_in_context(span)
            for stage, began_s, ended_s in _with_ends(call.stages, now_s - seconds, now_s):
                child = self._tracer.start_span(stage, context=inside, start_time=at(began_s))
                child.end(at(ended_s))
        span.end(now_ns)

    def left_out(self, num_calls: int) -> None:
        """Make no spans of calls that were rejected together."""

    def close(self) -> None:
        """Send the remaining spans; takes a few seconds at most."""
        self._provider.shutdown()


def _with_ends(stages: tuple["Stage", ...], began_s: float, ended_s: float) -> tuple["Stage", ...]:
    """Return the stages of a call, with `check` before the queue and `reply` after the merged list."""
    if not stages:
        return ()
    return ("check", began_s, stages[0][1]), *stages, ("reply", stages[-1][2], ended_s)
