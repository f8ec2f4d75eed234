"""An S3 server over HTTP, and a proxy before it that cuts connections."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from urllib.request import Request, urlopen

_OWN = Path(__file__).parents[3] / "build/s3/bin/moto_server"
MOTO_SERVER = shutil.which("moto_server") or (str(_OWN) if _OWN.exists() else None)
"""Of the package moto[s3,server], in an environment of its own, which `.ci/run` makes."""


@contextmanager
def s3_server(log: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Run the server on a free port; yield its address."""
    assert MOTO_SERVER is not None
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as output:
        server = subprocess.Popen([MOTO_SERVER, "-H", host, "-p", str(port)], stdout=output, stderr=output)
        try:
            while True:
                assert server.poll() is None, log.read_text()
                with suppress(OSError), urlopen(f"http://{host}:{port}/"):
                    break
            yield f"http://{host}:{port}"
        finally:
            server.kill()
            server.wait()


def make_bucket(address: str, name: str) -> None:
    with urlopen(Request(f"{address}/{name}", method="PUT")):
        pass


@contextmanager
def cutting_proxy(address: str, max_bytes: int) -> Iterator[str]:
    """Forward connections to a server; every second one is cut after so many bytes of its replies."""
    host, _, port = address.removeprefix("http://").partition(":")
    listening = socket.create_server(("127.0.0.1", 0))
    numbers = count()

    def forward(source: socket.socket, target: socket.socket, limit: float) -> None:
        num_bytes = 0
        with suppress(OSError):
            while (data := source.recv(1 << 16)) and num_bytes <= limit:
                target.sendall(data)
                num_bytes += len(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve_one(client: socket.socket, limit: float) -> None:
        with client, socket.create_connection((host, int(port))) as server:
            requests = threading.Thread(target=forward, args=(client, server, float("inf")))
            requests.start()
            forward(server, client, limit)
            requests.join()

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                limit = max_bytes if next(numbers) % 2 == 0 else float("inf")
                threads.append(threading.Thread(target=serve_one, args=(client, limit)))
                threads[-1].start()

    threads = [threading.Thread(target=serve)]
    threads[0].start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for thread in threads:
            thread.join()
