"""What two ranks do for `test_distributed.py`; started by torchrun.

usage: train_on_ranks.py DATA FOLDER OPTIONS

Two ranks rank by given interests, write and read weights and checkpoints, and train. Then each rank
is a training of one rank by itself: rank 0 repeats the training, and rank 1 resumes a stopped one.
"""

import json
import os
import shutil
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from re4.common.errors import RunError, UsageError
from re4.training import api
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.distributed.collectives import process_group
from re4.training.distributed.evaluation import rank_shards
from re4.training.distributed.item_table import ItemTable
from re4.training.distributed.model import ShardedModel
from re4.training.distributed.trainer import ShardedTrainer
from re4.training.distributed.weights import write_sharded_weights
from re4.training.run.tensor_files import read_tensors


def look_up_and_rank(data, folder, options):
    """A table of two ranks: rows that both read, the ranking, and the written weights."""
    dataset = Dataset.open(data)
    config = TrainConfig(**options).resolve(dataset.num_items)
    rank = dist.get_rank()
    items = ItemTable(dataset.num_items, 16, device=torch.device("cpu"), learning_rate=0.5)
    items.fill_randomly(seed=3)
    rows = torch.tensor([119, 0, 60] if rank == 0 else [60, 1])
    before = items.look_up(rows).detach().clone()
    items.look_up(rows).backward(torch.ones(len(rows), 16))
    after = items.look_up(rows).detach()
    empty = items.look_up(rows[:0] if rank else rows)
    empty.backward(torch.zeros_like(empty))
    torch.save(
        {
            "rows": rows,
            "before": before,
            "after": after,
            "first": items.first_row,
            "squares": items.squares_n.clone(),
            "shard": items.weight_nD.clone(),
        },
        folder / f"rows.{rank}.pt",
    )
    torch.manual_seed(rank)  # the weights of rank 0 go to all
    model = ShardedModel(config, items, torch.device("cpu"))
    ranking = rank_shards(model, dataset.valid, title="ranking")
    write_sharded_weights(folder, model)
    if rank == 0:
        lists = ranking.lists
        torch.save(
            {
                "top": ranking.top_UM,
                "cosine": ranking.interest_cosine,
                "own": lists.own_SKM,
                "found_by": lists.found_by_SM,
                "users": lists.users_S,
            },
            folder / "ranking.pt",
        )
        assert set(read_tensors(folder / "weights.safetensors")) == set(model.state_dict())


def refused(data, folder, **options):
    try:
        api.train(data, folder / "refused", **options)
    except UsageError as error:
        return str(error)
    return "not refused"


def stop_in_second_epoch(data, run, options):
    """Train until the third step of the second epoch, as after a signal to one rank."""
    agreed = ShardedTrainer.agreed

    def after_step(self, must_stop, must_save):
        is_there = self._progress.epoch == 2 and self._progress.step == 3
        return agreed(self, is_there and dist.get_rank() == 1, must_save)

    ShardedTrainer.agreed = after_step
    try:
        api.train(data, run, device="cpu", **options)
    except KeyboardInterrupt:
        return
    finally:
        ShardedTrainer.agreed = agreed
    raise AssertionError("the training was not stopped")


def main():
    data, folder, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    rank = int(os.environ["RANK"])
    exact = options | {"contrast_weight": 0.0}
    transformer = {name: value for name, value in options.items() if not name.endswith("_weight")}
    transformer |= {"model": "transformer", "num_interests": 3, "batch_size": 500}
    with process_group(torch.device("cpu")):  # one for all trainings, because a store joins ranks once
        look_up_and_rank(data, folder, options)
        messages = [
            refused(data, folder, model="ease"),
            refused(data, folder, num_interests="auto"),
            refused(data, folder, from_run=folder / "nothing"),
        ]
        api.train(data, folder / "two", device="cpu", **options)
        api.train(data, folder / "two-exact", device="cpu", **exact)
        stop_in_second_epoch(data, folder / "stopped", exact)
        api.train(data, folder / "two-transformer", device="cpu", **transformer)
    if rank == 0:
        (folder / "messages.json").write_text(json.dumps(messages))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }
    if rank == 0:
        api.train(data, folder / "one-exact", device="cpu", **exact)
        api.train(data, folder / "one-transformer", device="cpu", **transformer)
    else:
        shutil.copytree(folder / "stopped/checkpoints", folder / "damaged/checkpoints")
        api.resume(folder / "stopped", device="cpu")
        for file in (folder / "damaged").glob("checkpoints/*/*.distcp"):
            file.write_bytes(file.read_bytes()[:1000])
        try:
            api.resume(folder / "damaged", device="cpu")
        except RunError as error:
            (folder / "damaged.txt").write_text(str(error))


main()
