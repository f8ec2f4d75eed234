"""Which run to take: the one named, or the newest finished one in a folder of runs."""

from pathlib import Path

from re4.common.errors import RunError
from re4.training.run.run import CONFIG


def newest_run(path: Path) -> Path:
    """A run's folder.

    Args:
        path: A run's folder, which is given back, or a folder of runs.

    Raises:
        RunError: there is no finished run.
    """
    if (path / CONFIG).exists() or not path.is_dir():
        return path
    finished = [run for run in path.iterdir() if (run / CONFIG).is_file()]
    if not finished:
        raise RunError(
            f"{path} is no finished run, nor a folder that holds any ({CONFIG} is missing). Train one, or "
            f"resume the one that was stopped: re4 resume {path}"
        )
    return max(finished, key=lambda run: ((run / CONFIG).stat().st_mtime_ns, run.name))
