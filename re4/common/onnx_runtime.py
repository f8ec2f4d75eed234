"""ONNX Runtime, imported with its telemetry off. Every module that uses it imports it from here.

The import of ONNX Runtime creates a database in the home folder, whose events are sent to its maker, unless a
variable of the environment forbids that. The variable is read by the import alone, so it is set for its
duration only. A value that the user has set is kept.
"""

import os
from typing import Final

_VARIABLE: Final = "ORT_DISABLE_TELEMETRY"
_is_unset = _VARIABLE not in os.environ
os.environ.setdefault(_VARIABLE, "1")
try:
    import onnxruntime
finally:
    if _is_unset:
        del os.environ[_VARIABLE]

__all__ = ["onnxruntime"]
