"""Every setting of a server, checked once. Opens no file.

This is the only list: a field is an option of `re4 serve`, a variable `RE4_SERVE_…`, a line of the settings
file, and an entry of `Info`. No setting holds a secret, only the name of a file that does. The supervisor
sends the settings to its workers as JSON, so that all run on the same values.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from re4.bundle.remote.address import local_directory
from re4.common.errors import UsageError
from re4.serving.auth.certificates import CertificateFiles
from re4.serving.histories.settings import NO_HISTORIES, HistorySettings
from re4.serving.host.cgroups import usable_cores
from re4.serving.retrieval.devices.device import Device
from re4.settings.fields import check, construct, declared, flat, option_name, plain, setting
from re4.settings.sources import DEFAULT_SOURCE, checked, gather

DEFAULT_ADDRESS: Final = "127.0.0.1:8700"
ENVIRONMENT_PREFIX: Final = "RE4_SERVE_"
MERGE_POLICIES: Final = ("max-score", "equal-quota", "attention-quota", "round-robin", "soft-quota")
"""Names of `re4.serving.retrieval.merging.POLICIES`, which would import NumPy for the command's help."""


class Fallback(StrEnum):
    """The answer to a user without a usable history."""

    NONE = "none"
    """The status FAILED_PRECONDITION: the caller decides."""
    POPULAR = "popular"
    """The version's most popular items, marked as such in the reply."""


class ItemVectorsFrom(StrEnum):
    """Where a server reads the item vectors of a version whose index is in Milvus."""

    FILE = "file"
    INDEX = "index"


class TransportName(StrEnum):
    """The implementation of gRPC."""

    AUTO = "auto"
    NATIVE = "native"
    GRPCIO = "grpcio"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one request; `Info` reports them."""

    max_num_candidates: int = setting(1_000, "Most candidates of one request.", low=1)
    max_num_history_ids: int = setting(
        10_000, "Most history ids of one request; only the newest known ones count.", low=1
    )
    max_num_excluded_ids: int = setting(10_000, "Most excluded ids of one request.", low=1)
    max_num_users: int = setting(256, "Most users of one BatchRetrieve.", low=1)
    max_num_events: int = setting(1_000, "Most events of one RecordEvents.", low=1)
    max_num_edited_items: int = setting(1_000, "Most items of one UpsertItems or RemoveItems.", low=1)
    max_num_live_items: int = setting(
        1_000_000, "Most live items; an UpsertItems beyond them is refused until a rebuild.", low=1
    )
    max_num_filters: int = setting(16, "Most attribute filters of one request.", low=1)
    max_num_filter_values: int = setting(1_000, "Most values of all filters of one request together.", low=1)
    min_search_effort: float = setting(
        0.25,
        "Least search effort of a request, as a multiple of the tuned setting.",
        low=0.001,
        high=1,
    )
    max_search_effort: float = setting(8.0, "Most search effort of a request.", low=1)
    max_num_reasons: int = setting(50, "Most reasons (history items) per interest of a request.", low=0)
    max_message_bytes: int = setting(1 << 20, "Largest request on the wire, in bytes.", low=1)
    max_concurrent_calls: int = setting(
        100, "Most concurrent calls of one connection; gRPC clients keep further calls back.", low=1
    )
    max_reply_bytes: int = setting(
        256 << 20,
        "Most bytes of replies in a worker that callers have not read yet. Further calls get "
        "RESOURCE_EXHAUSTED.",
        low=1,
    )
    max_reply_bytes_per_caller: int = setting(
        64 << 20, "The same for one caller: the name of a token, or a connection without one.", low=1
    )
    message_timeout_s: float = setting(
        10.0,
        "Seconds within which the message of a call must be complete. A later one ends with "
        "DEADLINE_EXCEEDED.",
        low=0.001,
    )
    max_connection_age_s: float | None = setting(
        None,
        "Seconds, give or take a tenth, after which clients are told by GOAWAY to connect again, and find "
        "new servers. Calls in flight are answered.",
        default_text="no limit",
        low=0.01,
    )

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            UsageError: a limit below 1.
        """
        check(self)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Authentication and encryption."""

    tls_certificate: Path | None = setting(
        None,
        "PEM file: the server's certificate, then the intermediate ones. Followed: renew it in place.",
        default_text="none: no TLS",
    )
    tls_key: Path | None = setting(
        None, "PEM file: the certificate's private key, without a passphrase.", default_text="none"
    )
    tls_client_ca: Path | None = setting(
        None,
        "PEM file: authorities of client certificates, which are then required (mutual TLS).",
        default_text="none: clients need no certificate",
    )
    tokens: Path | None = setting(
        None,
        "File of callers with the hashes of their tokens and their rates. Followed. `re4 token NAME` "
        "prints an entry.",
        default_text="none: calls need no token",
    )
    insecure: bool = setting(False, "Allow addresses that other machines reach, without TLS.")
    health_address: str | None = setting(
        None,
        "HOST:PORT of a second port with the health service alone, without TLS, for probes that cannot "
        "use TLS, such as those of Kubernetes.",
        default_text="no second port",
    )

    def __post_init__(self) -> None:
        """Check that certificate, key and client authorities are complete.

        Raises:
            UsageError: a certificate without a key, a key without a certificate, or client authorities
                without both.
        """
        check(self)
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError(
                "--tls-certificate and --tls-key belong together: give both, or neither for no TLS"
            )
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise UsageError("--tls-client-ca needs TLS: give --tls-certificate and --tls-key too")

    @property
    def certificate_files(self) -> CertificateFiles | None:
        """Paths of the certificates; None without TLS."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return CertificateFiles(
            certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca
        )


