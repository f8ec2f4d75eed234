"""A PostgreSQL of its own for the two-hop design: one folder, one table of item vectors, an HNSW index.

    python postgres.py VERSION FOLDER

fills FOLDER from the files of a bundle version, once; the server then uses it. The build follows pgvector's
documentation: load by binary COPY, index afterwards, with memory for the whole graph.
"""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
from pgvector.psycopg import register_vector

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from re4.bundle.ids.id_map import ItemIds

PROGRAMS = Path("/usr/lib/postgresql/17/bin")
BUILD = {"m": 16, "ef_construction": 64}
"""Of the index; pgvector's own defaults."""
BUILD_SETTINGS = {"maintenance_work_mem": "4GB", "max_parallel_maintenance_workers": "1"}
SERVER_SETTINGS = {
    "shared_buffers": "3GB",
    "effective_cache_size": "6GB",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "listen_addresses": "",
    "max_connections": "100",
    "dynamic_shared_memory_type": "posix",
}
"""A quarter of a small machine's memory, so that table and index stay in it; all else as installed."""
FACTS = "facts.json"
CHUNK_ROWS = 10_000
_WAIT_S = 60.0


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run PostgreSQL on a filled folder while the block runs; gives the connection string."""
    words = [str(PROGRAMS / "postgres"), "-D", str(folder / "data"), "-k", str(folder)]
    for name, value in SERVER_SETTINGS.items():
        words += ["-c", f"{name}={value}"]
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, **_user())
    try:
        dsn = f"host={folder} user={_owner()} dbname=postgres"
        until = time.monotonic() + _WAIT_S
        while True:
            try:
                psycopg.connect(dsn).close()
                break
            except psycopg.OperationalError:
                if server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"PostgreSQL does not start: see {folder / 'log'}") from None
                time.sleep(0.1)
        yield dsn
    finally:
        server.terminate()
        server.wait()


def fill(version: Path, folder: Path) -> dict[str, object]:
    """Make the table and its index, where they do not exist yet; return facts of the build."""
    facts = folder / FACTS
    if facts.exists():
        return json.loads(facts.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(folder, _owner(), _owner())
    options = ["--auth=trust", "--no-sync", f"--username={_owner()}", "--encoding=UTF8", "--locale=C"]
    command = [str(PROGRAMS / "initdb"), "-D", str(folder / "data"), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **_user())
    manifest = json.loads((version / "manifest.json").read_text())
    num_items = manifest["items"]["num_items"]
    ids = ItemIds.open(version, manifest["items"]["id_kind"], num_items)
    vectors = np.load(version / "vectors.npy", mmap_mode="r")
    with running(folder) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        register_vector(connection)
        connection.execute(
            f"CREATE TABLE items (item_id text PRIMARY KEY, embedding vector({vectors.shape[1]}))"
        )
        began = time.monotonic()
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY items (item_id, embedding) FROM STDIN WITH (FORMAT BINARY)") as copy,
        ):
            copy.set_types(["text", "vector"])
            for start in range(0, num_items, CHUNK_ROWS):
                rows = np.arange(start, min(start + CHUNK_ROWS, num_items))
                for id_, vector in zip(ids.ids(rows), np.array(vectors[rows]), strict=True):
                    copy.write_row((str(id_), vector))
        loaded = time.monotonic()
        for name, value in BUILD_SETTINGS.items():
            connection.execute(f"SET {name} = '{value}'")
        how = ", ".join(f"{name} = {value}" for name, value in BUILD.items())
        connection.execute(f"CREATE INDEX ON items USING hnsw (embedding vector_ip_ops) WITH ({how})")
        built = time.monotonic()
        connection.execute("ANALYZE items")
        (size,) = connection.execute("SELECT pg_total_relation_size('items')").fetchone()
        (extension,) = connection.execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        (database,) = connection.execute("SHOW server_version").fetchone()
    found = {
        "index": f"hnsw ({how})",
        "load_s": loaded - began,
        "build_s": built - loaded,
        "build_settings": BUILD_SETTINGS,
        "bytes": size,
        "pgvector extension": extension,
        "postgresql": database,
    }
    facts.write_text(json.dumps(found))
    return found


def _owner() -> str:
    """Return the user to run as: PostgreSQL refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def _user() -> dict[str, str]:
    return {"user": _owner(), "group": _owner()} if os.geteuid() == 0 else {}


if __name__ == "__main__":
    fill(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
