"""Real images through the whole pipeline: published sets and an archive of one's own, from one params file.

The other tests of the pipeline have 5,000 digits; these have CIFAR-10 whole, 50,000 images to fit on and 10,000 to score.
They need the sets below the data root (BENCH_DATA; docs/data.md says which file goes where) and some minutes.
"""

import json
import math
import shutil

import pandas as pd
import pytest
import yaml

from bench.data.prepared import data_root, load
from bench.evaluators import EVALUATORS
from bench.yaml12 import parse
from tests.workspace import Workspace

pytestmark = pytest.mark.slow

SUBSET = {"train": "cifar100_subset/train.npz", "test": "cifar100_subset/test.npz"}  # some images of CIFAR-100
NEEDED = ("cifar-10-batches-py", "MNIST/raw", *SUBSET.values())
TARGETS = ("cifar100_subset", "mnist")
CROP = {"crop_scale": [0.08, 1.0], "crop_ratio": [0.75, 1.3333333333333333], "flip": 0.5}
PATH = {"l2_low": 1.0, "l2_high": 100.0, "l2_count": 2, "tolerance": 1e-2}
VOTE = {"k": 20, "temperature": 0.07}

# the cheapest settings that still fit, choose and score on every row
EVALUATIONS = {
    "linear": PATH,
    "knn": {"at": ["h", "z"], "k": [20], "temperature": 0.07},
    "svm": PATH,
    "linear_sgd": {
        **{"epochs": 1, "batch": 256, "lr": 1.0, "momentum": 0.9, "weight_decay": 0.0},
        **{"decay": "cosine", "milestones": [], "factor": 1.0},
        **CROP,
    },
    "layers": {"dimensions": 16, **PATH, **VOTE},
    "semisup": {
        **{"fractions": [0.01], "lr": [0.01], "head_lr": [0.2], "epochs": 2, "batch": 128, "momentum": 0.9},
        **{"milestones": [1], "factor": 0.2},
        **CROP,
    },
    "transfer": {"targets": list(TARGETS), **PATH, **VOTE},
    "clusters": {"per_class": 1, "iterations": 20, "restarts": 1},
    "retrieval": {"k": 5, "pictured": 3},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A clone with a profile for real images, in which `bench submit` and then `dvc repro` have run."""
    missing = [str(data_root() / name) for name in NEEDED if not (data_root() / name).exists()]
    if missing:
        pytest.skip(f"{' and '.join(missing)} missing; docs/data.md says what goes there")
    space = Workspace(tmp_path_factory.mktemp("real_images"))
    shipped = space.root / "profiles" / "cifar10-lite"
    space.here = space.root / "profiles" / "real_images"
    shutil.copytree(shipped, space.here, symlinks=True)
    settings = parse((shipped / "params.yaml").read_text())
    settings["seeds"] = [0]
    settings["datasets"] = {
        **{name: settings["datasets"][name] for name in ("cifar10", "mnist")},
        "cifar100_subset": {"reader": "npz", "options": SUBSET},
    }
    settings["encoder"]["width"] = 4
    settings["defaults"] |= {"epochs": 2, "schedule": {"warmup": 1, "decay": "cosine"}, "snapshots": [1]}
    settings["methods"] = {"simclr": {**settings["methods"]["simclr"], "dim": 16}}
    settings["evaluations"] = EVALUATIONS
    (space.here / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    space.commit()
    for command in (("bench", "submit"), ("dvc", "repro")):
        space.run(*command, BENCH_DATA=str(data_root()))
    return space


def numbers(done, name="metrics.json"):
    return json.loads((done.here / "reports" / name).read_text())


def manifest_of(done, name):
    return json.loads((done.here / "data" / "manifests" / f"{name}.json").read_text())


def test_all_of_the_published_images_are_prepared(done):
    manifest = manifest_of(done, "cifar10")
    train, test = manifest["rows"] - manifest["test_rows"], manifest["test_rows"]
    assert (train, test) == (50_000, 10_000)
    assert (manifest["height"], manifest["width"], manifest["channels"], manifest["classes"]) == (32, 32, 3, 10)
    assert manifest["per_class"] == [6_000] * 10
    assert manifest["notes"] == []  # neither too many nor too few images


def test_an_archive_is_prepared_beside_the_published_sets(done):
    manifest = manifest_of(done, "cifar100_subset")
    assert (manifest["height"], manifest["width"], manifest["channels"], manifest["classes"]) == (32, 32, 3, 100)
    assert 0 < manifest["test_rows"] < manifest["rows"]


@pytest.mark.parametrize("name", ["cifar10", "mnist", "cifar100_subset"])
def test_the_manifest_counts_the_images_that_are_repeated_within_and_across_the_split(done, name):
    manifest = manifest_of(done, name)
    images = load(manifest)
    parts = [[row.tobytes() for row in images.images[images.test == part]] for part in (False, True)]
    train, test = (set(part) for part in parts)
    assert manifest["duplicates"] == {
        "within_train": len(parts[0]) - len(train),
        "within_test": len(parts[1]) - len(test),
        "across": sum(row in train for row in parts[1]),
    }


def test_the_settings_name_every_protocol():
    assert set(EVALUATIONS) == set(EVALUATORS)


def test_every_planned_cell_is_computed_and_nothing_is_left_to_do(done):
    cells = numbers(done)["cells"]
    assert cells["planned"] == cells["done"] == 1 + len(EVALUATIONS)
    assert "up to date" in done.run("dvc", "repro", BENCH_DATA=str(data_root())).stdout


def test_every_protocol_has_finite_numbers_for_the_method(done):
    records = {cell["protocol"]: cell for cell in numbers(done, "cells.json")["evaluations"]}
    assert set(records) == set(EVALUATORS)
    for protocol, record in records.items():
        assert record["method"] == "simclr"
        assert record["metrics"], protocol
        assert all(math.isfinite(value) for value in record["metrics"].values()), protocol


def test_the_transfer_table_holds_both_targets(done):
    table = pd.read_csv(done.here / "reports" / "tables" / "protocol_transfer.csv").set_index("metric")["mean"]
    wanted = {f"{target}_{kind}" for target in TARGETS for kind in ("linear", "knn")}
    assert set(table.index) == {"linear", *wanted}
    chance = {"cifar100_subset": 0.01, "mnist": 0.1}
    assert all(table[f"{target}_{kind}"] > 3 * chance[target] for target in TARGETS for kind in ("linear", "knn"))


def test_neighbours_of_real_images_are_of_one_class_far_more_often_than_by_chance(done):
    found = numbers(done)["knn"]["simclr"]
    assert found > 0.25  # by chance 0.1
