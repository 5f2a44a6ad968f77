"""What a GPU computes: the same bits every time, and what the CPU computes but for rounding.

Skipped where torch sees no GPU.
"""

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench import numerics, params
from bench.augment import make_views
from bench.checkpoint import Checkpoints
from bench.distributed.batch_norm import batch_norm
from bench.distributed.connect import connect, leave
from bench.distributed.shards import Shards
from bench.distributed.world import World
from bench.errors import StoppedError
from bench.evaluators import EVALUATORS
from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.knn import nearest_rows
from bench.features import Trained
from bench.methods import METHODS
from bench.pretrain import Trainer
from bench.probe import probe
from bench.random import Address
from bench.solvers import Softmax, solve_path
from tests import test_evaluators
from tests.test_methods import TRAINING, VARIANTS, config, each_variant, first_batch, images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

ROOT = Path(__file__).resolve().parents[1]
PROFILES = sorted(ROOT.glob("profiles/*/params.yaml"))
ALONE = World.alone()
RECIPES = [
    pytest.param(recipe.model_dump(exclude_none=True), id=f"{path.parent.name}-{name}")
    for path in PROFILES
    for name, recipe in params.load(path).recipes.items()
]


@pytest.fixture(scope="module", autouse=True)
def _deterministic():
    numerics.require("portable", 1, "cuda")


def trainer(method: str, folder: Path, device: str = "cuda", stop_after: int = 0, world=ALONE, **changes):
    run = Trainer(
        config(method, device=device, **changes),
        images(3),
        Checkpoints(folder),
        stop=lambda: bool(stop_after) and run.step >= stop_after,
        world=world,
    )
    return run


def assert_same(one: Trainer, other: Trainer) -> None:
    states = one.method.state_dict(), other.method.state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name].cpu(), states[1][name].cpu())] == []
    assert one.history == other.history


# ---- training


@pytest.mark.parametrize("recipe", RECIPES)
def test_views_made_on_a_gpu_are_those_of_the_cpu(recipe):
    rows = np.arange(64)
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 40, 40, 3), dtype=np.uint8))
    address = Address(0, "views", rows, 1)
    on_gpu = make_views(recipe, pictures.cuda(), address)
    on_cpu = make_views(recipe, pictures, address)
    for a, b in zip(on_gpu, on_cpu, strict=True):
        assert a.is_cuda
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "precision"),
    [pytest.param(*each.values, "fp32", id=f"{each.id}-fp32") for each in VARIANTS]
    + [pytest.param(method, {}, "bf16", id=f"{method}-bf16") for method in METHODS],
)
def test_the_same_seed_gives_the_same_bits_also_after_a_stop(method, options, precision, tmp_path):
    changes = {"precision": precision, "epochs": 2, "last_batch": "keep", "options": options}
    straight = trainer(method, tmp_path / "straight", **changes)
    straight.run()
    again = trainer(method, tmp_path / "again", **changes)
    again.run()
    assert_same(straight, again)
    if method in TRAINING:
        for step in (2, 6):
            with pytest.raises(StoppedError):
                trainer(method, tmp_path / "stopped", stop_after=step, **changes).run()
        resumed = trainer(method, tmp_path / "stopped", **changes)
        resumed.run()
        assert_same(straight, resumed)


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_begins_with_the_weights_that_it_has_on_the_cpu(method, tmp_path):
    states = [trainer(method, tmp_path, device).method.state_dict() for device in ("cuda", "cpu")]
    assert all(tensor.is_cuda for tensor in states[0].values())
    assert [name for name in states[0] if not torch.equal(states[0][name].cpu(), states[1][name])] == []


@each_variant
def test_a_loss_and_its_gradients_are_the_cpus_but_for_rounding(method, options, tmp_path):
    found, views = {}, []
    for device in ("cpu", "cuda"):
        run = trainer(method, tmp_path, device, options=options)
        run._prepare()
        run.method.before_epoch(0, run._extract)
        run.method.double().train()
        batch = first_batch(run)
        # the same views: where noise is normalised by its batch, a last bit of a view moves gradients by per cents
        views = views or [view.double() for view in batch.views]
        batch = replace(batch, views=[view.to(device) for view in views])
        loss, _ = run.method.loss(run.method.embed(batch), batch)
        loss.backward()
        gradients = [p.grad.flatten().cpu() for p in run.method.parameters() if p.requires_grad]
        found[device] = loss.item(), torch.cat(gradients)
    (on_gpu, gradients), (on_cpu, expected) = found["cuda"], found["cpu"]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5)  # some losses are of single precision inside
    error = float((gradients - expected).norm() / expected.norm())
    assert error < 1e-4, error


