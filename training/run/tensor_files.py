"""Tensors and facts about them as one file (safetensors), which appears whole or not at all.

A checksum of them is in the file's metadata: CRC-32, which finds what disks and copies do to a file, not what
an enemy does.
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

_FACTS: Final = "re4"
"""The only name in the metadata: several would be written in any order, and equal files differ."""
_CHECKSUM: Final = "crc32"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Replace a file by tensors, no two of them the same memory. Equal ones make files of equal bytes.

    Args:
        path: The file.
        tensors: By name.
        facts: Kept in the file's metadata under `re4`, as JSON; the checksum is added to them.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    copies = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    facts = dict(facts or {})
    metadata = {_FACTS: json.dumps({**facts, _CHECKSUM: _checksum(copies, facts)})}
    with replacing(path) as part:
        try:
            save_file(copies, part, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def facts_of(path: Path) -> dict[str, Any]:
    """Read the facts about a file's tensors, the checksum among them.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be opened.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {}).get(_FACTS, "{}")))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map a file's tensors into memory, and read them through once to see that they are what was written.

    Files that were written before there were checksums are read without.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be opened.
    """
    facts = facts_of(path)
    written = facts.pop(_CHECKSUM, None)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if written not in (None, _checksum(tensors, facts)):
        raise ValueError("its content is not what was written (CRC-32 differs)")
    return tensors


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    total = zlib.crc32(json.dumps(facts).encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
