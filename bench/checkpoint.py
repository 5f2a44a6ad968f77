"""Checkpoints of a running cell: tensors and JSON in one safetensors file, no pickles."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from bench.files import checkpoint_path, checkpoint_steps, written

KEPT = 2  # the newest, and one more should that be damaged


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on: tensors by name, and what is not a tensor as JSON."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Any = None) -> None:
    """Write tensors, and JSON beside them, as one file that is whole once it is there.

    They are written from where they lie: of a large bank there is never a second copy in memory.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {"meta": json.dumps(meta)} if meta is not None else None
    with written(path) as beside:
        try:
            save_file(_dense(tensors), beside, metadata)
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def _dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as the format has them: on the CPU, in order, none in memory that another one has."""
    dense: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, t in tensors.items():
        plain = t.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        dense[name] = plain.clone() if place in taken else plain
        taken.add(place)
    return dense


def load_tensors(path: Path) -> Checkpoint:
    """Read what `save_tensors` wrote."""
    with safe_open(path, "pt") as file:
        meta = json.loads((file.metadata() or {}).get("meta", "{}"))
        return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, meta)


class Checkpoints:
    """The checkpoints of one cell, in one folder.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Keep the state before `step`, and drop all but the newest `KEPT`."""
        save_tensors(checkpoint_path(self.folder, step), tensors, dict(meta))
        for old in checkpoint_steps(self.folder)[:-KEPT]:
            checkpoint_path(self.folder, old).unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None."""
        for step in reversed(checkpoint_steps(self.folder)):
            try:
                return load_tensors(checkpoint_path(self.folder, step))
            except (OSError, ValueError, SafetensorError):
                continue
        return None


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, each in its parameter's memory format."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            p = parameters[int(index)]
            whole = value.shape == p.shape
            optimizer.state[p][key] = torch.empty_like(p).copy_(value) if whole else value.to(p.device, copy=True)