@pytest.mark.parametrize("method", TRAINING)
def test_one_process_of_nccl_has_the_bits_of_none(method, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = {"batch": 48, "shards": 2}
    alone = trainer(method, tmp_path / "alone", **changes)
    alone.run()
    try:
        world = connect(0, 1, host="127.0.0.1", port=port, device="cuda")
        run = trainer(method, tmp_path / "connected", world=world, **changes)
        run.run()
    finally:
        leave()
    assert_same(alone, run)


def test_batch_normalisation_over_shards_is_that_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, 3, 3, dtype=torch.float64, generator=generator).cuda()
    g = torch.randn(x.shape, dtype=torch.float64, generator=generator).cuda()
    whole = nn.BatchNorm2d(5).double().cuda()
    expected = whole(x.requires_grad_())
    wanted = torch.autograd.grad(expected, [x, whole.weight, whole.bias], g)
    parts = [part.detach().requires_grad_() for part in x.split(4)]
    mean, var = torch.zeros_like(whole.bias), torch.ones_like(whole.bias)
    weight, bias = (torch.full_like(whole.bias, value).requires_grad_() for value in (1.0, 0.0))
    shards = Shards(3, ALONE)
    found = torch.cat(batch_norm(shards, parts, mean, var, weight=weight, bias=bias, momentum=0.1, eps=whole.eps))
    gradients = torch.autograd.grad(found, [*parts, weight, bias], g)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close((mean, var), (whole.running_mean, whole.running_var))
    torch.testing.assert_close((torch.cat(gradients[:3]), *gradients[3:]), wanted)


# ---- evaluation


def moved(among: EvaluationData, device: str) -> EvaluationData:
    """The data as `bench.evaluate` hands it over: labels on the device, images where they were."""

    def part(given: Labelled) -> Labelled:
        return replace(given, labels=given.labels.to(device))

    targets = {name: moved(target, device) for name, target in among.targets.items()}
    return replace(among, **{key: part(getattr(among, key)) for key in test_evaluators.COUNTS}, targets=targets)


def encoder(device: str) -> Trained:
    made = test_evaluators.trained(3)
    earlier = {epoch: Trained(each.encoder.to(device), device) for epoch, each in made.snapshots.items()}
    return Trained(made.encoder.to(device), device, projector=made.projector.to(device), snapshots=earlier)


@pytest.mark.parametrize("name", EVALUATORS)
def test_a_protocol_gives_the_same_bits_and_the_cpus_numbers(name):
    found = {}
    for device, times in (("cuda", 2), ("cpu", 1)):
        among = moved(test_evaluators.data(3), device)
        results = [test_evaluators.run(name, encoder(device), among) for _ in range(times)]
        for again in results[1:]:
            test_evaluators.assert_equal(results[0], again)
        found[device] = results[0]
    (on_gpu, arrays), (on_cpu, others) = found["cuda"], found["cpu"]
    assert on_gpu.keys() == on_cpu.keys()
    assert {k: (v.shape, v.dtype) for k, v in arrays.items()} == {k: (v.shape, v.dtype) for k, v in others.items()}
    for key, value in on_gpu.items():
        # a query or two of 60 near a border may fall to its other side
        assert value == pytest.approx(on_cpu[key], rel=0.05, abs=2.5 / 60), key


def test_nearest_rows_are_exact_with_ties():
    generator = torch.Generator().manual_seed(0)
    support = torch.randint(-3, 4, (3000, 16), generator=generator).float()
    queries = torch.randint(-3, 4, (500, 16), generator=generator).float()
    on_cpu = nearest_rows(queries, support, 20)
    on_gpu = nearest_rows(queries.cuda(), support.cuda(), 20)
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0])
    torch.testing.assert_close(on_gpu[1].cpu(), on_cpu[1], rtol=0, atol=1e-11)  # rounded to 12 decimals


def test_the_path_of_penalties_ends_at_the_cpus_optimum():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 30, generator=generator)
    y = (x[:, :5] + torch.randn(400, 5, generator=generator)).argmax(1)
    penalties = [100.0, 1.0, 0.01]
    on_cpu = solve_path(x, Softmax(y, 5), penalties, tolerance=1e-10)
    on_gpu = solve_path(x.cuda(), Softmax(y.cuda(), 5), penalties, tolerance=1e-10)
    for a, b in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)


# ---- the machine


def test_the_probe_of_a_gpu_repeats_and_names_it():
    assert probe("cuda") == probe("cuda")
    about = numerics.environment("cuda")
    assert about["gpu"] == torch.cuda.get_device_name()
    assert "gpu" not in numerics.environment("cpu")
