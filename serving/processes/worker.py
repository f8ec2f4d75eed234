"""A worker process: loads checked versions, answers calls, and carries out the supervisor's commands.

    python -m re4.serving.processes.worker SUPERVISOR_PID END_WITHIN_S        (started by `worker_handle.py`)

It stops on SIGTERM or when its stdin ends, after the calls in flight are answered. The module's own imports
are light, so that a worker that cannot load its libraries ends with its supervisor too.
"""

import asyncio
import os
import sys

from re4.serving.host.parent_death import end_with_parent


def main() -> int:
    """Run the process and return its exit code: 0 where it was stopped, 1 where it could not serve."""
    end_with_parent(int(sys.argv[1]), within_s=float(sys.argv[2]))

    from re4.serving.processes.worker_commands import run_worker

    # Reports go to the original stdout; what a library prints joins the log.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as pipe:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return asyncio.run(run_worker(pipe))


if __name__ == "__main__":
    sys.exit(main())
