"""Configs of pretraining cells on small colour images, made by the plan as any cell's are."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench import params
from bench.data.source import ImageSet
from bench.plan import make_plan
from benchmarks.views import RECIPE, SIDE, pictures

PROFILE = Path(__file__).resolve().parents[1] / "profiles" / "cifar10-lite" / "params.yaml"
CONV4 = {"width": 12, "blocks": 4, "stem_stride": 2, "sobel": False}  # that of release 0.4.0's tables
WIDE = CONV4 | {"width": 16, "stem_stride": 1}  # whose convolutions take four times as long
SGD = {"name": "sgd", "lr": 0.06, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_bias": False}
NNCLR = {  # the widths of lightly's documented example
    "temperature": 0.1,
    "normalize": True,
    "positive": "nearest",
    "k": 1,
    "support_size": 4096,
    "warm_up": False,
    "refresh": False,
    "momentum": None,
    "head": "mlp",
    "hidden": 512,
    "dim": 128,
    "predictor": True,
    "predictor_hidden": 512,
}


@cache
def images(rows: int) -> ImageSet:
    """So many training images of 32x32x3, and one more row for the test split."""
    test = np.arange(rows + 1) == rows
    return ImageSet(pictures(rows + 1).numpy(), np.arange(rows + 1) % 10, test, 10)


def config(
    method: str,
    options: dict[str, Any],
    rows: int,
    *,
    views: int = 2,
    encoder: dict[str, Any] = CONV4,
    **training: Any,
) -> dict[str, Any]:
    """The config of a cell that trains a method for one epoch.

    Args:
        method: its name.
        options: the method's.
        rows: training images.
        views: that it wants of each.
        encoder: options of conv4.
        training: what differs from the profile's defaults.
    """
    manifest = {"name": "m", "sha256": "0", "metric": "top1", "channels": 3, "height": SIDE, "width": SIDE}
    manifest |= {"rows": rows + 1, "test_rows": 1}
    raw = params.load(PROFILE).model_dump(exclude_unset=True)
    raw["seeds"], raw["encoder"] = [0], {"name": "conv4", **encoder}
    raw["data"] |= {"validation": 0.0, "fraction": 1.0}
    raw["recipes"] = {"symmetric": {"views": [RECIPE["views"][0] | {"count": views}]}}
    raw["methods"] = {method: options}
    raw["evaluations"] = {"knn": raw["evaluations"]["knn"] | {"k": [1]}}
    raw["tuning"]["protocol"] = "knn"
    raw["defaults"] |= {"epochs": 1, "snapshots": [], "numerics": "native", **training}
    made = make_plan(params.check(raw), dict.fromkeys(raw["datasets"], manifest))
    return made.pretrain[method][0].config
