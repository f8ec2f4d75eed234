"""Items that no training has seen: their recall by the way in which their vectors are made.

    python -m re4.benchmarks.quality.cold_items DATA --out FOLDER --seeds 0,1,2 [--events events.csv]

A tenth of the items is held out: drawn by the seed, or with `--events` those whose first event is the newest.
One model is trained without them, and one with them, the ceiling. Both rank the whole catalogue for the same
test users; held-out items are left out of the histories. *Matched* rows multiply all deviations of the cold
vectors from the mean by one factor. It is chosen on the validation users, so that cold items hold the share
of places that they hold in the ceiling's lists. Finished seeds are kept in cold-NAME.jsonl and not run again;
the page is made of all of them.

Legend: N items, U users, K interests, D embedding, M places, L history length, C cold items, E entries.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Final, TypeAlias

import numpy as np
import polars as pl
import torch
import typer
from numpy.typing import NDArray

from re4.benchmarks.common.confidence import half_width
from re4.benchmarks.common.report import page_table, write_report
from re4.benchmarks.quality.choice_likelihood import fit_by_likelihood
from re4.bundle.cold_start import fold_in
from re4.common.console import print_line
from re4.common.files import replacing
from re4.exporting.catalogue.cold_start import scale_for_share
from re4.exporting.catalogue.fold_in import fold_in_model, num_users_for
from re4.training import api
from re4.training.data.dataset import Dataset, Sequences
from re4.training.data.layout import SPLITS
from re4.training.data.prepare import prepare_sequences
from re4.training.evaluation.protocol import history_and_targets
from re4.training.model.attributes import PENALTY, PENALTY_AMONG_EQUALS, AttributeMatrix, fit_effects
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run

SHARE: Final = 0.1
"""Share of the items that are held out."""
PLACES: Final = 50
PENALTIES: Final = (1.0, 3.0, 10.0, 30.0, 100.0)
NUM_USERS: Final = (1, 5, 20)
CEILING: Final = "trained with them (ceiling)"
ABSENT: Final = "cold items not listed"
LIKELIHOOD: Final = "likelihood of choices"
ATTRIBUTES: Final = "trained with --attributes"
ATTRIBUTES_ABSENT: Final = f"{ATTRIBUTES}, cold items not listed"
_SHRINKAGE: Final = 10.0
_MAX_SCALE: Final = 50.0
_CHUNK_USERS: Final = 256

Figures: TypeAlias = dict[str, float]
Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Users:
    """Held-out users without cold items in their histories."""

    histories: list[NDArray[np.int64]]
    """Rows of the whole catalogue, oldest first."""
    targets: list[NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model, with the rows of the whole catalogue that it has."""

    model: MultiInterestModel
    row_N: NDArray[np.int64]
    """Its row of each item, -1 for none."""
    vectors_ND: Floats
    """Zero for items that it does not have."""

    @classmethod
    def of(cls, run: Run, items: pl.DataFrame) -> "Trained":
        """Open a run."""
        return cls.match(run.load_model(), run.items(), items)

    @classmethod
    def match(cls, model: MultiInterestModel, its_items: pl.DataFrame, items: pl.DataFrame) -> "Trained":
        """Match a model's items with the catalogue by id."""
        own = its_items.select("item_id").with_row_index("row")
        rows = items.select("item_id").join(own, on="item_id", how="left", maintain_order="left")["row"]
        row_N = rows.cast(pl.Int64).fill_null(-1).to_numpy()
        vectors = model.item_vectors_ND().numpy()
        return cls(model=model, row_N=row_N, vectors_ND=np.where(row_N[:, None] >= 0, vectors[row_N], 0))

    def interests(self, histories: Sequence[NDArray[np.int64]]) -> Floats:
        """Encode histories of rows of the whole catalogue, oldest first: [U, K, D]."""
        length = self.model.config.L
        rows_UL = np.zeros((len(histories), length), np.int64)
        lengths_U = np.array([min(length, len(history)) for history in histories])
        for user, history in enumerate(histories):
            rows_UL[user, : lengths_U[user]] = self.row_N[history[::-1][:length]]
        parts = []
        with torch.inference_mode():
            for start in range(0, len(histories), _CHUNK_USERS):
                some = slice(start, start + _CHUNK_USERS)
                encoded = self.model.interests(
                    torch.from_numpy(rows_UL[some]), torch.from_numpy(lengths_U[some])
                )
                parts.append(encoded.interests_BKD.numpy())
        return np.concatenate(parts)


