"""Parallel work in blocks, each with its gradients, on one thread a block.

The large intermediate values of a loss (scores against thousands of negatives, L pieces for each
interest) are needed within a block of examples only, because the gradient of a sum is known as soon
as the block is done. A loss works through its blocks once, forward and backward, in buffers that
stay in the CPU's cache, and gives autograd a value whose gradients are known.

A thread takes a whole block, so that threads do not wait for each other at every operation.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def in_threads(work: Callable[[int], T], num_pieces: int, device: torch.device) -> list[T]:
    """Return `work(0), work(1), …`, computed in parallel on the CPU's threads.

    A worker thread starts with autograd on and autocast off, independent of the caller, and runs
    every operation on itself alone; nested calls run sequentially.
    """
    num_threads = min(torch.get_num_threads(), num_pieces) if device.type == "cpu" else 1
    if num_threads == 1:
        return [work(piece) for piece in range(num_pieces)]
    return list(_pool(num_threads).map(work, range(num_pieces)))


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads live on, and keep their memory; created once for each size."""
    before, all_there = torch.get_num_threads(), Barrier(num_threads)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread adopts the number at its first query
        all_there.wait()

    pool = ThreadPoolExecutor(num_threads, initializer=start)
    for started in [pool.submit(int) for _ in range(num_threads)]:
        started.result()
    torch.set_num_threads(before)
    return pool


class BlockWorker(Protocol):
    """The buffers of one thread, and its sums over its blocks."""

    def __call__(self, block: slice) -> None:
        """Process a block of rows: add to the sums, and write the gradients of these rows."""
        ...


Worker = TypeVar("Worker", bound=BlockWorker)


def run_blocks(
    new_worker: Callable[[int], Worker], *, num_rows: int, block_rows: int, device: torch.device
) -> list[Worker]:
    """Distribute blocks of rows over workers; return the workers, whose sums the caller adds up.

    The assignment of blocks depends on the number of threads alone, so a sum has the same bytes
    every time. Workers run without autograd and without autocast.

    Args:
        new_worker: makes a worker for blocks of at most the given number of rows.
        num_rows: the number of rows.
        block_rows: rows of a block on a CPU; elsewhere there is one block.
        device: where the tensors are.
    """
    if device.type != "cpu":
        block_rows = num_rows
    blocks = [slice(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]
    num_workers = min(torch.get_num_threads(), len(blocks)) if device.type == "cpu" else 1
    workers = [new_worker(block_rows) for _ in range(num_workers)]

    def work(number: int) -> None:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for block in blocks[number :: len(workers)]:
                workers[number](block)

    in_threads(work, num_workers, device)
    return workers


def with_gradients(value: Tensor, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
    """Return a scalar that autograd treats as a function of the inputs with these gradients.

    The backward pass changes the gradients in place, so it can run only once.
    """
    apply: Callable[..., Tensor] = _WithGradients.apply  # typed by some versions of PyTorch only
    return apply(value, gradients, *inputs)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        scaled = [
            gradient.mul_(outer[0]) if need else None
            for gradient, need in zip(ctx.saved_tensors, needs, strict=True)
        ]
        return (None, None, *scaled)
