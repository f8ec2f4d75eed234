"""The user encoder: from the item vectors of a history to K interest vectors and their attention.

One ONNX Runtime session on one thread. The first run of a new shape is slow. So batches are padded
to a few fixed sizes (buckets), and `warm` runs each of them once.

Legend: B batch, L history length, K interests, D embedding.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.manifest import ModelInfo
from re4.common.errors import BundleDamagedError, BundleMismatchError
from re4.common.onnx_runtime import onnxruntime
from re4.serving.host.threads import ORT_THREADS
from re4.serving.retrieval.onnx_guard import reject_external_references

CPU_PROVIDERS: Final = ("CPUExecutionProvider",)
SPACE_KEY: Final = "re4.space"
"""Where the model's metadata names the item vectors that it was trained with."""

_SHAPES: Final = {
    "history_vectors": (3, "tensor(float)"),
    "lengths": (1, "tensor(int64)"),
    "interests": (3, "tensor(float)"),
    "attention": (3, "tensor(float)"),
}
_OUTPUTS: Final = ["interests", "attention"]


class Encoder:
    """A loaded encoder. `encode` may be called by one thread at a time."""

    def __init__(
        self,
        model: bytes,
        info: ModelInfo,
        *,
        max_batch_size: int,
        where: str,
        providers: Sequence[str] = CPU_PROVIDERS,
    ) -> None:
        """Load a model from its bytes.

        Args:
            model: The verified content of the version's ONNX file.
            info: The model as the manifest describes it.
            max_batch_size: Largest batch for `encode`.
            where: Name of the file in error messages.
            providers: ONNX Runtime's execution providers, by preference.

        Raises:
            BundleDamagedError: ONNX Runtime rejects the model, or the model refers to other files.
            BundleMismatchError: a sound model, but not the one that the manifest describes.
        """
        reject_external_references(model, where=where)
        try:
            self._session = onnxruntime.InferenceSession(model, _options(), providers=list(providers))
        except Exception as error:  # ONNX Runtime's exceptions have no root of their own
            raise BundleDamagedError(f"{where}: ONNX Runtime refuses it ({_first_line(error)})") from None
        self._info = info
        self._where = where
        self.bucket_sizes = bucket_sizes(max_batch_size)
        self._lone: _LoneRun | None = None
        self._check_space()
        self._check_signature()

    def encode(
        self, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the interests of a batch.

        Args:
            history_vectors_BLD: Item vectors, newest first, L the model's `max_history_length`.
                Vectors beyond a history's length are ignored.
            lengths_B: Length of each history, at least 1.

        Returns:
            `interests_BKD` and `attention_BKL`, 0 beyond a history's length.
        """
        batch_size = len(lengths_B)
        if batch_size == 1 and self._lone is not None:
            return self._lone.run(history_vectors_BLD, lengths_B)
        spare = next(size for size in self.bucket_sizes if size >= batch_size) - batch_size
        if spare:
            history_vectors_BLD = np.concatenate(
                [history_vectors_BLD, np.zeros((spare, *history_vectors_BLD.shape[1:]), np.float32)]
            )
            lengths_B = np.concatenate([lengths_B, np.ones(spare, np.int64)])
        feed = {"history_vectors": history_vectors_BLD, "lengths": lengths_B}
        interests_BKD, attention_BKL = self._session.run(_OUTPUTS, feed)
        return interests_BKD[:batch_size], attention_BKL[:batch_size]

    def warm(self) -> None:
        """Run every bucket once, and check the shapes of the outputs.

        Raises:
            BundleMismatchError: the outputs have other shapes than the manifest states, or the
                model fails.
        """
        info = self._info
        self._lone = None
        for size in self.bucket_sizes:
            history_BLD = np.zeros((size, info.max_history_length, info.embedding_dim), np.float32)
            try:
                interests, attention = self.encode(history_BLD, np.ones(size, np.int64))
            except Exception as error:  # as above
                raise BundleMismatchError(
                    f"{self._where}: fails on a batch of {size} ({_first_line(error)})"
                ) from None
            expected = (size, info.num_interests, info.embedding_dim)
            expected_attention = (size, info.num_interests, info.max_history_length)
            if interests.shape != expected or attention.shape != expected_attention:
                raise BundleMismatchError(
                    f"{self._where}: answers with shapes {interests.shape} and {attention.shape}, the "
                    f"manifest says {expected} and {expected_attention}"
                )

        if self._session.get_providers() == list(CPU_PROVIDERS):
            self._lone = _LoneRun(self._session, info)

    def _check_space(self) -> None:
        space = self._session.get_modelmeta().custom_metadata_map.get(SPACE_KEY)
        if space != self._info.space:
            raise BundleMismatchError(
                f"{self._where}: was trained with the item vectors {str(space)[:12]}…, the manifest says "
                f"{self._info.space[:12]}…. Encoder and items must come from one run: export that run again"
            )

    def _check_signature(self) -> None:
        arguments: list[Any] = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = {argument.name: (len(argument.shape), argument.type) for argument in arguments}
        if found != _SHAPES:
            raise BundleMismatchError(f"{self._where}: takes and gives {found}, expected {_SHAPES}")


class _LoneRun:
    """Runs of a batch of one, whose arrays are bound once: 5 of 25 µs less, and half of the code."""

    def __init__(self, session: Any, info: ModelInfo) -> None:
        """Bind the arrays. The outputs have the shapes of the manifest."""
        length, dim, num_interests = info.max_history_length, info.embedding_dim, info.num_interests
        self._history_1LD = np.zeros((1, length, dim), np.float32)
        self._lengths_1 = np.ones(1, np.int64)
        self._interests_1KD = np.empty((1, num_interests, dim), np.float32)
        self._attention_1KL = np.empty((1, num_interests, length), np.float32)
        self._session, self._binding = session, session.io_binding()
        for name, array in (("history_vectors", self._history_1LD), ("lengths", self._lengths_1)):
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in zip(_OUTPUTS, (self._interests_1KD, self._attention_1KL), strict=True):
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(
        self, history_1LD: NDArray[np.float32], lengths_1: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the interests and the attention."""
        self._history_1LD[:], self._lengths_1[:] = history_1LD, lengths_1
        self._session.run_with_iobinding(self._binding)
        return self._interests_1KD.copy(), self._attention_1KL.copy()


def bucket_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes for padding: powers of two below the largest, and the largest."""
    powers = []
    size = 1
    while size < max_batch_size:
        powers.append(size)
        size *= 2
    return (*powers, max_batch_size)


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = ORT_THREADS
    options.inter_op_num_threads = ORT_THREADS
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only: they are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Otherwise a file in ONNX Runtime's own format would be loaded without the checks of
    # `onnx_guard.py`.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
