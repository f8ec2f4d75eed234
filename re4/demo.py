"""`re4 demo`: from an empty folder to candidates over gRPC on MovieLens-100k.

Each step is a `re4` command in a process of its own, shown before it runs. Only the calls to the server and
the tables of candidates are code here.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from re4.common.console import print_line, stdout_console
from re4.common.errors import Re4Error, UsageError
from re4.common.server_process import ServerProcess

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from re4 import Candidates, RetrievalClient
    from re4.training.data.dataset import Dataset

_NUM_USERS = 2
_NUM_CANDIDATES = 10
_NUM_ATTENDED = 3
_MIN_HISTORY = 10
_OWN_LIST = 50
_SETTINGS = ("--model", "re4", "--information-weight", "0.3")
"""The default for such a log is a transformer with one interest; by its own defaults Re4's are nearly one."""
_DEMO_USER = "demo-user"
_NEW_FILM = 1_000_000
_POLL_S = 0.02


def demo(
    folder: Annotated[
        Path, typer.Option("--folder", help="Folder of all results; finished steps are not repeated.")
    ] = Path("demo"),
) -> None:
    """Run all steps on MovieLens-100k: fetch, prepare, train, evaluate, export, serve, retrieve.

    It takes a few minutes on two cores. It can be stopped at any time: the next start continues after the
    last finished step.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--folder {folder} is a file; give a folder.")
    raw, data, run, bundles = (folder / name for name in ("raw", "ml-100k", "run", "bundles"))
    if not (raw / "events.csv").exists():
        _step("data", "fetch", "ml-100k", "--out", str(raw))
    if not (data / "dataset.json").exists():
        catalogue = next(raw.glob("catalogue.*"))
        _step(
            *("data", "prepare", "--events", str(raw / "events.csv"), "--catalogue", str(catalogue)),
            *("--out", str(data)),
        )
    if not (run / "config.json").exists():
        if run.exists():
            print_line(f"{run} is unfinished: training it again")
            _remove_run(run)
        _step("train", str(data), "--out", str(run), *_SETTINGS)
    _step("evaluate", str(run))
    if not (bundles / "CURRENT").exists():
        _step("export", str(run), "--bundles", str(bundles))
    _show_command("serve", "--bundles", str(bundles), "--address", "127.0.0.1:0")
    with ServerProcess(bundles, on_line=_print_log_line) as server:
        _retrieve(server.address, data)
    print_line(f"server stopped, exit code {server.stop()}")
    _next_commands(folder, data, run, bundles)


def _print_log_line(line: str) -> None:
    if "settings from default" not in line:  # some seventy settings
        print_line(f"  {line}")


def _show_command(*words: str) -> None:
    stdout_console.print(f"\n[bold green]$[/] [bold]re4 {escape(' '.join(words))}[/]")


def _step(*words: str) -> None:
    _show_command(*words)
    done = subprocess.run([sys.executable, "-m", "re4.cli", *words], check=False)
    if done.returncode != 0:
        raise Re4Error(f"`re4 {words[0]}` ended with exit code {done.returncode}; see its message above.")


def _remove_run(run: Path) -> None:
    for file in run.iterdir():
        file.unlink()


def _retrieve(address: str, data: Path) -> None:
    from re4 import RetrievalClient
    from re4.training.data.dataset import Dataset

    dataset = Dataset.open(data)
    items = dataset.items()
    ids = items["item_id"].to_list()
    titles = dict(zip(ids, _titles(items), strict=True))
    with RetrievalClient(address) as client:
        vectors_ND = _item_vectors(client, ids)
        users = _users_with_distinct_interests(client, dataset, vectors_ND)
        for user in users:
            _show_user(client, dataset, user, titles, vectors_ND)
        _record_event(client, dataset, titles, users[0])
        _add_film(client, titles)


def _item_vectors(client: "RetrievalClient", ids: list[int]) -> "NDArray[np.float32]":
    import numpy as np

    chunk = client.info()["max_num_candidates"]
    found = [
        client.get_items(ids[start : start + chunk], return_vectors=True)
        for start in range(0, len(ids), chunk)
    ]
    return np.stack([item.vector for part in found for item in part if item.vector is not None])


def _history_and_later(dataset: "Dataset", user: int) -> tuple[list[int], set[object]]:
    """Return a held-out user's history, oldest first, and the later items, as ids."""
    from re4.training.evaluation.protocol import history_and_targets

    ids = dataset.items()["item_id"]
    history_rows, target_rows = history_and_targets(dataset.test, user)
    return ids.gather(history_rows).to_list(), set(ids.gather(target_rows).to_list())


