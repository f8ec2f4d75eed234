"""Parity of the exported with the trained encoder: ONNX Runtime and PyTorch run on the same histories.

Legend: B batch, L history length, K interests, D embedding.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from re4.common.errors import ExportError
from re4.exporting.encoder.onnx_runner import OnnxEncoder

MAX_DIFFERENCE: Final = 1e-5
"""Largest difference allowed, relative to the largest output, or absolute where that is below 1."""

BATCH_SIZES: Final = (1, 2, 7, 64)
_MOST_LENGTHS: Final = 64
_SEED: Final = 20220425


def check_parity(
    encoder: nn.Module,
    exported: OnnxEncoder,
    *,
    num_interests: int,
    embedding_dim: int,
    max_history_length: int,
) -> float:
    """Compare the two on random histories: batch sizes 1, 2, odd and large, every length from 1 to L.

    Of more than 64 lengths a sample is used, with the smallest, the largest and its neighbour.

    Args:
        encoder: The trained encoder, on the CPU, in evaluation mode.
        exported: The same encoder, exported.
        num_interests: K.
        embedding_dim: D.
        max_history_length: L.

    Returns:
        The largest absolute difference of any output.

    Raises:
        ExportError: as `compare`.
    """
    rng = np.random.default_rng(_SEED)
    largest = 0.0
    for batch_size in BATCH_SIZES:
        for length in _lengths(max_history_length):
            vectors_BLD = rng.standard_normal((batch_size, length, embedding_dim), np.float32)
            lengths_B = rng.integers(1, length + 1, batch_size)
            lengths_B[0] = length
            largest = max(largest, compare(encoder, exported, vectors_BLD, lengths_B, num_interests))
    return largest


def compare(
    encoder: nn.Module,
    exported: OnnxEncoder,
    history_vectors_BLD: NDArray[np.float32],
    lengths_B: NDArray[np.int64],
    num_interests: int,
) -> float:
    """Run both encoders on the same histories.

    Returns:
        The largest absolute difference of any output.

    Raises:
        ExportError: the outputs differ by more than `MAX_DIFFERENCE`, have another shape, are not finite,
            or padding gets attention.
    """
    batch_size, length, embedding_dim = history_vectors_BLD.shape
    where = f"for a batch of {batch_size} histories padded to {length}"
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(history_vectors_BLD), torch.from_numpy(lengths_B))
    got = exported(history_vectors_BLD, lengths_B)
    shapes = ((batch_size, num_interests, embedding_dim), (batch_size, num_interests, length))
    largest = 0.0
    for name, want, have, shape in zip(("interests", "attention"), wanted, got, shapes, strict=True):
        reference = want.numpy()
        if reference.shape != shape or have.shape != shape:
            raise ExportError(
                f"{name} {where}: shape {reference.shape} in PyTorch and {have.shape} in ONNX Runtime, "
                f"expected {shape}"
            )
        if not (np.isfinite(reference).all() and np.isfinite(have).all()):
            raise ExportError(f"{name} {where}: not all finite. Was training stable? See the run's metrics")
        difference = float(np.abs(reference - have).max())
        allowed = MAX_DIFFERENCE * max(1.0, float(np.abs(reference).max()))
        if difference > allowed:
            raise ExportError(
                f"{name} {where}: PyTorch and ONNX Runtime differ by {difference:.3g}, at most {allowed:.3g} "
                "is allowed: the encoder does something that does not survive the export"
            )
        largest = max(largest, difference)
    padding_BL = np.arange(length) >= lengths_B[:, None]
    if got[1].transpose(0, 2, 1)[padding_BL].any():
        raise ExportError(f"attention {where}: padding gets some: the encoder must mask it")
    return largest


def _lengths(max_history_length: int) -> Iterator[int]:
    num_lengths = min(max_history_length, _MOST_LENGTHS)
    chosen = {round(length) for length in np.linspace(1, max_history_length, num_lengths)}
    yield from sorted(chosen | {max(1, max_history_length - 1)})
