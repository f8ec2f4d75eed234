"""The samplers of negatives for the recommendation loss, by the value of the setting `negatives`.

A sampler is a class of the form `sampler.Sampler`. It draws once a step; all examples of the step
share the negatives. A module is imported on first use.
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


def build_sampler(
    name: str, num_negatives: int, item_counts_N: "Tensor", *, logit_adjustment: float = 0.0
) -> "Sampler":
    """Make a sampler for a number of negatives a step and the items' training events."""
    module, _, class_name = SAMPLERS[name].partition(":")
    sampler: Sampler = getattr(import_module(module), class_name)(num_negatives, item_counts_N)
    if logit_adjustment:
        from re4.training.samplers.logit_adjustment import LogitAdjusted

        return LogitAdjusted(sampler, logit_adjustment, item_counts_N)
    return sampler
