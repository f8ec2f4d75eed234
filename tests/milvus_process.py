"""A real Milvus server in a process of its own, which tests can stop, kill and start again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

from certificates import Pair

_PLACES = (Path(__file__).parents[1] / "build/milvus/bin", Path(sys.executable).parent)
MILVUS_SERVER = next(
    (str(path) for folder in _PLACES if (path := folder / "milvus-server").exists()),
    shutil.which("milvus-server"),
)
"""Of the package milvus, in an environment of its own, which `.ci/run` makes."""

_UNPACKED = Path(__file__).parents[1] / "build/milvus-unpacked"
"""The server's 250 MB of programs, unpacked once; ignored by git."""

_FAST = {
    # Each collection waits for these some times: seconds by default.
    "dataCoord.segment.assignmentExpiration": 200,
    "queryCoord.checkInterval": 100,
    "queryCoord.distPullInterval": 50,
    "queryCoord.checkHandoffInterval": 200,
    "proxy.timeTickInterval": 50,
    # A flat index of a small collection is searched as such, and not cut into lists.
    "queryNode.segcore.interimIndex.enableIndex": "false",
    "log.level": "warn",
}

_PREPARE = """
import json, socket, sys
from milvus import MilvusServerConfig, _initialize_data_files
base, unpacked, fast = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
config = MilvusServerConfig(data_dir=base)
names = [name for name in config.configurable_items if name.endswith("_port")]
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(len(names) + 2)]
ports = [each.getsockname()[1] for each in sockets]
for each in sockets:
    each.close()
config.update(**dict(zip(names, ports)))
for name, value in fast.items():
    config.set(name, value)
config.resolve()
_initialize_data_files(unpacked)
client, peer = (f"http://127.0.0.1:{port}" for port in (config.get("etcd_port"), ports[-2]))
with open(base + "/configs/etcd.yaml", "w") as file:
    json.dump({
        "name": "default", "data-dir": base + "/data/etcd.data", "unsafe-no-fsync": True,
        "log-level": "error",
        "listen-client-urls": client, "advertise-client-urls": client, "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer, "initial-cluster": "default=" + peer,
    }, file)
print(json.dumps({"port": config.get("proxy_port"), "health": ports[-1], "etcd": config.get("etcd_port")}))
"""


TOKEN = "root:Milvus"
"""Of a new server."""


class MilvusProcess:
    """The server, with its data in a folder, and with TLS and tokens. Leaving the `with` block kills it."""

    def __init__(self, folder: Path, pair: Pair) -> None:
        assert MILVUS_SERVER is not None
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        python = str(Path(MILVUS_SERVER).with_name("python"))
        settings = _FAST | {
            "common.security.authorizationEnabled": "true",
            "common.security.tlsMode": 1,
            "tls.serverPemPath": str(pair.certificate),
            "tls.serverKeyPath": str(pair.key),
        }
        words = [python, "-c", _PREPARE, str(folder), str(_UNPACKED), json.dumps(settings)]
        ports = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        self.port: int = ports["port"]
        self._health_port: int = ports["health"]
        self._etcd_port: int = ports["etcd"]
        self._leases: list[str] = []
        self.address = f"milvus+tls://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        bin_folder = _UNPACKED / "bin"
        environment = {
            **os.environ,
            "DEPLOY_MODE": "STANDALONE",
            "QUERYCOORD_CHECKCHANNELINTERVAL": "50",
            "QUERYCOORD_CHECKSEGMENTINTERVAL": "50",
            "QUERYCOORD_UPDATENEXTTARGETINTERVAL": "1",
            # A server that was paused for longer ends itself.
            "COMMON_SESSION_TTL": "60",
            "ETCD_CONFIG_PATH": str(self._folder / "configs/etcd.yaml"),
            "METRICS_PORT": str(self._health_port),
            "MILVUS_RUN_DIR": str(self._folder / "run"),
            "LD_LIBRARY_PATH": str(bin_folder),
        }
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(bin_folder / "milvus"), "run", "standalone"],
                cwd=self._folder, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-3000:]
            self._revoke_leases()
            time.sleep(0.05)

    def _revoke_leases(self) -> None:
        """End the sessions of the killed server: the next one would wait until they expire, a minute."""
        try:
            for lease in self._leases:
                self._etcd("lease/revoke", {"ID": lease})
            self._leases = []
        except (URLError, OSError):
            pass  # etcd has not started yet

    def _etcd(self, method: str, request: dict[str, str]) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._etcd_port}/v3/{method}"
        with urlopen(url, json.dumps(request).encode(), timeout=5) as reply:
            return dict(json.load(reply))

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._health_port}/healthz", timeout=5) as reply:
                if b"OK" not in reply.read():
                    return False
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        """End it at once, as a crash does; its data stay."""
        if self._process is not None:
            self._leases = [lease["ID"] for lease in self._etcd("lease/leases", {})["leases"]]
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it: connections stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
