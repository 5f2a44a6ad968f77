"""What training costs: operations that can be counted by hand, and a count that changes no result."""

import pytest
import torch
from torch import nn

from bench.cost import counting
from bench.encoders.conv4 import Conv4
from bench.features import extract
from bench.products import rows_by_rows
from tests.test_methods import TRAINING, images, trainer


def test_a_linear_layer_takes_two_operations_per_weight_and_row_and_as_many_for_each_gradient():
    layer, x = nn.Linear(5, 3, bias=False), torch.rand(7, 5, requires_grad=True)
    with counting() as forward:
        y = layer(x)
    with counting() as backward:
        y.sum().backward()
    assert forward.count == 2 * 7 * 5 * 3
    assert backward.count == 2 * forward.count  # for its weights and for its input


def test_a_convolution_takes_two_operations_per_weight_and_place():
    layer, x = nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.rand(6, 2, 8, 8)
    with counting() as forward:
        layer(x)
    assert forward.count == 2 * 6 * (8 * 8) * (3 * 3 * 2) * 4


def test_counting_changes_no_bit():
    torch.manual_seed(0)
    encoder, pictures = Conv4(1, width=4, blocks=4, stem_stride=2, sobel=False), torch.from_numpy(images(1).images)
    with counting() as flops:
        counted = extract(encoder, pictures)
    assert torch.equal(counted, extract(encoder, pictures))
    assert flops.count > 0


def cost(method: str, tmp_path, **changes) -> dict[str, int]:
    run = trainer(method, tmp_path, **changes)
    run.run()
    return run.cost()


@pytest.mark.parametrize("method", TRAINING)
def test_a_training_costs_its_steps_and_what_lies_between_epochs(method, tmp_path):
    one, two = (cost(method, tmp_path / str(epochs), epochs=epochs) for epochs in (1, 2))
    assert one["flops"] > 0
    assert two["images"] == 2 * one["images"] == 2 * 64 * (216 // 64)
    assert two["flops"] == pytest.approx(2 * one["flops"], rel=0.05)  # k-means may converge sooner


def test_a_method_that_is_not_trained_costs_nothing(tmp_path):
    found = cost("random_init", tmp_path)
    assert found["flops"] == found["images"] == 0


def test_an_embedding_takes_four_bytes_a_dimension_and_a_query_a_product_with_every_training_image(tmp_path):
    """z where the method projects, else h: conv4 of width 4 has 32 x 4 dimensions; 216 of 240 rows are trained on."""
    for method, dim in (("random_init", 128), ("deepcluster", 128), ("simclr", 16), ("nnclr", 16)):
        found = cost(method, tmp_path / method)
        assert found["representation_bytes"] == 4 * 128, method
        assert (found["embedding_bytes"], found["search_flops"]) == (4 * dim, 2 * dim * 216), method


def test_a_second_view_doubles_what_the_encoder_takes_and_a_momentum_branch_adds_a_forward_pass(tmp_path):
    """Of forward and backward passes, F and 2 F but for the first layer's input: SimCLR 2 x 3 F, MoCo 3 F + F."""
    found = {name: cost(name, tmp_path / name)["flops"] for name in ("instdisc", "simclr", "moco_v2", "byol")}
    assert 1.6 < found["simclr"] / found["instdisc"] < 2.4
    assert 0.55 < found["moco_v2"] / found["simclr"] < 0.85
    assert 1.2 < found["byol"] / found["simclr"] < 1.6


def test_clusterings_are_counted(tmp_path):
    run = trainer("deepcluster", tmp_path)
    run.run()
    encoder = run.method.encoder
    with counting() as forward:
        run._extract(encoder)
    assert run.flops_between > forward.count  # an epoch's features, and k-means on them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_without_a_gradient_are_counted_whichever_library_multiplies(dtype):
    a, b = torch.rand(5, 3, dtype=dtype), torch.rand(7, 3, dtype=dtype)
    with counting() as flops:
        product = rows_by_rows(a, b)
    assert flops.count == 2 * 5 * 3 * 7
    torch.testing.assert_close(product, a @ b.mT)