def hold_out(dataset: Dataset, seed: int, first_seen: Mapping[Any, float] | None) -> NDArray[np.bool_]:
    """Return the mask of the items to hold out: drawn, or the newest by their first event."""
    known = np.flatnonzero(dataset.item_counts() > 0)
    num_cold = round(SHARE * len(known))
    is_cold_N = np.zeros(dataset.num_items, bool)
    if first_seen is None:
        is_cold_N[np.random.default_rng(seed).permutation(known)[:num_cold]] = True
    else:
        times = np.array([first_seen[each] for each in dataset.items()["item_id"]])
        is_cold_N[known[np.argsort(-times[known], kind="stable")[:num_cold]]] = True
    return is_cold_N


def first_events(events: Path) -> dict[Any, float]:
    """Return the time of the first event of each item of a log, csv with item and timestamp."""
    firsts = pl.read_csv(events).group_by("item").agg(pl.col("timestamp").min())
    return dict(zip(*firsts.select("item", "timestamp").to_dict(as_series=False).values(), strict=True))


def without(dataset: Dataset, is_cold_N: NDArray[np.bool_], out: Path) -> Dataset:
    """Prepare the data set without the events of some items."""
    if (out / "dataset.json").exists():
        return Dataset.open(out)
    ids = dataset.items()["item_id"].cast(pl.String).to_numpy()
    files = {}
    for split in SPLITS:
        sequences, users = dataset.split(split), dataset.users(split).to_list()
        lines = []
        for user, start, stop in zip(users, sequences.offsets_U1[:-1], sequences.offsets_U1[1:], strict=True):
            rows = sequences.items_E[start:stop]
            if len(kept := rows[~is_cold_N[rows]]):
                lines.append(" ".join([str(user), *ids[kept]]))
        files[split] = out.with_name(f"{out.name}-{split}.txt")
        files[split].write_text("\n".join(lines) + "\n")
    return prepare_sequences(files, out, catalogue=dataset.items(), catalogue_item_column="item_id")


def held_out_users(held_out: Sequences, is_cold_N: NDArray[np.bool_]) -> Users:
    """Return the users of a split whose history is not empty without the cold items."""
    histories, targets = [], []
    for user in range(held_out.num_users):
        history, later = history_and_targets(held_out, user)
        history = history[~is_cold_N[history]]
        if len(history):
            histories.append(history)
            targets.append(np.unique(later))
    return Users(histories=histories, targets=targets)


