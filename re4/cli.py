"""The command `re4` and its subcommands.

The module of a subcommand is imported only when the subcommand is run or its help is shown: `re4 serve` never
loads PyTorch. Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate failed, 4 another job is at work, 130 and
143 stopped by Ctrl-C or SIGTERM (see `re4.common.errors`).
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import typer
from rich.markup import escape

from re4.common.console import log_to_terminal, stderr_console
from re4.common.errors import Re4Error
from re4.common.extras import missing_package

# Subcommand, or group and subcommand -> module and function. A new subcommand is one line here.
SUBCOMMANDS: Mapping[str, str] = {
    "demo": "re4.demo:demo",
    "data fetch": "re4.training.data.cli:fetch",
    "data prepare": "re4.training.data.cli:prepare",
    "train": "re4.training.cli:train",
    "resume": "re4.training.cli:resume",
    "evaluate": "re4.training.cli:evaluate",
    "report": "re4.training.cli:report",
    "export": "re4.exporting.cli:export",
    "rebuild": "re4.exporting.rebuild.cli:rebuild",
    "serve": "re4.serving.cli:serve",
    "retrieve": "re4.serving.client.cli:retrieve",
    "bulk": "re4.bulk.cli:bulk",
    "attributes": "re4.serving.client.cli:attributes",
    "ingest": "re4.serving.client.ingest_cli:ingest",
    "inspect": "re4.inspector.cli:inspect",
    "info": "re4.serving.cli:info",
    "health": "re4.serving.client.cli:health",
    "token": "re4.serving.auth.cli:token",
    "versions": "re4.bundle.versions_cli:versions",
    "rollback": "re4.bundle.versions_cli:rollback",
    "canary": "re4.serving.versions.canary_cli:canary",
    "prune": "re4.bundle.versions_cli:prune",
    "push": "re4.bundle.remote.cli:push",
    "mirror": "re4.bundle.remote.cli:mirror",
    "histories load": "re4.histories.cli:load",
    "histories export": "re4.histories.cli:export",
    "histories rotate": "re4.histories.cli:rotate",
    "histories erase": "re4.histories.cli:erase",
    "items hide": "re4.bundle.items_cli:hide",
    "items unhide": "re4.bundle.items_cli:unhide",
    "items list": "re4.bundle.items_cli:list_hidden",
    "items add": "re4.item_files:add",
    "items remove": "re4.bundle.items_cli:remove",
    "items repair": "re4.bundle.items_cli:repair",
    "bench serve": "re4.benchmarks.serve.cli:serve",
    "bench bulk": "re4.benchmarks.bulk.cli:bulk",
    "bench transports": "re4.benchmarks.transports.cli:transports",
    "bench soak": "re4.benchmarks.soak.cli:soak",
    "bench overload": "re4.benchmarks.overload.cli:overload",
    "bench live-items": "re4.benchmarks.live_items.cli:live_items",
    "bench index": "re4.benchmarks.index.cli:index",
    "bench overhead": "re4.benchmarks.overhead.cli:overhead",
    "bench peers": "re4.benchmarks.peers.cli:peers",
    "bench train": "re4.benchmarks.train.cli:train",
    "bench quality": "re4.benchmarks.quality.cli:quality",
    "bench events": "re4.benchmarks.events.cli:events",
    "bench live": "re4.benchmarks.live.cli:live",
    "bench scale": "re4.benchmarks.scale.cli:scale",
}
GROUPS: Mapping[str, str] = {
    "data": "Fetch public data sets; prepare event logs for training.",
    "histories": "Fill, export and erase the stores of users' events; write the event log.",
    "items": "Add, remove and hide items on running servers, between two rebuilds.",
    "bench": "Measure servers, indexes, training and quality.",
}


def _load(place: str) -> Callable[..., Any]:
    module, _, function = place.partition(":")
    subcommand: Callable[..., Any] = getattr(import_module(module), function)
    return subcommand


def _chosen(words: list[str]) -> list[str]:
    """Return the subcommand that the words name; empty where they name none."""
    named = " ".join(words[:2])
    return [each for each in SUBCOMMANDS if f"{named} ".startswith(f"{each} ")]


def build_app(words: list[str]) -> typer.Typer:
    """Build the command line: with the subcommand that the words name, or with all of them for the help."""
    app = typer.Typer(
        name="re4",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Two-stage candidate retrieval: train Re4, export it, serve it over gRPC.\n\n"
        "The usual way: data fetch | data prepare, train, evaluate, export, serve, retrieve. "
        "`re4 demo` runs all of these on MovieLens-100k. The --help of each subcommand has an example.",
    )
    app.callback()(_root)
    chosen = _chosen(words) or list(SUBCOMMANDS)
    groups = {
        group: typer.Typer(no_args_is_help=True, help=text)
        for group, text in GROUPS.items()
        if any(each.startswith(f"{group} ") for each in chosen)
    }
    for subcommand in chosen:
        group, _, name = subcommand.rpartition(" ")
        (groups[group] if group else app).command(name)(_load(SUBCOMMANDS[subcommand]))
    for group, sub_app in groups.items():
        app.add_typer(sub_app, name=group)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from re4 import __version__

        sys.stdout.write(f"re4 {__version__}\n")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Hold the options of `re4` itself."""
    log_to_terminal()


def main() -> None:
    """Run the command line. An error of this project or of the system ends it with one message."""
    try:
        build_app(sys.argv[1:])(prog_name="re4")
    except (Re4Error, OSError) as error:  # a full disk, a folder that may not be written, …
        stderr_console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code if isinstance(error, Re4Error) else 1)
    except ModuleNotFoundError as error:
        if (message := missing_package(error, " ".join(["re4", *_chosen(sys.argv[1:])]))) is None:
            raise
        stderr_console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        stderr_console.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
