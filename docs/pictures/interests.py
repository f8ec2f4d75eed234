"""Draw one user's interests: what each attends to in the history, and the categories of its candidates.

    python docs/pictures/interests.py --bundles bundles --data data/sports --attribute attributes --out a.png

The data set gives the user, and the bundle gives the interests. Without `--user`, the picture shows the test
user with the most different interests, of those with enough history and at least three categories.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch, Rectangle

import re4
from re4.training.data.dataset import Dataset

NUM_SHOWN = 16
"""History items, the newest."""
NUM_CANDIDATES = 6
"""Candidates of each interest."""
MAX_USERS = 400
"""Users that are compared."""
GREY = "#c8c8c8"


def categories(dataset: Dataset, column: str, level: int) -> dict[int | str, str]:
    """Return the category of each item, at a level of its category path."""
    items = dataset.items()
    paths = [value if isinstance(value, list) else [value] for value in items[column].to_list()]
    names = [str(path[level]) if len(path) > level else "" for path in paths]
    return dict(zip(items["item_id"].to_list(), names, strict=True))


def histories(dataset: Dataset) -> list[list[int | str]]:
    """Return the histories of the test users, oldest first."""
    ids = dataset.items()["item_id"].to_list()
    users = zip(dataset.test.offsets_U1, dataset.test.num_history_U, strict=False)
    return [[ids[row] for row in dataset.test.items_E[begin : begin + length]] for begin, length in users]


def most_different(
    retriever: re4.Retriever, users: list[list[int | str]], of: Mapping[int | str, str]
) -> int:
    """Return the user whose interests attend to the most different items."""

    def difference(history: list[int | str]) -> float:
        attention = retriever.encode(history[-NUM_SHOWN:]).attention  # type: ignore[arg-type]
        unit = attention / np.linalg.norm(attention, axis=1, keepdims=True)
        return -float((unit @ unit.T).mean())

    long = [place for place, user in enumerate(users) if 10 <= len(user) <= NUM_SHOWN]
    varied = [place for place in long if len({of[item] for item in users[place]}) >= 3]
    return max(varied[:MAX_USERS], key=lambda place: difference(users[place]))


def main() -> None:
    """Draw the picture that the command line describes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--attribute", required=True, help="column of the catalogue that holds the category")
    parser.add_argument("--level", type=int, default=3, help="place in the list of a category path")
    parser.add_argument("--user", type=int, help="place of the user among the test users")
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()

    dataset = Dataset.open(words.data)
    category = categories(dataset, words.attribute, words.level)
    users = histories(dataset)
    with re4.Retriever.open(words.bundles) as retriever:
        place = words.user if words.user is not None else most_different(retriever, users, category)
        history = users[place][-NUM_SHOWN:]
        interests = retriever.encode(history)  # type: ignore[arg-type]
        found = retriever.retrieve(history, 500, exclude_history=True, merge_policy="equal-quota")  # type: ignore[arg-type]

    attention = interests.attention[:, ::-1]
    newest_first = interests.attended_item_ids[::-1]
    of_interest = [
        [
            item
            for item, number in zip(found.item_ids, found.interest_index, strict=True)
            if number == interest
        ]
        for interest in range(len(attention))
    ]
    shown = [items[:NUM_CANDIDATES] for items in of_interest]
    draw(
        attention,
        [category[item] for item in newest_first],
        [[category[i] for i in row] for row in shown],
        words.out,
    )
    sys.stdout.write(f"test user {place}: {words.out}\n")


def draw(attention: np.ndarray, history: list[str], candidates: list[list[str]], out: Path) -> None:
    """Draw the attention as circles under the history, and the candidates beside it, coloured by category."""
    num_interests, num_items = attention.shape
    in_history = list(dict.fromkeys(name for name in history if name))
    colours = {name: plt.get_cmap("tab10")(place % 10) for place, name in enumerate(in_history)}

    figure, axis = plt.subplots(figsize=(9.5, 0.44 * num_interests + 1.9))
    gap = num_items + 1
    for column, name in enumerate(history):
        axis.add_patch(Rectangle((column - 0.42, -1.42), 0.84, 0.84, color=colours.get(name, GREY)))
    for row in range(num_interests):
        for column in range(num_items):
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#eeeeee"))
            size = 0.46 * np.sqrt(attention[row, column] / attention.max())
            colour = colours.get(history[column], GREY)
            axis.add_patch(plt.Circle((column, row), size, color=colour))
        for column, name in enumerate(candidates[row]):
            axis.add_patch(
                Rectangle((gap + column - 0.42, row - 0.42), 0.84, 0.84, color=colours.get(name, GREY))
            )
        axis.text(-0.9, row, f"interest {row}", ha="right", va="center", fontsize=9)
    axis.text(-0.9, -1, "history", ha="right", va="center", fontsize=9)
    axis.text(
        (num_items - 1) / 2, -1.75, "newest ← history items → oldest", ha="center", va="bottom", fontsize=9
    )
    axis.text(gap + (NUM_CANDIDATES - 1) / 2, -1.75, "best candidates", ha="center", va="bottom", fontsize=9)
    axis.set_xlim(-3.6, gap + NUM_CANDIDATES - 0.3)
    axis.set_ylim(num_interests - 0.3, -2.5)
    axis.set_aspect("equal")
    axis.axis("off")
    legend = [Patch(color=colour, label=f"category {name}") for name, colour in colours.items()]
    axis.legend(
        handles=[*legend, Patch(color=GREY, label="other")],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.02),
        ncol=6,
        frameon=False,
        fontsize=8,
    )
    figure.savefig(out, dpi=110, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
