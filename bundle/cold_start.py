"""Vectors of items that no training has seen: from attributes, and from the users who chose them.

    a(i) = mean + sum over the item's values v of effect(v)            from its attributes
    f(i) = (n · norm · direction(mean interest) + 2 · a(i)) / (n + 2)   folded in from n users

`fold_in.py` has the better rule for users; f(i) is for versions without its file. The mean interest is that
of the users who chose the item; `norm` is the typical norm of trained items. Effects are fitted at export
(`export/catalogue/cold_start.py`), and already multiplied by the scale that gives new items their share of
places. Versions of older code lack `cold_start.npz`.

Legend: R items, D embedding, E values of items, W weights: the mean, then the effect of each value
of each attribute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import read_archive, write_archive
from re4.bundle.attributes.reader import Attribute, Attributes
from re4.bundle.layout import IS_COLD
from re4.bundle.manifest import AttributeInfo
from re4.common.errors import BundleDamagedError

PRIOR_USERS: Final = 2.0
"""Users whose interests weigh as much as the vector from attributes."""

_FORMS: Final = {"weights_WD": ("<f4", "WD"), "typical_norm_1": ("<f4", "1")}


def first_weights(infos: Sequence[AttributeInfo]) -> dict[str, int]:
    """Return the first weight of each attribute that describes items: all but `is_cold`.

    Weight 0 is the mean. The weight of a value is the attribute's first weight plus the value's code.
    """
    firsts, next_weight = {}, 1
    for info in infos:
        if info.name != IS_COLD:
            firsts[info.name] = next_weight
            next_weight += info.num_values
    return firsts


def num_weights(infos: Sequence[AttributeInfo]) -> int:
    """Return the number of weights: W."""
    return 1 + sum(info.num_values for info in infos if info.name != IS_COLD)


def weights_of(
    attributes: Attributes, firsts: Mapping[str, int], rows_R: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of the weights of some items of a version.

    Returns:
        Owners [E], positions in `rows_R`, ascending within each attribute; and weights [E]. The mean, which
        every item has, is not among them.
    """
    owners = [np.empty(0, np.int64)]
    weights = [np.empty(0, np.int64)]
    for name, first in firsts.items():
        codes_E, lengths_R = attributes[name].codes_of(rows_R)
        owners_E = (
            np.arange(len(rows_R)) if lengths_R is None else np.repeat(np.arange(len(rows_R)), lengths_R)
        )
        has_value_E = codes_E < attributes[name].num_values
        owners.append(owners_E[has_value_E])
        weights.append(first + codes_E[has_value_E].astype(np.int64))
    return np.concatenate(owners), np.concatenate(weights)


@dataclass(frozen=True, kw_only=True, eq=False)
class ColdStart:
    """The fitted map of a version from attribute values to vectors."""

    weights_WD: NDArray[np.float32]
    """The mean, then the effect of each value, in the order of `first_weights`."""
    typical_norm: float
    """Median norm of the trained items' vectors."""
    firsts: Mapping[str, int]
    """The first weight of each attribute."""

    @classmethod
    def read(cls, path: Path, infos: Sequence[AttributeInfo], embedding_dim: int) -> "ColdStart":
        """Read the map from a verified file.

        Args:
            path: The file.
            infos: The attributes, from the manifest (`items.attributes`).
            embedding_dim: D, from the manifest.

        Raises:
            BundleDamagedError: it is damaged, or of other attributes.
            BundleUnavailableError: the file cannot be read at this moment.
        """
        arrays = read_archive(path, _FORMS)
        weights_WD, norm_1 = arrays["weights_WD"], arrays["typical_norm_1"]
        if weights_WD.shape != (num_weights(infos), embedding_dim) or len(norm_1) != 1:
            raise BundleDamagedError(
                f"{path}: weights of shape {weights_WD.shape}, the attributes need "
                f"{(num_weights(infos), embedding_dim)}. Publish the version again"
            )
        if not (np.isfinite(weights_WD).all() and np.isfinite(norm_1).all()):
            raise BundleDamagedError(f"{path}: a weight is not finite. Publish the version again")
        return cls(weights_WD=weights_WD, typical_norm=float(norm_1[0]), firsts=first_weights(infos))

    def write(self, path: Path) -> None:
        """Write the map as an archive of arrays."""
        write_archive(
            path, _FORMS, {"weights_WD": self.weights_WD, "typical_norm_1": np.array([self.typical_norm])}
        )

    def vectors_of_rows(self, attributes: Attributes, rows_R: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return vectors from attributes for items of the version, [R, D]."""
        return self._sums(*weights_of(attributes, self.firsts, rows_R), len(rows_R))

    def vectors_of_values(
        self, attributes: Attributes, items: Sequence[Mapping[str, Sequence[str]]]
    ) -> NDArray[np.float32]:
        """Return vectors for items that the version does not hold, [R, D].

        Args:
            attributes: The version's attributes.
            items: The values of each item by attribute, as texts. Attributes and values that no item of the
                version has are ignored; a value counts once.
        """
        owners, weights = [], []
        for place, item in enumerate(items):
            for name, values in item.items():
                if name in self.firsts:
                    known = _known_codes(attributes[name], values)
                    weights += [self.firsts[name] + code for code in known]
                    owners += [place] * len(known)
        return self._sums(np.array(owners, np.int64), np.array(weights, np.int64), len(items))

    def _sums(
        self, owners_E: NDArray[np.int64], weights_E: NDArray[np.int64], num_items: int
    ) -> NDArray[np.float32]:
        sums_RD = np.tile(self.weights_WD[0], (num_items, 1))
        np.add.at(sums_RD, owners_E, self.weights_WD[weights_E])
        return sums_RD


def _known_codes(attribute: Attribute, values: Sequence[str]) -> list[int]:
    return [code for code in attribute.value_codes(sorted({*values})).tolist() if code >= 0]


def fold_in(
    from_attributes_RD: NDArray[np.floating],
    interest_sums_RD: NDArray[np.floating],
    num_users_R: NDArray[np.number],
    typical_norm: float,
) -> NDArray[np.float32]:
    """Return the vectors of items after n users have chosen them.

    Args:
        from_attributes_RD: Vectors from attributes.
        interest_sums_RD: The sum of the interests of the users who chose each item, weighted or not.
        num_users_R: n, or the sum of the weights; 0 keeps the vector from attributes.
        typical_norm: As `ColdStart.typical_norm`. The users' mean interest gets this norm.
    """
    sums_RD = np.asarray(interest_sums_RD, np.float64)
    lengths_R = np.linalg.norm(sums_RD, axis=1)
    weights_R = np.where(lengths_R > 0, num_users_R, 0)
    directions_RD = sums_RD / np.where(lengths_R > 0, lengths_R, 1)[:, None]
    folded_RD = (weights_R * typical_norm)[:, None] * directions_RD + PRIOR_USERS * from_attributes_RD
    return np.asarray(folded_RD / (weights_R + PRIOR_USERS)[:, None], np.float32)
