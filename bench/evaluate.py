"""Evaluation cells: an encoder, or raw pixels, under one protocol."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bench.data.source import ImageSet
from bench.data.splits import split
from bench.evaluators import EVALUATORS
from bench.evaluators.base import EvaluationData, Labelled, Result
from bench.features import Trained


def evaluate(config: Mapping[str, Any], images: ImageSet, trained: Trained) -> Result:
    """Run one protocol.

    Args:
        config: the cell's config, as the plan writes it.
        images: the image set it is judged on.
        trained: what is judged.
    """
    protocol = config["protocol"]
    data = evaluation_data(images, config["data"]["validation"], config["query"], config["device"])
    return EVALUATORS[protocol["name"]](trained, data, seed=config["seed"], **protocol["options"])


def evaluation_data(images: ImageSet, validation: float, query: str, device: str) -> EvaluationData:
    """What a protocol may see.

    Args:
        images: the whole set.
        validation: share of the training rows on which choices are made.
        query: "test", or "validation" where settings are tuned: then test rows are not even loaded, and
            choices inside a protocol are made on the same part.
        device: where labels lie.
    """
    parts = split(images, validation=validation, fraction=1.0)

    def labelled(rows: Any) -> Labelled:
        labels = torch.from_numpy(images.labels[rows]).to(device)
        return Labelled(torch.from_numpy(np.ascontiguousarray(images.images[rows])), labels)

    empty = parts.validation[:0]
    return EvaluationData(
        train=labelled(parts.labelled),
        validation=labelled(parts.validation if query == "test" else empty),
        query=labelled(parts.test if query == "test" else parts.validation),
        classes=images.classes,
    )
