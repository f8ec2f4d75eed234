"""The verbs `re4 serve`, `re4 retrieve` and `re4 info`."""

from pathlib import Path
from typing import Annotated

import typer

from re4 import console
from re4.errors import UsageError
from serving.settings import DEFAULT_ADDRESS, Fallback, Limits, ServerSettings

_ServerAddress = Annotated[str, typer.Option("--address", help="HOST:PORT of a running server.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]


def serve(
    bundles: Annotated[
        Path, typer.Option(help="Bundle directory, as `re4 export` writes it. Its CURRENT is followed.")
    ],
    address: Annotated[
        str, typer.Option(help="HOST:PORT to listen on. Port 0 lets the system choose; the log says which.")
    ] = DEFAULT_ADDRESS,
    num_processes: Annotated[
        int, typer.Option(help="Worker processes on the one port: about one for each core to spend.")
    ] = ServerSettings.num_processes,
    max_batch_size: Annotated[
        int, typer.Option(help="Most calls that share one run of the encoder and one search.")
    ] = ServerSettings.max_batch_size,
    max_queue_ms: Annotated[
        float,
        typer.Option(
            help="A call that would wait longer for its turn is shed: RESOURCE_EXHAUSTED, with retry advice."
        ),
    ] = ServerSettings.max_queue_ms,
    max_num_candidates: Annotated[
        int, typer.Option(help="Most candidates that one call may ask for.")
    ] = Limits.max_num_candidates,
    merge: Annotated[
        str,
        typer.Option(
            help="How the interests' lists become one, where a call does not say: max-score, equal-quota, "
            "attention-quota or round-robin."
        ),
    ] = ServerSettings.merge_policy,
    fallback: Annotated[
        Fallback,
        typer.Option(help="What a user without a usable history gets: an error, or the most popular items."),
    ] = ServerSettings.fallback,
    reflection: Annotated[
        bool | None,
        typer.Option(
            help="Describe the methods to whoever asks, such as grpcurl. Default: on loopback only.",
            show_default=False,
        ),
    ] = None,
    poll_interval_s: Annotated[
        float, typer.Option(help="Seconds between two looks at CURRENT.")
    ] = ServerSettings.poll_interval_s,
    grace_s: Annotated[
        float, typer.Option(help="Seconds that calls in flight get to finish after SIGTERM or Ctrl-C.")
    ] = ServerSettings.grace_s,
    metrics_address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a page for Prometheus: calls, latency by stage, versions. Default: none.",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Allow an address that other machines reach, with neither TLS nor log-in."
        ),
    ] = False,
) -> None:
    """Answer calls over gRPC from the live bundle version, and follow new versions as they are published.

    Stop it with Ctrl-C or SIGTERM: calls in flight are finished first.

    Example: re4 serve --bundles bundles --num-processes 2
    """
    from serving.addresses import parse_address
    from serving.merging import POLICIES
    from serving.supervisor import run_server

    where = parse_address(address)
    metrics_where = None if metrics_address is None else parse_address(metrics_address)
    for option, text, parsed in (
        ("--address", address, where),
        ("--metrics-address", metrics_address, metrics_where),
    ):
        if parsed is not None and not parsed.is_loopback and not insecure:
            raise UsageError(
                f"{option} {text} can be reached from other machines, and this server has neither TLS nor "
                "log-in. Listen on 127.0.0.1, or add --insecure where the network itself keeps strangers out"
            )
    if merge not in POLICIES:
        raise UsageError(f"--merge {merge}: no such policy; there is {', '.join(POLICIES)}")
    settings = ServerSettings(
        num_processes=num_processes,
        max_batch_size=max_batch_size,
        max_queue_ms=max_queue_ms,
        merge_policy=merge,
        fallback=fallback,
        reflection=where.is_loopback if reflection is None else reflection,
        poll_interval_s=poll_interval_s,
        grace_s=grace_s,
        limits=Limits(max_num_candidates=max_num_candidates),
    )
    run_server(bundles, where, settings, metrics_where)


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
    as_json: _AsJson = False,
) -> None:
    """Ask a running server for one user's candidates.

    Example: re4 retrieve --history 50,172,181 --num-candidates 20 --exclude-history
    """
    from serving.client import RetrievalClient

    with RetrievalClient(address) as client:
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


def info(address: _ServerAddress = DEFAULT_ADDRESS, as_json: _AsJson = False) -> None:
    """Show what a running server serves, and the limits that calls must keep.

    Example: re4 info --address 127.0.0.1:8700 --json
    """
    from serving.client import RetrievalClient

    with RetrievalClient(address) as client:
        facts = client.info()
    if as_json:
        console.print_json(facts)
    else:
        console.table(f"server at {address}", ["", ""], [[name, str(value)] for name, value in facts.items()])


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
