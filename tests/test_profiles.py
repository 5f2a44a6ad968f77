"""The profiles as they are shipped: each loads and is whole; those of the published scales can be planned."""

import json
from pathlib import Path

import pytest

from bench import params
from bench.methods import METHODS
from bench.optim import scaled
from bench.plan import make_plan
from tests.test_published_recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PROFILES = sorted(path.parent for path in ROOT.glob("profiles/*/params.yaml"))
SHARED = [".dvcignore", "bench", "benchmarks", "dvc.yaml", "requirements.lock", "stages", ".dvc/plots"]
SETS = {  # rows, of them test rows, side, channels, metric, as docs/data.md has them
    "imagenet": (1331167, 50000, 256, 3, "top1"),
    "cifar10": (60000, 10000, 32, 3, "top1"),
    "cifar100": (60000, 10000, 32, 3, "top1"),
    "stl10": (13000, 8000, 32, 3, "top1"),
    "svhn": (99289, 26032, 32, 3, "top1"),
    "mnist": (70000, 10000, 32, 1, "top1"),
    "food101": (101000, 25250, 256, 3, "top1"),
    "birdsnap": (49829, 2443, 256, 3, "top1"),
    "sun397": (39700, 19850, 256, 3, "top1"),
    "cars": (16185, 8041, 256, 3, "top1"),
    "aircraft": (10000, 3333, 256, 3, "mean_per_class"),
    "voc2007": (9963, 4952, 256, 3, "map11"),
    "dtd": (5640, 1880, 256, 3, "top1"),
    "pets": (7349, 3669, 256, 3, "mean_per_class"),
    "caltech101": (9144, 6084, 256, 3, "mean_per_class"),
    "flowers102": (8189, 6149, 256, 3, "mean_per_class"),
    "places205": (2469373, 20500, 256, 3, "top1"),
}
published = pytest.mark.parametrize("name", ["cifar10", "imagenet"])


def load(name: str):
    return params.load(ROOT / "profiles" / name / "params.yaml")


def manifest(name: str) -> dict:
    rows, test_rows, side, channels, metric = SETS[name]
    found = {"name": name, "sha256": name, "metric": metric, "rows": rows, "test_rows": test_rows}
    return found | {"channels": channels, "height": side, "width": side}


@pytest.mark.parametrize("folder", [ROOT, *PROFILES], ids=lambda path: path.name)
def test_every_profile_loads_and_the_recipes_that_it_names_are_there(folder):
    settings = params.load(folder / "params.yaml")
    assert {settings.training_of(method).recipe for method in settings.methods} <= set(settings.recipes)


@pytest.mark.parametrize("folder", PROFILES, ids=lambda path: path.name)
def test_every_profile_shares_the_code_and_the_pipeline_and_has_its_trials(folder):
    for name in SHARED:
        assert (folder / name).is_symlink()
        assert (folder / name).resolve(strict=True) == ROOT / name
    assert isinstance(json.loads((folder / params.TUNING).read_text())["trials"], list)
    for name in (".gitignore", "config"):
        assert (folder / ".dvc" / name).read_bytes() == (ROOT / "profiles" / "smoke" / ".dvc" / name).read_bytes()


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "smoke"])
def test_every_method_is_there(name):
    assert set(load(name).methods) == set(METHODS)


@published
def test_a_plan_can_be_made(name):
    settings = load(name)
    plan = make_plan(settings, {each: manifest(each) for each in settings.datasets})
    encoders = len(METHODS) * len(settings.seeds)
    assert len(plan.cells()) == encoders * (1 + len(settings.evaluations))


def test_the_imagenet_profile_has_the_published_peak_rates():
    settings, compared = load("imagenet"), set()
    for name, recipe in RECIPES.items():
        method = next(method for method in settings.methods if name.startswith(method))
        training = settings.training_of(method)
        if (training.epochs, training.batch) != (recipe.epochs, recipe.batch):
            continue  # published for several lengths: the profile has one
        compared.add(method)
        optimizer = training.optimizer
        assert scaled(optimizer.lr, optimizer.scaling, training.batch) == pytest.approx(recipe.peak), name
        assert optimizer.weight_decay == recipe.optimizer["weight_decay"], name
        assert optimizer.decay_norm_bias == recipe.decayed, name
    assert compared == set(METHODS) - {"random_init", "supervised"}