def best_places(
    interests_UKD: Floats, vectors_ND: Floats, users: Users, is_listed_N: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the first places of each user, without the history: scores, best first, and rows."""
    scores, rows = [], []
    for start in range(0, len(interests_UKD), _CHUNK_USERS):
        scores_BN = (interests_UKD[start : start + _CHUNK_USERS] @ vectors_ND.T).max(axis=1)
        scores_BN[:, ~is_listed_N] = -np.inf
        for place, history in enumerate(users.histories[start : start + _CHUNK_USERS]):
            scores_BN[place, history] = -np.inf
        top = torch.from_numpy(scores_BN).topk(PLACES, dim=1)
        scores.append(top.values.numpy())
        rows.append(top.indices.numpy())
    return np.concatenate(scores), np.concatenate(rows)


def figures(
    interests_UKD: Floats,
    vectors_ND: Floats,
    users: Users,
    is_cold_N: NDArray[np.bool_],
    is_listed_N: NDArray[np.bool_],
) -> Figures:
    """Return recalls of cold, warm and all targets, and among cold items alone; and their places."""
    _, rows_UM = best_places(interests_UKD, vectors_ND, users, is_listed_N)
    _, among_UM = best_places(interests_UKD, vectors_ND, users, is_cold_N & is_listed_N)
    recalls: dict[str, list[float]] = {"cold": [], "warm": [], "all": [], "among_cold": []}
    for top_M, among_M, targets in zip(rows_UM, among_UM, users.targets, strict=True):
        cold, warm = targets[is_cold_N[targets]], targets[~is_cold_N[targets]]
        for name, wanted, found in (
            ("cold", cold, top_M),
            ("warm", warm, top_M),
            ("all", targets, top_M),
            ("among_cold", cold, among_M),
        ):
            if len(wanted):
                recalls[name].append(float(np.isin(wanted, found).mean()))
    is_cold_UM = is_cold_N[rows_UM]
    return {
        **{name: fmean(values) for name, values in recalls.items()},
        "share": float(is_cold_UM.mean()),
        "coverage": len(np.unique(rows_UM[is_cold_UM])) / int(is_cold_N.sum()),
        "num_users": len(recalls["cold"]),
    }


def entries(items: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Return owners, weights (from 1) and columns of all attribute values, and the number of weights."""
    owners, weights, columns, num_weights = [], [], [], 1
    for number, column in enumerate(items.drop("item_id", "title", strict=False).iter_columns()):
        lists = (
            column if column.dtype.is_nested() else column.implode().reshape((len(column), 1)).arr.to_list()
        )
        table = (
            pl.DataFrame({"owner": range(len(items)), "value": lists}).explode("value").drop_nulls().unique()
        )
        codes = table["value"].rank("dense").cast(pl.Int64).to_numpy() - 1
        owners.append(table["owner"].to_numpy())
        weights.append(num_weights + codes)
        columns.append(np.full(len(codes), number))
        num_weights += int(codes.max(initial=-1)) + 1
    return np.concatenate(owners), np.concatenate(weights), np.concatenate(columns), num_weights


def group_means(vectors_ND: Floats, warm_rows: NDArray[np.int64], items: pl.DataFrame) -> Floats:
    """Return the vectors by shrunk means of values, averaged by column: the rule before the regression."""
    owners, weights, columns, num_weights = entries(items)
    mean_D = vectors_ND[warm_rows].mean(axis=0)
    is_warm = np.isin(owners, warm_rows)
    sums, counts = np.zeros((num_weights, vectors_ND.shape[1])), np.zeros(num_weights)
    np.add.at(sums, weights[is_warm], vectors_ND[owners[is_warm]] - mean_D)
    np.add.at(counts, weights[is_warm], 1)
    effects = sums / np.maximum(counts + _SHRINKAGE, 1)[:, None]
    total, num_columns = np.zeros(vectors_ND.shape), np.zeros(len(vectors_ND))
    for number in np.unique(columns):
        is_known = (columns == number) & (counts[weights] > 0)
        num_values = np.bincount(owners[is_known], minlength=len(vectors_ND))
        part = np.zeros(vectors_ND.shape)
        np.add.at(part, owners[is_known], effects[weights[is_known]])
        total += part / np.maximum(num_values, 1)[:, None]
        num_columns += num_values > 0
    return np.asarray(mean_D + total / np.maximum(num_columns, 1)[:, None], np.float32)


def regression(
    vectors_ND: Floats,
    events_N: NDArray[np.int64],
    warm_rows: NDArray[np.int64],
    items: pl.DataFrame,
    penalty: float = PENALTY,
    interests_UKD: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Return the mean, and the vectors of all items by ridge regression on the warm ones.

    With interests of users, the regression is refined by the likelihood of their choices.
    """
    owners, weights, _, num_weights = entries(items)
    places = np.full(len(vectors_ND), -1)
    places[warm_rows] = np.arange(len(warm_rows))
    is_warm = places[owners] >= 0
    warm_ND, events_R = vectors_ND[warm_rows], events_N[warm_rows]
    matrix = AttributeMatrix(places[owners[is_warm]], weights[is_warm], len(warm_rows), num_weights)
    weights_WD = fit_effects(torch.from_numpy(warm_ND), events_R, matrix, penalty=penalty).numpy()

    def vectors() -> Floats:
        predicted_ND = np.tile(weights_WD[0], (len(vectors_ND), 1))
        np.add.at(predicted_ND, owners, weights_WD[weights])
        return predicted_ND

    if interests_UKD is not None:
        users = interests_UKD[: num_users_for(interests_UKD.shape[1])]
        model = fold_in_model(warm_ND, vectors()[warm_rows], events_R, users, num_items=len(warm_rows)).model
        if model is not None:
            weights_WD = fit_by_likelihood(warm_ND, matrix, weights_WD, model, float(events_R.sum()))
    return weights_WD[0], vectors()


def touching_interests(
    trained: Trained,
    dataset: Dataset,
    is_cold_N: NDArray[np.bool_],
    predicted_ND: Floats,
    num: int,
    seed: int,
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the summed interests of up to `num` training users who chose an item, and their number.

    The history is what came before the event. Of several interests the one nearest to the prediction counts.
    """
    train, rng = dataset.train, np.random.default_rng([seed, num])
    histories, owners = [], []
    users_E = np.repeat(np.arange(train.num_users), np.diff(train.offsets_U1))
    events = rng.permutation(np.flatnonzero(is_cold_N[train.items_E]))
    seen_N = np.zeros(dataset.num_items, np.int64)
    for event in events.tolist():
        item = int(train.items_E[event])
        before = train.items_E[train.offsets_U1[users_E[event]] : event].astype(np.int64)
        before = before[~is_cold_N[before]]
        if len(before) and seen_N[item] < num:
            seen_N[item] += 1
            histories.append(before)
            owners.append(item)
    sums_ND = np.zeros((dataset.num_items, predicted_ND.shape[1]), np.float32)
    interests_UKD = trained.interests(histories)
    nearest_U = np.einsum("ukd,ud->uk", interests_UKD, predicted_ND[owners]).argmax(axis=1)
    np.add.at(sums_ND, owners, interests_UKD[np.arange(len(owners)), nearest_U])
    return sums_ND, seen_N


class Contest:
    """The figures of one model with vectors of cold items made in different ways."""

    def __init__(
        self, trained: Trained, splits: Mapping[str, Users], is_cold_N: NDArray[np.bool_], share: float
    ) -> None:
        """Encode the users of valid and test; `share` is that of the cold items in matched rows."""
        self._vectors_ND, self._splits = trained.vectors_ND, splits
        self._is_cold_N, self._share = is_cold_N, share
        self.warm_rows = np.flatnonzero(trained.row_N >= 0)
        self._is_warm_N = trained.row_N >= 0
        self.interests = {name: trained.interests(users.histories) for name, users in splits.items()}
        self.mean_D: Floats = self._vectors_ND[self.warm_rows].mean(axis=0)
        self._warm_size = _rms(self._vectors_ND[self.warm_rows] - self.mean_D)
        self._others_UM = best_places(
            self.interests["valid"], self._vectors_ND, splits["valid"], self._is_warm_N & ~is_cold_N
        )[0]

    def judge(self, vectors_ND: Floats, split: str = "test", *, has_cold: bool = True) -> Figures:
        """Return the figures of a split's users, with or without cold items in the catalogue."""
        is_listed_N = self._is_warm_N | self._is_cold_N if has_cold else self._is_warm_N & ~self._is_cold_N
        return figures(self.interests[split], vectors_ND, self._splits[split], self._is_cold_N, is_listed_N)

    def rows(self, name: str, base_D: Floats, cold_ND: Floats) -> dict[str, Figures]:
        """Return the figures of vectors as they are, and with the scale that gives cold items the share."""

        def scaled(scale: float) -> Floats:
            return np.where(self._is_cold_N[:, None], base_D + scale * (cold_ND - base_D), self._vectors_ND)

        deviations = np.ascontiguousarray((cold_ND - base_D)[self._is_cold_N])
        found = scale_for_share(
            self.interests["valid"],
            self._others_UM,
            base_D,
            deviations,
            share=self._share,
            max_scale=_MAX_SCALE,
        )
        norm = _rms(deviations) / self._warm_size
        return {
            name: {**self.judge(scaled(1)), "norm": norm},
            f"{name}, matched": {
                **self.judge(scaled(found.scale)),
                "scale": found.scale,
                "norm": found.scale * norm,
                "cold_valid": self.judge(scaled(found.scale), "valid")["cold"],
            },
        }


def trained_pair(
    dataset: Dataset, reduced: Dataset, out: Path, seed: int, settings: Mapping[str, Any]
) -> tuple[Run, Run]:
    """Train without and with the held-out items, unless the runs are there."""
    return (
        trained(out / f"without-{seed}", reduced, seed, settings),
        trained(out / f"with-{seed}", dataset, seed, settings),
    )


def trained(path: Path, data: Dataset, seed: int, settings: Mapping[str, Any]) -> Run:
    """Train, unless the run is there."""
    if (path / "checkpoint.safetensors").exists():
        api.resume(path, data=data, device="cpu")
    elif not (path / "config.json").exists():
        api.train(data, path, device="cpu", seed=seed, **settings)
    return Run.open(path)


def run_seed(
    dataset: Dataset,
    out: Path,
    seed: int,
    settings: Mapping[str, Any],
    first_seen: Mapping[Any, float] | None,
    *,
    known: Mapping[str, Figures],
    with_attributes: bool = False,
) -> dict[str, Any]:
    """Train the models of a seed unless they are there, and return the figures of all rows.

    Args:
        dataset: The data set.
        out: Folder of the reduced data sets and the runs.
        seed: The seed.
        settings: Settings of the trainings.
        first_seen: The time of the first event of each item, to hold out the newest; None to draw items.
        known: Rows of the seed that were made before.
        with_attributes: Whether to train with `--attributes`, too.
    """
    items, events_N = dataset.items(), dataset.item_counts()
    is_cold_N = hold_out(dataset, seed, first_seen)
    reduced = without(dataset, is_cold_N, out / f"data-{seed}")
    runs = trained_pair(dataset, reduced, out, seed, settings)
    ours, ceiling = (Trained.of(each, items) for each in runs)
    splits = {name: held_out_users(dataset.split(name), is_cold_N) for name in ("valid", "test")}
    of_ceiling = Contest(ceiling, splits, is_cold_N, 0.0)
    share = of_ceiling.judge(ceiling.vectors_ND, "valid")["share"]
    contest = Contest(ours, splits, is_cold_N, share)
    fit = partial(regression, ours.vectors_ND, warm_rows=contest.warm_rows, items=items)
    mean_ND = np.where(is_cold_N[:, None], contest.mean_D, ours.vectors_ND)

    base_D, predicted_ND = fit(events_N)
    norm = float(np.median(np.linalg.norm(ours.vectors_ND[contest.warm_rows], axis=1)))

    def folded(name: str, num: int) -> dict[str, Figures]:
        sums_ND, num_N = touching_interests(ours, dataset, is_cold_N, predicted_ND, num, seed)
        return contest.rows(name, base_D, fold_in(predicted_ND, sums_ND, num_N, norm))

    makers: dict[str, Callable[[str], dict[str, Figures]]] = {
        CEILING: lambda name: {name: of_ceiling.judge(ceiling.vectors_ND)},
        ABSENT: lambda name: {name: contest.judge(ours.vectors_ND, has_cold=False)},
        "global mean": lambda name: {name: contest.judge(mean_ND)},
        "means": lambda name: contest.rows(
            name, contest.mean_D, group_means(ours.vectors_ND, contest.warm_rows, items)
        ),
        **{
            "ridge" if penalty == PENALTY else f"ridge, λ = {penalty:g}": partial(
                lambda name, penalty: contest.rows(name, *fit(events_N, penalty=penalty)), penalty=penalty
            )
            for penalty in PENALTIES
        },
        "ridge, equal weights": lambda name: contest.rows(name, *fit(np.ones_like(events_N))),
        LIKELIHOOD: lambda name: contest.rows(name, *fit(events_N, interests_UKD=contest.interests["valid"])),
        **{f"folded in from {num} users": partial(folded, num=num) for num in NUM_USERS},
    }
    if with_attributes or ATTRIBUTES in known:

        def with_effects(_: str) -> dict[str, Figures]:
            names = ",".join(items.drop("item_id", "title", strict=False).columns)
            run = trained(out / f"attributes-{seed}", reduced, seed, {**settings, "attributes": names})
            model = Trained.of(run, items)
            contest = Contest(model, splits, is_cold_N, share)
            alike_N = np.ones_like(events_N)
            as_rebuilt = regression(model.vectors_ND, alike_N, contest.warm_rows, items, PENALTY_AMONG_EQUALS)
            return {
                ATTRIBUTES_ABSENT: contest.judge(model.vectors_ND, has_cold=False),
                **contest.rows(ATTRIBUTES, *as_rebuilt),
            }

        makers[ATTRIBUTES_ABSENT] = with_effects
    rows: dict[str, Figures] = {}
    for name, make in makers.items():
        own = (ATTRIBUTES_ABSENT, ATTRIBUTES) if name == ATTRIBUTES_ABSENT else (name,)
        found = {row: known[row] for each in own for row in (each, f"{each}, matched") if row in known}
        rows |= found or make(name)
    return {
        "seed": seed,
        "settings": dict(settings),
        "num_items": dataset.num_items,
        "num_cold": int(is_cold_N.sum()),
        "share_wanted": share,
        "epochs": [each.best_epoch for each in runs],
        "rows": rows,
    }


def _rms(vectors_RD: Floats) -> float:
    return math.sqrt(float((vectors_RD**2).sum(axis=1).mean()))


def render_page(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a data set: means over seeds, with 95 % intervals of differences paired by seed."""
    table = []
    for row in dict.fromkeys(row for record in records for row in record["rows"]):
        of_both = [record["rows"] for record in records if row in record["rows"]]
        of_row = [rows[row] for rows in of_both]
        ceilings, absent = [rows[CEILING] for rows in of_both], [rows[ABSENT] for rows in of_both]
        table.append(
            [
                row if len(of_row) == len(records) else f"{row} ({len(of_row)} seeds)",
                f"{fmean(each['cold'] for each in of_row):.3f}",
                f"{fmean(e['cold'] / b['cold'] for e, b in zip(of_row, ceilings, strict=True)):.2f}",
                f"{100 * fmean(each['share'] for each in of_row):.1f} %",
                f"{100 * fmean(each['coverage'] for each in of_row):.0f} %",
                f"{fmean(each['among_cold'] for each in of_row):.3f}",
                f"{fmean(each['warm'] for each in of_row):.4f}",
                _difference([e["warm"] - b["warm"] for e, b in zip(of_row, ceilings, strict=True)]),
                _difference([e["all"] - b["all"] for e, b in zip(of_row, absent, strict=True)]),
                f"{fmean(each['norm'] for each in of_row):.2f}" if "norm" in of_row[0] else "",
                f"{fmean(each['cold_valid'] for each in of_row):.4f}" if "cold_valid" in of_row[0] else "",
            ]
        )
    headings = ["vectors of cold items", "cold", "of the ceiling", "share", "listed", "among cold", "warm"]
    headings += ["warm − ceiling", "all − not listed", "norm", "cold, validation"]
    first = records[0]
    facts = (
        f"Seeds {', '.join(str(record['seed']) for record in records)}; {first['num_cold']:,} of "
        f"{first['num_items']:,} items held out; settings {json.dumps(first['settings'])}."
    )
    return f"# Cold items: {name}\n\n{facts}\n\n{page_table(headings, table)}\n"


def _difference(values: Sequence[float]) -> str:
    half = half_width(values)
    return f"{fmean(values):+.4f}" + ("" if half is None else f" ± {half:.4f}")


def read_records(ledger: Path) -> list[dict[str, Any]]:
    """Return the finished seeds, ascending."""
    lines = ledger.read_text("utf-8").splitlines() if ledger.exists() else []
    return sorted(map(json.loads, lines), key=lambda record: int(record["seed"]))


def main(
    data: Annotated[Path, typer.Argument(help="A data set with attributes, made by `re4 data prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder of data sets and runs.")],
    seeds: Annotated[str, typer.Option(help="Seeds to run, separated by commas.")] = "0,1,2,3,4",
    events: Annotated[
        Path | None,
        typer.Option(help="csv with item and timestamp: hold out the newest items. Default: drawn."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(help="File of finished seeds; the page is beside it. Default: in the folder."),
    ] = None,
    num_interests: Annotated[int, typer.Option(help="K.")] = 1,
    num_epochs: Annotated[int, typer.Option(help="Most epochs of a training.")] = 6,
    patience: Annotated[int, typer.Option(help="Epochs without a better one before it stops.")] = 2,
    with_attributes: Annotated[
        bool, typer.Option("--with-attributes", help="Also train with --attributes.")
    ] = False,
) -> None:
    """Compare the ways to make vectors of items that no training has seen."""
    dataset = Dataset.open(data)
    first_seen = None if events is None else first_events(events)
    out.mkdir(parents=True, exist_ok=True)
    ledger = ledger or out / f"cold-{data.name}.jsonl"
    settings = {
        "model": "re4",
        "num_interests": num_interests,
        "num_epochs": num_epochs,
        "patience": patience,
    }
    for seed in map(int, seeds.split(",")):
        records = {int(record["seed"]): record for record in read_records(ledger)}
        known = records[seed]["rows"] if seed in records else {}
        if LIKELIHOOD not in known or (with_attributes and ATTRIBUTES not in known):
            records[seed] = run_seed(
                dataset, out, seed, settings, first_seen, known=known, with_attributes=with_attributes
            )
            lines = [json.dumps(records[each]) + "\n" for each in sorted(records)]
            with replacing(ledger) as part:
                part.write_text("".join(lines), encoding="utf-8")
    page = render_page(data.name, read_records(ledger))
    write_report(ledger.parent, {ledger.with_suffix(".md").name: page})
    print_line(page)


if __name__ == "__main__":
    typer.run(main)
