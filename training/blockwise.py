"""Losses that are sums over rows, computed block by block so that what is between stays in the cache.

The large intermediate values of a loss (scores against thousands of negatives, L pieces for each interest)
need not outlive their block: the gradient of a sum is known as soon as the block is done. So forward and
backward run together, block after block, and only the inputs' gradients are kept. The result is the same
sum; memory stays small, and the processor works at the speed of its caches.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def blockwise_sum(
    loss: Callable[..., Tensor], *, rows: tuple[Tensor, ...], shared: tuple[Tensor, ...], block_rows: int
) -> Tensor:
    """Give `loss(*rows, *shared)`, a scalar that is a sum over rows, by blocks of rows.

    Args:
        loss: takes a block of each of `rows`, then `shared`, and gives the block's sum. It is differentiated
            once, so it must not depend on anything else that needs a gradient.
        rows: tensors with the same first dimension, which is cut into blocks.
        shared: tensors that every block sees whole.
        block_rows: rows of a block.
    """
    result: Tensor = _BlockwiseSum.apply(  # type: ignore[no-untyped-call]
        loss, block_rows, len(rows), *rows, *shared
    )
    return result


class _BlockwiseSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Callable[..., Tensor], block_rows: int, num_split: int, *tensors: Tensor
    ) -> Tensor:
        needs = ctx.needs_input_grad[3:]
        gradients = [
            torch.zeros_like(tensor) if need else None for tensor, need in zip(tensors, needs, strict=True)
        ]
        num_rows = tensors[0].shape[0]
        total = torch.zeros((), dtype=_float_type(tensors), device=tensors[0].device)
        shared = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(tensors[num_split:], needs[num_split:], strict=True)
        ]
        for start in range(0, num_rows, block_rows):
            block = slice(start, start + block_rows)
            pieces = [
                tensor[block].detach().requires_grad_(need)
                for tensor, need in zip(tensors[:num_split], needs[:num_split], strict=True)
            ]
            inputs = [*pieces, *shared]
            with torch.set_grad_enabled(any(needs)):
                value = loss(*inputs)
            total += value.detach()
            wanted = [place for place, need in enumerate(needs) if need]
            if not wanted:
                continue
            found = torch.autograd.grad(value, [inputs[place] for place in wanted])
            for place, gradient in zip(wanted, found, strict=True):
                kept = gradients[place]
                assert kept is not None  # it is wanted
                if place < num_split:
                    kept[block] = gradient
                else:
                    kept += gradient
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        ctx.needed = needs
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        scaled = [next(saved) * outer[0] if need else None for need in ctx.needed]
        return (None, None, None, *scaled)


def _float_type(tensors: tuple[Tensor, ...]) -> torch.dtype:
    """That of the tensors, but at least float32: a long sum of bfloat16 stands still."""
    own = next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return torch.promote_types(own, torch.float32)
