"""The model on one of several ranks: its rows of the item table, and the whole encoder.

The batch and the negatives of a step are the same on every rank, from the same seeds. A rank takes
every n-th example of the batch, and all negatives. Its losses are divided by the counts of the whole
batch, so that sums over ranks are the losses and gradients of the batch.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.distributed.collectives import sums
from re4.training.distributed.item_table import ItemTable
from re4.training.model.model import Losses, MultiInterestModel, TouchedRows
from re4.training.samplers.sampler import Negatives


class LookedUpRows(TouchedRows):
    """The item vectors that a rank reads in a step, looked up on all ranks."""

    def __init__(self, rows_R: Tensor, looked_up_RD: Tensor) -> None:
        super().__init__(rows_R, looked_up_RD)
        self._looked_up_RD = looked_up_RD

    def update(self) -> None:
        """Send the gradients to the ranks that hold the rows, whose fused optimiser updates them."""
        self._looked_up_RD.backward(self.gradient_RD)  # type: ignore[no-untyped-call]


class ShardedModel(MultiInterestModel):
    """A model whose `item_embedding` has the rows of this rank only.

    A deep copy has rows of its own, for the mean of the weights.
    """

    def __init__(self, config: TrainConfig, items: ItemTable, device: torch.device) -> None:
        super().__init__(config, items.num_items, to_be_loaded=True)
        num_rows, dim = items.weight_nD.shape
        self.item_embedding = nn.Embedding(num_rows, dim, _weight=items.weight_nD, _freeze=True)
        self.items = items
        self.to(device)
        for parameter in [*self.encoder.parameters(), *(self.reconstruct or nn.Module()).parameters()]:
            dist.broadcast(parameter.detach(), src=0)

    def losses(self, batch: Batch, negatives: Negatives, generator: torch.Generator) -> Losses:
        """Compute this rank's part of the losses of a batch, which every rank has whole."""
        if negatives.rows_M is None:
            every_N = torch.arange(self.items.num_items, device=batch.targets_B.device)
            negatives = replace(negatives, rows_M=every_N)
        part = batch.part(dist.get_rank(), dist.get_world_size())
        if len(part.lengths_B):
            return super().losses(part, negatives, generator)
        touched = self.read_rows(batch.targets_B[:0])  # the last batch of an epoch may have too few examples
        self.whole_counts(0, 0)
        return Losses(total=touched.vectors_RD.sum(), terms={}, touched=touched)

    def read_rows(self, rows_R: Tensor | None) -> TouchedRows:
        """Look up rows of the whole table."""
        assert rows_R is not None, "losses lists all rows"
        return LookedUpRows(rows_R, self.items.look_up(rows_R))

    def whole_counts(self, num_targets: int, num_positives: int) -> tuple[int, int]:
        """Add up the counts of all ranks."""
        targets, positives = sums([num_targets, num_positives])
        return int(targets), int(positives)

    def gather_rows(self, rows_R: Tensor) -> Tensor:
        """Return vectors [R, D] of these weights, which may be a mean; every rank asks for the same rows."""
        places_R = rows_R - self.items.first_row
        is_mine_R = (places_R >= 0) & (places_R < len(self.item_table_ND))
        vectors_RD = self.item_table_ND.new_zeros(len(rows_R), self.config.embedding_dim)
        vectors_RD[is_mine_R] = self.item_table_ND[places_R[is_mine_R]]
        dist.all_reduce(vectors_RD)
        return vectors_RD
