"""Losses that are sums over rows, computed block by block, their gradients with them.

The large intermediate values of a loss (scores against thousands of negatives, L pieces for each interest)
need not outlive their block: the gradient of a sum is known as soon as the block is done. So a loss works
through its blocks once, forward and backward, in buffers that stay in the processor's cache, and is handed to
autograd as a value whose gradients are known already. On a CPU every core takes blocks of its own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor


class BlockWorker(Protocol):
    """What one thread works with: buffers of its own, and sums over the blocks that it was given."""

    def __call__(self, block: slice) -> None:
        """Do a block of rows: add to the own sums, and write these rows' gradients."""
        ...


Worker = TypeVar("Worker", bound=BlockWorker)


def work_by_blocks(
    new_worker: Callable[[int], Worker], *, num_rows: int, block_rows: int, device: torch.device
) -> list[Worker]:
    """Give every block of rows to a worker; return the workers, whose sums are to be added up.

    Which worker gets which block depends on the number of threads alone, so a sum is the same every time.

    Args:
        new_worker: makes a worker for blocks of at most so many rows.
        num_rows: rows in all.
        block_rows: rows of a block on a CPU; elsewhere there is one block.
        device: where the tensors are.
    """
    if device.type != "cpu":
        block_rows = num_rows
    blocks = [slice(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]
    num_threads = torch.get_num_threads() if device.type == "cpu" else 1
    workers = [new_worker(block_rows) for _ in range(max(1, min(num_threads, len(blocks))))]

    def work(number: int) -> None:
        # What workers multiply in bfloat16 they say themselves: autocast is a thread's own.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for block in blocks[number :: len(workers)]:
                workers[number](block)

    if len(workers) == 1:
        work(0)
        return workers
    # One thread a block, and not all threads on each: they need not wait for each other at every operation.
    try:
        with ThreadPoolExecutor(len(workers), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, range(len(workers))))
    finally:
        torch.set_num_threads(num_threads)  # for threads to come; a thread that is there keeps its own
    return workers


def with_gradients(value: Tensor, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
    """Give a scalar that autograd takes for a function of the inputs with these gradients."""
    result: Tensor = _WithGradients.apply(value, gradients, *inputs)  # type: ignore[no-untyped-call]
    return result


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        scaled = [
            gradient * outer[0] if need else None
            for gradient, need in zip(ctx.saved_tensors, needs, strict=True)
        ]
        return (None, None, *scaled)
