"""Messages of the services over HTTP."""

from pydantic import BaseModel


class Request(BaseModel):
    """A user's recent items, oldest first."""

    history: list[str]
    num_candidates: int = 100


class Candidates(BaseModel):
    """Best first."""

    ids: list[str]
    scores: list[float]
    interests: list[int]
