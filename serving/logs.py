"""Where a server's log goes: lines to standard error, each with its time and the process that says it."""

import logging


def log_to_stderr(process: str) -> None:
    """Log what this process says, from INFO on."""
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s {process}: %(message)s", force=True
    )
