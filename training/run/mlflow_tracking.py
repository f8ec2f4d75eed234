"""Tracking of a run in MLflow: its parameters, the figures of each epoch, and its bundles as artefacts.

MLflow's own variables name the server and the experiment: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. The
id of the run in MLflow is in the run's folder, so that `re4 resume` and `re4 export` continue it. A failure
of the server during a training is logged and ends nothing.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any, Final

from re4.common.errors import UsageError
from re4.common.files import replacing
from re4.training.data.dataset import Dataset

FILE: Final = "mlflow.json"
_DEFAULT_EXPERIMENT: Final = "re4"
_WITHOUT_SERVER: Final = (
    "Without a server, name a folder: MLFLOW_TRACKING_URI=file:///data/mlruns MLFLOW_ALLOW_FILE_STORE=true. "
    "A database, MLflow's default, needs the whole package: pip install mlflow"
)
_MAX_PARAMETER: Final = 500
"""Characters of a parameter's value that every MLflow server takes."""

_log = logging.getLogger(__name__)


def check_mlflow() -> None:
    """Check that MLflow is installed.

    Raises:
        UsageError: with the extra to install.
    """
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise UsageError("--mlflow needs the extra: pip install 're4-retrieval[mlflow]'") from error


def check_tracked(run: Path) -> None:
    """Check that a run was tracked.

    Raises:
        UsageError: it was not.
    """
    if not (run / FILE).exists():
        raise UsageError(f"--mlflow: {run} was not tracked; train it with --mlflow")


def dataset_tags(dataset: Dataset) -> dict[str, str]:
    """Return the tags that name a data set."""
    return {"re4.data": str(dataset.path), "re4.num_items": str(dataset.num_items)}


def start_tracking(run: Path, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Begin a run in MLflow with its parameters; nothing where this run has one already.

    Raises:
        UsageError: the MLflow server cannot be used.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    if (run / FILE).exists():
        return
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _DEFAULT_EXPERIMENT)
    try:
        client = _client()
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else client.create_experiment(name)
        begun = client.create_run(experiment, run_name=run.name, tags=dict(tags))
        client.log_batch(
            begun.info.run_id,
            params=[Param(key, str(value)[:_MAX_PARAMETER]) for key, value in parameters.items()],
        )
    except MlflowException as error:
        raise UsageError(
            f"--mlflow: the server of MLFLOW_TRACKING_URI cannot be used: {error}\n{_WITHOUT_SERVER}"
        ) from None
    with replacing(run / FILE) as part:
        part.write_text(json.dumps({"run_id": begun.info.run_id}) + "\n", encoding="utf-8")


def track_epoch(run: Path, figures: Mapping[str, float | None], epoch: int) -> None:
    """Log the figures of an epoch; a failure is a warning."""
    from mlflow.entities import Metric

    now_ms = int(time() * 1e3)
    metrics = [Metric(name, value, now_ms, epoch) for name, value in figures.items() if value is not None]
    _try(run, lambda client, run_id: client.log_batch(run_id, metrics=metrics))


def end_tracking(run: Path) -> None:
    """Mark the run in MLflow as finished; a failure is a warning."""
    _try(run, lambda client, run_id: client.set_terminated(run_id))


def track_bundle(run: Path, version: Path) -> None:
    """Log a bundle version as artefacts of the run in MLflow.

    Raises:
        UsageError: the run was not tracked, or the MLflow server cannot be used.
    """
    from mlflow.exceptions import MlflowException

    check_tracked(run)
    try:
        _client().log_artifacts(_run_id(run), str(version), artifact_path=f"bundle/{version.name}")
    except (MlflowException, OSError) as error:
        raise UsageError(f"--mlflow: the bundle cannot be logged: {error}") from None


def _try(run: Path, action: Any) -> None:
    try:
        action(_client(), _run_id(run))
    except Exception as error:  # of MLflow, its HTTP client, or its store: training goes on
        _log.warning(f"MLflow: {type(error).__name__}: {str(error)[:300]}")


def _client() -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient()


def _run_id(run: Path) -> str:
    return str(json.loads((run / FILE).read_text("utf-8"))["run_id"])