def _users_with_distinct_interests(
    client: "RetrievalClient", dataset: "Dataset", vectors_ND: "NDArray[np.float32]"
) -> list[int]:
    """Return the held-out users with the most different interests that all find candidates."""
    import numpy as np

    overlaps = {}
    for user in range(dataset.test.num_users):
        history, _ = _history_and_later(dataset, user)
        reply = _ask(client, history)
        assert reply.interests is not None  # they were requested
        counts_K = np.bincount(reply.interest_index, minlength=len(reply.interests.vectors))
        own_KS = np.argsort(-(reply.interests.vectors @ vectors_ND.T), axis=1)[:, :_OWN_LIST]
        pairs = itertools.combinations(own_KS, 2)
        overlap = np.mean([len(np.intersect1d(one, other)) for one, other in pairs])
        # First those whose every interest has a candidate.
        overlaps[user] = (len(history) < _MIN_HISTORY, -np.count_nonzero(counts_K), overlap)
    return sorted(overlaps, key=overlaps.__getitem__)[:_NUM_USERS]


def _ask(client: "RetrievalClient", history: list[int]) -> "Candidates":
    return client.retrieve(
        history, _NUM_CANDIDATES, exclude_history=True, return_interests=True, merge_policy="soft-quota"
    )


def _show_user(
    client: "RetrievalClient",
    dataset: "Dataset",
    user: int,
    titles: Mapping[object, str],
    vectors_ND: "NDArray[np.float32]",
) -> None:
    history, later = _history_and_later(dataset, user)
    reply = _ask(client, history)
    stdout_console.print(
        f"\n[bold]User {dataset.users('test')[user]}[/], {len(history)} events: what each interest attends "
        "to, and what it finds (✓: the user did watch it later)"
    )
    for number in dict.fromkeys(reply.interest_index.tolist()):
        stdout_console.print(f"  [bold]interest {number}[/]: {escape(_attended(reply, number, titles))}")
        for item, found_by in zip(reply.item_ids, reply.interest_index, strict=True):
            if found_by == number:
                stdout_console.print(f"      {escape(_marked(item, titles, later))}")
    stdout_console.print(_comparison(dataset, reply, history, later, titles, vectors_ND))


def _attended(reply: "Candidates", number: int, titles: Mapping[object, str]) -> str:
    """Return the history items with the most attention of an interest."""
    assert reply.interests is not None  # they were requested
    attention_L = reply.interests.attention[number]
    most = attention_L.argsort()[::-1][:_NUM_ATTENDED]
    return " · ".join(
        f"{titles[reply.interests.attended_item_ids[place]]} {attention_L[place]:.0%}" for place in most
    )


def _marked(item: object, titles: Mapping[object, str], later: set[object]) -> str:
    return f"{titles[item]} ✓" if item in later else titles[item]


def _comparison(
    dataset: "Dataset",
    reply: "Candidates",
    history: list[int],
    later: set[object],
    titles: Mapping[object, str],
    vectors_ND: "NDArray[np.float32]",
) -> Table:
    """Return the list of all interests beside that of the first one alone, and the most popular items."""
    import numpy as np

    assert reply.interests is not None  # they were requested
    ids = dataset.items()["item_id"].to_list()
    first = int(reply.interest_index[0])
    by_one = np.argsort(-(vectors_ND @ reply.interests.vectors[first]), kind="stable").tolist()
    seen = set(history)
    columns: dict[str, Sequence[object]] = {
        "all interests": reply.item_ids,
        f"interest {first} alone": [ids[row] for row in by_one if ids[row] not in seen],
        "most popular": [item for item in ids if item not in seen],  # rows are in order of popularity
    }
    grid = Table(title="Beside one interest, and the most popular", title_justify="left", show_edge=False)
    for heading in columns:
        grid.add_column(heading, no_wrap=True)
    for items in zip(*(column[:_NUM_CANDIDATES] for column in columns.values()), strict=True):
        grid.add_row(*(escape(_marked(item, titles, later)) for item in items))
    return grid


