"""Encoders and methods from a cell's config: before any training, or with a published state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.data.source import ImageSet
from bench.encoders import ENCODERS
from bench.encoders.base import Encoder
from bench.methods import METHODS
from bench.methods.base import DataInfo, Method
from bench.random import derive


def training_info(images: ImageSet, rows: int, labels: Tensor | None = None) -> DataInfo:
    """What a method may know of the `rows` images of a set that it trains on."""
    return DataInfo(rows, images.classes, images.images.shape[3], images.images.shape[1], labels)


def seed_of(config: Mapping[str, Any], source: str) -> int:
    """The seed of a source of randomness (`bench.settings.Sources`): the cell's own, but where it has one to itself."""
    own = ((config["training"] or {}).get("sources") or {}).get(source)
    return int(config["seed"] if own is None else own)


def build_encoder(config: Mapping[str, Any], channels: int, seed: int) -> Encoder:
    """The encoder of a seed, before any training: the same one for every method.

    Args:
        config: `name` and `options` of the encoder.
        channels: channels of the images.
        seed: the cell's seed; torch's generator starts from its address.
    """
    torch.manual_seed(derive(seed, "encoder"))
    return ENCODERS[config["name"]](channels, **config["options"])


def build_method(config: Mapping[str, Any], data: DataInfo) -> Method:
    """The method of a pretraining cell, before any training.

    The encoder is built first, under its own address: at one seed every method starts from the same.

    Args:
        config: the cell's, as the plan writes it.
        data: the cell's training subset.
    """
    seed = seed_of(config, "weights")
    encoder = build_encoder(config["encoder"], data.channels, seed)
    torch.manual_seed(derive(seed, "method"))
    chosen = config["method"]
    method: Method = METHODS[chosen["name"]](encoder, data, seed=seed_of(config, "draws"), **chosen["options"])
    return method.to(config["device"], memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained_method(config: Mapping[str, Any], data: DataInfo, state: Mapping[str, Tensor]) -> Method:
    """The method of a finished cell, from its published state."""
    method = build_method(config, data)
    method.load_state_dict(dict(state))
    return method
