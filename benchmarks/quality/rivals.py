"""Models of other libraries that `re4 bench quality --rivals` compares with.

Each is fitted to the training users' events and tuned on validation, as many alternatives as `ALTERNATIVES`
has, and ranks the whole catalogue for the same histories as the other models do. Sources: iALS: Hu, Koren
and Volinsky, ICDM 2008, by `implicit`; SLIM: Ning and Karypis, ICDM 2011, by scikit-learn's elastic net.
SASRec (Kang and McAuley, ICDM 2018) and eSASRec are those of RecTools, in an environment of its own.
"""

import json
import logging
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from re4.benchmarks.common.peer_environments import BASELINES, missing, python_of
from re4.common.errors import UsageError
from re4.common.extras import require
from re4.training.data.dataset import Dataset, Sequences
from re4.training.evaluation.baselines import Baseline, rank_baseline
from re4.training.evaluation.protocol import Ranking, summarise

_log = logging.getLogger(__name__)

MAX_SLIM_ITEMS: Final = 5_000
"""Beyond it, an elastic net for each item takes hours."""
RECTOOLS: Final = ("sasrec", "esasrec")
"""Models of RecTools; validation also chooses their number of epochs."""
ALTERNATIVES: Final[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
    "ials": {"alpha": (1.0, 10.0, 40.0), "regularization": (0.01, 1.0), "newest": (None, 20)},
    "slim": {"alpha": (0.0003, 0.001, 0.003), "l1_ratio": (0.1,), "newest": (None, 20)},
    **{name: {"dropout_rate": (0.2, 0.5), "lr": (0.001, 0.003)} for name in RECTOOLS},
}
"""Settings of each rival with the values that validation chooses from. `newest` is how many of a history's
events count, None for all."""
NAMES: Final = tuple(ALTERNATIVES)
_RECTOOLS_ENVIRONMENT: Final = ".venv-rectools"
_FACTORS: Final = 64

Rank = Callable[[Sequences, bool], Ranking]
"""Ranks for held-out users; the second argument leaves the history out."""


def check_rivals(names: list[str]) -> None:
    """Refuse unknown rivals, and those whose packages are missing.

    Raises:
        UsageError: with the names that are possible, or the extra.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--rivals has {name!r}; {', '.join(NAMES)} are possible.")
        if name in RECTOOLS and (reason := missing(_RECTOOLS_ENVIRONMENT)):
            raise UsageError(f"--rivals {name}: {reason}")
    if "ials" in names:
        require("re4 bench quality --rivals ials", "implicit")
    if "slim" in names:
        require("re4 bench quality --rivals slim", "sklearn")


def fit_rival(name: str, dataset: Dataset) -> tuple[Rank, dict[str, Any]]:
    """Fit a rival; return its ranking and the settings that validation chose.

    Raises:
        UsageError: the catalogue is too large for it.
    """
    if name == "slim" and dataset.num_items > MAX_SLIM_ITEMS:
        raise UsageError(
            f"--rivals slim: {dataset.num_items:,} items, it is fitted to at most {MAX_SLIM_ITEMS:,}."
        )
    best: tuple[float, Rank, dict[str, Any]] | None = None
    for rank, settings in _fitted(name, dataset):
        recall = summarise(rank(dataset.valid, False), dataset.valid, dataset.num_items).recall_50
        _log.info(f"{name} {settings}: validation Recall@50 {recall:.4f}")
        if best is None or recall > best[0]:
            best = recall, rank, settings
    assert best is not None, "there are alternatives"
    return best[1], best[2]


def _fitted(name: str, dataset: Dataset) -> Iterator[tuple[Rank, dict[str, Any]]]:
    """Yield a rival's ranking by each of its alternatives, with the settings."""
    choices = dict(ALTERNATIVES[name])
    histories = choices.pop("newest", ())
    fits: Mapping[str, Callable[..., Baseline]] = {"ials": _ials, "slim": _slim}
    for values in product(*choices.values()):
        settings = dict(zip(choices, values, strict=True))
        if name in RECTOOLS:
            yield _rectools(name, dataset, settings)
            continue
        baseline = fits[name](dataset, **settings)
        for newest in histories:
            yield _ranker(baseline, dataset.num_items, newest), {**settings, "newest": newest}


