"""Work cut into pieces, gradients with it: each piece has a core, and its cache, to itself.

The large intermediate values of a loss (scores against thousands of negatives, L pieces for each interest)
need not outlive their block: the gradient of a sum is known as soon as the block is done. So a loss works
through its blocks once, forward and backward, in buffers that stay in the processor's cache, and is handed to
autograd as a value whose gradients are known already.

One thread a piece, and not all threads on each: they need not wait for each other at every operation.
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
    """Give `work(0), work(1), …`, worked out side by side where a CPU has threads for it.

    A thread starts out with autograd on and autocast off, whatever the caller has, and keeps every
    operation to itself; pieces within pieces run one after the other.
    """
    num_threads = min(torch.get_num_threads(), num_pieces) if device.type == "cpu" else 1
    if num_threads == 1:
        return [work(piece) for piece in range(num_pieces)]
    return list(_pool(num_threads).map(work, range(num_pieces)))


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads that stay, and with them the memory that they have."""
    before, all_there = torch.get_num_threads(), Barrier(num_threads)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes the number over when it first asks for it
        all_there.wait()

    pool = ThreadPoolExecutor(num_threads, initializer=start)
    for started in [pool.submit(int) for _ in range(num_threads)]:
        started.result()
    torch.set_num_threads(before)
    return pool


class BlockWorker(Protocol):
    """What one thread works with: buffers of its own, and sums over the blocks that it was given."""

    def __call__(self, block: slice) -> None:
        """Do a block of rows: add to the own sums, and write these rows' gradients."""
        ...


Worker = TypeVar("Worker", bound=BlockWorker)


def run_blocks(
    new_worker: Callable[[int], Worker], *, num_rows: int, block_rows: int, device: torch.device
) -> list[Worker]:
    """Give every block of rows to a worker; return the workers, whose sums are to be added up.

    Which worker gets which block depends on the number of threads alone, so a sum is the same every time.
    Workers run without autograd and without autocast.

    Args:
        new_worker: makes a worker for blocks of at most so many rows.
        num_rows: rows in all.
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
    """Give a scalar that autograd takes for a function of the inputs with these gradients.

    The gradients are handed over: going back changes them in place, so that one goes back once.
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
