"""`--num-interests auto`: several interests, or one, by validation.

Both are trained. One interest is kept unless several are ahead in validation Recall@50 beyond the 95 %
interval over the same users, because each interest is a search when serving.
"""

import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import rank, recall_50_U
from re4.training.presets import PRESETS
from re4.training.run.run import Run, write_evaluation
from re4.training.run.run_folder import CONFIG, new_run_folder
from re4.training.trainer.checkpoint import CHECKPOINT, read_facts
from re4.training.trainer.loop import TrainResult, resume, train

_log = logging.getLogger(__name__)


def train_either(dataset: Dataset, config: TrainConfig, out: Path, **options: Any) -> TrainResult:
    """Train several interests and one, and leave the run of the better number at `out`.

    The trainings work in folders beside `out`. After a stop, the same call continues them.

    Args:
        dataset: The data set.
        config: The settings; `num_interests` is replaced.
        out: The new run's folder.
        options: Those of `re4.training.trainer.loop.train`.

    Raises:
        Re4Error: As `re4.training.api.train`.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the state is saved.
    """
    facts = dataset.num_items, dataset.events_per_user
    model = replace(config, num_interests=1).resolve(*facts).model
    configs = [
        replace(config, num_interests=number).resolve(*facts) for number in (PRESETS[model].several, 1)
    ]
    if configs[0].K == 1:
        _log.info(f"--num-interests auto: {model} has one interest")
        return train(dataset, configs[0], out, **options)
    new_run_folder(out)
    folders = [out.with_name(f"{out.name}.{each.K}-interests") for each in configs]
    results = []
    for each, folder in zip(configs, folders, strict=True):
        _log.info(f"--num-interests auto: {each.K} in {folder}; after a stop, the same command continues")
        results.append(_trained(dataset, each, folder, options))
    several, one = (_recall_U(Run.open(folder), dataset) for folder in folders)
    lead = Interval.of(several - one)
    place = 0 if lead.is_above_zero else 1
    _log.info(
        f"--num-interests auto keeps {configs[place].K}: {configs[0].K} interests minus one in validation "
        f"Recall@50 is {lead}; several are kept if the whole 95 % interval is above 0"
    )
    shutil.rmtree(folders[1 - place])
    folders[place].replace(out)
    write_evaluation(
        out,
        "interest_choice",
        {
            "num_interests": configs[0].K,
            "recall_50": float(several.mean()),
            "recall_50_of_one": float(one.mean()),
            "lead": asdict(lead),
            "kept": configs[place].K,
        },
    )
    return results[place]


def _trained(dataset: Dataset, config: TrainConfig, folder: Path, options: dict[str, Any]) -> TrainResult:
    """Train, or continue a training that was stopped, or take one that has finished."""
    if (folder / CONFIG).exists() and not (folder / CHECKPOINT).exists():
        run = Run.open(folder)
        if run.config == config and run.is_trained_on(dataset):
            return TrainResult.of(run.metrics())
    elif (folder / CHECKPOINT).exists() and read_facts(folder).config == config:
        return resume(folder, dataset, **options)
    return train(dataset, config, folder, **options)


def _recall_U(run: Run, dataset: Dataset) -> Any:
    ranking = rank(run.load_model(), dataset.valid, exclude_history=False, title=f"judging {run.path}")
    return recall_50_U(ranking, dataset.valid)
