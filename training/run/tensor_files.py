"""Tensors and metadata in one file (safetensors), which appears whole or not at all.

The metadata hold a CRC-32 of both. It detects damage by disks and copies, not manipulation.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from re4.common.files import replacing

FACTS: Final = "re4"
"""The only metadata key: several keys are written in any order, and equal content would differ."""
CHECKSUM: Final = "crc32"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Replace a file by tensors, which must not share memory. Equal tensors make equal bytes.

    Args:
        path: The file.
        tensors: By name.
        facts: JSON values for the file's metadata, under `re4`, with the checksum.

    Raises:
        OSError: it cannot be written; an earlier file is unchanged.
    """
    copies = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    facts = dict(facts or {})
    metadata = {FACTS: json.dumps({**facts, CHECKSUM: _checksum(copies, facts)})}
    with replacing(path) as part:
        try:
            save_file(copies, part, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def facts_of(path: Path) -> dict[str, Any]:
    """Read the metadata of a file of tensors, with the checksum.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be opened.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {}).get(FACTS, "{}")))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map a file's tensors into memory, and verify their checksum.

    Files of earlier versions have no checksum.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be opened.
    """
    facts = facts_of(path)
    written = facts.pop(CHECKSUM, None)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if written not in (None, _checksum(tensors, facts)):
        raise ValueError("its content is not what was written (CRC-32 differs)")
    return tensors


def describe(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """Return the bytes that stand for a tensor's name, type and shape in the checksum."""
    return f"{name} {dtype} {shape}".encode()


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    total = zlib.crc32(json.dumps(facts).encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(describe(name, value.dtype, tuple(value.shape)), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
