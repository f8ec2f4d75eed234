"""The subcommand `re4 canary`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from re4.bundle.remote.options import named_version, takes_url
from re4.common import console
from re4.common.errors import BundleError, UsageError

_COLUMNS: Final = ("role", "version", "calls", "failed", "p99", "recall")
_Bundles = Annotated[Path, typer.Argument(help="Bundle directory, as `re4 export` writes it, or s3://….")]
_AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]


@takes_url(named_version)
def canary(
    bundles: _Bundles,
    version: Annotated[
        str | None,
        typer.Argument(
            help="Version to load beside the live one. Without it, show the canary.", show_default=False
        ),
    ] = None,
    share: Annotated[
        str, typer.Option(help="Share of the users that it answers, such as 5% or 0.05.", metavar="SHARE")
    ] = "5%",
    shadow: Annotated[
        bool,
        typer.Option(
            "--shadow", help="It answers nobody; servers compare it with the live version on this share."
        ),
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Make the canary the live version.")] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="End the canary; the live version answers all.")
    ] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Compare the two versions on the metrics pages for so long; then promote the canary, or "
            "abort it at once where it is worse. A shadow is never promoted.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="Metrics page of a server: for --watch, or to show calls, failures, latency and recall of "
            "both versions. Give it again for each further server."
        ),
    ] = None,
    max_error_rise: Annotated[
        str, typer.Option(help="With --watch: failed calls of the canary beyond the live version's share.")
    ] = "1%",
    max_latency_ratio: Annotated[
        float, typer.Option(help="With --watch: the canary's p99 over the live version's, at most.")
    ] = 1.5,
    max_recall_drop: Annotated[
        str,
        typer.Option(
            help="With --watch: recall of the canary's answers below the live version's, measured online."
        ),
    ] = "2%",
    min_calls: Annotated[
        int, typer.Option(help="With --watch: calls of the canary before it is judged, and to promote it.")
    ] = 100,
    as_json: _AsJson = False,
) -> None:
    """Serve a second version to a share of the users, or compare it with the live one.

    Running servers follow within seconds. A user stays with one version: the
    share is taken by a hash of the user id, or of the request id where a
    request names no user. `re4 export --no-go-live` and `re4 rebuild
    --no-go-live` publish a version that is not live.

    Example: re4 canary bundles 20260131T235959Z-0123abcd --share 5%

    Example: re4 canary bundles --promote

    Example: re4 canary bundles --metrics http://127.0.0.1:9100/metrics

    Example: re4 canary bundles --watch 30 --metrics http://127.0.0.1:9100/metrics
    """
    from re4.bundle.publishing.canary import Canary, end_canary, read_canary, start_canary

    if (version is not None) + promote + abort > 1 or (watch is not None and promote + abort):
        raise UsageError(
            "give a version, --promote or --abort, one of them; --watch goes with neither of the last two"
        )
    if watch is not None and not metrics:
        raise UsageError("--watch needs the metrics page of each server: --metrics http://HOST:PORT/metrics")
    if promote or abort:
        name = end_canary(bundles, is_promoted=promote)
        if as_json:
            console.print_json({"canary": None, "version": name, "is_live": promote})
        else:
            console.print_line(f"{name} is live" if promote else f"{name} is no canary any more")
        return
    if version is not None:
        start_canary(bundles, Canary(version=version, share=_share(share), is_shadow=shadow))
    present = read_canary(bundles)
    if watch is not None:
        from re4.serving.versions.canary_judge import Bounds, watch_canary

        if present is None:
            raise BundleError(f"{bundles}: there is no canary to watch")
        bounds = Bounds(
            max_error_rise=_share(max_error_rise),
            max_latency_ratio=max_latency_ratio,
            min_calls=min_calls,
            max_recall_drop=_share(max_recall_drop),
        )
        reason = watch_canary(metrics or [], is_shadow=present.is_shadow, minutes=watch, bounds=bounds)
        if reason is not None or not present.is_shadow:
            end_canary(bundles, is_promoted=reason is None)
        if reason is not None:
            raise BundleError(f"{present.version} is no canary any more: {reason}")
        console.print_line(f"{present.version} " + ("may go live" if present.is_shadow else "is live"))
        return
    counted = _counted(metrics, is_shadow=present.is_shadow) if present is not None and metrics else None
    if as_json:
        figures = (
            {}
            if counted is None
            else {"versions": [dict(zip(_COLUMNS, row, strict=True)) for row in counted]}
        )
        console.print_json({"canary": None if present is None else asdict(present), **figures})
    elif present is None:
        console.print_line(
            f"{bundles}: there is no canary. Start one: re4 canary {bundles} VERSION --share 5%"
        )
    else:
        how = "is compared with the live version on" if present.is_shadow else "answers"
        console.print_line(f"{present.version} {how} {100 * present.share:g} % of the users")
        if counted is not None:
            console.table("since the servers began", _COLUMNS, counted, num_text_columns=2)


def _counted(pages: Sequence[str], *, is_shadow: bool) -> list[list[str]]:
    """Return what the servers counted of both versions."""
    from re4.serving.versions.canary_judge import read_counts, status_rows

    return status_rows(read_counts(pages), role="shadow" if is_shadow else "canary")


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--share {text!r}: give a share above 0 and at most 100 %, such as 5% or 0.05")
    return share
