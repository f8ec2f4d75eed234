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

from re4.files import replacing

_FACTS: Final = "re4"
_CHECKSUM: Final = "crc32"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Replace a file by tensors, no two of them the same memory.

    Args:
        path: The file.
        tensors: By name.
        facts: Kept in the file's metadata under `re4`, as JSON.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    copies = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    metadata = {_FACTS: json.dumps(facts or {})}
    metadata[_CHECKSUM] = _checksum(copies, metadata)
    with replacing(path) as part:
        try:
            save_file(copies, part, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def facts_of(path: Path) -> dict[str, Any]:
    """Read the facts about a file's tensors.

    Raises:
        ValueError: it is damaged, or has none.
        OSError: it cannot be opened.
    """
    return dict(json.loads(_metadata(path)[_FACTS]))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map a file's tensors into memory, and read them through once to see that they are what was written.

    Files that were written before there were checksums are read without.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be opened.
    """
    metadata = _metadata(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if metadata.get(_CHECKSUM, "") not in ("", _checksum(tensors, metadata)):
        raise ValueError("its content is not what was written (CRC-32 differs)")
    return tensors


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return {_FACTS: "", **(file.metadata() or {})}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    total = zlib.crc32(metadata[_FACTS].encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
