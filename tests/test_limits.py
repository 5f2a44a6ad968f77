"""What the data, the recipe and the encoder do not allow is refused on the plan, before any work starts."""

from pathlib import Path

import pytest

from bench import params
from bench.limits import LimitError, left_out
from bench.methods import METHODS
from bench.options import AtMostTrainingRows
from bench.params import options_model
from bench.plan import make_plan

SMOKE = Path(__file__).resolve().parents[1] / "profiles" / "smoke" / "params.yaml"
MANIFEST = {"name": "mnist", "sha256": "0", "metric": "top1", "height": 28, "width": 28, "channels": 1}
MANIFEST |= {"rows": 5000, "test_rows": 1000}
ROWS = 360  # a tenth of 3,600


def plan(edits, **manifest):
    raw = params.load(SMOKE).model_dump(exclude_unset=True)
    raw["studies"] = {}
    for path, value in edits.items():
        *parents, last = path.split(".")
        node = raw
        for part in parents:
            node = node[part] if isinstance(node, dict) else node[int(part)]
        node[last] = value
    settings = params.check(raw)
    return make_plan(settings, dict.fromkeys(settings.datasets, MANIFEST | manifest))


def test_the_smoke_profile_is_within_its_limits():
    plan({})


COUNTED = [
    (method, option)
    for method in METHODS
    for option, field in options_model(METHODS.component(method)).model_fields.items()
    if any(isinstance(mark, AtMostTrainingRows) for mark in field.metadata)
]


def test_negatives_and_clusters_are_bounded_by_the_training_rows():
    assert set(COUNTED) == {("instdisc", "negatives"), ("deepcluster", "clusters")}


@pytest.mark.parametrize(("method", "option"), COUNTED)
def test_a_count_above_the_training_rows_is_refused(method, option):
    plan({f"methods.{method}.{option}": ROWS})
    with pytest.raises(LimitError, match=rf"methods\.{method}\.{option}: {ROWS + 1} is more than the {ROWS} training"):
        plan({f"methods.{method}.{option}": ROWS + 1})


REFUSED = {
    "one_view_for_two": (
        {"training.simsiam": {"recipe": "single"}},
        "simsiam wants 2 global views, .*'single' shows 1",
    ),
    "two_views_for_one": (
        {"training.instdisc.recipe": "symmetric"},
        "instdisc wants 1 global views, .*'symmetric' shows 2; name another under training.instdisc.recipe",
    ),
    "local_views_for_none": (
        {"training.byol": {"recipe": "multi_crop"}},
        "byol has no use for local views, recipe 'multi_crop' shows 2",
    ),
    "batch_above_the_rows": (
        {"training.byol": {"batch": ROWS + 1}},
        f"byol: batch {ROWS + 1} is more than the {ROWS} training images of mnist; lower training.byol.batch",
    ),
    "images_too_small_for_the_encoder": (
        {"encoder": {"name": "vgg16_bn", "sobel": False, "pooled": 1, "fc_width": 16}},
        "the images of mnist: 28 pixels; the encoder vgg16_bn wants at least 32",
    ),
    "neighbours_above_the_bank": ({"evaluations.knn.k": [4001]}, "evaluations.knn.k: .*4001.* more than the 4000 rows"),
}


@pytest.mark.parametrize(("edits", "told"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_what_is_asked_and_what_there_is(edits, told):
    with pytest.raises(LimitError, match=told):
        plan(edits)


def test_views_too_small_for_the_encoder_are_refused():
    encoder = {"name": "vgg16_bn", "sobel": False, "pooled": 1, "fc_width": 16}
    with pytest.raises(LimitError, match=r"recipes\.symmetric\.views\.0\.size: 28 pixels; .* at least 32"):
        plan({"encoder": encoder}, height=64, width=64)


@pytest.mark.parametrize("method", ["nnclr", "swav"])
def test_methods_whose_papers_have_multi_crop_take_local_views(method):
    plan({f"training.{method}": {"recipe": "multi_crop"}})


def test_images_with_several_labels_are_for_transfer_alone():
    with pytest.raises(
        LimitError, match=r"data\.name: the images of mnist carry several labels each; it is for transfer"
    ):
        plan({}, metric="map11")


@pytest.mark.parametrize(("batch", "last", "named"), [(359, "keep", True), (359, "drop", False), (358, "keep", False)])
def test_a_row_that_is_left_out_of_every_epoch_is_named(batch, last, named):
    raw = params.load(SMOKE).model_dump(exclude_unset=True)
    raw["training"]["byol"] = {"batch": batch, "last_batch": last}
    settings = params.check(raw)
    lines = left_out(settings, dict.fromkeys(settings.datasets, MANIFEST))
    told = "byol: 360 training images in batches of 359 leave one; the last image of each epoch's order is left out"
    assert [line.startswith(told) for line in lines] == [True] * named
