"""The subcommands `re4 retrieve`, `re4 attributes` and `re4 health`."""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from re4.common import console
from re4.common.errors import ServerError, UsageError
from re4.serving.client.options import Address, AsJson, Ca, Certificate, Key, Tls, TlsServerName, TokenFile
from re4.serving.client.request_options import (
    Diversity,
    DiversityAttribute,
    Drop,
    ExcludeHistory,
    Keep,
    Merge,
    NewItems,
    NumCandidates,
    SearchEffort,
    filters_of,
)
from re4.serving.settings import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from re4.serving.client.catalogue_values import CatalogueItem
    from re4.serving.client.values import Candidates

_NUM_FREQUENT = 4
"""Values that the list of attributes shows of each."""


def retrieve(
    history: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID,ID,…",
            help="The user's item ids, oldest first: ID,ID,… or @FILE with one id a line (@- for stdin). "
            "Given more than once, each is one id, which may contain commas.",
        ),
    ] = None,
    user_id: Annotated[
        str, typer.Option(help="User whose recorded events come before the ids of --history.")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    num_candidates: NumCandidates = 50,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID,ID,…", help="Item ids that must not be among the candidates, as for --history."
        ),
    ] = None,
    exclude_history: ExcludeHistory = False,
    merge: Merge = None,
    keep: Keep = None,
    drop: Drop = None,
    diversity: Diversity = 0.0,
    diversity_attribute: DiversityAttribute = "",
    search_effort: SearchEffort = 0.0,
    new_items: NewItems = 0,
    reasons: Annotated[
        int, typer.Option(help="Also show this number of history items behind each candidate, by attention.")
    ] = 0,
    show: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Also show this attribute of each candidate. Give it again for more."
        ),
    ] = None,
    tls: Tls = False,
    ca: Ca = None,
    tls_server_name: TlsServerName = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Get one user's candidates from a running server, with their titles where the version has some.

    Example: re4 retrieve --history 50,172,181 --num-candidates 20 --exclude-history

    Example: re4 retrieve --user-id u-7 --exclude-history

    Only dramas and comedies, none of 1996, with three reasons each:
    re4 retrieve --history 50,172 --filter genres=Drama,Comedy --drop year=1996 --reasons 3
    """
    from re4.serving.client.client import RetrievalClient
    from re4.serving.client.connection import Connection
    from re4.serving.client.hints import hints_about

    if not history and not user_id:
        raise UsageError("whose candidates? Give --history ID,ID,… or --user-id USER, or both")
    connection = Connection.read(
        tls=tls, ca=ca, server_name=tls_server_name, certificate=certificate, key=key, token_file=token_file
    )
    with RetrievalClient(address, connection=connection) as client:
        info = client.info()
        kind = str(info["item_id_kind"])
        if unknown := sorted({*(show or ())} - {*info["attributes"]}):
            raise UsageError(
                f"--show {unknown[0]}: there is no such attribute; there is "
                f"{', '.join(info['attributes']) or 'none'}"
            )
        filters = filters_of(keep, drop)
        found = client.retrieve(
            _split_ids(history, "--history", kind),
            num_candidates,
            user_id=user_id,
            exclude=_split_ids(exclude, "--exclude", kind),
            exclude_history=exclude_history,
            merge_policy=merge,
            filters=filters,
            diversity=diversity,
            diversity_attribute=diversity_attribute,
            search_effort=search_effort,
            num_new_items=new_items,
            num_reasons=reasons,
        )
        items: list[CatalogueItem] = []
        if found.item_ids and (info["has_titles"] or show):
            items = client.get_items(found.item_ids)
        titles: dict[Any, str] = {}
        if found.reasons and info["has_titles"] and not as_json:
            named: list[Any] = list(dict.fromkeys(chain.from_iterable(found.reasons.item_ids)))
            titles = {item.item_id: item.title for item in client.get_items(named)}
        hints = hints_about(filters, client) if not found.item_ids else []
    if as_json:
        console.print_json(_facts(found, items, info["has_titles"], show or ()))
        return
    for hint in hints:
        console.print_line(hint)
    if found.num_unknown_history_ids:
        console.print_line(f"{found.num_unknown_history_ids} ids of the history are unknown to this version")
    if found.is_history_missing:
        console.print_line("the store of histories cannot be used: the ids of --history alone count")
    if found.is_popularity_fallback:
        console.print_line("nothing in the history is usable: these are the most popular items")
    title = f"{console.number_of(len(found.item_ids), 'candidate')} from {found.version}"
    if not found.item_ids:
        console.stdout_console.print(title, markup=False)
        return
    console.table(
        title,
        [
            *(["item", "title"] if info["has_titles"] else ["item"]),
            *(show or ()),
            *("score", "interest"),
            *([] if found.is_new is None else ["new"]),
            *(["because of"] if found.reasons else []),
        ],
        [
            [
                str(item_id),
                *([items[place].title] if info["has_titles"] else []),
                *(", ".join(items[place].attributes.get(name, ())) for name in show or ()),
                *(f"{score:.4f}", str(interest)),
                *([] if found.is_new is None else ["new" if found.is_new[place] else ""]),
                *_because_of(found, interest, titles),
            ]
            for place, (item_id, score, interest) in enumerate(_candidates(found))
        ],
        num_text_columns=1 + bool(info["has_titles"]) + len(show or ()),
    )


def attributes(
    name: Annotated[str, typer.Argument(help="The attribute; empty for a list of all.")] = "",
    address: Address = DEFAULT_ADDRESS,
    like: Annotated[str, typer.Option(help="Values that are most like this text.")] = "",
    num_values: Annotated[int, typer.Option(help="Number of values.")] = 20,
    tls: Tls = False,
    ca: Ca = None,
    tls_server_name: TlsServerName = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List the attributes of a running server's items, or the values of one with their numbers of items.

    Example: re4 attributes

    Example: re4 attributes genres --like comdy
    """
    from re4.serving.client.client import RetrievalClient
    from re4.serving.client.connection import Connection

    connection = Connection.read(
        tls=tls, ca=ca, server_name=tls_server_name, certificate=certificate, key=key, token_file=token_file
    )
    with RetrievalClient(address, connection=connection) as client:
        info = client.info()
        if name:
            values = client.list_values(name, like=like, num_values=num_values)
            if as_json:
                console.print_json({"version": info["version"], "attribute": name, "values": values})
                return
            total = info["attributes"].get(name, {}).get("num_values", len(values))
            console.table(
                f"{len(values)} of {total:,} values of {name}, {info['version']}",
                ["value", "items"],
                [[value, f"{number:,}"] for value, number in values.items()],
            )
            return
        if as_json:
            console.print_json({"version": info["version"], "attributes": info["attributes"]})
            return
        console.table(
            f"{len(info['attributes'])} attributes of {info['version']}",
            ["attribute", "values", "an item has", "ranges", "most frequent"],
            [
                [
                    each,
                    f"{facts['num_values']:,}",
                    "several" if facts["is_multi_valued"] else "one",
                    facts["order"] or "no",
                    ", ".join(client.list_values(each, num_values=_NUM_FREQUENT)),
                ]
                for each, facts in info["attributes"].items()
            ],
        )


