"""The services over HTTP: FastAPI around FAISS, and the two-hop design. JSON in and out.

- `loop`, `threads`: one request, one search, as tutorials write it. `loop` answers in the event loop (`async
  def`), the fastest way on one core; `threads` is the plain `def` of most tutorials, which FastAPI runs in
  its thread pool.
- `one`, `all`: the service encodes, searches PostgreSQL (pgvector) for each interest, and merges. `one`
  searches over one connection, one after the other; `all` over K connections at once, which shortens a lone
  request's time where PostgreSQL has cores for it. Statements are prepared (asyncpg does so by itself) and
  vectors travel in binary, over a local socket.

Legend: K interests, M candidates.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from retrieval import Encoder, Retrieval

SEARCH = "SELECT item_id, -(embedding <#> $1) FROM items ORDER BY embedding <#> $1 LIMIT $2"
POOL_SIZE = 10
"""asyncpg's own default."""


class Request(BaseModel):
    """A user's recent items, oldest first."""

    history: list[str]
    num_candidates: int = 100


class Candidates(BaseModel):
    """Best first."""

    ids: list[str]
    scores: list[float]
    interests: list[int]


def faiss_app(retrieval: Retrieval, setting: str) -> FastAPI:
    """Return the service around FAISS."""
    app = FastAPI()

    def answer(request: Request) -> Candidates:
        rows, scores, interests = retrieval.retrieve([request.history], request.num_candidates)
        return Candidates(
            ids=retrieval.ids.ids(rows[0]), scores=scores[0].tolist(), interests=interests[0].tolist()
        )

    async def answer_in_the_loop(request: Request) -> Candidates:
        return answer(request)

    app.post("/retrieve")(answer if setting == "threads" else answer_in_the_loop)
    return app


def two_hop_app(encoder: Encoder, dsn: str, *, setting: str, ef_search: int) -> FastAPI:
    """Return the service of the two-hop design."""
    import asyncpg
    from pgvector.asyncpg import register_vector

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
        interests_kd, pool = encoder.encode([request.history])[0], database["pool"]
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


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("version", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--setting", choices=("loop", "threads", "one", "all"), required=True)
    parser.add_argument("--folder", type=Path, help="Of one and all: as postgres.py filled it.")
    parser.add_argument("--ef-search", type=int, help="Of one and all.")
    words = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if words.folder is None:
            app = faiss_app(Retrieval(words.version), words.setting)
        else:
            from postgres import running

            dsn = stack.enter_context(running(words.folder.resolve()))
            encoder = Encoder(words.version)
            app = two_hop_app(encoder, dsn, setting=words.setting, ef_search=words.ef_search)
        uvicorn.run(app, host="127.0.0.1", port=words.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
