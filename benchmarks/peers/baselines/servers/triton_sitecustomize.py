"""The `sitecustomize.py` of the Triton environment, which every interpreter reads at its start.

In some builds, the interpreter embedded in pytriton's worker has a lock without `_recursion_count`, which
multiprocessing needs: the worker dies at its start. Python's pure-Python lock has it.
"""

import threading
from multiprocessing import resource_tracker

resource_tracker._resource_tracker._lock = threading._PyRLock()
