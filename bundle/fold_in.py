"""Folding in: the vector that an item would have been trained to by the events of its first users.

The model is the softmax of the training, with everything but the item's own vector v held fixed. For n
events by users with interests u, among N events of all items, v maximises

    sum over the n events of u·v  -  N * mean over users of sum of exp(u·v) / Z  -  (v - a)ᵀ P (v - a) / 2

The first two terms are the log-likelihood of n events among N. Z is a user's sum of exp(u·x) over trained
items x; a is the vector from attributes. P is the inverse of the covariance of trained vectors around
theirs from attributes: v stays near a while events are few, most of all where attributes predict well.
The sum is concave. Newton's method finds v in some five steps.

Legend: S all interests of a sample of held-out users, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import read_archive, write_archive
from re4.common.errors import BundleDamagedError

_FORMS: Final = {
    "interests_SD": ("<f4", "SD"),
    "log_partition_S": ("<f4", "S"),
    "precision_DD": ("<f4", "DD"),
}
_MAX_STEPS: Final = 30
_MAX_CHANGE: Final = 1.5
"""Largest change of a score by a step: far from the maximum, the quadratic approximation is poor."""
_TOLERANCE: Final = 1e-3
_MAX_LOGIT: Final = 20.0


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldInModel:
    """The likelihood of events of an item that no training has seen."""

    interests_SD: NDArray[np.float32]
    """All interests of a sample of held-out users."""
    log_partition_S: NDArray[np.float32]
    """log(number of users * Z) of the user of each interest."""
    precision_DD: NDArray[np.float32]
    """P."""

    @classmethod
    def read(cls, path: Path, embedding_dim: int) -> "FoldInModel":
        """Read a verified file.

        Raises:
            BundleDamagedError: it is damaged.
            BundleUnavailableError: the file cannot be read at this moment.
        """
        arrays = read_archive(path, _FORMS)
        if arrays["precision_DD"].shape[0] != embedding_dim:
            raise BundleDamagedError(
                f"{path}: the width is {arrays['precision_DD'].shape[0]}, the embeddings have "
                f"{embedding_dim}. Publish the version again"
            )
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise BundleDamagedError(f"{path}: a number is not finite. Publish the version again")
        try:
            np.linalg.cholesky(arrays["precision_DD"].astype(np.float64))
        except np.linalg.LinAlgError:
            raise BundleDamagedError(
                f"{path}: precision_DD is not positive definite. Publish the version again"
            ) from None
        return cls(**arrays)

    def write(self, path: Path) -> None:
        """Write the model as an archive of arrays."""
        write_archive(path, _FORMS, {name: getattr(self, name) for name in _FORMS})

    def share(self, vector_D: NDArray[np.floating]) -> float:
        """Return the expected share of an item in all events."""
        return float(np.exp(np.minimum(self._logits(vector_D), _MAX_LOGIT)).sum())

    def vector(
        self,
        from_attributes_D: NDArray[np.floating],
        interest_sum_D: NDArray[np.floating],
        num_others: float,
    ) -> NDArray[np.float32]:
        """Return the vector of an item after events.

        Args:
            from_attributes_D: a. The vector without events.
            interest_sum_D: The sum of the interests of the users of the n events.
            num_others: Events of all items from the first of the n to the last. Before the first one, as many
                are assumed as the vector from attributes lets expect.
        """
        prior_D = np.asarray(from_attributes_D, np.float64)
        num_events = num_others + 1 / max(self.share(prior_D), 1e-12)
        interests_SD, precision_DD = self.interests_SD, self.precision_DD.astype(np.float64)
        vector_D = prior_D.copy()
        for _ in range(_MAX_STEPS):
            logits_S = self._logits(vector_D)
            rates_S = num_events * np.exp(np.minimum(logits_S, _MAX_LOGIT))
            gradient_D = interest_sum_D - rates_S @ interests_SD - precision_DD @ (vector_D - prior_D)
            weighted_SD = rates_S.astype(np.float32)[:, None] * interests_SD
            step_D = np.linalg.solve(precision_DD + weighted_SD.T @ interests_SD, gradient_D)
            change = float(np.abs(interests_SD @ step_D).max())
            vector_D += min(1.0, _MAX_CHANGE / max(change, 1e-12)) * step_D
            if change < _TOLERANCE:
                break
        # Evidence may hold interests of any size.
        return (vector_D if np.isfinite(vector_D).all() else prior_D).astype(np.float32)

    def _logits(self, vector_D: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray(self.interests_SD @ vector_D - self.log_partition_S, np.float64)
