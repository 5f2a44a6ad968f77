"""How long cells take, by those that are computed already."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from statistics import median
from typing import Any

from bench.files import read_json
from bench.plan import Cell
from bench.store import CELL, ENVIRONMENT, Store

Kind = tuple[Any, ...]


class Estimates:
    """Expected seconds of cells: the median of like ones in the store, training by the epoch and row."""

    def __init__(self, store: Store):
        self.store = store

    def seconds(self, cell: Cell) -> float | None:
        """What a cell will take, or None where nothing like it was measured."""
        for kind in _kinds(cell.config):
            if kind in self._measured:
                return median(self._measured[kind]) * _size(cell.config)
        return None

    def total(self, cells: Iterable[Cell]) -> tuple[float, int]:
        """The seconds of all cells together, and how many of them are not known."""
        found = [self.seconds(cell) for cell in cells]
        return sum(s for s in found if s is not None), sum(s is None for s in found)

    @cached_property
    def _measured(self) -> dict[Kind, list[float]]:
        found = defaultdict(list)
        for folder in (self.store.root / "cells").glob("*"):
            try:
                config = read_json(folder / CELL)["config"]
                seconds = read_json(folder / ENVIRONMENT)["seconds"]
            except (OSError, ValueError, KeyError):  # adopted from a cache: nobody measured it here
                continue
            if "stage" in config:
                for kind in _kinds(config):
                    found[kind].append(seconds / _size(config))
        return found


def _kinds(config: dict[str, Any]) -> list[Kind]:
    """What cells of like cost share, the closest first."""
    if config["stage"] == "evaluate":
        return [("evaluate", config["protocol"]["name"], config["data"]["sha256"], config["device"])]
    if config["stage"] != "pretrain":
        return []
    common = (config["encoder"]["name"], config["data"]["sha256"], config["device"], config["training"] is None)
    return [("pretrain", config["method"]["name"], *common), ("pretrain", None, *common)]


def _size(config: dict[str, Any]) -> float:
    training = config.get("training")
    return training["epochs"] * config["data"]["fraction"] if training else 1.0
