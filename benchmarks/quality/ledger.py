"""The ledger of a data set: one JSON line for each finished run, kept with the code, so that studies add up.

    {"kind": "dataset", "name": …, "fingerprint": …, "num_items": …, "num_targets": …}     the first line
    {"kind": "run", "variant": …, "seed": …, "settings": …, "valid": …, "test": …, …}      a line each
    {"kind": "baseline", "variant": …, "valid": …, "test": …}

A line holds which positions of each test user's first 50 are hits (`hits`: bits by user and position, zlib,
base64), history kept and excluded. Every metric of every user, and so every paired test, follows from that:
neither the data nor the trained runs are needed again. A run is identified by its resolved settings, and
named by those that differ from today's defaults, as `model:setting=value:…`. In an option, the values of
`setting=one|other` are alternatives of which validation chooses one.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from re4.common.errors import DataError, UsageError
from re4.training.config import ADDED_SINCE, TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.evaluation.metrics import UserMetrics, rank_metrics
from re4.training.evaluation.protocol import CUTS, history_and_targets
from re4.training.presets import PRESETS

DEPTH: Final = 50
PROTOCOLS: Final = ("kept", "excluded")
"""The history left in the lists, or taken out of them."""


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """One model's hits and metrics on the test users, by one protocol."""

    hits: str
    """Packed; see the module's docstring."""
    coverage_50: float
    interest_cosine: float
    interests: dict[str, Any] | None = None
    """The figures about several interests; None for one interest, and in lines of earlier versions."""
    metrics: dict[str, float]
    """Means over users, for readers of the file."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished run, or one baseline."""

    kind: Literal["run", "baseline"]
    variant: str
    """By `variant_name`, or a baseline's name."""
    seed: int | None
    settings: dict[str, Any]
    """Resolved, without the seed; of a baseline its own. Settings that a line lacks: `ADDED_SINCE`."""
    valid: dict[str, float]
    """Validation metrics of the best epoch, history kept."""
    test: dict[str, TestResult]
    """By protocol."""
    best_epoch: int | None = None
    num_epochs: int | None = None
    train_seconds: float | None = None
    """Of all epochs' steps, by the clock."""
    made_by: dict[str, str]
    """Versions and CPU."""


class Ledger:
    """A ledger on disk, read as a whole and appended to line by line."""

    def __init__(self, path: Path, dataset: Dataset) -> None:
        """Open the ledger of a data set, or create it."""
        self.path = path
        users = range(dataset.test.num_users)
        targets = [history_and_targets(dataset.test, user)[1] for user in users]
        self.num_targets_U = np.array([len(np.unique(rows)) for rows in targets], np.int64)
        head = {
            "kind": "dataset",
            "name": dataset.path.name,
            "fingerprint": _fingerprint(dataset),
            "num_items": dataset.num_items,
            "num_users": dataset.test.num_users,
        }
        lines = list(_lines(path))
        if not lines:
            self._append(head)
        elif lines[0].get("fingerprint") != head["fingerprint"]:
            raise DataError(f"{path} is the ledger of other data than {dataset.path}. Give another --ledger.")
        try:
            self.entries = [_entry(line, dataset.num_items, dataset.events_per_user) for line in lines[1:]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read: {error}.") from error

    def find(self, settings: dict[str, Any], seed: int) -> Entry | None:
        """Return the run with these resolved settings and this seed, if there is one."""
        wanted = ("run", seed, settings)
        return next((one for one in self.entries if (one.kind, one.seed, one.settings) == wanted), None)

    def baselines(self) -> list[Entry]:
        """Return the baselines."""
        return [entry for entry in self.entries if entry.kind == "baseline"]

    def add(self, entry: Entry) -> Entry:
        """Append a line; return the entry."""
        self._append(asdict(entry))
        self.entries.append(entry)
        return entry

    def by_user(self, result: TestResult) -> dict[int, UserMetrics]:
        """Return the metrics of each test user at every cut-off."""
        num_users = len(self.num_targets_U)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(result.hits)), np.uint8)
        hits_UM = np.unpackbits(bits.reshape(num_users, -1), axis=1)[:, :DEPTH].astype(bool)
        return {cut: rank_metrics(hits_UM, self.num_targets_U, cut) for cut in CUTS}

    def _append(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pack_hits(top_UM: NDArray[np.int64], dataset: Dataset) -> str:
    """Pack which positions of the test users' lists are hits."""
    hits_UM = np.zeros((len(top_UM), DEPTH), dtype=bool)
    for user, top_M in enumerate(top_UM[:, :DEPTH]):
        hits_UM[user, : len(top_M)] = np.isin(top_M, history_and_targets(dataset.test, user)[1])
    return base64.b64encode(zlib.compress(np.packbits(hits_UM, axis=1).tobytes(), 9)).decode("ascii")


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.valid, dataset.test):
        digest.update(np.ascontiguousarray(split.items_E).tobytes())
        digest.update(np.ascontiguousarray(split.offsets_U1).tobytes())
    return digest.hexdigest()[:16]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}.") from error


def _entry(line: dict[str, Any], *facts: Any) -> Entry:
    test = {protocol: TestResult(**result) for protocol, result in line["test"].items()}
    if line["kind"] == "run":
        settings = ADDED_SINCE | line["settings"]
        line = line | {"settings": settings, "variant": variant_name(settings, *facts)}
    return Entry(**{**line, "test": test})


def split_variants(text: str) -> list[str]:
    """Return the variants of a list by commas; `attributes=category,brand` at the end of one is not cut."""
    variants: list[str] = []
    for piece in text.split(","):
        follows_columns = variants and variants[-1].rpartition(":")[2].startswith("attributes=")
        if follows_columns and piece.partition(":")[0] not in PRESETS:
            variants[-1] += f",{piece}"
        else:
            variants.append(piece)
    return variants


def parse_variant(text: str) -> TrainConfig:
    """Return the settings of `model:name=value:…`; a setting that is not named has the model's default."""
    model, *pairs = text.split(":")
    values: dict[str, Any] = {"model": model}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
        if not sign or name == "seed" or name not in TrainConfig().to_json():
            raise UsageError(f"--variants has {pair!r} in {text!r}; write model:setting=value, by commas.")
    return TrainConfig(**values)


def variant_name(settings: dict[str, Any], num_items: int, events_per_user: float = 0.0) -> str:
    """Return the name of resolved settings: those that differ from the model's defaults, but the seed.

    Some defaults depend on the number of items and of events a user. `parse_variant` reads it.
    """
    model = TrainConfig(model=settings["model"])
    as_many = replace(model, num_interests=settings["num_interests"]).resolve(num_items, events_per_user)
    usual = as_many.to_json() | {"num_interests": model.resolve(num_items, events_per_user).num_interests}
    differing = [name for name in usual if name != "seed" and settings[name] != usual[name]]
    return ":".join([model.model, *(f"{name}={_text(settings[name])}" for name in differing)])


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def alternatives(text: str) -> list[TrainConfig]:
    """Return every combination of a variant whose values have alternatives, `name=one|other`."""
    parts = (part.partition("=") for part in text.split(":"))
    choices = [[name + sign + value for value in values.split("|")] for name, sign, values in parts]
    return [parse_variant(":".join(parts)) for parts in product(*choices)]