def _record_event(
    client: "RetrievalClient", dataset: "Dataset", titles: Mapping[object, str], user: int
) -> None:
    """Record the history of a user, then one event more, and show the answer before and after it."""
    history, _ = _history_and_later(dataset, user)
    client.forget_user(_DEMO_USER)  # of an earlier demo
    client.record_events([_DEMO_USER] * len(history), history)
    before = client.retrieve(user_id=_DEMO_USER, num_candidates=_NUM_CANDIDATES, exclude_history=True)
    watched = before.item_ids[0]
    client.record_events([_DEMO_USER], before.item_ids[:1])
    after = client.retrieve(user_id=_DEMO_USER, num_candidates=_NUM_CANDIDATES, exclude_history=True)
    stdout_console.print(
        f"\n[bold]RecordEvents[/]: {_DEMO_USER} watches {escape(titles[watched])}; the next answer knows it:"
    )
    grid = Table(title="Candidates by user id (+: new)", title_justify="left", show_edge=False)
    for heading in ("before", "after", ""):
        grid.add_column(heading)
    for one, other in zip(before.item_ids, after.item_ids, strict=False):
        mark = "" if other in before.item_ids else "+"
        grid.add_row(escape(titles[one]), escape(titles[other]), mark)
    stdout_console.print(grid)


def _add_film(client: "RetrievalClient", titles: Mapping[object, str]) -> None:
    """Add a film that fits a user, show it in the next answer, and remove it again."""
    from re4 import LiveItem

    user = client.retrieve(
        user_id=_DEMO_USER, num_candidates=_NUM_CANDIDATES, exclude_history=True, return_interests=True
    )
    assert user.interests is not None  # they were requested
    interest_D = user.interests.vectors[user.interest_index[0]]
    # Its score is a little above that of the user's first candidate.
    vector_D = interest_D * (1.01 * float(user.scores[0]) / float(interest_D @ interest_D))
    done = client.upsert_items([LiveItem(item_id=_NEW_FILM, vector=vector_D)])
    while client.info()["live_sequence"] < done.sequence:
        sleep(_POLL_S)
    after = client.retrieve(user_id=_DEMO_USER, num_candidates=_NUM_CANDIDATES, exclude_history=True)
    stdout_console.print("\n[bold]UpsertItems[/]: a new film is added; the next answer has it:")
    for item in after.item_ids[:3]:
        stdout_console.print(f"    {escape(titles.get(item, 'the new film'))}")
    client.remove_items([_NEW_FILM])


def _titles(items: "pl.DataFrame") -> list[str]:
    return [
        f"{title} ({year})" if title and year else title or str(item)
        for item, title, year in items.select("item_id", "title", "year").rows()
    ]


def _next_commands(folder: Path, data: Path, run: Path, bundles: Path) -> None:
    re4 = os.path.relpath(Path(sys.executable).parent / "re4")
    stdout_console.print(
        f"""
[bold]What to try next[/]

  {re4} serve --bundles {bundles} --address 127.0.0.1:8700      (in one terminal)
  {re4} info --address 127.0.0.1:8700                           (in another)
  {re4} retrieve --address 127.0.0.1:8700 --history 50,181,172 --num-candidates 10
  {re4} retrieve --user-id demo-user --exclude-history --num-candidates 10
  {re4} retrieve --history 50,181,172 --filter genres=Comedy,Drama --drop year=1996 --reasons 2
  {re4} inspect --bundles {bundles} --data {data}
  {re4} train {data} --out {folder / "comirec"} --model comirec-sa
  {re4} evaluate {run} --exclude-history --json
  {re4} data prepare --help                                     (your own event log)
"""
    )
