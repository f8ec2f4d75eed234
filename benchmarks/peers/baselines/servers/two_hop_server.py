"""The two-hop design: a service that encodes, searches PostgreSQL (pgvector) for each interest, and merges.

`one` searches over one connection, one after the other; `all` searches over K connections at once, which
shortens a lone request's time where PostgreSQL has cores for it. Statements are prepared (asyncpg does so by
itself) and vectors travel in binary, over a local socket.

Legend: K interests, M candidates.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import uvicorn
from fastapi import FastAPI
from messages import Candidates, Request
from pgvector.asyncpg import register_vector
from postgres import running
from retrieval import Encoder

SEARCH = "SELECT item_id, -(embedding <#> $1) FROM items ORDER BY embedding <#> $1 LIMIT $2"
POOL_SIZE = 10
"""asyncpg's own choice."""


def merge(lists: list[list[Any]], num_candidates: int) -> Candidates:
    """Merge lists: each item by its best score over the interests."""
    best: dict[str, tuple[float, int]] = {}
    for number, found in enumerate(lists):
        for item_id, score in found:
            if item_id not in best or score > best[item_id][0]:
                best[item_id] = (score, number)
    first = sorted(best.items(), key=lambda pair: pair[1][0], reverse=True)[:num_candidates]
    return Candidates(
        ids=[item_id for item_id, _ in first],
        scores=[score for _, (score, _) in first],
        interests=[number for _, (_, number) in first],
    )


def make_app(encoder: Encoder, dsn: str, *, setting: str, ef_search: int) -> FastAPI:
    """Return the service."""
    database: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        words = dict(word.split("=", 1) for word in dsn.split())
        async with asyncpg.create_pool(
            host=words["host"],
            user=words["user"],
            database=words["dbname"],
            min_size=POOL_SIZE,
            max_size=POOL_SIZE,
            init=register_vector,
            server_settings={"hnsw.ef_search": str(ef_search)},
        ) as pool:
            database["pool"] = pool
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/retrieve")
    async def retrieve(request: Request) -> Candidates:
        interests_kd = encoder.encode([request.history])[0]
        pool = database["pool"]
        if setting == "all":
            searches = (pool.fetch(SEARCH, vector, request.num_candidates) for vector in interests_kd)
            lists = await asyncio.gather(*searches)
        else:
            async with pool.acquire() as connection:
                lists = [
                    await connection.fetch(SEARCH, vector, request.num_candidates) for vector in interests_kd
                ]
        return merge(lists, request.num_candidates)

    return app


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("version", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="As postgres.py filled it.")
    parser.add_argument("--setting", choices=("one", "all"), required=True)
    parser.add_argument("--ef-search", type=int, required=True)
    words = parser.parse_args()
    with running(words.folder.resolve()) as dsn:
        app = make_app(Encoder(words.version), dsn, setting=words.setting, ef_search=words.ef_search)
        uvicorn.run(app, host="127.0.0.1", port=words.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
