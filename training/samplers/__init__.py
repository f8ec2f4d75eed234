"""The kinds of negatives for the recommendation loss: one line each, loaded when asked for.

A kind is a class made with `(num_negatives, item_counts_N)`, the training events of each item, and having one
method, `draw(generator, targets_B)`, called once a step: all examples of the step share what it draws.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from re4.training.samplers.sampler import Sampler

SAMPLERS: Mapping[str, str] = {
    "uniform": "re4.training.samplers.uniform:Uniform",
    "popularity": "re4.training.samplers.log_uniform:LogUniform",
    "in-batch": "re4.training.samplers.in_batch:InBatch",
    "mixed": "re4.training.samplers.mixed:Mixed",
    "all": "re4.training.samplers.full_catalogue:FullCatalogue",
}


def build_sampler(name: str, num_negatives: int, item_counts_N: "Tensor") -> "Sampler":
    """Make the sampler of a kind for a number of negatives a step and the items' training events."""
    module, _, class_name = SAMPLERS[name].partition(":")
    sampler: Sampler = getattr(import_module(module), class_name)(num_negatives, item_counts_N)
    return sampler