def health(
    address: Address = DEFAULT_ADDRESS,
    timeout_s: Annotated[float, typer.Option(help="Time limit of the question.")] = 3.0,
    tls: Tls = False,
    ca: Ca = None,
    tls_server_name: TlsServerName = None,
    certificate: Certificate = None,
    key: Key = None,
) -> None:
    """Ask the health service of a server; no token is needed. For container health checks and scripts.

    Exit codes: 0 the server answers calls, 1 it does not.

    Example: re4 health --address 127.0.0.1:8701
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from re4.protos.v1 import retrieval_pb2
    from re4.serving.client.connection import Connection, server_error

    connection = Connection.read(
        tls=tls, ca=ca, server_name=tls_server_name, certificate=certificate, key=key
    )
    service = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name
    with connection.channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.RpcError as error:
            raise server_error(error, address, timeout_s) from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise ServerError(f"{address} is {status}")
    console.print_line(f"{address} is {status}")


def _candidates(found: "Candidates") -> list[tuple[str | int, float, int]]:
    """Return the id, score and interest of each."""
    return list(zip(found.item_ids, found.scores.tolist(), found.interest_index.tolist(), strict=True))


def _because_of(found: "Candidates", interest: int, titles: Mapping[Any, str]) -> list[str]:
    """Return the history items behind an interest: titles where there are, else ids."""
    if found.reasons is None:
        return []
    reasons = zip(found.reasons.item_ids[interest], found.reasons.weights[interest].tolist(), strict=True)
    return [", ".join(f"{titles.get(item_id) or item_id} ({weight:.0%})" for item_id, weight in reasons)]


def _facts(
    found: "Candidates", items: Sequence["CatalogueItem"], has_titles: bool, show: Sequence[str]
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "version": found.version,
        "candidates": [
            {
                "item_id": item_id,
                "score": score,
                "interest": interest,
                **({"title": items[place].title} if has_titles else {}),
                **(
                    {"attributes": {name: items[place].attributes.get(name, []) for name in show}}
                    if show
                    else {}
                ),
                **({} if found.is_new is None else {"is_new": bool(found.is_new[place])}),
            }
            for place, (item_id, score, interest) in enumerate(_candidates(found))
        ],
        "num_unknown_history_ids": found.num_unknown_history_ids,
        "is_popularity_fallback": found.is_popularity_fallback,
        "is_history_missing": found.is_history_missing,
        "is_canary": found.is_canary,
        "stage_times": found.stage_times,
    }
    if found.reasons is not None:
        facts["reasons"] = [
            [
                {"item_id": item_id, "weight": weight}
                for item_id, weight in zip(item_ids, weights, strict=True)
            ]
            for item_ids, weights in zip(found.reasons.item_ids, found.reasons.weights.tolist(), strict=True)
        ]
    return facts


def _split_ids(given: Sequence[str] | None, option: str, kind: str) -> list[str] | list[int]:
    """Return the ids of an option in the catalogue's kind.

    One text is a comma-separated list, or @FILE with an id a line; of several, each is one id.
    """
    words = list(given or ())
    text = ", ".join(words)
    if len(words) == 1 and text.startswith("@"):
        words = [line for line in _lines(text[1:], option) if line]
    elif len(words) == 1:
        words = [word.strip() for word in text.split(",")] if text else []
    if kind == "string":
        return words
    try:
        return [int(word) for word in words]
    except ValueError:
        raise UsageError(
            f"{option} {text!r}: this catalogue's ids are integers, separated by commas or one a line"
        ) from None


def _lines(file: str, option: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} @{file}: {error}") from None
    return text.splitlines()
