"""The metrics of each epoch as TensorBoard events, in addition to `metrics.jsonl`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from re4.common.errors import UsageError

FOLDER: Final = "tensorboard"


def check_tensorboard() -> None:
    """Check that TensorBoard is installed.

    Raises:
        UsageError: with the extra to install.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError("--tensorboard needs the extra: pip install 're4-retrieval[tensorboard]'") from error


def write_events(run: Path, records: Sequence[dict[str, Any]]) -> None:
    """Add the records' epochs to the run's events; the step of an event is the epoch."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / FOLDER)) as writer:
        for record in records:
            figures = {f"loss/{name}": value for name, value in record["losses"].items()}
            valid = dict(record["valid"])
            valid |= valid.pop("interests", None) or {}
            shares = valid.pop("hit_shares", [])
            valid |= {f"hit_share_{number}": share for number, share in enumerate(shares)}
            figures |= {f"valid/{name}": value for name, value in valid.items()}
            figures["examples_per_second"] = record["examples_per_second"]
            for name, value in figures.items():
                writer.add_scalar(name, value, record["epoch"])
