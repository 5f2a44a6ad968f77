"""Supervised learning with the same views, encoder and training: what labels would give.

Cross-entropy of a linear classifier on h = f(x), averaged over the views. The ceiling beside the methods
that see no label; not a paper's method.
"""

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bench.encoders.base import Encoder
from bench.methods.base import Batch, DataInfo, Method


class Supervised(Method):
    """A linear classifier on h, trained with the encoder."""

    title: ClassVar[str] = "Supervised"

    def __init__(self, encoder: Encoder, data: DataInfo, *, seed: int):
        super().__init__(encoder)
        self.classifier = nn.Linear(encoder.dim, data.classes)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {f"logits{i}": self.classifier(self.encoder(x)) for i, x in enumerate(batch.views)}

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        losses = [F.cross_entropy(logits.float(), batch.labels) for logits in e.values()]
        correct = e["logits0"].argmax(1) == batch.labels
        return sum(losses[1:], losses[0]) / len(losses), {"accuracy": correct.float().mean().item()}

    def chance(self, rows: int) -> float:
        return math.log(self.classifier.out_features)
