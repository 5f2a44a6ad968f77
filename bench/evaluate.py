"""Evaluation cells: an encoder, or raw pixels, under one protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from bench.build import trained_method, training_info
from bench.checkpoint import load_tensors
from bench.data.source import ImageSet
from bench.data.splits import split
from bench.evaluators import EVALUATORS
from bench.evaluators.base import EvaluationData, Labelled
from bench.features import STATE, Trained
from bench.files import read_json, write_json
from bench.imported import load_imported

RECORD = "record.json"
ARRAYS = "arrays.safetensors"


def evaluate(
    config: Mapping[str, Any], images: ImageSet, targets: Mapping[str, ImageSet], source: Path | None, folder: Path
) -> None:
    """Run one protocol and write its record and arrays to `folder`.

    Args:
        config: the cell's config, as the plan writes it.
        images: the image set it is judged on.
        targets: further image sets that the protocol names.
        source: the finished pretraining cell, or None for raw pixels.
        folder: where its files go.
    """
    protocol, device = config["protocol"], config["device"]
    trained = Trained(None, device) if source is None else load_trained(source, images, device)
    validation, query = config["data"]["validation"], config["query"]
    others = {name: evaluation_data(target, validation, query, device) for name, target in targets.items()}
    data = evaluation_data(images, validation, query, device, others)
    result = EVALUATORS[protocol["name"]](trained, data, seed=config["seed"], **protocol["options"])
    write_json(folder / RECORD, {"metrics": result.metrics})
    save_file(dict(result.arrays), folder / ARRAYS)


def load_trained(source: Path, images: ImageSet, device: str) -> Trained:
    """A finished pretraining cell's encoder, and its snapshots by epoch."""
    config = read_json(source / "cell.json")["config"]
    if config["stage"] == "import":
        return load_imported(source, device)
    parts = split(images, validation=config["data"]["validation"], fraction=config["data"]["fraction"])
    data = training_info(images, len(parts.train))

    def trained(path: Path, **snapshots: Any) -> Trained:
        method = trained_method(config, data, load_tensors(path).tensors).eval()
        return Trained(method.encoder, device, projector=getattr(method, "projector", None), **snapshots)

    paths = sorted(source.glob("snapshot-*.safetensors"))
    return trained(source / STATE, snapshots={int(path.stem.partition("-")[2]): trained(path) for path in paths})


def evaluation_data(
    images: ImageSet,
    validation: float,
    query: str,
    device: str,
    targets: Mapping[str, EvaluationData] | None = None,
) -> EvaluationData:
    """What a protocol may see.

    Args:
        images: the whole set.
        validation: share of the training rows on which choices are made.
        query: "test", or "validation" where settings are tuned: then no test row is loaded, and choices
            inside a protocol are made on a part of the training rows, as large, by address.
        device: where labels lie.
        targets: further image sets.
    """
    parts = split(images, validation=validation, fraction=1.0)

    def labelled(rows: Any) -> Labelled:
        labels = torch.from_numpy(images.labels[rows]).to(device)
        return Labelled(torch.from_numpy(np.ascontiguousarray(images.images[rows])), labels, torch.from_numpy(rows))

    if query == "test":
        train, choices, scored = parts.labelled, parts.validation, parts.test
    else:
        inner = parts.inner(len(parts.validation))
        train, choices, scored = np.setdiff1d(parts.labelled, inner), inner, parts.validation
    return EvaluationData(
        labelled(train),
        labelled(choices),
        labelled(scored),
        images.classes,
        images.metric,
        dict(targets or {}),
        images.label_lists,
    )
