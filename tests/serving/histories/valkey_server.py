"""A real Valkey or Redis server of the test, on a free port of 127.0.0.1."""

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")
_BUS_OFFSET = 10_000
"""A node of a cluster also listens so far above its port."""


class ValkeyServer:
    """Leaving the `with` block stops it."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        assert PROGRAM is not None
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        self._process = subprocess.Popen([PROGRAM, *words, *self._options], stdout=subprocess.DEVNULL)
        for _ in range(1000):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError("the server does not listen")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def _free_port() -> int:
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
        if port + _BUS_OFFSET < 1 << 16:
            return port
