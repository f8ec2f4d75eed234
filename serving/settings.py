"""Every choice that a server is started with, checked once. Knows names and numbers, opens nothing.

This is the only list: a field here is an option of `re4 serve`, a variable `RE4_SERVE_…`, a line of the
settings file, and an entry of `Info`. None of them may hold a secret, only the name of a file that does. The
supervisor hands them to its worker processes as JSON, so that all of them run on the same choices.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from re4.common.errors import UsageError
from re4.serving.auth.certificates import CertificateFiles
from re4.serving.host.cgroups import usable_cores
from re4.serving.retrieval.devices.device import Device
from re4.settings.fields import check, construct, declared, flat, option_name, plain, setting
from re4.settings.sources import DEFAULT_SOURCE, checked, gather

DEFAULT_ADDRESS: Final = "127.0.0.1:8700"
ENVIRONMENT_PREFIX: Final = "RE4_SERVE_"


class Fallback(StrEnum):
    """What a user without a usable history gets."""

    NONE = "none"
    """FAILED_PRECONDITION: the caller decides."""
    POPULAR = "popular"
    """The version's most popular items, marked as such in the reply."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for; `Info` tells the callers."""

    max_num_candidates: int = setting(1_000, "Most candidates that one request may ask for.", low=1)
    max_num_history_ids: int = setting(
        10_000, "Most ids that one request may give as history; only the newest known ones count.", low=1
    )
    max_num_excluded_ids: int = setting(10_000, "Most ids that one request may exclude.", low=1)
    max_num_users: int = setting(256, "Most users that one BatchRetrieve may have.", low=1)
    max_num_filters: int = setting(16, "Most attribute filters that one request may have.", low=1)
    max_num_filter_values: int = setting(
        1_000, "Most values that all filters of one request may have together.", low=1
    )
    min_search_effort: float = setting(
        0.25,
        "Least search effort that a request may ask for: a multiple of the tuned setting.",
        low=0.001,
        high=1,
    )
    max_search_effort: float = setting(8.0, "Most search effort that a request may ask for.", low=1)
    max_num_reasons: int = setting(50, "Most history items per interest that a request may ask for.", low=0)
    max_message_bytes: int = setting(1 << 20, "Largest request on the wire, in bytes.", low=1)

    def __post_init__(self) -> None:
        """Refuse limits that no request could keep.

        Raises:
            UsageError: a limit below 1.
        """
        check(self)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may call, and how the wire is protected."""

    tls_certificate: Path | None = setting(
        None,
        "PEM file: the server's certificate, then those between it and its authority. Followed: renew it "
        "in place.",
        default_text="none: no TLS",
    )
    tls_key: Path | None = setting(
        None, "PEM file: the certificate's private key, without a passphrase.", default_text="none"
    )
    tls_client_ca: Path | None = setting(
        None,
        "PEM file: authorities whose clients alone may call (mutual TLS).",
        default_text="none: clients need no certificate",
    )
    tokens: Path | None = setting(
        None,
        "File of callers, with the hashes of their tokens and their rates. Followed. `re4 token NAME` "
        "prints an entry.",
        default_text="none: calls need no token",
    )
    insecure: bool = setting(False, "Allow addresses that other machines reach without TLS.")
    health_address: str | None = setting(
        None,
        "HOST:PORT of a second port with the health service alone, without TLS: probes such as Kubernetes' "
        "speak none.",
        default_text="no second port",
    )

    def __post_init__(self) -> None:
        """Refuse halves.

        Raises:
            UsageError: a certificate without its key, or the other way round, or client authorities without
            them.
        """
        check(self)
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError(
                "--tls-certificate and --tls-key belong together: give both, or neither for no TLS"
            )
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise UsageError("--tls-client-ca asks for TLS: give --tls-certificate and --tls-key too")

    @property
    def certificate_files(self) -> CertificateFiles | None:
        """Where the certificates are; None without TLS."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return CertificateFiles(
            certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca
        )


class LogFormat(StrEnum):
    """How lines of the log look."""

    TEXT = "text"
    JSON = "json"
    """One object a line."""


class AccessLogKind(StrEnum):
    """Which calls get a line in the log when they end."""

    OFF = "off"
    ERRORS = "errors"
    """Those that did not end with OK, but for those whose caller left."""
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the server tells about its calls, beside metrics."""

    log_format: LogFormat = setting(
        LogFormat.TEXT, "How the log's lines look: text, or json, one object a line."
    )
    access_log: AccessLogKind = setting(
        AccessLogKind.ERRORS, "Which calls get a line in the log when they end: off, errors or all."
    )
    access_log_per_s: float = setting(
        20.0, "Most such lines a second of each worker; how many were left out is said.", low=1
    )
    trace_endpoint: str | None = setting(
        None,
        "OTLP/gRPC address of a collector of traces, such as http://127.0.0.1:4317. Needs the extra otel.",
        default_text="no traces",
    )
    trace_fraction: float = setting(
        0.01, "Of calls whose caller has not decided, how many to trace: 0 to 1.", low=0, high=1
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: a value out of its bounds.
        """
        check(self)


