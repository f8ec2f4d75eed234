"""Tensors and facts about them as one file (safetensors), which appears whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from re4.files import replacing


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
    metadata = None if facts is None else {"re4": json.dumps(facts)}
    with replacing(path) as part:
        try:
            save_file(copies, part, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
