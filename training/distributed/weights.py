"""The weights of a run, written by all ranks into the one file that a single process writes.

Each rank writes its rows of the item table at their place in the file (safetensors), so that no rank
has the whole table. Ranks on several machines share the folder of the run.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from re4.common.files import sync
from re4.training.distributed.collectives import on_first_rank
from re4.training.distributed.model import ShardedModel
from re4.training.model.model import ITEM_TABLE
from re4.training.run.run import WEIGHTS
from re4.training.run.tensor_files import CHECKSUM, FACTS, describe

_CHUNK_ROWS: Final = 1 << 17
_ALIGNMENT: Final = 8


def write_sharded_weights(run: Path, model: ShardedModel) -> None:
    """Replace the weights of a run; every rank calls this at the same time.

    Raises:
        OSError: the file cannot be written; an earlier file is unchanged.
    """
    tensors = dict(sorted(model.state_dict().items()))
    shapes = {name: tuple(each.shape) for name, each in tensors.items()}
    shapes[ITEM_TABLE] = (model.items.num_items, model.config.embedding_dim)
    header, starts = _layout(shapes)
    part = run / f".{WEIGHTS}.ranks.part"

    def begin() -> None:
        part.touch()

    on_first_rank(begin)
    table_nD = tensors[ITEM_TABLE]
    with part.open("r+b") as file:
        file.seek(starts[ITEM_TABLE] + model.items.first_row * table_nD.shape[1] * 4)
        for chunk in _chunks(table_nD):
            file.write(chunk)
    sync(part)
    checksum = _checksum(tensors, shapes)

    def complete() -> None:
        with part.open("r+b") as file:
            file.write(header(f"{checksum:08x}"))
            for name, tensor in tensors.items():
                if name != ITEM_TABLE:
                    file.seek(starts[name])
                    file.writelines(_chunks(tensor))
        sync(part)
        part.replace(run / WEIGHTS)
        sync(run)

    on_first_rank(complete)


def _layout(shapes: dict[str, tuple[int, ...]]) -> tuple[Any, dict[str, int]]:
    """Return a function from the checksum to the file's header, and the place of each tensor."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        num_bytes = 4 * int(torch.Size(shape).numel())
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes

    def header(checksum: str) -> bytes:
        facts = {"__metadata__": {FACTS: json.dumps({CHECKSUM: checksum})}}
        text = json.dumps({**facts, **entries}).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    start = len(header("0" * 8))
    return header, {name: start + entries[name]["data_offsets"][0] for name in shapes}


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor, some rows at a time."""
    for rows in torch.split(tensor.detach().reshape(-1, tensor.shape[-1] if tensor.ndim else 1), _CHUNK_ROWS):
        yield rows.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def _checksum(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the checksum of the whole file, as of `write_tensors`; the ranks continue it in turn."""
    total = torch.tensor(zlib.crc32(json.dumps({}).encode()))
    for name, tensor in tensors.items():
        total = torch.tensor(zlib.crc32(describe(name, tensor.dtype, shapes[name]), int(total)))
        for rank in range(dist.get_world_size() if name == ITEM_TABLE else 1):
            if rank == dist.get_rank() or name != ITEM_TABLE:
                for chunk in _chunks(tensor):
                    total = torch.tensor(zlib.crc32(chunk, int(total)))
            if name == ITEM_TABLE:
                dist.broadcast(total, src=rank)
    return int(total)
