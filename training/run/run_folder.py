"""The folder of a run: made, found and locked. Loads no PyTorch, so that a wrong path is reported at once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from re4.common.errors import RunError
from re4.common.file_lock import LOCK, try_lock
from re4.common.files import parts_in

CONFIG: Final = "config.json"
"""Written last: a folder without it is not a finished run."""


def refuse_used_folder(path: Path) -> None:
    """Refuse a folder that cannot become a run.

    Remains of a run that was killed before its first checkpoint are accepted.

    Raises:
        RunError: the folder holds anything else, or is no folder.
    """
    if path.exists() and (not path.is_dir() or {*path.iterdir()} - parts_in(path) - {path / LOCK}):
        raise RunError(f"{path} exists and is not an empty folder. Give another --out, or remove it.")


def new_run_folder(path: Path) -> None:
    """Make an empty folder for a run.

    Raises:
        RunError: as `refuse_used_folder`.
    """
    refuse_used_folder(path)
    path.mkdir(parents=True, exist_ok=True)


def refuse_missing_run(path: Path) -> None:
    """Refuse a path without a folder.

    Raises:
        RunError: with the command that trains a run.
    """
    if not path.is_dir():
        raise RunError(f"There is no run at {path}. Train one: re4 train DATA --out {path}")


def refuse_unfinished_run(path: Path) -> None:
    """Refuse a path without a finished run.

    Raises:
        RunError: with the command that trains it, or goes on with it.
    """
    refuse_missing_run(path)
    if not (path / CONFIG).exists():
        raise RunError(
            f"{path} holds no finished run ({CONFIG} is missing). "
            f"Go on with it: re4 resume {path}, or train it again."
        )


def newest_run(path: Path) -> Path:
    """Return a run's folder: the one given, or in a folder of runs, the newest finished run.

    Raises:
        RunError: there is no finished run.
    """
    refuse_missing_run(path)
    if (path / CONFIG).exists():
        return path
    finished = [run for run in path.iterdir() if (run / CONFIG).is_file()]
    if not finished:
        raise RunError(
            f"{path} is no finished run, nor a folder that holds any ({CONFIG} is missing). Train one, or "
            f"resume the one that was stopped: re4 resume {path}"
        )
    return max(finished, key=lambda run: ((run / CONFIG).stat().st_mtime_ns, run.name))


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Lock a run against other processes, and remove the unfinished files of a killed one.

    Raises:
        RunError: there is no such folder, or another process trains the run.
    """
    refuse_missing_run(path)
    lock = try_lock(path)
    if lock is None:
        raise RunError(
            f"{path}: another process trains this run at this moment, or it may not be written. "
            "Wait for the other one to end, or stop it."
        )
    try:
        for part in parts_in(path):
            part.unlink()
        yield
    finally:
        (path / LOCK).unlink(missing_ok=True)
        os.close(lock)