class LogFormat(StrEnum):
    """Format of the log."""

    TEXT = "text"
    JSON = "json"
    """One object a line."""


class AccessLogKind(StrEnum):
    """Calls that get a line in the log when they end."""

    OFF = "off"
    ERRORS = "errors"
    """Calls that ended with an error; CANCELLED is none."""
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Logs and traces of calls."""

    log_format: LogFormat = setting(LogFormat.TEXT, "Format of the log: text, or json (one object a line).")
    access_log: AccessLogKind = setting(
        AccessLogKind.ERRORS, "Calls that get a line in the log when they end: off, errors or all."
    )
    access_log_per_s: float = setting(
        20.0, "Most such lines a second of each worker; the number of further calls is logged.", low=1
    )
    trace_endpoint: str | None = setting(
        None,
        "OTLP/gRPC address of a trace collector, such as http://127.0.0.1:4317. Needs the extra otel.",
        default_text="no traces",
    )
    trace_fraction: float = setting(
        0.01, "Share of calls to trace, 0 to 1, where the caller made no sampling decision.", low=0, high=1
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value out of its bounds.
        """
        check(self)


class EffectiveSetting(NamedTuple):
    """One setting of a running server."""

    name: str
    value: str
    source: str
    """Origin of the value, in words."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of a server."""

    bundles: str | None = setting(
        None,
        "Bundle directory, as `re4 export` writes it, whose CURRENT is followed; or its address in object "
        "storage: s3://BUCKET/PREFIX, gs://… or az://… (extra object-storage).",
        default_text="none; one must be given",
    )
    bundles_cache: Path | None = setting(
        None,
        "Folder for the local copy of a bundle directory in object storage.",
        default_text="a folder of the address below $RE4_BUNDLES_CACHE or ~/.cache/re4/bundles",
    )
    bundles_cache_size: str | None = setting(
        None,
        "Bytes that this copy may take, such as 50GiB. Older versions are removed for it, oldest first, but "
        "never the live one, the one before and one in use.",
        default_text="the live version, the one before and those in use",
    )
    address: str = setting(
        DEFAULT_ADDRESS,
        "HOST:PORT to listen on. Port 0 lets the system choose; the log has the port.",
    )
    metrics_address: str | None = setting(
        None,
        "HOST:PORT of the metrics page for Prometheus: calls, latency by stage, versions.",
        default_text="no page",
    )
    http_address: str | None = setting(
        None,
        "HOST:PORT of JSON over HTTP beside gRPC: POST /v1/retrieve and the other calls; /v1/openapi.json "
        "describes them. Needs the extra http.",
        default_text="no HTTP",
    )
    reflection: bool | None = setting(
        None, "Serve gRPC reflection, for tools such as grpcurl.", default_text="on loopback only"
    )
    transport: TransportName = setting(
        TransportName.AUTO,
        "Implementation of gRPC: native (HTTP/2 by nghttp2, faster), grpcio (gRPC's own library), or auto: "
        "native where its package is installed, on Linux, else grpcio.",
    )
    num_processes: int = setting(
        usable_cores(),
        "Worker processes on one port, each with one worker thread.",
        low=1,
        default_text="one for each core that affinity and control groups leave",
    )
    device: Device = setting(
        Device.CPU,
        "Device of encoder and search: cpu, or cuda (one GPU; needs the extra gpu and a flat, IVF or CAGRA "
        "index).",
    )
    max_batch_size: int = setting(
        64, "Most users in one batch: one run of the encoder and one search.", low=1
    )
    max_batch_delay_ms: float = setting(
        0.0,
        "Milliseconds that an idle worker waits for more calls before it runs a batch. More throughput for "
        "clients with few concurrent calls; the latency of a single call grows by as much.",
        low=0,
        high=1,
    )
    max_queue_ms: float = setting(
        200.0,
        "Longest wait in the queue, in milliseconds. A call that would wait longer is rejected on arrival: "
        "RESOURCE_EXHAUSTED with retry advice.",
        low=0,
    )
    index_timeout_ms: float = setting(
        500.0,
        "Longest search of an index on another machine (Milvus), in milliseconds. After a longer one, calls "
        "get UNAVAILABLE at once until it answers again.",
        low=1,
        high=10_000,
    )
    item_vectors: ItemVectorsFrom = setting(
        ItemVectorsFrom.FILE,
        "Where the item vectors of a version with an index in Milvus come from: file (vectors.npy, mapped), "
        "or index (fetched with the search results, where the disk does not hold that file).",
    )
    brown_out_recall_floor: float | None = setting(
        None,
        "Before calls are rejected, run default searches at lower search effort, but never below this recall "
        "of the merged list, as the index was tuned.",
        low=0,
        high=1,
        default_text="no brown-out",
    )
    merge_policy: str = setting(
        "max-score",
        f"Merge policy of calls that name none: {', '.join(MERGE_POLICIES[:-1])} or {MERGE_POLICIES[-1]}.",
    )
    fallback: Fallback = setting(
        Fallback.NONE,
        "Answer to a user without a usable history: an error (none), or the most popular items (popular).",
    )
    popular_half_life_h: float | None = setting(
        None,
        "Hours after which a recorded event counts half in the most popular items of the fallback. They then "
        "follow the events of the last hours, and those of the version come after them.",
        low=0.01,
        default_text="the version's own counts",
    )
    poll_interval_s: float = setting(
        1.0, "Seconds between two reads of CURRENT, the hidden items and the tokens.", low=0.001
    )
    live_poll_interval_s: float = setting(
        0.1, "Seconds between two looks of a worker at the list of live items.", low=0.001
    )
    fold_in: bool = setting(
        True, "Improve the vectors of items that no training has seen by the recorded events of users."
    )
    max_new_share: float = setting(
        0.2,
        "While there are live items: most of a list that items without training may hold, where a request "
        "sets no num_new_items; 0 for no bound.",
        low=0,
        high=1,
    )
    check_timeout_s: float = setting(
        600.0, "Seconds that the check of one version may take before it is stopped.", low=0.001
    )
    worker_timeout_s: float = setting(
        30.0,
        "Seconds without a heartbeat after which a worker is killed and replaced. Longer than the longest "
        "batch.",
        low=0.1,
    )
    recall_sample: float = setting(
        0.001,
        "Share of max-score requests without filters that are searched again exactly, off the hot path, for "
        "the recall on the metrics page.",
        low=0,
        high=1,
    )
    recall_cpu_share: float = setting(
        0.01,
        "Share of one core that the recall measurement may use, at the lowest priority.",
        low=0.0001,
        high=1,
    )
    memory_check: bool = setting(
        True, "Refuse a new version that would not fit into memory beside the live one, before it is loaded."
    )
    grace_s: float = setting(
        10.0, "Seconds that calls in flight have to finish after SIGTERM or Ctrl-C.", low=0
    )
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    observation: Observation = field(default_factory=Observation)
    history: HistorySettings = field(default_factory=HistorySettings)
    sources: Mapping[str, str] = field(default_factory=dict)
    """Origins of the values that are not defaults, in words, by name."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UsageError: a value out of its bounds, or popular items of recorded events without events.
        """
        check(self)
        if self.popular_half_life_h is not None and self.history.histories == NO_HISTORIES:
            raise UsageError(
                "--popular-half-life-h needs recorded events: leave out --histories none, or the half-life"
            )

    @property
    def maps_vectors(self) -> bool:
        """Whether item vectors are mapped from their file, wherever the index is."""
        return self.item_vectors is ItemVectorsFrom.FILE

    @classmethod
    def gather(cls, flags: Mapping[str, Any], *, file: Path | None, environment: Mapping[str, str]) -> Self:
        """Return the settings of a command line, the environment and a file; flags win.

        Raises:
            UsageError: a name that is no setting, or a value that is not allowed.
        """
        values, sources = gather(cls, flags, file=file, environment=environment, prefix=ENVIRONMENT_PREFIX)
        if values.get("device") == Device.CUDA and "num_processes" not in values:
            values = {**values, "num_processes": 1}
            sources = {**sources, "num_processes": "--device cuda: every process copies the index to the GPU"}
        return replace(construct(cls, values), sources=sources)

    def effective(self) -> list[EffectiveSetting]:
        """Return every setting with its value and origin."""
        return [
            EffectiveSetting(name, str(plain(value)), self.sources.get(name, DEFAULT_SOURCE))
            for name, value in flat(self).items()
        ]

    def described(self, name: str) -> str:
        """Return a setting with its value and origin, for an error message."""
        value, source = plain(flat(self)[name]), self.sources.get(name, DEFAULT_SOURCE)
        origin = "" if source.startswith("flag") else f" (from: {source})"
        return f"{option_name(name)} {value}{origin}"

    def to_json(self) -> str:
        """Return the settings as one line, for `from_json` in another process."""
        values = {name: plain(value) for name, value in flat(self).items()}
        return json.dumps({"values": values, "sources": dict(self.sources)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the settings of a line of `to_json`."""
        written, known = json.loads(text), declared(cls)
        values = {
            name: None if value is None else checked(name, value, known[name])
            for name, value in written["values"].items()
        }
        return replace(construct(cls, values), sources=written["sources"])


def bundles_of(settings: ServerSettings) -> Path:
    """Return the bundle directory: for an address in object storage, its local copy.

    Raises:
        UsageError: no directory was given.
    """
    if settings.bundles is None:
        raise UsageError(
            "which bundles to serve? Give --bundles DIR, or RE4_SERVE_BUNDLES=DIR, or a line "
            'bundles = "DIR" in the file that --config names'
        )
    return local_directory(settings.bundles, settings.bundles_cache)
