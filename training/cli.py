"""The subcommands `re4 train`, `resume`, `evaluate` and `report`: options in, lines and tables out."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from re4.common.console import print_json, print_line, table
from re4.settings.options import with_options
from re4.training import api
from re4.training.config import CHECKPOINT_MINUTES, TrainConfig
from re4.training.launch import is_first_rank

if TYPE_CHECKING:
    from re4.training.evaluation.run_evaluation import RunEvaluation
    from re4.training.trainer.loop import TrainResult

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, made by `re4 train`.")]
Precision = Annotated[
    str, typer.Option(help="auto, float32 or bf16 (products only); auto: bf16 on a GPU that has it.")
]
PrecisionOfResumed = Annotated[
    str, typer.Option(help="auto, float32 or bf16 (products only); auto: as it began.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes CUDA where PyTorch finds it.")
]
CheckpointMinutes = Annotated[
    float,
    typer.Option(help="Minutes between checkpoints within an epoch.", min=0),
]
DataMoved = Annotated[Path | None, typer.Option(help="The data set, if it has moved since training.")]
Tensorboard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write TensorBoard events into the run as well (an extra)."),
]
Mlflow = Annotated[
    bool,
    typer.Option(
        "--mlflow",
        help="Track the run in MLflow (an extra): parameters and the figures of each epoch. Its variables "
        "MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME name the server and the experiment.",
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare/--no-compare",
        help="At the end, compare with the most popular items, item-item and EASE on the validation users.",
    ),
]
ExcludeHistory = Annotated[
    bool,
    typer.Option(
        "--exclude-history/--keep-history",
        help="Leave the items of a user's history out of the ranked list, as servers do on request. "
        "ComiRec's protocol keeps them.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for a machine to read.")]


@with_options(TrainConfig, "Hyper-parameters")
def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A data set made by `re4 data prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run; it must not hold anything yet.")],
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file of hyper-parameters, `_` for `-` in names; options win over it."),
    ] = None,
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Continue an earlier run with newer data: its settings, weights and item vectors.",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    checkpoint_minutes: CheckpointMinutes = CHECKPOINT_MINUTES,
    tensorboard: Tensorboard = False,
    mlflow: Mlflow = False,
    compare: Compare = True,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Train a multi-interest model on a prepared data set.

    The start (epoch 0) and every epoch are validated; the one with the best Recall@50 is saved, and
    training stops when it has not improved for `--patience` epochs. The run holds weights, resolved
    configuration and metrics.

    Example: re4 train data/ml-100k --out runs/first --model re4 --num-interests 4

    Example: re4 train data/today --out runs/today --from runs/yesterday
    """
    result = api.train(
        data,
        out,
        config=config,
        from_run=from_run,
        device=device,
        precision=precision,
        checkpoint_minutes=checkpoint_minutes,
        tensorboard=tensorboard,
        mlflow=mlflow,
        **settings,
    )
    _print_result(out, result, data=data, compare=compare, as_json=as_json)


def resume(
    run: RunFolder,
    data: DataMoved = None,
    device: Device = "auto",
    precision: PrecisionOfResumed = "auto",
    checkpoint_minutes: CheckpointMinutes = CHECKPOINT_MINUTES,
    tensorboard: Tensorboard = False,
    mlflow: Mlflow = False,
    compare: Compare = True,
    as_json: AsJson = False,
) -> None:
    """Continue a training that was stopped or killed, with its settings.

    On a CPU, with as many threads, it ends with the weights of an uninterrupted training.

    Example: re4 resume runs/first
    """
    result = api.resume(
        run,
        data=data,
        device=device,
        precision=precision,
        checkpoint_minutes=checkpoint_minutes,
        tensorboard=tensorboard,
        mlflow=mlflow,
    )
    _print_result(run, result, data=data, compare=compare, as_json=as_json)


def _print_result(
    run: Path, result: "TrainResult", *, data: Path | None, compare: bool, as_json: bool
) -> None:
    if not is_first_rank():
        return
    simple = api.simple_models(run, data=data) if compare else None
    if as_json:
        compared = None if simple is None else simple.to_json()
        print_json({"run": str(run), **asdict(result), "doubt": result.doubt, "simple_models": compared})
        return
    width = "" if result.valid_half_width is None else f" ± {result.valid_half_width:.4f}"
    print_line(
        f"best epoch {result.best_epoch}: validation Recall@50 {result.valid.recall_50:.4f}{width}; "
        f"{result.seconds_per_epoch:.1f} s an epoch. Next: re4 evaluate {run}"
    )
    for sentence in filter(
        None, [result.doubt, result.valid.collapse, *(simple.sentences() if simple else [])]
    ):
        print_line(sentence)


