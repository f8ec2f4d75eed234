"""A textbook training step: the paper's equations one by one, autograd, dense gradients, dense Adam.

Published implementations do the same in substance, so the product's step is compared with it. Every tensor
has its full shape, with padding; nothing is fused, cut into blocks or left out where it is masked; the whole
item table has a gradient and both of Adam's moments. A test compares the losses with those of
`re4.training.model.model`. Source: Zhang et al., Re4, WWW 2022.

Legend: B batch, L history length, K interests, D embedding, M negatives, C width of a piece; i counts pieces
and j history positions, L of each.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from re4.training.config import TrainConfig
from re4.training.data.batches import Batch


class TextbookRe4(nn.Module):
    """Re4 with all three flows and drawn negatives, by the equations alone."""

    def __init__(self, config: TrainConfig, num_items: int) -> None:
        super().__init__()
        self._config = config
        dim, width, piece = config.embedding_dim, config.attention_dim, config.construct_dim
        self.item_embedding = nn.Embedding(num_items, dim)
        self.W1 = nn.Linear(dim, width, bias=False)
        self.w = nn.Linear(width, config.K, bias=False)
        self.W2 = nn.Linear(dim, dim, bias=False)
        self.W4 = nn.Linear(dim, config.L * piece)
        self.W3 = nn.Linear(piece, piece, bias=False)
        self.v = nn.Linear(piece, config.L, bias=False)
        self.W5 = nn.Linear(piece, dim, bias=False)
        nn.init.normal_(self.item_embedding.weight, std=dim**-0.5)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the losses."""
        weights = {
            name: getattr(self._config, f"{name}_weight") for name in ("contrast", "attend", "construct")
        }
        flows = torch.stack([weight * terms[name] for name, weight in weights.items()])
        return terms["recommend"] + flows.sum()

    def terms(self, batch: Batch, negatives_M: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return each loss of a batch, unweighted; the generator pairs users with others."""
        valid_BL = torch.arange(batch.rows_BL.shape[1])[None, :] < batch.lengths_B[:, None]
        padding_B1L = ~valid_BL[:, None]
        history_BLD = self.item_embedding(batch.rows_BL)

        logits_BKL = self.w(torch.tanh(self.W1(history_BLD))).transpose(1, 2)
        log_attention_BKL = logits_BKL.masked_fill(padding_B1L, -torch.inf).log_softmax(dim=2)
        attention_BKL = log_attention_BKL.exp()
        interests_BKD = attention_BKL @ self.W2(history_BLD)

        positive_BKL = attention_BKL > 1 / batch.lengths_B[:, None, None]
        shift = int(torch.randint(1, len(batch.rows_BL), (1,), generator=generator))
        return {
            "recommend": self._recommend(interests_BKD, batch.targets_B, negatives_M),
            "contrast": self._contrast(interests_BKD, history_BLD, positive_BKL, valid_BL, batch, shift),
            "attend": self._attend(interests_BKD, history_BLD, log_attention_BKL, padding_B1L),
            "construct": self._construct(interests_BKD, history_BLD, positive_BKL, valid_BL),
        }

    def _recommend(self, interests_BKD: Tensor, targets_B: Tensor, negatives_M: Tensor) -> Tensor:
        target_BD = self.item_embedding(targets_B)
        chosen_B = (interests_BKD @ target_BD[:, :, None])[:, :, 0].argmax(dim=1)
        interest_BD = interests_BKD[torch.arange(len(chosen_B)), chosen_B]
        scores_BM = interest_BD @ self.item_embedding(negatives_M).T
        scores_BM = scores_BM.masked_fill(targets_B[:, None] == negatives_M, -torch.inf)
        target_B1 = (interest_BD * target_BD).sum(dim=1, keepdim=True)
        return F.cross_entropy(torch.cat([target_B1, scores_BM], dim=1), torch.zeros_like(targets_B))

    def _contrast(
        self,
        interests_BKD: Tensor,
        history_BLD: Tensor,
        positive_BKL: Tensor,
        valid_BL: Tensor,
        batch: Batch,
        shift: int,
    ) -> Tensor:
        interests_BKD, history_BLD = F.normalize(interests_BKD, dim=2), F.normalize(history_BLD, dim=2)
        temperature = self._config.contrast_temperature
        own_BKL = interests_BKD @ history_BLD.transpose(1, 2) / temperature
        among_BKK = interests_BKD @ interests_BKD.transpose(1, 2) / temperature
        outside_BKL = interests_BKD @ history_BLD.roll(-shift, 0).transpose(1, 2) / temperature
        theirs_BL, theirs_valid_BL = batch.rows_BL.roll(-shift, 0), valid_BL.roll(-shift, 0)
        shared_BL = ((theirs_BL[:, :, None] == batch.rows_BL[:, None, :]) & valid_BL[:, None, :]).any(dim=2)
        negative_BK1 = torch.cat(
            [
                own_BKL.masked_fill(positive_BKL | ~valid_BL[:, None], -1e9),
                among_BKK.masked_fill(torch.eye(among_BKK.shape[1], dtype=torch.bool), -1e9),
                outside_BKL.masked_fill((shared_BL | ~theirs_valid_BL)[:, None], -1e9),
            ],
            dim=2,
        ).logsumexp(dim=2, keepdim=True)
        loss_BKL = torch.logaddexp(own_BKL, negative_BK1) - own_BKL
        return (loss_BKL * positive_BKL).sum() / positive_BKL.sum()

    def _attend(
        self, interests_BKD: Tensor, history_BLD: Tensor, log_attention_BKL: Tensor, padding_B1L: Tensor
    ) -> Tensor:
        scores_BKL = interests_BKD @ history_BLD.transpose(1, 2)
        target_BKL = scores_BKL.masked_fill(padding_B1L, -torch.inf).softmax(dim=2)
        return -(target_BKL * log_attention_BKL.masked_fill(padding_B1L, 0)).sum(dim=2).mean()

    def _construct(
        self, interests_BKD: Tensor, history_BLD: Tensor, positive_BKL: Tensor, valid_BL: Tensor
    ) -> Tensor:
        length = history_BLD.shape[1]
        pieces_BKiC = self.W4(interests_BKD).unflatten(2, (self._config.L, -1))[:, :, :length]
        logits_BKij = self.v(torch.tanh(self.W3(pieces_BKiC)))[..., :length]
        shares_BKij = logits_BKij.masked_fill(~valid_BL[:, None, :, None], -torch.inf).softmax(dim=2)
        rebuilt_BKjD = shares_BKij.transpose(2, 3) @ self.W5(pieces_BKiC)
        distance_BKj = (rebuilt_BKjD - history_BLD[:, None]).square().sum(dim=3)
        total: Tensor = (distance_BKj * positive_BKL).sum() / positive_BKL.sum()
        return total


def textbook_training(
    config: TrainConfig, num_items: int
) -> Callable[[Batch, Tensor, torch.Generator], None]:
    """Return a function that takes one step of a new model, by Adam over all weights, with the item table."""
    assert config.learning_rate is not None, "resolve comes first"
    model = TextbookRe4(config, num_items)
    adam = torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    def step(batch: Batch, negatives_M: Tensor, generator: torch.Generator) -> None:
        adam.zero_grad()
        model.total(model.terms(batch, negatives_M, generator)).backward()  # type: ignore[no-untyped-call]
        adam.step()

    return step
