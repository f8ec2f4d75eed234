"""The item table, its rows spread over the ranks by TorchRec, with its fused optimiser.

Rank r holds rows `first_row` to `first_row + len(weight_nD)`, in the order of ranks. A look-up sends
row numbers to the ranks that hold them, and vectors back; its backward pass sends gradients, and the
rank that holds a row adds up those of all ranks and updates the row at once (row-wise Adagrad).

Shape suffix: n, the rows of this rank.
"""

import os
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from re4.common.errors import TrainingError
from re4.training.distributed.collectives import stacked

_TABLE, _FEATURE = "item_table", "item"
_RANDOM_ROWS = 1 << 16
"""Rows of random vectors that one seed draws."""


class ItemTable:
    """The rows of this rank, and look-ups in the rows of all."""

    def __init__(self, num_items: int, dim: int, *, device: torch.device, learning_rate: float) -> None:
        """Plan the shards and allocate this rank's rows.

        Raises:
            TrainingError: a shard does not fit into memory.
        """
        set_gradient_division(False)  # a loss is the share of its rank: gradients are summed
        collection = EmbeddingCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingConfig(
                    name=_TABLE, embedding_dim=dim, num_embeddings=num_items, feature_names=[_FEATURE]
                )
            ],
        )
        sharder: Any = EmbeddingCollectionSharder(
            fused_params={
                "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
                "learning_rate": learning_rate,
                "eps": 1e-8,
            }
        )
        group = dist.group.WORLD
        assert group is not None, "the process group comes first"
        planner = EmbeddingShardingPlanner(
            topology=_topology(device),
            constraints={
                _TABLE: ParameterConstraints(sharding_types=["row_wise"], compute_kernels=["fused"])
            },
            storage_reservation=FixedPercentageStorageReservation(0.1),
        )
        try:
            plan = planner.collective_plan(collection, [sharder], group)
        except PlannerError as error:
            raise TrainingError(
                f"{num_items:,} item vectors of {dim} numbers do not fit: each of {dist.get_world_size()} "
                f"ranks needs {num_items * dim * 4 / dist.get_world_size() / 2**30:.1f} GiB for its rows. "
                f"Use more ranks on more machines. The planner reports: {error}"
            ) from error
        self._sharded = sharder.shard(
            collection, plan.get_plan_for_module(""), ShardingEnv.from_process_group(group), device
        )
        shard = self._sharded.state_dict()[f"embeddings.{_TABLE}.weight"].local_shards()[0]
        self._optimiser = self._sharded.fused_optimizer
        self.weight_nD: Tensor = shard.tensor
        """The rows of this rank: the memory that look-ups read and the optimiser writes."""
        self.first_row = int(shard.metadata.shard_offsets[0])
        self.num_items = num_items

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copied model has rows of its own, and looks nothing up

    @property
    def squares_n(self) -> Tensor:
        """The optimiser's sums of squared gradients, one a row."""
        (state,) = self._optimiser.state_dict()["state"].values()
        sums_n: Tensor = state[f"{_TABLE}.momentum1"].local_shards()[0].tensor
        return sums_n

    def set_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next backward pass."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.step()  # hands the rate to the fused optimiser, and updates nothing

    def look_up(self, rows_R: Tensor) -> Tensor:
        """Return vectors [R, D] of rows of any rank; their backward pass updates these rows."""
        lengths = torch.tensor([len(rows_R)], device=rows_R.device)
        features = KeyedJaggedTensor.from_lengths_sync(keys=[_FEATURE], values=rows_R, lengths=lengths)
        vectors_RD: Tensor = self._sharded(features)[_FEATURE].values()
        return vectors_RD

    def fill_randomly(self, seed: int) -> None:
        """Draw normal vectors of mean square length 1, which do not depend on the number of ranks."""
        stop_row, dim = self.first_row + len(self.weight_nD), self.weight_nD.shape[1]
        generator = torch.Generator()
        for block in range(self.first_row // _RANDOM_ROWS, -(-stop_row // _RANDOM_ROWS)):
            generator.manual_seed(
                int(np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0] >> 1)
            )
            drawn = torch.randn(_RANDOM_ROWS, dim, generator=generator).mul_(dim**-0.5)
            first = block * _RANDOM_ROWS
            start, stop = max(first, self.first_row), min(first + _RANDOM_ROWS, stop_row)
            self.weight_nD[start - self.first_row : stop - self.first_row] = drawn[
                start - first : stop - first
            ]

    def fill_from_first_rank(self, vectors_ND: Tensor | None) -> None:
        """Copy this rank's rows of a table that rank 0 has, and other ranks do not need."""
        mine_nD = torch.empty(self.weight_nD.shape)
        bounds = stacked(torch.tensor([self.first_row, self.first_row + len(mine_nD)])).tolist()
        if dist.get_rank() == 0:
            assert vectors_ND is not None, "rank 0 has the table"
            mine_nD = vectors_ND[: len(mine_nD)]
            for rank, (start, stop) in enumerate(bounds[1:], start=1):
                dist.send(vectors_ND[start:stop].contiguous(), dst=rank)
        else:
            dist.recv(mine_nD, src=0)
        self.weight_nD.copy_(mine_nD)


def _topology(device: torch.device) -> Topology:
    """Describe the ranks to the planner, with the memory that each may take."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks_here
    on_gpu = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return Topology(
        world_size=dist.get_world_size(),
        local_world_size=ranks_here,
        compute_device=device.type,
        ddr_cap=memory,
        hbm_cap=on_gpu,
    )