def evaluate(
    run: RunFolder,
    split: Annotated[Literal["valid", "test"], typer.Option(help="Which held-out users.")] = "test",
    exclude_history: ExcludeHistory = False,
    data: Annotated[
        Path | None,
        typer.Option(help="The data set to evaluate on, such as a newer one. Default: the run's own."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare with another run, user by user, on the same data set."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the whole catalogue for held-out users and compare with their later events.

    A held-out user's first 80 % of events are the history, the rest the targets. On newer data,
    items are matched by id, unknown ones count as misses, and users that were trained on are left
    out. The metrics on the run's own data set are also stored in the run and go into the manifest
    of the bundles exported from it.

    Example: re4 evaluate runs/first --json

    Example: re4 evaluate runs/today --against runs/yesterday --data data/today
    """
    evaluation = api.evaluate(run, split=split, exclude_history=exclude_history, data=data, against=against)
    result = evaluation.to_json()
    if as_json:
        honesty = {
            "data": None if data is None else str(data),
            "num_users_left_out": evaluation.num_users_left_out,
            "num_unknown_items": evaluation.num_unknown_items,
            "is_leak_possible": evaluation.is_leak_possible,
        }
        compared: dict[str, Any] = {}
        if evaluation.against is not None and evaluation.difference is not None:
            compared["against"] = {"run": str(against), **evaluation.against.to_json()}
            compared["difference"] = {name: asdict(each) for name, each in evaluation.difference.items()}
        place = {"run": str(run), "split": split, "exclude_history": exclude_history}
        print_json({**place, **result, **honesty, **compared})
        return
    history = "left out" if exclude_history else "left in"
    table(
        f"{run} · {split} · {result['num_users']:,} users · history {history}",
        ["", "@20", "@50"],
        [
            [label, f"{result[f'{key}_20']:.4f}", f"{result[f'{key}_50']:.4f}"]
            for label, key in (("Recall", "recall"), ("HitRate", "hit_rate"), ("NDCG", "ndcg"))
        ]
        + [
            ["Coverage", "", f"{result['coverage_50']:.4f}"],
            *_interest_rows(evaluation),
        ],
    )
    if evaluation.collapse:
        print_line(evaluation.collapse)
    if evaluation.num_users_left_out or evaluation.num_unknown_items:
        print_line(
            f"left out: {evaluation.num_users_left_out:,} users that were trained on; unknown to the run: "
            f"{evaluation.num_unknown_items:,} items"
        )
    if evaluation.difference is not None:
        table(
            f"{run} minus {against}, on the same users, with 95 % intervals",
            ["", "@20", "@50"],
            [
                [label, *(str(evaluation.difference[f"{key}_{cut}"]) for cut in (20, 50))]
                for label, key in (("Recall", "recall"), ("HitRate", "hit_rate"), ("NDCG", "ndcg"))
            ],
        )


def _interest_rows(evaluation: "RunEvaluation") -> list[list[str]]:
    """Return the rows about several interests; none for one interest."""
    figures = evaluation.interests
    if figures is None or len(figures.hit_shares) == 1:
        return []
    return [
        ["Cosine between interests", "", f"{evaluation.interest_cosine:.4f}"],
        ["Overlap of interests' own lists", "", f"{figures.interest_overlap:.4f}"],
        ["Effective number of interests", "", f"{figures.effective_interests:.2f}"],
        ["Lists from one interest", "", f"{figures.one_interest_lists:.4f}"],
        ["Recall of the most used interest / of all", "", f"{figures.one_interest_recall:.4f}"],
        ["Share of hits of each interest", "", " ".join(f"{share:.2f}" for share in figures.hit_shares)],
    ]


def report(
    run: RunFolder,
    split: Annotated[
        Literal["valid", "test"], typer.Option(help="Which held-out users; test is for the last look.")
    ] = "valid",
    exclude_history: ExcludeHistory = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the page. Default: RUN/report.")] = None,
    data: DataMoved = None,
) -> None:
    """Write a page about a run: a verdict, simple models, curves, interests, popularity bias, examples.

    HTML with pictures beside it. Titles are the catalogue's column `title`, where there is one.

    Example: re4 report runs/first
    """
    print_line(f"open {api.report(run, split=split, exclude_history=exclude_history, out=out, data=data)}")
