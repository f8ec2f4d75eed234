"""An exported encoder, run as a server runs it: by ONNX Runtime on the CPU, from bytes.

Legend: B batch, L history length, K interests, D embedding.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.common.onnx_runtime import onnxruntime

INPUTS: Final = ("history_vectors", "lengths")
OUTPUTS: Final = ("interests", "attention")

_WARNINGS_OFF: Final = 3


class OnnxEncoder:
    """An exported encoder, ready to run."""

    def __init__(self, model: bytes) -> None:
        """Load a serialised model; it must not refer to other files."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _WARNINGS_OFF
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(
        self, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return interests [B, K, D] and attention [B, K, L] of padded histories, newest first."""
        feed = dict(zip(INPUTS, (history_vectors_BLD, lengths_B), strict=True))
        interests_BKD, attention_BKL = self._session.run(list(OUTPUTS), feed)
        return interests_BKD, attention_BKL
