"""The verbs `re4 serve`, `re4 retrieve` and `re4 info`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from re4 import console
from re4.errors import UsageError
from re4.setting_options import with_options
from serving.connection_options import Ca, Certificate, Key, Tls, TokenFile
from serving.settings import DEFAULT_ADDRESS, ENVIRONMENT_PREFIX, ServerSettings, bundles_of

_ServerAddress = Annotated[str, typer.Option("--address", help="HOST:PORT of a running server.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]


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
    """Answer calls over gRPC from the live bundle version, and follow new versions as they are published.

    Stop it with Ctrl-C or SIGTERM: calls in flight are finished first.

    Example: re4 serve --bundles bundles --num-processes 2

    Example: re4 serve --config deploy/serve.toml
    """
    environment = {name: text for name, text in os.environ.items() if name != f"{ENVIRONMENT_PREFIX}CONFIG"}
    chosen = ServerSettings.gather(settings, file=config, environment=environment)
    bundles = bundles_of(chosen)
    from serving.addresses import parse_address
    from serving.certificates import read_certificates
    from serving.merging import POLICIES
    from serving.supervisor import run_server
    from serving.tokens import read_tokens

    where = parse_address(chosen.address)
    metrics_where = None if chosen.metrics_address is None else parse_address(chosen.metrics_address)
    files, tokens = chosen.access.certificate_files, chosen.access.tokens
    for name, parsed, is_private in (
        ("address", where, files is not None),
        ("metrics_address", metrics_where, False),
    ):
        if parsed is not None and not (parsed.is_loopback or is_private or chosen.access.insecure):
            raise UsageError(
                f"{chosen.said_as(name)} can be reached from other machines, and is not protected by TLS. "
                f"Listen "
                "on 127.0.0.1, give --tls-certificate and --tls-key (which protect calls, not the "
                "metrics page), "
                "or add --insecure where the network itself keeps strangers out"
            )
    if chosen.access.health_address is not None:
        parse_address(chosen.access.health_address)
    if files is not None:
        read_certificates(files)
    if tokens is not None:
        read_tokens(tokens)
    if chosen.merge_policy not in POLICIES:
        raise UsageError(f"{chosen.said_as('merge_policy')}: no such policy; there is {', '.join(POLICIES)}")
    if chosen.reflection is None:
        chosen = replace(chosen, reflection=where.is_loopback)
    run_server(bundles, where, chosen, metrics_where)


def retrieve(
    history: Annotated[str, typer.Option(help="The user's item ids, oldest first: ID,ID,…")],
    address: _ServerAddress = DEFAULT_ADDRESS,
    num_candidates: Annotated[int, typer.Option(help="How many candidates.")] = 50,
    exclude: Annotated[str, typer.Option(help="Item ids that must not be among them: ID,ID,…")] = "",
    exclude_history: Annotated[
        bool, typer.Option("--exclude-history/--keep-history", help="Leave the history's items out.")
    ] = False,
    merge: Annotated[
        str | None,
        typer.Option(
            help="How the interests' lists become one: max-score, equal-quota, attention-quota, round-robin. "
            "Default: the server's choice.",
            show_default=False,
        ),
    ] = None,
    tls: Tls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: _AsJson = False,
) -> None:
    """Ask a running server for one user's candidates.

    Example: re4 retrieve --history 50,172,181 --num-candidates 20 --exclude-history
    """
    from serving.client import Connection, RetrievalClient

    connection = Connection.read(tls=tls, ca=ca, certificate=certificate, key=key, token_file=token_file)
    with RetrievalClient(address, connection=connection) as client:
        kind = str(client.info()["item_id_kind"])
        found = client.retrieve(
            _split_ids(history, "--history", kind),
            num_candidates,
            exclude=_split_ids(exclude, "--exclude", kind),
            exclude_history=exclude_history,
            merge_policy=merge,
        )
    candidates = list(
        zip(found.item_ids, found.scores_M.tolist(), found.interest_numbers_M.tolist(), strict=True)
    )
    if as_json:
        console.print_json(
            {
                "version": found.version,
                "candidates": [
                    {"item_id": item_id, "score": score, "interest": interest}
                    for item_id, score, interest in candidates
                ],
                "num_unknown_history_ids": found.num_unknown_history_ids,
                "is_popularity_fallback": found.is_popularity_fallback,
                "stage_times": found.stage_times,
            }
        )
        return
    if found.num_unknown_history_ids:
        console.say(f"{found.num_unknown_history_ids} of the history's ids are unknown to this version")
    if found.is_popularity_fallback:
        console.say("nothing in the history is usable: these are the most popular items")
    console.table(
        f"{len(candidates)} candidates from {found.version}",
        ["item", "score", "interest"],
        [[str(item_id), f"{score:.4f}", str(interest)] for item_id, score, interest in candidates],
    )


def info(
    address: _ServerAddress = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: _AsJson = False,
) -> None:
    """Show what a running server serves, and the limits that calls must keep.

    Example: re4 info --address 127.0.0.1:8700 --json
    """
    from serving.client import Connection, RetrievalClient

    connection = Connection.read(tls=tls, ca=ca, certificate=certificate, key=key, token_file=token_file)
    with RetrievalClient(address, connection=connection) as client:
        facts = client.info()
    if as_json:
        console.print_json(facts)
        return
    settings = facts.pop("settings")
    console.table(f"server at {address}", ["", ""], [[name, str(value)] for name, value in facts.items()])
    console.table(
        "its settings",
        ["", "value", "from"],
        [[name, each["value"], each["source"]] for name, each in settings.items()],
    )


def _split_ids(text: str, option: str, kind: str) -> list[str] | list[int]:
    """The ids of a comma-separated list, of the catalogue's kind."""
    words = [word.strip() for word in text.split(",")] if text else []
    if kind == "string":
        return words
    try:
        return [int(word) for word in words]
    except ValueError:
        raise UsageError(
            f"{option} {text!r}: this catalogue's ids are integers, separated by commas"
        ) from None
