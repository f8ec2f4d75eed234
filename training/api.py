"""The functions behind `re4 train`, `resume`, `evaluate` and `report`, with the defaults of the
commands.

Paths are given as text or as `Path`. PyTorch is loaded by the first call, after settings and paths
were checked.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from re4.common.errors import UsageError
from re4.settings.fields import declared
from re4.settings.sources import unknown_names
from re4.training.config import AUTO, CHECKPOINT_MINUTES, TrainConfig, read_settings
from re4.training.launch import is_distributed
from re4.training.run.run_folder import refuse_missing_run, refuse_unfinished_run, refuse_used_folder

if TYPE_CHECKING:
    from re4.training.data.dataset import Dataset
    from re4.training.evaluation.run_evaluation import RunEvaluation
    from re4.training.evaluation.simple_models import SimpleModels
    from re4.training.trainer.loop import TrainResult

Device = Literal["auto", "cpu", "cuda"]
HeldOutSplit = Literal["valid", "test"]


class _RunOptions(TypedDict):
    """The options of a training that are no hyper-parameters."""

    device: Device
    precision: str
    checkpoint_minutes: float
    tensorboard: bool
    mlflow: bool


def train(
    data: "Dataset | Path | str",
    out: Path | str,
    *,
    config: Path | str | None = None,
    from_run: Path | str | None = None,
    device: Device = "auto",
    precision: str = "auto",
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    tensorboard: bool = False,
    mlflow: bool = False,
    **settings: Any,
) -> "TrainResult":
    """Train a model on a prepared data set and leave a run at `out`, as `re4 train` does.

    Under torchrun, the processes share the training, and each returns its result.

    Args:
        data: A prepared data set, or its folder.
        out: The new run's folder; it must not hold anything yet.
        config: A TOML file of hyper-parameters; `settings` win over it.
        from_run: An earlier run to continue with newer data: its settings, weights and item
            vectors.
        device: auto takes CUDA where PyTorch finds it.
        precision: Of matrix products: auto, float32 or bf16; auto takes bf16 on a GPU that has it.
        checkpoint_minutes: Between two checkpoints within an epoch.
        tensorboard: Whether to write TensorBoard events into the run as well.
        mlflow: Whether to track the run in MLflow, whose own variables name the server.
        settings: Hyper-parameters, the fields of `TrainConfig`; None counts as not given.

    Raises:
        UsageError: a setting is unknown or not allowed, or does not fit the model or the earlier
            run.
        RunError: `out` is not an empty or new folder, or the earlier run is missing or damaged.
        DataError: the data set is missing or damaged, or there is nothing to learn from.
        TrainingError: a loss is not finite, the device is missing, or the disk is full.
        KeyboardInterrupt: at Ctrl-C or SIGTERM, after the state was saved.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if config is not None:
        given = read_settings(Path(config)) | given
    problem = unknown_names("hyper-parameters:", given, declared(TrainConfig))
    if problem:
        raise UsageError(problem)
    fresh = TrainConfig(**given)
    if fresh.num_interests == AUTO and from_run is not None:
        raise UsageError(
            "--num-interests auto: with --from, the number of interests is that of the earlier run. "
            "Leave the option out."
        )
    how = _RunOptions(
        device=device,
        precision=precision,
        checkpoint_minutes=checkpoint_minutes,
        tensorboard=tensorboard,
        mlflow=mlflow,
    )
    dataset = _opened(data)
    if is_distributed():
        if from_run is not None:
            raise UsageError(
                "--from continues an earlier run on one machine only; leave torchrun or --from out."
            )
        if fresh.attributes:
            raise UsageError("--attributes is trained by one process only; leave torchrun or the option out.")
        from re4.training.distributed.trainer import train as train_on_ranks

        return train_on_ranks(dataset, fresh, Path(out), **how)
    if from_run is not None:
        refuse_unfinished_run(Path(from_run))
    refuse_used_folder(Path(out))
    from re4.training.run.run import Run
    from re4.training.trainer.interest_choice import train_either
    from re4.training.trainer.loop import train as train_model

    if fresh.num_interests == AUTO:
        return train_either(dataset, fresh, Path(out), **how)
    previous = None if from_run is None else Run.open(Path(from_run))
    return train_model(
        dataset,
        fresh if previous is None else TrainConfig(**(previous.config.to_json() | given)),
        Path(out),
        previous=previous,
        **how,
    )


def resume(
    run: Path | str,
    *,
    data: "Dataset | Path | str | None" = None,
    device: Device = "auto",
    precision: str = "auto",
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    tensorboard: bool = False,
    mlflow: bool = False,
) -> "TrainResult":
    """Continue a training that was stopped or killed, with its settings.

    Args:
        run: The run's folder.
        data: The data set, where it has moved since.
        device: As for `train`.
        precision: As for `train`; auto as the training began.
        checkpoint_minutes: As for `train`.
        tensorboard: As for `train`.
        mlflow: As for `train`.

    Raises:
        RunError: there is no unfinished training, another process trains the run, or it is damaged.
        DataError: the data set is missing or damaged, or not the one with which the training began.
        TrainingError: as for `train`.
        KeyboardInterrupt: as for `train`.
    """
    refuse_missing_run(Path(run))
    if is_distributed():
        from re4.training.distributed.trainer import resume as resume_training
    else:
        from re4.training.trainer.loop import resume as resume_training

    return resume_training(
        Path(run),
        None if data is None else _opened(data),
        device=device,
        precision=precision,
        checkpoint_minutes=checkpoint_minutes,
        tensorboard=tensorboard,
        mlflow=mlflow,
    )


