"""The subcommands `re4 serve` and `re4 info`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from re4.bundle.remote.address import url_of
from re4.common import console
from re4.common.errors import UsageError
from re4.common.extras import require
from re4.serving.client.options import Address, AsJson, Ca, Certificate, Key, Tls, TlsServerName, TokenFile
from re4.serving.settings import (
    DEFAULT_ADDRESS,
    ENVIRONMENT_PREFIX,
    MERGE_POLICIES,
    ServerSettings,
    bundles_of,
)
from re4.settings.options import with_options
from re4.settings.sizes import parse_bytes


@with_options(ServerSettings, "Settings")
def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
            help="A TOML file of settings, `_` for `-` in names. Variables RE4_SERVE_… win over it, such as "
            "RE4_SERVE_MAX_QUEUE_MS=50, and options win over both.",
            show_envvar=False,
        ),
    ] = None,
    **settings: Any,
) -> None:
    """Answer calls over gRPC from the live bundle version, and follow new versions.

    Stop it with Ctrl-C or SIGTERM: calls in flight are finished first.

    Example: re4 serve --bundles bundles --num-processes 2

    Example: re4 serve --bundles s3://models/shop --bundles-cache-size 50GiB

    Example: re4 serve --config deploy/serve.toml
    """
    environment = {name: text for name, text in os.environ.items() if name != f"{ENVIRONMENT_PREFIX}CONFIG"}
    chosen = ServerSettings.gather(settings, file=config, environment=environment)
    bundles = bundles_of(chosen)
    require("re4 serve", "faiss", "onnxruntime")
    from re4.serving.auth.certificates import read_certificates
    from re4.serving.auth.tokens import read_tokens
    from re4.serving.host.addresses import parse_address
    from re4.serving.observability.tracing import check_installed
    from re4.serving.processes.supervisor import run_server

    where = parse_address(chosen.address)
    metrics_where = None if chosen.metrics_address is None else parse_address(chosen.metrics_address)
    http_where = None if chosen.http_address is None else parse_address(chosen.http_address)
    if http_where is not None:
        require(chosen.described("http_address"), "uvicorn")
    files, tokens = chosen.access.certificate_files, chosen.access.tokens
    for name, parsed, is_private in (
        ("address", where, files is not None),
        ("http_address", http_where, files is not None),
        ("metrics_address", metrics_where, False),
    ):
        if parsed is not None and not (parsed.is_loopback or is_private or chosen.access.insecure):
            raise UsageError(
                f"{chosen.described(name)} can be reached from other machines, and is not protected by TLS. "
                "Listen on 127.0.0.1, give --tls-certificate and --tls-key (which protect calls, not the "
                "metrics page), or add --insecure where the network itself keeps strangers out"
            )
    if chosen.access.health_address is not None:
        parse_address(chosen.access.health_address)
    if chosen.observation.trace_endpoint is not None:
        check_installed()
    if files is not None:
        read_certificates(files)
    if tokens is not None:
        read_tokens(tokens)
    if chosen.merge_policy not in MERGE_POLICIES:
        raise UsageError(
            f"{chosen.described('merge_policy')}: no such policy; there is {', '.join(MERGE_POLICIES)}"
        )
    if chosen.reflection is None:
        chosen = replace(chosen, reflection=where.is_loopback)
    if (url := url_of(str(chosen.bundles))) is not None:
        from re4.bundle.remote.mirror import Mirror
        from re4.bundle.remote.object_store import ObjectStore

        store, size = ObjectStore(url), chosen.bundles_cache_size
        limit = None if size is None else parse_bytes(size, "--bundles-cache-size")
        mirror = Mirror(store, bundles, max_bytes=limit, maps_vectors=chosen.maps_vectors)
        mirror.follow_in_thread(chosen.poll_interval_s)
    run_server(bundles, where, chosen, metrics_where)


def info(
    address: Address = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca: Ca = None,
    tls_server_name: TlsServerName = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the version, the limits and the settings of a running server.

    Example: re4 info --address 127.0.0.1:8700 --json
    """
    from re4.serving.client.client import RetrievalClient
    from re4.serving.client.connection import Connection

    connection = Connection.read(
        tls=tls, ca=ca, server_name=tls_server_name, certificate=certificate, key=key, token_file=token_file
    )
    with RetrievalClient(address, connection=connection) as client:
        facts = client.info()
    if as_json:
        console.print_json(facts)
        return
    settings, found = facts.pop("settings"), facts.pop("attributes")
    for role in ("", "canary_"):
        if not facts.get(f"num_{role}recall_samples"):
            facts.pop(f"{role}online_recall", None)  # nothing was measured yet
    limits = {name: value for name, value in facts.items() if name.startswith(("max_", "min_"))}
    served = {name: _in_words(value) for name, value in facts.items() if name not in limits}
    console.fields(f"server at {address}", {name: text for name, text in served.items() if text})
    console.fields("limits of a request", {name: _in_words(value) for name, value in limits.items()})
    if found:
        console.fields(
            "attributes, for filters",
            {
                name: f"{each['num_values']:,} values"
                + (", several for an item" if each["is_multi_valued"] else "")
                + (f", ranges of {each['order']}" if each["order"] else "")
                for name, each in found.items()
            },
        )
    console.fields(
        "settings", {name: f"{each['value']}  ({each['source']})" for name, each in settings.items()}
    )


def _in_words(value: Any) -> str:
    """Return a value of `Info` for people; empty for one that says nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