class EffectiveSetting(NamedTuple):
    """One setting as this server runs on it."""

    name: str
    value: str
    source: str
    """Where the value came from, in words."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server runs, whatever version it serves."""

    bundles: Path | None = setting(
        None,
        "Bundle directory, as `re4 export` writes it. Its CURRENT is followed.",
        default_text="none; one must be given",
    )
    address: str = setting(
        DEFAULT_ADDRESS,
        "HOST:PORT to listen on. Port 0 lets the system choose; the log says which.",
    )
    metrics_address: str | None = setting(
        None,
        "HOST:PORT of a page for Prometheus: calls, latency by stage, versions.",
        default_text="no page",
    )
    reflection: bool | None = setting(
        None, "Describe the methods to whoever asks, such as grpcurl.", default_text="on loopback only"
    )
    num_processes: int = setting(
        usable_cores(),
        "Worker processes on the one port, each with one compute lane.",
        low=1,
        default_text="one for each core that affinity and control groups leave",
    )
    device: Device = setting(
        Device.CPU,
        "Where to encode and search: cpu, or cuda (one GPU; needs the extra gpu and a flat or IVF index).",
    )
    max_batch_size: int = setting(64, "Most users that share one run of the encoder and one search.", low=1)
    max_batch_delay_ms: float = setting(
        0.0,
        "Milliseconds that an idle worker waits for more calls before it runs a batch: more throughput for "
        "clients of few calls at a time, and every lone call pays for it.",
        low=0,
        high=1,
    )
    max_queue_ms: float = setting(
        200.0,
        "Milliseconds: a call that would wait longer for its turn is shed on arrival, RESOURCE_EXHAUSTED "
        "with retry advice.",
        low=0,
    )
    brown_out_recall_floor: float | None = setting(
        None,
        "Before calls are shed, have usual searches look less hard, but never below this recall of the "
        "merged list, as the index was tuned.",
        low=0,
        high=1,
        default_text="no brown-out",
    )
    merge_policy: str = setting(
        "max-score",
        "How the interests' lists become one, where a call does not say: max-score, equal-quota, "
        "attention-quota or round-robin.",
    )
    fallback: Fallback = setting(
        Fallback.NONE,
        "What a user without a usable history gets: an error (none), or the most popular items (popular).",
    )
    poll_interval_s: float = setting(1.0, "Seconds between two looks at CURRENT.", low=0.001)
    check_timeout_s: float = setting(
        600.0, "Seconds that checking one version may take before the version is refused.", low=0.001
    )
    recall_sample: float = setting(
        0.001,
        "Share of usual requests whose answers are searched again exactly, off the hot path, for the recall "
        "on the metrics page.",
        low=0,
        high=1,
    )
    recall_cpu_share: float = setting(
        0.01, "Share of one core that measuring recall may use, at the lowest priority.", low=0.0001, high=1
    )
    memory_check: bool = setting(
        True, "Refuse a new version that would not fit into memory beside the live one, before it is loaded."
    )
    grace_s: float = setting(
        10.0, "Seconds that calls in flight get to finish after SIGTERM or Ctrl-C.", low=0
    )
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    observation: Observation = field(default_factory=Observation)
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where the values that are not defaults came from, in words; by name."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UsageError: a value out of its bounds.
        """
        check(self)

    @classmethod
    def gather(cls, flags: Mapping[str, Any], *, file: Path | None, environment: Mapping[str, str]) -> Self:
        """The settings that a command line, the environment and a file give together, flags first.

        Raises:
            UsageError: a name that is no setting, or a value that is not allowed.
        """
        values, sources = gather(cls, flags, file=file, environment=environment, prefix=ENVIRONMENT_PREFIX)
        if values.get("device") == Device.CUDA and "num_processes" not in values:
            values = {**values, "num_processes": 1}
            sources = {**sources, "num_processes": "--device cuda: every process copies the index to the GPU"}
        return replace(construct(cls, values), sources=sources)

    def effective(self) -> list[EffectiveSetting]:
        """Every setting with its value and where that came from."""
        return [
            EffectiveSetting(name, str(plain(value)), self.sources.get(name, DEFAULT_SOURCE))
            for name, value in flat(self).items()
        ]

    def described(self, name: str) -> str:
        """A setting with its value and where that came from, for an error about it."""
        value, source = plain(flat(self)[name]), self.sources.get(name, DEFAULT_SOURCE)
        origin = "" if source.startswith("flag") else f" (from: {source})"
        return f"{option_name(name)} {value}{origin}"

    def to_json(self) -> str:
        """The settings as one line, for `from_json` in another process."""
        values = {name: plain(value) for name, value in flat(self).items()}
        return json.dumps({"values": values, "sources": dict(self.sources)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings that `to_json` wrote."""
        written, known = json.loads(text), declared(cls)
        values = {
            name: None if value is None else checked(name, value, known[name])
            for name, value in written["values"].items()
        }
        return replace(construct(cls, values), sources=written["sources"])


def bundles_of(settings: ServerSettings) -> Path:
    """The bundle directory.

    Raises:
        UsageError: none was given.
    """
    if settings.bundles is None:
        raise UsageError(
            "which bundles to serve? Give --bundles DIR, or RE4_SERVE_BUNDLES=DIR, or a line "
            'bundles = "DIR" in the file that --config names'
        )
    return settings.bundles
