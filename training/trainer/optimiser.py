"""The optimiser of a step: Adam for the encoder and the flows, row-wise Adam for the item vectors.

A step with sampled negatives reads some ten thousand of up to ten million item vectors. Only these
rows and their moments are read and written, so the cost of a step does not grow with the catalogue.
"""

import ctypes
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from re4.training.kernels import call_kernel, kernel_for
from re4.training.kernels.parallel import in_threads
from re4.training.model.model import Losses, MultiInterestModel, TouchedRows

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
_CHUNK_ROWS: Final = 4096
"""Rows that a thread updates at a time."""


class ItemOptimiser(Protocol):
    """The optimiser of the item vectors."""

    def state(self) -> dict[str, Tensor]:
        """Return its state by name, for a checkpoint."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        ...

    def step(self, touched: TouchedRows, *, rate: float) -> None:
        """Update the touched rows by their gradient, with a share of the learning rate."""
        ...


class Optimiser:
    """Both optimisers of a model, with the learning rate and weight decay of its configuration."""

    def __init__(self, model: MultiInterestModel, items: ItemOptimiser | None = None) -> None:
        """Begin without moments; `items` replaces the row-wise Adam of the item vectors."""
        config = model.config
        assert config.learning_rate is not None, "resolve comes first"
        self._learning_rate = config.learning_rate
        dense = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Some encoders have no weights. PyTorch accepts an empty group, but no empty list of groups.
        self._dense = torch.optim.Adam(
            [{"params": dense}], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._items: ItemOptimiser = items or RowWiseAdam(
            model.item_embedding, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts by name, for a checkpoint."""
        moments = {
            f"dense.{number}.{name}": value
            for number, values in self._dense.state_dict()["state"].items()
            for name, value in values.items()
        }
        return moments | {f"items.{name}": value for name, value in self._items.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        dense: dict[int, dict[str, Tensor]] = {}
        items: dict[str, Tensor] = {}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "items":
                items[rest] = value
            else:
                number, _, moment = rest.partition(".")
                # Copied, because PyTorch keeps it as it is, and it may be a view of a mapped checkpoint.
                dense.setdefault(int(number), {})[moment] = value.clone()
        self._dense.load_state_dict({**self._dense.state_dict(), "state": dense})
        self._items.restore(items)

    def step(self, losses: Losses, *, rate: float = 1.0) -> None:
        """Run the backward pass of the total loss, and update every parameter that has a gradient.

        Args:
            losses: Of the batch.
            rate: The share of the configured learning rate, for its warm-up.
        """
        self._dense.zero_grad(set_to_none=True)
        self.backward(losses)
        for group in self._dense.param_groups:
            group["lr"] = rate * self._learning_rate
        self._dense.step()
        self._items.step(losses.touched, rate=rate)

    def backward(self, losses: Losses) -> None:
        """Run the backward pass of the total loss."""
        losses.total.backward()  # type: ignore[no-untyped-call]


class RowWiseAdam:
    """Lazy Adam for the item vectors: only the rows of a step and their moments change.

    The second moment is one number a row, the mean over its entries, so that the state is as large
    as one table and not two. The momentum of the other rows does not decay.
    """

    def __init__(self, table: nn.Embedding, *, learning_rate: float, weight_decay: float) -> None:
        self._weight_ND = table.weight
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._num_steps = 0
        self._first_ND = torch.zeros_like(table.weight)
        self._second_N = torch.zeros_like(table.weight[:, 0])

    def state(self) -> dict[str, Tensor]:
        """Return the moments and the step count by name, for a checkpoint."""
        steps = torch.tensor(self._num_steps)
        return {"first": self._first_ND, "second": self._second_N, "num_steps": steps}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        self._num_steps = int(state["num_steps"])
        self._first_ND.copy_(state["first"])
        self._second_N.copy_(state["second"])

    @torch.no_grad()
    def step(self, touched: TouchedRows, *, rate: float = 1.0) -> None:
        """Update the touched rows by their gradient, with a share of the learning rate."""
        self._num_steps += 1
        scale = rate * self._learning_rate / (1 - _BETA_1**self._num_steps)
        bias = 1 - _BETA_2**self._num_steps
        compiled = kernel_for(self._weight_ND, "row_adam.c", {"DIM": self._weight_ND.shape[1]})
        if compiled is not None:
            settings = torch.tensor([self._weight_decay, _BETA_1, _BETA_2, scale, bias, _EPSILON])
            self._update_by_kernel(compiled, touched, settings)
            return
        rows_R = slice(None) if touched.rows_R is None else touched.rows_R
        gradient_RD = touched.gradient_RD
        if self._weight_decay:
            gradient_RD = gradient_RD.add(touched.vectors_RD.detach(), alpha=self._weight_decay)
        first_RD = self._first_ND[rows_R].lerp(gradient_RD, 1 - _BETA_1)
        second_R = self._second_N[rows_R].lerp(gradient_RD.square().mean(dim=1), 1 - _BETA_2)
        self._first_ND[rows_R] = first_RD
        self._second_N[rows_R] = second_R
        root_R = (second_R / bias).sqrt_().add_(_EPSILON)
        step_RD = first_RD.mul_(-scale).div_(root_R[:, None])
        self._weight_ND[rows_R] = touched.vectors_RD.detach().add(step_RD)

    def _update_by_kernel(self, compiled: ctypes.CDLL, touched: TouchedRows, settings: Tensor) -> None:
        """Update the rows by the C kernel, which reads and writes a row once."""
        gradient_RD = touched.gradient_RD.contiguous()
        rows_R = touched.rows_R
        if rows_R is None:
            rows_R = torch.arange(len(gradient_RD))
        pieces = list(
            zip(torch.split(rows_R, _CHUNK_ROWS), torch.split(gradient_RD, _CHUNK_ROWS), strict=True)
        )

        def update(number: int) -> None:
            rows, gradients = pieces[number]
            call_kernel(
                compiled.row_adam,
                len(rows),
                rows,
                gradients,
                self._weight_ND,
                self._first_ND,
                self._second_N,
                settings,
            )

        in_threads(update, len(pieces), gradient_RD.device)
