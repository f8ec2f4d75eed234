"""The ranks of a training, as torchrun states them in the environment; PyTorch is not imported here."""

import os


def is_distributed() -> bool:
    """Return whether torchrun started this process, or another launcher with several ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first_rank() -> bool:
    """Return whether this process is the one that logs, prints and writes the run; true without ranks."""
    return not is_distributed() or os.environ.get("RANK", "0") == "0"
