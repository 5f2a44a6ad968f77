"""What every method must do, found or yet to be written: each file in bench/methods is tested here for free."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import params
from bench.checkpoint import Checkpoints
from bench.data.source import ImageSet
from bench.methods import METHODS
from bench.plan import make_plan
from bench.pretrain import Trainer

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = params.load(ROOT / "profiles" / "smoke" / "params.yaml")
TRAINING = [name for name in METHODS if METHODS.component(name).constant("trains", True)]
ROWS, TEST = 300, 60


def images(channels: int, classes: int = 10) -> ImageSet:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (ROWS, 28, 28, channels), dtype=np.uint8)
    return ImageSet(pixels, np.arange(ROWS) % classes, np.arange(ROWS) >= ROWS - TEST, classes)


def config(method: str, seed: int = 0, **changes):
    manifest = {"name": "m", "sha256": "0", "rows": ROWS, "test_rows": TEST, "channels": 1}
    manifests = dict.fromkeys(SETTINGS.datasets, manifest)
    raw = SETTINGS.model_dump(exclude_unset=True)
    raw["data"]["fraction"] = 1.0
    raw["seeds"] = [seed]
    raw["defaults"] |= {"batch": 64, "epochs": 1, "snapshots": [], **changes}
    return make_plan(params.check(raw), manifests).pretrain[method][0].config


def trainer(method: str, folder: Path, channels: int = 1, seed: int = 0, **changes) -> Trainer:
    return Trainer(config(method, seed, **changes), images(channels), Checkpoints(folder))


def test_every_method_is_in_the_smoke_profile_and_the_main_one():
    assert set(METHODS) == set(SETTINGS.methods) == set(params.load(ROOT / "params.yaml").methods)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_from_the_same_encoder(method, tmp_path):
    ours = trainer(method, tmp_path).method.encoder.state_dict()
    initial = trainer("random_init", tmp_path).method.encoder.state_dict()
    assert all(torch.equal(ours[name], initial[name]) for name in initial)
    other = trainer(method, tmp_path, seed=1).method.encoder.state_dict()
    assert not all(torch.equal(ours[name], other[name]) for name in initial)


@pytest.mark.parametrize("method", TRAINING)
def test_methods_that_share_a_recipe_see_the_same_views(method, tmp_path):
    ours, theirs = (trainer(name, tmp_path) for name in (method, TRAINING[0]))
    order = ours._order(3)
    assert np.array_equal(order, theirs._order(3))
    seen = np.zeros(8, dtype=np.int64)
    pairs = zip(*(t._batch(order[:8], seen, 3).views for t in (ours, theirs)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method, channels, tmp_path):
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run = trainer(method, tmp_path / name, channels)
        run.run()
        runs.append(run)
    states = [run.method.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert runs[0].history == runs[1].history
    assert bool(runs[0].history) == runs[0].method.trains


@pytest.mark.parametrize("method", TRAINING)
def test_training_moves_every_parameter_of_the_encoder(method, tmp_path):
    run = trainer(method, tmp_path)
    before = {name: p.clone() for name, p in run.method.encoder.named_parameters()}
    run.run()
    assert all(not torch.equal(p, before[name]) for name, p in run.method.encoder.named_parameters())


@pytest.mark.parametrize("method", TRAINING)
def test_a_step_gives_a_gradient_to_every_parameter_and_to_no_buffer(method, tmp_path):
    run = trainer(method, tmp_path)
    run._prepare()
    run.method.train()
    batch = run._batch(np.arange(16), np.zeros(16, dtype=np.int64), 0)
    loss, logs = run.method.loss(run.method.embed(batch), batch)
    loss.backward()
    assert loss.ndim == 0
    assert all(isinstance(value, float) for value in logs.values())
    assert all(p.grad is not None for p in run.method.parameters() if p.requires_grad)
    assert all(b.grad is None for b in run.method.buffers())


@pytest.mark.parametrize("method", TRAINING)
def test_a_short_last_batch_is_trained_on_where_it_is_kept_but_for_a_single_row(method, tmp_path):
    rows = trainer(method, tmp_path).info.rows  # 216 = 3 x 64 + 24 = 5 x 43 + 1
    steps = {}
    for batch, last in ((64, "keep"), (64, "drop"), (43, "keep")):
        folder = tmp_path / f"{batch}{last}"
        folder.mkdir()
        run = trainer(method, folder, batch=batch, last_batch=last)
        run.run()
        steps[batch, last] = run.steps
    assert rows == 216
    assert steps == {(64, "keep"): 4, (64, "drop"): 3, (43, "keep"): 5}


@pytest.mark.parametrize("method", TRAINING)
def test_rows_embedded_in_one_call_or_in_four_give_the_same_loss_in_eval_mode(method, tmp_path):
    run = trainer(method, tmp_path)
    run.method.eval()
    whole = run._batch(np.arange(32), np.zeros(32, dtype=np.int64), 0)
    parts = [run._batch(rows, np.zeros(8, dtype=np.int64), 0) for rows in np.arange(32).reshape(4, 8)]
    with torch.no_grad():
        together = run.method.embed(whole)
        pieces = [run.method.embed(part) for part in parts]
        gathered = {name: torch.cat([piece[name] for piece in pieces]) for name in together}
        losses = [run.method.loss(e, whole)[0] for e in (together, gathered)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", TRAINING)
def test_at_collapse_the_loss_is_what_the_method_calls_chance(method, tmp_path):
    run = trainer(method, tmp_path)
    run.method.eval()
    batch = run._batch(np.arange(16), np.zeros(16, dtype=np.int64), 0)
    chance = run.method.chance(16)
    if chance is None:
        pytest.skip(f"{method} defines no loss at chance")
    with torch.no_grad():
        collapsed = {name: torch.ones_like(t) for name, t in run.method.embed(batch).items()}
        loss, _ = run.method.loss(collapsed, batch)
    assert loss.item() == pytest.approx(chance, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(tmp_path):
    from bench.pretrain import TrainingError

    run = trainer(
        "simclr", tmp_path, optimizer={"name": "adamw", "lr": 1e30, "weight_decay": 0.0, "decay_norm_bias": False}
    )
    with pytest.raises(
        TrainingError, match=r"at step \d+ of 3 \(epoch 0\), learning rate|not finite after the last step"
    ):
        run.run()