def _rectools(name: str, dataset: Dataset, given: dict[str, Any]) -> tuple[Rank, dict[str, Any]]:
    """Train a model of RecTools in its environment, and read the lists of the held-out users."""
    with tempfile.TemporaryDirectory() as scratch:
        script = BASELINES / "rectools_lists.py"
        words = ["--model", name, "--settings", json.dumps(given)]
        subprocess.run([python_of(_RECTOOLS_ENVIRONMENT), script, dataset.path, scratch, *words], check=True)
        lists = {path.stem: np.load(path, allow_pickle=False) for path in Path(scratch).glob("*.npy")}
        settings = json.loads((Path(scratch) / "settings.json").read_text("utf-8"))

    def rank(held_out: Sequences, exclude_history: bool) -> Ranking:
        split = "valid" if held_out is dataset.valid else "test"
        top_UM = lists[f"{split}.{'excluded' if exclude_history else 'kept'}"]
        return Ranking(top_UM=top_UM, interest_cosine=1.0)

    return rank, settings


def _ranker(baseline: Baseline, num_items: int, newest: int | None) -> Rank:
    def rank(held_out: Sequences, exclude_history: bool) -> Ranking:
        return rank_baseline(baseline, held_out, num_items, exclude_history=exclude_history, newest=newest)

    return rank


def _user_items(train: Sequences, num_items: int) -> Any:
    """Return the training matrix as SciPy's, 1 where a user chose an item."""
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(
        (np.ones(train.num_events, np.float32), np.array(train.items_E), np.array(train.offsets_U1)),
        shape=(train.num_users, num_items),
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _ials(dataset: Dataset, *, alpha: float, regularization: float) -> Baseline:
    """Fit factors by alternating least squares; users are folded in by one more half step."""
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        factors=_FACTORS,
        alpha=alpha,
        regularization=regularization,
        iterations=15,
        random_state=0,
        num_threads=1,
    )
    model.fit(_user_items(dataset.train, dataset.num_items), show_progress=False)
    items_ND = torch.from_numpy(np.asarray(model.item_factors))

    def score(chosen_BN: torch.Tensor) -> torch.Tensor:
        from scipy.sparse import csr_matrix

        users = csr_matrix(chosen_BN.numpy())
        return torch.from_numpy(model.recalculate_user(np.arange(len(chosen_BN)), users)) @ items_ND.T

    return score


def _slim(dataset: Dataset, *, alpha: float, l1_ratio: float) -> Baseline:
    """Fit an elastic net of each item on all others, with weights of at least 0."""
    from scipy.sparse import csc_matrix
    from sklearn.linear_model import ElasticNet

    matrix = csc_matrix(_user_items(dataset.train, dataset.num_items))
    net = ElasticNet(
        alpha=alpha, l1_ratio=l1_ratio, positive=True, fit_intercept=False, max_iter=100, tol=1e-3
    )
    weights_NN = torch.zeros(dataset.num_items, dataset.num_items)
    for item in range(dataset.num_items):
        column = slice(matrix.indptr[item], matrix.indptr[item + 1])
        target = matrix[:, [item]].toarray().ravel()
        matrix.data[column] = 0  # an item has no weight for itself
        with _no_convergence_warnings():
            net.fit(matrix, target)
        matrix.data[column] = 1
        weights_NN[:, item] = torch.from_numpy(np.asarray(net.coef_))
    return lambda chosen_BN: torch.sparse.mm(chosen_BN.to_sparse(), weights_NN)


def _no_convergence_warnings() -> Any:
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    return warnings.catch_warnings(category=ConvergenceWarning, action="ignore")
