"""The precision of a training step: float32, or matrix products of factors rounded to bfloat16.

On a CPU the matrix product rounds its factors and sums in float32, so every tensor stays float32. A
CPU with AMX is several times faster that way; a CPU without bfloat16 instructions computes float32
products. On a GPU autocast rounds (not verified there). Weights, gradients, optimiser state and the
sums of losses are float32 either way.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from re4.common.errors import UsageError

_log = logging.getLogger(__name__)

PRECISIONS: Final = ("auto", "float32", "bf16")


def check_precision(name: str) -> None:
    """Refuse an unknown precision.

    Raises:
        UsageError: with the names that are allowed.
    """
    if name not in PRECISIONS:
        raise UsageError(f"--precision {name}: {', '.join(PRECISIONS)} are possible.")


def is_bf16(name: str, device: torch.device) -> bool:
    """Return whether products are bfloat16; auto chooses it on a GPU that has it, and logs the choice."""
    if name != "auto":
        return name == "bf16"
    chosen = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if device.type == "cuda":
        _log.info(
            f"precision: {'bf16' if chosen else 'float32'} (the GPU {'has' if chosen else 'lacks'} bfloat16)"
        )
    return chosen


def arithmetic(device: torch.device, *, bf16: bool) -> AbstractContextManager[object]:
    """Return the context for computing losses. On a CPU it holds for all threads: enter it once,
    outside them."""
    if not bf16:
        return nullcontext()
    return _rounding_products() if device.type == "cpu" else torch.autocast(device.type, torch.bfloat16)


@contextmanager
def _rounding_products() -> Iterator[None]:
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


@dataclass(frozen=True)
class Products:
    """Matrix products into existing memory, to which a GPU's autocast does not apply."""

    bf16: bool
    """Whether the factors are rounded to bfloat16."""

    @classmethod
    def on(cls, device: torch.device) -> "Products":
        """Multiply by the precision of the surrounding context (see `arithmetic`)."""
        return cls(bf16=torch.is_autocast_enabled(device.type))

    def put(self, left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
        """Write `left @ right` to `out`, and return it."""
        if self.bf16:
            return out.copy_(left.bfloat16() @ right.bfloat16())
        return torch.matmul(left, right, out=out)

    def add(self, left: Tensor, right: Tensor, *, to: Tensor) -> None:
        """Add `left @ right` to a matrix."""
        if self.bf16:
            to.add_(left.bfloat16() @ right.bfloat16())
        else:
            to.addmm_(left, right)
