"""Stop a training whose loss is not finite or explodes, and save the failed step for inspection.

The run then holds `failed_step.safetensors`: the tensors `rows_BL`, `lengths_B`, `targets_B` and
`negatives_M` (absent for the whole catalogue); in its metadata, under `re4`, epoch, step, losses
and configuration as JSON.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from re4.common.errors import TrainingError
from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.run.tensor_files import write_tensors
from re4.training.samplers.sampler import Negatives
from re4.training.trainer.checkpoint import Progress

FAILED_STEP: Final = "failed_step.safetensors"
_LARGEST: Final = 1e6
"""A larger loss has exploded: the losses of a training that learns are of order 10 or less."""


def check_losses(
    values: Mapping[str, float],
    batch: Batch,
    negatives: Negatives,
    *,
    progress: Progress,
    config: TrainConfig,
    run: Path,
) -> None:
    """Check the total loss of a step, `values["total"]`; save the step and raise where it has failed.

    Raises:
        TrainingError: the loss is not finite or has exploded; names the step, the terms and the
            file.
    """
    total = values["total"]
    if math.isfinite(total) and total < _LARGEST:
        return
    step = progress.step + 1
    tensors = {"rows_BL": batch.rows_BL, "lengths_B": batch.lengths_B, "targets_B": batch.targets_B}
    if negatives.rows_M is not None:
        tensors["negatives_M"] = negatives.rows_M
    facts = {
        "epoch": progress.epoch,
        "step": step,
        "losses": {name: repr(value) for name, value in values.items()},
        "config": config.to_json(),
    }
    # In-batch negatives are the targets themselves; a file holds no tensor twice.
    write_tensors(run / FAILED_STEP, {name: value.clone() for name, value in tensors.items()}, facts)
    worst = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "total")
    raise TrainingError(
        f"The loss is {total} (epoch {progress.epoch}, step {step}): {worst}. The batch is in "
        f"{run / FAILED_STEP}. Lower --learning-rate, or the weight of the term that is not finite."
    )
