"""Lists of RecTools' SASRec and eSASRec for the held-out users of a prepared data set.

    .venv-rectools/bin/python rectools_lists.py DATA OUT --model esasrec --settings '{"lr": 0.003}'

RecTools needs NumPy 1, so it has an environment of its own and communicates by files. It is trained on the
train users. Validation Recall@50 is judged every hundred steps, and OUT holds the lists of the best one:
`{valid,test}.{kept,excluded}.npy`, item rows [U, 50], -1 for none, history left in and left out; and
`settings.json`. eSASRec is SASRec with LiGR layers and a sampled softmax.
"""

import argparse
import json
import logging
import sys
import time
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools import Columns, __version__
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

DEPTH = 50
NUM_STEPS_EACH = 100
"""Least steps between two judgements, in whole epochs: a small log has few steps an epoch."""
PATIENCE = 3
"""Judgements without a better one after which training ends."""
SETTINGS = {
    "n_factors": 64,
    "n_blocks": 2,
    "n_heads": 2,
    "session_max_len": 50,
    "dropout_rate": 0.2,
    "batch_size": 128,
    "lr": 0.001,
}
OF_MODEL: dict[str, dict[str, Any]] = {
    "sasrec": {"loss": "softmax"},
    "esasrec": {"loss": "sampled_softmax", "n_negatives": 256},
}


def read_users(data: Path, split: str) -> list[tuple[Any, Any]]:
    """Return the history and the later events of each user of a split."""
    items, ends, numbers = (
        np.load(data / f"{split}.{name}.npy", allow_pickle=False)
        for name in ("items", "offsets", "num_history")
    )
    return [
        (items[start : start + number], items[start + number : end])
        for start, end, number in zip(ends[:-1], ends[1:], numbers, strict=True)
    ]


def to_dataset(sequences: list[Any]) -> Dataset:
    """Return sequences of item rows as RecTools' data set."""
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(sequences)), [len(each) for each in sequences]),
            Columns.Item: np.concatenate(sequences),
            Columns.Weight: 1.0,
        }
    )
    frame[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(len(frame)), unit="s")
    return Dataset.construct(frame)


def lists_of(model: SASRecModel, users: list[tuple[Any, Any]], *, exclude_history: bool) -> Any:
    """Return the first items of each user, [U, 50]."""
    found = model.recommend(
        np.arange(len(users)),
        to_dataset([history for history, _ in users]),
        k=DEPTH,
        filter_viewed=exclude_history,
        on_unsupported_targets="ignore",
    )
    top_UM = np.full((len(users), DEPTH), -1, np.int64)
    top_UM[found[Columns.User], found[Columns.Rank] - 1] = found[Columns.Item]
    return top_UM


def recall(top_UM: Any, users: list[tuple[Any, Any]]) -> float:
    """Return Recall@50."""
    shares = [
        np.isin(np.unique(targets), top_M).mean() for top_M, (_, targets) in zip(top_UM, users, strict=True)
    ]
    return float(np.mean(shares))


def make_trainer() -> Trainer:
    """Return a trainer that writes nothing."""
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    """Train, judge, and write the lists of the best epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=tuple(OF_MODEL), required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="those that differ, a JSON object")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, default=1000)
    given = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.manual_seed(given.seed)
    np.random.seed(given.seed)
    settings = {**SETTINGS, **OF_MODEL[given.model], **given.settings}
    layers = {"transformer_layers_type": LiGRLayers} if given.model == "esasrec" else {}
    model = SASRecModel(**settings, **layers, get_trainer_func=make_trainer)
    sequences = [np.concatenate(user) for user in read_users(given.data, "train")]
    train = to_dataset(sequences)
    num_each = ceil(NUM_STEPS_EACH * settings["batch_size"] / len(sequences))
    held_out = {split: read_users(given.data, split) for split in ("valid", "test")}
    given.out.mkdir(parents=True, exist_ok=True)
    best, num_idle, seconds = -1.0, 0, 0.0
    for epoch in range(num_each, given.max_epochs + 1, num_each):
        began_s = time.perf_counter()
        model.fit_partial(train, min_epochs=num_each, max_epochs=num_each)
        seconds += time.perf_counter() - began_s
        judged = recall(lists_of(model, held_out["valid"], exclude_history=False), held_out["valid"])
        sys.stderr.write(
            f"{given.model} {given.settings}, epoch {epoch}: validation Recall@50 {judged:.4f}\n"
        )
        if judged <= best:
            num_idle += 1
            if num_idle == PATIENCE:
                break
            continue
        best, num_idle = judged, 0
        for split, users in held_out.items():
            for name, exclude_history in (("kept", False), ("excluded", True)):
                np.save(
                    given.out / f"{split}.{name}.npy", lists_of(model, users, exclude_history=exclude_history)
                )
        facts = {
            **settings,
            "seed": given.seed,
            "num_epochs": epoch,
            "train_seconds": round(seconds, 1),
            "rectools": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        (given.out / "settings.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
