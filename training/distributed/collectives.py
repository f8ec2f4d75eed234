"""The process group of a training, and the operations in which all ranks take part."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from re4.common.console import hide_progress
from re4.common.errors import Re4Error
from re4.training.launch import is_first_rank

_log = logging.getLogger(__name__)
T = TypeVar("T")
_TIMEOUT = timedelta(minutes=30)
"""Longest wait for another rank, such as for one that computes the initial item vectors."""
_QUIET = ("torchrec", "torch.distributed", "torch.fx")


def quieten_other_ranks() -> None:
    """Let ranks other than 0 log warnings only, and draw no progress bars."""
    if not is_first_rank():
        logging.getLogger("re4").setLevel(logging.WARNING)
        hide_progress()


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the ranks, and yield the device of this one: gloo joins CPUs, NCCL joins GPUs.

    A group that the caller has already made is used, and left as it is.
    """
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield device
        return
    store, rank, num_ranks = next(rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # torchrun keeps one store over restarts, in which the addresses of the ranks that ended remain.
        store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _log.warning(
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every machine: without it, ranks that "
            "are started again find the addresses of those that ended"
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=_TIMEOUT)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|torchrec|fbgemm_gpu)\.")
            yield device
    finally:
        dist.destroy_process_group()


def on_first_rank(work: Callable[[], T]) -> T:
    """Run on rank 0 alone, and return its result on every rank, or raise its error."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except (Re4Error, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def sums(values: Sequence[float]) -> list[float]:
    """Return the sum of each number over all ranks."""
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.tolist()


def stacked(mine: Tensor) -> Tensor:
    """Return the tensors of all ranks, which have one shape, stacked by rank."""
    every = mine.new_empty((dist.get_world_size(), *mine.shape))
    dist.all_gather(list(every.unbind()), mine.contiguous())
    return every
