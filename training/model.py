"""The model in training: item table, encoder, backward flows, and the sum of their losses.

`L = L_Rec + λ_CL L_CL + λ_ATT L_ATT + λ_CT L_CT + λ_RR L_RR`. A flow whose weight is 0 has no parameters and
costs nothing. Only the item vectors and `encoder` leave this folder (see `export/`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.batches import Batch
from training.config import TrainConfig
from training.encoders import build_encoder
from training.encoders.encoder import Encoded
from training.flows.reattend import reattend_loss
from training.flows.reconstruct import Reconstruct
from training.flows.recontrast import outside_history, positives, recontrast_loss
from training.item_table import TouchedRows
from training.negatives.drawn import Negatives
from training.recommend import blend_interests, recommend_loss, select_interest
from training.routing import routing_loss


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of one batch: the weighted total, and each term before its weight."""

    total: Tensor
    terms: dict[str, Tensor]
    touched: TouchedRows
    """The item vectors that the losses saw; after the backward pass they hold the table's gradient."""


class MultiInterestModel(nn.Module):
    """Item vectors, an encoder, and the flows that train them."""

    def __init__(self, config: TrainConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(num_items, config.embedding_dim)
        nn.init.normal_(self.item_embedding.weight, std=config.embedding_dim**-0.5)
        # Its gradient goes by way of the rows that a step touches, never through the whole table.
        self.item_embedding.weight.requires_grad_(False)
        self.encoder = build_encoder(config)
        self.reconstruct: Reconstruct | None = None
        if config.construct_weight:
            self.reconstruct = Reconstruct(
                embedding_dim=config.embedding_dim,
                max_history_length=config.max_history_length,
                construct_dim=config.construct_dim,
            )

    def start_from(self, vectors_ND: Tensor) -> None:
        """Replace the item vectors, before training."""
        self.item_embedding.weight.copy_(vectors_ND)

    def item_vectors_ND(self) -> Tensor:
        """Give the item vectors [N, D] as served, float32, detached; of length 1 for cosine scores."""
        return self._as_seen(self.item_embedding.weight.detach())

    def interests(self, rows_BL: Tensor, lengths_B: Tensor) -> Encoded:
        """Encode histories of item rows, newest first."""
        encoded: Encoded = self.encoder.encode(self._as_seen(self.item_embedding(rows_BL)), lengths_B)
        return encoded

    def _as_seen(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.config.scores == "cosine" else vectors

    def losses(self, batch: Batch, negatives: Negatives, generator: torch.Generator) -> Losses:
        """Compute the loss of a batch against the negatives; other users are drawn from the generator."""
        config = self.config
        lengths_B = batch.lengths_B
        touched, places_BL, places_B, places_M = self._touch(batch, negatives)
        vectors_RD = self._as_seen(touched.vectors_RD)
        history_BLD = F.embedding(places_BL, vectors_RD)
        encoded = self.encoder.encode(history_BLD, lengths_B)
        interests_BKD = encoded.interests_BKD

        target_BD = F.embedding(places_B, vectors_RD)
        drawn_M, correction = negatives.rows_M, negatives.log_expected_count
        terms = {
            "recommend": recommend_loss(
                interest_BD=self._training_interest(encoded, target_BD),
                target_vectors_BD=target_BD,
                targets_B=places_B,
                negative_vectors_MD=vectors_RD if drawn_M is None else F.embedding(places_M, vectors_RD),
                negatives_M=places_M,
                rivals_BKD=interests_BKD if config.negative_scores == "served" else None,
                hardness=config.hard_negatives,
                target_correction_B=None if correction is None else correction(batch.targets_B),
                negative_correction_M=None if correction is None or drawn_M is None else correction(drawn_M),
            )
        }
        total = terms["recommend"]
        if config.routing_weight:
            terms["routing"] = routing_loss(encoded.attention_BKL, lengths_B)
            total = total + config.routing_weight * terms["routing"]
        log_attention_BKL = encoded.log_attention_BKL
        if log_attention_BKL is None:  # the flows work on attention
            return Losses(total=total, terms=terms, touched=touched)
        if config.contrast_weight or config.construct_weight:
            positives_BKL = positives(encoded.attention_BKL.detach(), lengths_B)
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
        return Losses(total=total, terms=terms, touched=touched)

    def _training_interest(self, encoded: Encoded, target_BD: Tensor) -> Tensor:
        """Give the interest of each user that the target trains, [B, D]."""
        interests_BKD, sharpness = encoded.interests_BKD, self.config.choice_sharpness
        if self.config.interest_choice == "soft":
            active_BK = encoded.active_BK
            return blend_interests(interests_BKD, target_BD, sharpness=sharpness, active_BK=active_BK)
        chosen_B = select_interest(interests_BKD.detach(), target_BD.detach())
        return interests_BKD[torch.arange(len(chosen_B), device=chosen_B.device), chosen_B]

    def _touch(self, batch: Batch, negatives: Negatives) -> tuple[TouchedRows, Tensor, Tensor, Tensor]:
        """Gather the rows of a step; give them, and where history, targets and negatives are among them."""
        weight_ND = self.item_embedding.weight
        if negatives.rows_M is None:
            every_N = torch.arange(len(weight_ND), device=weight_ND.device)
            return TouchedRows(weight_ND, None), batch.rows_BL, batch.targets_B, every_N
        history = batch.rows_BL.flatten()
        rows_R, places = torch.unique(
            torch.cat([history, batch.targets_B, negatives.rows_M]), return_inverse=True
        )
        counts = [len(history), len(batch.targets_B), len(negatives.rows_M)]
        places_BL, places_B, places_M = places.split(counts)
        return TouchedRows(weight_ND, rows_R), places_BL.view_as(batch.rows_BL), places_B, places_M
