"""The command `re4` on a rank; rank 1 is killed in the second epoch of the first attempt."""

import os
import signal

from re4.cli import main
from re4.training.distributed.trainer import ShardedTrainer

if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    agreed = ShardedTrainer.agreed

    def killed(self, must_stop, must_save):
        if self._progress.epoch == 2 and self._progress.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return agreed(self, must_stop, must_save)

    ShardedTrainer.agreed = killed

main()
