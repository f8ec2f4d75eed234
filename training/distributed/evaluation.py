"""The exact ranking of a catalogue in shards: each rank ranks its own rows, and the lists are merged.

Every rank encodes all users. It scores its rows in chunks, so that the scores of a chunk take a
bounded memory, and the table is read once for a block of users. All ranks return the same ranking.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from re4.common.console import progress
from re4.training.data.dataset import Sequences
from re4.training.distributed.collectives import stacked
from re4.training.distributed.model import ShardedModel
from re4.training.encoders.encoder import Encoded
from re4.training.evaluation.protocol import CUTS, Ranking, cosine_sum, empty_lists

_CHUNK_SCORES = 16_000_000
_BLOCK_USERS = 256


@dataclass(kw_only=True)
class _Top:
    """The best items of each list so far, best first; -1 for none."""

    scores_XM: Tensor
    rows_XM: Tensor
    found_by_XM: Tensor
    """The interest that found an item."""

    @classmethod
    def empty(cls, shape: tuple[int, ...], depth: int, device: torch.device) -> "_Top":
        rows = torch.full((*shape, depth), -1, device=device)
        return cls(
            scores_XM=torch.full((*shape, depth), -torch.inf, device=device), rows_XM=rows, found_by_XM=rows
        )

    def add(self, scores_XM: Tensor, rows_XM: Tensor, found_by_XM: Tensor) -> None:
        """Merge further items into the lists; of equal scores, the earlier rows come first."""
        depth = self.scores_XM.shape[-1]
        scores = torch.cat([self.scores_XM, scores_XM], dim=-1)
        self.scores_XM, places = scores.topk(depth, dim=-1)
        self.rows_XM = torch.cat([self.rows_XM, rows_XM], dim=-1).gather(-1, places)
        self.found_by_XM = torch.cat([self.found_by_XM, found_by_XM], dim=-1).gather(-1, places)

    def merged(self) -> "_Top":
        """Return the lists over all ranks."""
        scores, rows, found_by = map(stacked, (self.scores_XM, self.rows_XM, self.found_by_XM))
        top = _Top(scores_XM=scores[0], rows_XM=rows[0], found_by_XM=found_by[0])
        for rank in range(1, len(scores)):
            top.add(scores[rank], rows[rank], found_by[rank])
        return top


def rank_shards(model: ShardedModel, held_out: Sequences, *, title: str) -> Ranking:
    """Rank the whole catalogue for every user of a held-out split, exactly; all ranks take part."""
    device, num_interests = model.item_embedding.weight.device, model.config.K
    rows_UL, lengths_U = held_out.histories(model.config.L)
    depth = min(max(CUTS), model.items.num_items)
    top_UM = np.empty((held_out.num_users, depth), dtype=np.int64)
    lists = empty_lists(held_out.num_users, depth, num_interests) if num_interests > 1 else None
    cosines = [0.0, 0.0]
    training = model.training
    model.eval()
    with torch.inference_mode(), progress(title, held_out.num_users) as bar:
        for start in range(0, held_out.num_users, _BLOCK_USERS):
            stop = min(start + _BLOCK_USERS, held_out.num_users)
            rows_BL = torch.from_numpy(rows_UL[start:stop]).to(device)
            lengths_B = torch.from_numpy(lengths_U[start:stop]).to(device)
            rows_R, places = torch.unique(rows_BL, return_inverse=True)
            history_BLD = model.as_scored(model.gather_rows(rows_R))[places]
            encoded: Encoded = model.encoder.encode(history_BLD, lengths_B)
            low, high = (0, 0) if lists is None else np.searchsorted(lists.users_S, [start, stop])
            users_S = [] if lists is None else (lists.users_S[low:high] - start).tolist()
            merged, own = _top(model, encoded.interests_BKD, users_S, depth)
            top_UM[start:stop] = merged.rows_XM.cpu().numpy()
            if lists is not None and users_S:
                lists.top_SM[low:high] = merged.rows_XM[users_S].cpu().numpy()
                lists.found_by_SM[low:high] = merged.found_by_XM[users_S].cpu().numpy()
                lists.own_SKM[low:high] = own.rows_XM.cpu().numpy()
                if encoded.active_BK is not None:
                    lists.active_SK[low:high] = encoded.active_BK[users_S].cpu().numpy()
            cosines = [total + more for total, more in zip(cosines, cosine_sum(encoded), strict=True)]
            bar.advance(stop - start)
    model.train(training)
    return Ranking(top_UM=top_UM, interest_cosine=cosines[0] / cosines[1] if cosines[1] else 1.0, lists=lists)


def _top(model: ShardedModel, interests_BKD: Tensor, users_S: list[int], depth: int) -> tuple[_Top, _Top]:
    """Return the best items of each user, and of each interest of some users, over all ranks."""
    num_users, num_interests = interests_BKD.shape[:2]
    device, table_nD = interests_BKD.device, model.item_table_ND
    top = _Top.empty((num_users,), depth, device)
    own = _Top.empty((len(users_S), num_interests), depth, device)
    chunk_rows = max(1, _CHUNK_SCORES // (num_users * num_interests))
    for first in range(0, len(table_nD), chunk_rows):
        vectors_CD = model.as_scored(table_nD[first : first + chunk_rows])
        scores_BKC = interests_BKD @ vectors_CD.T
        best_BM, places_BM = scores_BKC.amax(dim=1).topk(min(depth, len(vectors_CD)), dim=1)
        found_by_BM = scores_BKC.gather(2, places_BM[:, None].expand(-1, num_interests, -1)).argmax(dim=1)
        offset = model.items.first_row + first
        top.add(best_BM, places_BM + offset, found_by_BM)
        if users_S:
            own_SKM, places_SKM = scores_BKC[users_S].topk(best_BM.shape[1], dim=2)
            own.add(own_SKM, places_SKM + offset, torch.zeros_like(places_SKM))
    return top.merged(), own.merged() if users_S else own
