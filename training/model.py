"""The model in training: item table, encoder, backward flows, and the sum of their losses.

`L = L_Rec + λ_CL L_CL + λ_ATT L_ATT + λ_CT L_CT`. A flow whose weight is 0 has no parameters and
costs nothing. Only `item_embedding` and `encoder` leave this folder (see `export/`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batches import Batch
from training.config import TrainConfig
from training.encoders import build_encoder
from training.flows.reattend import reattend_loss
from training.flows.reconstruct import Reconstruct
from training.flows.recontrast import outside_history, positives, recontrast_loss
from training.negatives import build_sampler
from training.recommend import recommend_loss


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of one batch: the weighted total, and each term before its weight."""

    total: Tensor
    terms: dict[str, Tensor]


class MultiInterestModel(nn.Module):
    """Item vectors, an encoder, and the flows that train them."""

    def __init__(self, config: TrainConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(num_items, config.embedding_dim)
        nn.init.normal_(self.item_embedding.weight, std=config.embedding_dim**-0.5)
        self.encoder = build_encoder(config)
        self.reconstruct: Reconstruct | None = None
        if config.construct_weight:
            self.reconstruct = Reconstruct(
                embedding_dim=config.embedding_dim,
                max_history_length=config.max_history_length,
                construct_dim=config.construct_dim,
            )
        self._sampler = build_sampler(config.negatives, num_items, config.num_negatives)

    def start_from(self, vectors_ND: Tensor) -> None:
        """Replace the item vectors, before training."""
        with torch.no_grad():
            self.item_embedding.weight.copy_(vectors_ND)

    def item_vectors_ND(self) -> Tensor:
        """Give the item vectors [N, D], float32, detached."""
        return self.item_embedding.weight.detach()

    def interests(self, rows_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Give interests [B, K, D] and attention [B, K, L] for histories of item rows, newest first."""
        interests_BKD, attention_BKL = self.encoder(self.item_embedding(rows_BL), lengths_B)
        return interests_BKD, attention_BKL

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Compute the loss of a batch; negatives and other users are drawn from the generator."""
        config = self.config
        lengths_B = batch.lengths_B
        history_BLD = self.item_embedding(batch.rows_BL)
        log_attention_BKL = self.encoder.log_attention(history_BLD, lengths_B)
        interests_BKD = self.encoder.interests(history_BLD, log_attention_BKL)

        terms = {
            "recommend": recommend_loss(
                interests_BKD=interests_BKD,
                targets_B=batch.targets_B,
                item_vectors_ND=self.item_embedding.weight,
                negatives=self._sampler.draw(generator),
            )
        }
        total = terms["recommend"]
        if config.contrast_weight or config.construct_weight:
            positives_BKL = positives(log_attention_BKL.detach().exp(), lengths_B)
        if config.contrast_weight:
            other_B, outside_BL = outside_history(batch.rows_BL, lengths_B, generator)
            terms["contrast"] = recontrast_loss(
                interests_BKD=interests_BKD,
                history_vectors_BLD=history_BLD,
                positives_BKL=positives_BKL,
                lengths_B=lengths_B,
                other_B=other_B,
                outside_BL=outside_BL,
                temperature=config.contrast_temperature,
            )
            total = total + config.contrast_weight * terms["contrast"]
        if config.attend_weight:
            terms["attend"] = reattend_loss(
                interests_BKD=interests_BKD,
                history_vectors_BLD=history_BLD,
                log_attention_BKL=log_attention_BKL,
                lengths_B=lengths_B,
            )
            total = total + config.attend_weight * terms["attend"]
        if self.reconstruct is not None and config.construct_weight:
            terms["construct"] = self.reconstruct.loss(
                interests_BKD=interests_BKD,
                history_vectors_BLD=history_BLD,
                positives_BKL=positives_BKL,
                lengths_B=lengths_B,
            )
            total = total + config.construct_weight * terms["construct"]
        return Losses(total=total, terms=terms)
