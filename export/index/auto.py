"""Which index for `--index auto`: by the number of items.

Measured with the vectors of `benchmarks/synthetic/` (D = 64, K = 4, 100 candidates, recall 0.95, one thread):
flat answers 20,000 items in a third of a millisecond, and is exact. Above that, IVF with fast-scan codes is
the fastest kind, in the least space but RaBitQ's, and sooner built than a graph.
Knows nothing about how an index is built or tuned.
"""

from collections.abc import Callable
from typing import Final

from re4.exporting.index.devices import Device

AUTO: Final = "auto"
MAX_FLAT_ITEMS: Final = 20_000
MAX_FLAT_ITEMS_ON_CUDA: Final = 1_000_000
"""By the bytes a GPU reads a second, not measured on one."""

_BY_SPEED: Final = (
    ("ivf-pq", "lists of short codes are the fastest"),
    ("ivf-rabitq", "lists of one-bit codes, built in shards: four-bit codes do not fit the memory limit"),
)


def choose(
    num_items: int, fits: Callable[[str], bool] = lambda _: True, device: Device = Device.CPU
) -> tuple[str, str]:
    """The name of an index kind, and in one line why.

    Args:
        num_items: Size of the catalogue.
        fits: Whether a kind can be built within the memory limit.
        device: What it will be searched on.
    """
    on_cuda = device is Device.CUDA
    most = MAX_FLAT_ITEMS_ON_CUDA if on_cuda else MAX_FLAT_ITEMS
    where = " on a GPU" if on_cuda else ""
    if num_items <= most:
        return "flat", f"{num_items:,} items, at most {most:,}: comparing all is fast{where}, and exact"
    size = f"{num_items:,} items, more than {most:,}"
    if on_cuda:
        return "ivf", f"{size}: lists of whole vectors are what a GPU reads fastest"
    for name, why in _BY_SPEED:
        if fits(name):
            return name, f"{size}: {why}"
    return _BY_SPEED[0][0], f"{size}: no kind fits the memory limit, this is the fastest"
