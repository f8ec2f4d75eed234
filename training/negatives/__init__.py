"""The kinds of negatives for the recommendation loss: one line each, loaded when asked for.

A kind is a class made with `(num_items, num_negatives)` and having one method, `draw(generator)`, called once
a step: all examples of the step share what it draws.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.negatives.drawn import Sampler

NEGATIVES: Mapping[str, str] = {
    "uniform": "training.negatives.uniform:Uniform",
    "popularity": "training.negatives.popularity:LogUniform",
    "all": "training.negatives.whole_catalogue:WholeCatalogue",
}


def build_sampler(name: str, num_items: int, num_negatives: int) -> "Sampler":
    """Make the sampler of a kind for a catalogue and a number of negatives a step."""
    module, _, class_name = NEGATIVES[name].partition(":")
    sampler: Sampler = getattr(import_module(module), class_name)(num_items, num_negatives)
    return sampler
