"""Checkpoints in shards (`torch.distributed.checkpoint`), which any number of ranks can load.

RUN/checkpoints/000012/
  facts.json    settings, data set and progress, as in the metadata of a single process's checkpoint
  *.distcp      the tensors of each rank
  .metadata     written last: a folder without it is not complete, and is removed
"""

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from re4.common.errors import RunError
from re4.common.files import write_json
from re4.training.distributed.collectives import on_first_rank
from re4.training.model.model import ITEM_TABLE
from re4.training.trainer.checkpoint import CHECKPOINTS, CheckpointFacts, facts_from_json

_FACTS: Final = "facts.json"
_COMPLETE: Final = ".metadata"
_BY_ROW: Final = (ITEM_TABLE, "items.squares")
"""Ends of the names of tensors that have the rows of a rank."""


def newest_checkpoint(run: Path) -> Path | None:
    """Return the folder of the newest complete checkpoint; None where there is none."""
    complete = [path.parent for path in (run / CHECKPOINTS).glob(f"*/{_COMPLETE}")]
    return max(complete, default=None)


def read_sharded_facts(folder: Path) -> CheckpointFacts:
    """Read the metadata of a checkpoint.

    Raises:
        RunError: they are damaged.
    """
    try:
        return facts_from_json(json.loads((folder / _FACTS).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder / _FACTS} cannot be read: {error}. Train again, to another --out."
        ) from error


def save_shards(run: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], num_items: int) -> None:
    """Save the state of all ranks as a new checkpoint, then remove the earlier ones.

    Args:
        run: The run's folder.
        tensors: The state of this rank by name.
        facts: The metadata; those of rank 0 are written.
        num_items: Rows of the whole item table.

    Raises:
        OSError: it cannot be written; the earlier ones are unchanged.
    """

    def begin() -> Path:
        remove_incomplete(run)
        before = newest_checkpoint(run)
        folder = run / CHECKPOINTS / f"{1 + (int(before.name) if before else 0):06d}"
        folder.mkdir(parents=True)
        write_json(folder / _FACTS, facts)
        return folder

    folder = on_first_rank(begin)
    try:
        save(_global(tensors, num_items), checkpoint_id=folder)
    except CheckpointException as error:
        raise OSError(f"{folder} cannot be written: {_first_failure(error)}") from error

    def remove_earlier() -> None:
        for path in (run / CHECKPOINTS).iterdir():
            if path != folder:
                shutil.rmtree(path)

    on_first_rank(remove_earlier)


def load_shards(folder: Path, tensors: Mapping[str, Tensor], num_items: int) -> dict[str, Tensor]:
    """Return the state of this rank, as `save_shards` was given it, whatever the number of ranks then.

    Args:
        folder: The checkpoint.
        tensors: The present state; tensors with the rows of a rank are loaded in place.
        num_items: Rows of the whole item table.

    Raises:
        RunError: the checkpoint is damaged.
    """
    try:
        metadata = FileSystemReader(folder).read_metadata()
        state: dict[str, Any] = {}
        mine = {name: each for name, each in tensors.items() if name.endswith(_BY_ROW)}
        shards = _global(mine, num_items)
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            state[name] = shards.get(name, torch.empty(entry.size, dtype=entry.properties.dtype))
        load(state, checkpoint_id=folder)
    except (CheckpointException, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = _first_failure(error) if isinstance(error, CheckpointException) else error
        raise RunError(f"{folder} is damaged: {reason}. Train again, to another --out.") from error
    return {name: mine.get(name, value) for name, value in state.items()}


def _first_failure(error: CheckpointException) -> str:
    """Return the error of the first rank that has one, in one line."""
    rank, (failure, _) = min(error.failures.items())
    return f"rank {rank}: {' '.join(str(failure).split())}"


def remove_incomplete(run: Path) -> None:
    """Remove the checkpoints that a killed training has left incomplete."""
    for path in (run / CHECKPOINTS).glob("*"):
        if not (path / _COMPLETE).exists():
            shutil.rmtree(path)
    if newest_checkpoint(run) is None and (run / CHECKPOINTS).exists():
        (run / CHECKPOINTS).rmdir()


def _global(tensors: Mapping[str, Tensor], num_items: int) -> dict[str, Any]:
    """Return the state with the rows of all ranks as one tensor each."""
    mesh = init_device_mesh(next(iter(tensors.values())).device.type, (dist.get_world_size(),))
    return {
        name: _by_row(tensor, num_items, mesh) if name.endswith(_BY_ROW) else tensor
        for name, tensor in tensors.items()
    }


def _by_row(tensor: Tensor, num_items: int, mesh: Any) -> Any:
    shape = torch.Size([num_items, *tensor.shape[1:]])
    return DTensor.from_local(
        tensor,
        mesh,
        [Shard(0)],
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )
