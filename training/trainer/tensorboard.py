"""The metrics of each epoch as TensorBoard events, in addition to `metrics.jsonl`: one file a run."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any, Final

from re4.common.errors import UsageError

FOLDER: Final = "tensorboard"
FILE: Final = "events.out.tfevents.run"
"""TensorBoard reads files with `tfevents` in their names."""
_HEADER: Final = struct.Struct("<QI")
"""Length of a record's data, and the checksum of the length."""
_FOOTER_BYTES: Final = 4
"""The checksum of the data."""


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
    """Add the records' epochs to the run's file of events; the step of an event is the epoch.

    The rest of a killed process is cut off first: a part of a record, at which readers stop, and epochs that
    are repeated.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    path = run / FOLDER / FILE
    path.parent.mkdir(exist_ok=True)
    num_bytes = _earlier_bytes(path, records[0]["epoch"])
    added = io.BytesIO()
    writer = RecordWriter(added)
    if not num_bytes:
        writer.write(Event(wall_time=time(), file_version="brain.Event:2").SerializeToString())
    for record in records:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures_of(record).items()]
        event = Event(wall_time=time(), step=record["epoch"], summary=Summary(value=values))
        writer.write(event.SerializeToString())
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(num_bytes)
        file.seek(num_bytes)
        file.write(added.getvalue())


def figures_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the figures of an epoch's record by name."""
    figures = {f"loss/{name}": value for name, value in record["losses"].items()}
    valid = dict(record["valid"])
    valid |= valid.pop("interests", None) or {}
    shares = valid.pop("hit_shares", [])
    valid |= {f"hit_share_{number}": share for number, share in enumerate(shares)}
    figures |= {f"valid/{name}": value for name, value in valid.items()}
    figures["examples_per_second"] = record["examples_per_second"]
    return figures


def _earlier_bytes(path: Path, epoch: int) -> int:
    """Return the bytes of the complete records before an epoch's; 0 where there is none."""
    from tensorboard.compat.proto.event_pb2 import Event

    if not path.exists():
        return 0
    data = path.read_bytes()
    end = 0
    while end + _HEADER.size <= len(data):
        start = end + _HEADER.size
        stop = start + _HEADER.unpack_from(data, end)[0]
        if stop + _FOOTER_BYTES > len(data):
            break
        event = Event.FromString(data[start:stop])
        if event.HasField("summary") and event.step >= epoch:
            break
        end = stop + _FOOTER_BYTES
    return end
