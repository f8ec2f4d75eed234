"""What the right answers of small versions are, and whether answers are wholly of one of them."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from small_bundles import SmallVersion
from steady_callers import Call

from re4.protos.v1 import retrieval_pb2 as pb

HISTORIES = ((4, 9, 30), (7,), (12, 3, 44, 51, 2), (20, 21, 22, 23, 24, 25, 26, 27))
"""Rows, oldest first: short, one, and longer than the model attends to."""
NUM_CANDIDATES = 10


def questions(ids: Sequence[str] | Sequence[int]) -> list[pb.RetrieveRequest]:
    """One for each of `HISTORIES`; versions that share their first ids can all be asked these."""
    return [
        pb.RetrieveRequest(
            history=item_ids([ids[row] for row in rows]),
            num_candidates=NUM_CANDIDATES,
            return_interests=True,
        )
        for rows in HISTORIES
    ]


def item_ids(ids: Sequence[str] | Sequence[int]) -> pb.ItemIds:
    return pb.ItemIds(strings=ids) if isinstance(ids[0], str) else pb.ItemIds(ints=ids)


class RightAnswers:
    """The answers of some versions, by name. The versions must differ in them, or nothing is proved."""

    def __init__(self, versions: Mapping[str, SmallVersion]) -> None:
        self._versions = versions
        self.is_right = lru_cache(maxsize=None)(self._is_right_answer)

    def wrong(self, calls: Sequence[Call]) -> list[Call]:
        """Answered calls whose items, scores or interests are not all of the version that they name."""
        return [call for call in calls if call.is_answered and not self.is_right(call.question, call.reply)]

    def _is_right_answer(self, question: int, data: bytes) -> bool:
        reply = pb.RetrieveReply.FromString(data)
        version = self._versions.get(reply.version)
        if version is None:
            return False
        rows = list(HISTORIES[question])
        best = version.best(rows, NUM_CANDIDATES)
        interests_KD, _ = version.encode(rows)
        found_KD = np.array(reply.interests.vectors).reshape(interests_KD.shape)
        named_MD = found_KD[list(reply.interest_numbers)]
        row_of = {item_id: row for row, item_id in enumerate(version.ids)}
        found = [row_of.get(item_id, -1) for item_id in reply.items.strings or reply.items.ints]
        scores_N = version.scores(rows)
        return (
            len(set(found)) == len(found) == len(best)
            and -1 not in found
            # In order, modulo scores that are equal in float32.
            and np.allclose(scores_N[found], scores_N[best], rtol=1e-5, atol=1e-5)
            and np.allclose(reply.scores, scores_N[best], rtol=1e-3, atol=1e-3)
            and np.allclose(found_KD, interests_KD, rtol=1e-3, atol=1e-3)
            and np.allclose(
                (named_MD * version.vectors_ND[found]).sum(axis=1), reply.scores, rtol=1e-3, atol=1e-3
            )
        )
