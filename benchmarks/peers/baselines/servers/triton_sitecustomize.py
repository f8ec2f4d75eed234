"""Becomes `sitecustomize.py` of the Triton environment: every interpreter there reads it at its start.

The interpreter that pytriton's worker embeds has, in some builds, a lock without `_recursion_count`, which
multiprocessing asks for: the worker dies at start. The lock that Python has in Python does have it.
"""

import threading
from multiprocessing import resource_tracker

resource_tracker._resource_tracker._lock = threading._PyRLock()