def evaluate(
    run: Path | str,
    *,
    split: HeldOutSplit = "test",
    exclude_history: bool = False,
    data: "Dataset | Path | str | None" = None,
    against: Path | str | None = None,
) -> "RunEvaluation":
    """Rank the whole catalogue for held-out users and compare with their later events.

    Users that were in the training of a run, or of an earlier run that it was started from, are
    left out. On newer data, items are matched by id, and items that the run does not know count as
    misses. The metrics on the run's own data set, without `against`, are also stored in the run,
    and go into the manifest of the bundles exported from it.

    Args:
        run: The run's folder.
        split: Which held-out users.
        exclude_history: Whether the items of a user's history leave the ranked list. ComiRec's
            protocol keeps
            them.
        data: The data set to evaluate on, such as a newer one; None for the run's own.
        against: Another run to compare with, on the same users.

    Raises:
        RunError: A run is missing, unfinished or damaged.
        DataError: The data set is missing or damaged, or all its held-out users were trained on.
        UsageError: Its items and those of a run cannot be matched.
    """
    for path in (run, against):
        if path is not None:
            refuse_unfinished_run(Path(path))
    dataset = None if data is None else _opened(data)
    from re4.training.evaluation.run_evaluation import evaluate_run
    from re4.training.run.run import Run, write_evaluation

    opened = Run.open(Path(run))
    dataset = dataset or opened.open_dataset()
    evaluation = evaluate_run(
        opened,
        dataset,
        split,
        exclude_history=exclude_history,
        against=None if against is None else Run.open(Path(against)),
    )
    if against is None and opened.is_trained_on(dataset):
        name = f"{split}_history_excluded" if exclude_history else split
        write_evaluation(opened.path, name, evaluation.to_json())
    return evaluation


def simple_models(run: Path | str, *, data: "Dataset | Path | str | None" = None) -> "SimpleModels":
    """Compare a run with the most popular items, item-item cosine and EASE, on its validation users.

    The comparison is also stored in the run, as `simple_models` in `evaluation.json`.

    Args:
        run: The run's folder.
        data: The data set, where it has moved since training.

    Raises:
        RunError: The run is missing, unfinished or damaged.
        DataError: The data set is missing, damaged, or another one.
    """
    from re4.training.evaluation.simple_models import compare_with_simple_models
    from re4.training.run.run import Run, write_evaluation

    opened = Run.open(Path(run))
    found = compare_with_simple_models(opened, opened.open_dataset(data))
    write_evaluation(opened.path, "simple_models", found.to_json())
    return found


def report(
    run: Path | str,
    *,
    split: HeldOutSplit = "valid",
    exclude_history: bool = False,
    out: Path | str | None = None,
    data: "Dataset | Path | str | None" = None,
) -> Path:
    """Write a page about a run, HTML with pictures beside it, and return its path.

    Users that were in the training of an earlier run of a warm start are left out.

    Args:
        run: The run's folder.
        split: Which held-out users; test is for the last look.
        exclude_history: Leave the items of a user's history out of the ranked list, as in `evaluate`.
        out: The page's folder; None for `report` in the run.
        data: The data set, where it has moved since training.

    Raises:
        RunError: The run is missing, unfinished or damaged.
        DataError: The data set is missing, damaged, or another one.
    """
    refuse_unfinished_run(Path(run))
    import polars as pl

    from re4.training.evaluation.run_evaluation import unseen_part
    from re4.training.report.figures import gather_figures
    from re4.training.report.page import write_page
    from re4.training.run.run import Run
    from re4.training.run.trained_on import unseen_users

    opened = Run.open(Path(run))
    dataset = opened.open_dataset(data)
    earlier = opened.trained_on()[1:]
    held_out, _ = unseen_part(earlier, dataset, split)
    user_ids = dataset.users(split)
    if held_out.num_users < len(user_ids):
        user_ids = user_ids.filter(pl.Series(unseen_users(earlier, dataset, split).is_unseen_U))
    figures = gather_figures(opened, dataset, held_out, user_ids.to_list(), exclude_history=exclude_history)
    title = f"{run} · {'validation' if split == 'valid' else split} users"
    return write_page(
        opened.path / "report" if out is None else Path(out),
        figures,
        title=title,
        config=opened.config.to_json(),
        data=asdict(dataset.info),
    )


def _opened(data: "Dataset | Path | str") -> "Dataset":
    from re4.training.data.dataset import Dataset

    return data if isinstance(data, Dataset) else Dataset.open(Path(data))
