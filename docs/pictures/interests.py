"""Draw one user's interests: what each attends to in the history, and the categories of its candidates.

    python docs/pictures/interests.py --bundles bundles --data data/sports --attribute attributes --out a.png

The data set gives the user, and the bundle gives the interests. Without `--user`, the picture shows the test
user whose interests differ most and agree best with their candidates, of the first 400 with 8 to 16 events of
at least three categories. The averages over these users are printed, for an honest caption.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, Patch, Rectangle
from numpy.typing import NDArray

import re4
from re4.training.data.dataset import Dataset

HISTORY_LENGTHS = range(8, 17)
NUM_CANDIDATES = 6
"""Candidates of each interest."""
MAX_USERS = 400
GREY = "#c8c8c8"
CATEGORY_LEVEL = 2
"""In the public Amazon data, an item's attributes are its brand and the path of its category."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One user, as the picture shows it."""

    place: int
    """Among the test users."""
    attention: NDArray[np.float32]
    """Interests x history items, newest first."""
    history: list[str]
    """Category of each item of the history, newest first."""
    candidates: list[list[str]]
    """Categories of the best candidates of each interest."""

    @property
    def difference(self) -> float:
        """1 minus the mean cosine of the interests' attention."""
        unit = self.attention / np.linalg.norm(self.attention, axis=1, keepdims=True)
        return float(1 - (unit @ unit.T).mean())

    def agreement(self) -> tuple[float, float]:
        """Return the mean attention to a candidate's category: of its own interest, and of the others."""
        num_interests = len(self.attention)
        by_pair = np.zeros((num_interests, num_interests))
        for interest, other in np.ndindex(by_pair.shape):
            mass = [
                self.attention[interest, [each == name for each in self.history]].sum()
                for name in self.candidates[other]
            ]
            by_pair[interest, other] = np.mean(mass) if mass else 0
        own = by_pair.trace() / num_interests
        return own, (by_pair.sum() - by_pair.trace()) / (num_interests**2 - num_interests)


def look_at(place: int, history: list[int], category: Mapping[Any, str], retriever: re4.Retriever) -> Shown:
    """Compute one user's interests and candidates."""
    interests = retriever.encode(history)
    found = retriever.retrieve(history, 200, exclude_history=True, merge_policy="equal-quota")
    pairs = list(zip(found.item_ids, found.interest_index, strict=True))
    return Shown(
        place=place,
        attention=interests.attention[:, ::-1],
        history=[category[item] for item in interests.attended_item_ids[::-1]],
        candidates=[
            [category[item] for item, number in pairs if number == interest][:NUM_CANDIDATES]
            for interest in range(len(interests.attention))
        ],
    )


def main() -> None:
    """Draw the picture that the command line describes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a data set with integer ids")
    parser.add_argument("--attribute", required=True, help="column of the catalogue with a list")
    parser.add_argument("--level", type=int, default=CATEGORY_LEVEL, help="place of the category in the list")
    parser.add_argument("--user", type=int, help="place of the user among the test users")
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()

    dataset = Dataset.open(words.data)
    items = dataset.items()
    ids = items["item_id"].to_list()
    paths = items[words.attribute].to_list()
    category = {
        item: str(path[words.level]) if len(path) > words.level else ""
        for item, path in zip(ids, paths, strict=True)
    }
    begins, lengths = dataset.test.offsets_U1, dataset.test.num_history_U
    users = [
        [ids[row] for row in dataset.test.items_E[begin : begin + length]]
        for begin, length in zip(begins, lengths, strict=False)
    ]
    places = [
        place
        for place, user in enumerate(users)
        if len(user) in HISTORY_LENGTHS and len({category[item] for item in user}) >= 3
    ]
    with re4.Retriever.open(words.bundles) as retriever:
        seen = [
            look_at(place, users[place], category, retriever)
            for place in (places[:MAX_USERS] if words.user is None else [words.user])
        ]
    own, others = np.mean([user.agreement() for user in seen], axis=0)
    best = max(seen, key=lambda user: user.difference * float(np.subtract(*user.agreement())))
    draw(best, words.out)
    sys.stdout.write(
        f"{words.out}: test user {best.place} of {len(seen)} compared; attention to a candidate's category: "
        f"{own:.2f} of its own interest, {others:.2f} of the others\n"
    )


def draw(user: Shown, out: Path) -> None:
    """Draw the attention as circles under the history, and the candidates beside it, coloured by category."""
    num_interests, num_items = user.attention.shape
    names = list(dict.fromkeys(name for name in user.history if name))
    colours = {name: plt.get_cmap("tab10")(place % 10) for place, name in enumerate(names)}
    figure, axis = plt.subplots(figsize=(0.36 * (num_items + NUM_CANDIDATES + 4), 0.36 * num_interests + 1.3))
    first_candidate = num_items + 1

    def square(column: float, row: float, name: str) -> None:
        axis.add_patch(Rectangle((column - 0.42, row - 0.42), 0.84, 0.84, color=colours.get(name, GREY)))

    def label(column: float, row: float, text: str, ha: str) -> None:
        axis.text(column, row, text, ha=ha, va="center", fontsize=8)

    for column, name in enumerate(user.history):
        square(column, -1, name)
    for row in range(num_interests):
        for column, share in enumerate(user.attention[row]):
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#eeeeee"))
            radius = 0.46 * float(np.sqrt(share / user.attention.max()))
            axis.add_patch(Circle((column, row), radius, color=colours.get(user.history[column], GREY)))
        for column, name in enumerate(user.candidates[row]):
            square(first_candidate + column, row, name)
        label(-0.9, row, f"interest {row}", "right")
    label(-0.9, -1, "history", "right")
    label((num_items - 1) / 2, -1.9, "newest ← history items → oldest", "center")
    label(first_candidate + (NUM_CANDIDATES - 1) / 2, -1.9, "best candidates", "center")
    axis.set_xlim(-3.4, first_candidate + NUM_CANDIDATES - 0.3)
    axis.set_ylim(num_interests - 0.3, -2.4)
    axis.set_aspect("equal")
    axis.axis("off")
    legend = [Patch(color=colour, label=f"category {name}") for name, colour in colours.items()]
    legend.append(Patch(color=GREY, label="other categories"))
    axis.legend(
        handles=legend, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncol=5, frameon=False, fontsize=8
    )
    figure.savefig(out, dpi=120, bbox_inches="tight", facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    main()
