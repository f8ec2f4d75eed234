"""A plain FastAPI service around FAISS, as tutorials write it: one request, one search, JSON in and out.

`loop` answers in the event loop (`async def`), the fastest way on one core; `threads` is the plain `def` of
most tutorials, which FastAPI runs in its thread pool.
"""

import argparse
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from messages import Candidates, Request
from retrieval import Retrieval


def make_app(retrieval: Retrieval, setting: str) -> FastAPI:
    """Return the service."""
    app = FastAPI()

    def answer(request: Request) -> Candidates:
        rows, scores, interests = retrieval.retrieve([request.history], request.num_candidates)
        return Candidates(
            ids=retrieval.ids.ids(rows[0]), scores=scores[0].tolist(), interests=interests[0].tolist()
        )

    if setting == "threads":
        app.post("/retrieve")(answer)
    else:

        @app.post("/retrieve")
        async def answer_in_the_loop(request: Request) -> Candidates:
            return answer(request)

    return app


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("version", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--setting", choices=("loop", "threads"), required=True)
    words = parser.parse_args()
    app = make_app(Retrieval(words.version), words.setting)
    uvicorn.run(app, host="127.0.0.1", port=words.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
