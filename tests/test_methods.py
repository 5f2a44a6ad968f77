"""What every method must do, found or yet to be written: each file in bench/methods is tested here for free."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Interval, Le

from bench import params
from bench.checkpoint import Checkpoints
from bench.data.source import ImageSet
from bench.methods import METHODS
from bench.params import options_model
from bench.plan import make_plan
from bench.pretrain import Trainer
from bench.support import MemoryBank, SupportSet

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = params.load(ROOT / "profiles" / "smoke" / "params.yaml")
TRAINING = [name for name in METHODS if METHODS.component(name).constant("trains", True)]
ROWS, TEST = 300, 60
PAST = {SupportSet: ["ring"], MemoryBank: ["rows"]}  # where methods keep past embeddings


def images(channels: int, classes: int = 10) -> ImageSet:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (ROWS, 28, 28, channels), dtype=np.uint8)
    return ImageSet(pixels, np.arange(ROWS) % classes, np.arange(ROWS) >= ROWS - TEST, classes)


# Values of numbers that switch something off or on; those of options with a few values are found in their types.
NUMBERS = {
    "instdisc": [{"bank_momentum": 0.0}, {"proximal": 0.0}, {"softmax": "parametric", "head": "mlp"}],
    "deepcluster": [{"interval": 2}],
    "swav": [{"queue_size": 0}, {"iterations": 0}, {"freeze_steps": 0}],
    "barlow_twins": [{"weight": 0.0}],
    "nnclr": [{"k": 4}, {"positive": "oracle", "k": 3}, {"momentum": 0.9, "refresh": True}],
    "snclr": [{"k": 0}, {"k": 0, "momentum": None}, {"k": 96}],
}


def values(method: str, option: str) -> list:
    """Those an option may take, where they are few: names, true or false, and null or a number."""
    kind = METHODS.component(method).option_types()[option]
    if kind is bool:
        return [False, True]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [None, 0.9] if type(None) in get_args(kind) else []


def variants():
    """Every training method as the profile has it, then with every other value of an option."""
    for method in TRAINING:
        given = SETTINGS.methods[method]
        others = [{o: v} for o in given for v in values(method, o) if v != given[o]]
        for options in [{}, *others, *NUMBERS.get(method, [])]:
            yield pytest.param(method, options, id="-".join([method, *(f"{o}={v}" for o, v in options.items())]))


VARIANTS = list(variants())
each_variant = pytest.mark.parametrize(("method", "options"), VARIANTS)


def config(method: str, seed: int = 0, options: dict | None = None, **changes):
    manifest = {"name": "m", "sha256": "0", "metric": "top1", "channels": 1, "height": 28, "width": 28}
    manifest |= {"rows": ROWS, "test_rows": TEST}
    manifests = dict.fromkeys(SETTINGS.datasets, manifest)
    raw = SETTINGS.model_dump(exclude_unset=True)
    raw["data"]["fraction"] = 1.0
    raw["seeds"] = [seed]
    raw["methods"][method] |= options or {}
    raw["defaults"] |= {"batch": 64, "epochs": 1, "snapshots": [], **changes}
    return make_plan(params.check(raw), manifests).pretrain[method][0].config


def trainer(
    method: str, folder: Path, channels: int = 1, seed: int = 0, options: dict | None = None, **changes
) -> Trainer:
    return Trainer(config(method, seed, options, **changes), images(channels), Checkpoints(folder))


def first_batch(run: Trainer, rows: int = 16):
    return run._batch(np.arange(rows), np.zeros(rows, dtype=np.int64), 0)


def test_every_method_is_in_the_smoke_profile():
    assert set(METHODS) == set(SETTINGS.methods)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_from_the_same_encoder(method, tmp_path):
    ours = trainer(method, tmp_path).method.encoder.state_dict()
    initial = trainer("random_init", tmp_path).method.encoder.state_dict()
    assert all(torch.equal(ours[name], initial[name]) for name in initial)
    other = trainer(method, tmp_path, seed=1).method.encoder.state_dict()
    assert not all(torch.equal(ours[name], other[name]) for name in initial)


@pytest.mark.parametrize("method", TRAINING)
def test_methods_that_share_a_recipe_see_the_same_views(method, tmp_path):
    recipe = SETTINGS.training_of(method).recipe
    other = next(name for name in reversed(TRAINING) if SETTINGS.training_of(name).recipe == recipe)
    ours, theirs = (trainer(name, tmp_path) for name in (method, other))
    orders = [t._order(3) for t in (ours, theirs) if t.method.order(3) is None]
    assert all(np.array_equal(order, orders[0]) for order in orders)
    rows, seen = np.arange(100, 108), np.zeros(8, dtype=np.int64)
    pairs = zip(*(t._batch(rows, seen, 3).views for t in (ours, theirs)), strict=True)
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


@each_variant
def test_training_moves_every_parameter_of_the_encoder(method, options, tmp_path):
    run = trainer(method, tmp_path, options=options)
    before = {name: p.clone() for name, p in run.method.encoder.named_parameters()}
    run.run()
    assert all(not torch.equal(p, before[name]) for name, p in run.method.encoder.named_parameters())


@each_variant
def test_a_gradient_reaches_every_trained_parameter_and_no_momentum_branch_or_buffer(method, options, tmp_path):
    run = trainer(method, tmp_path, options=options)
    run._prepare()
    run.method.train()
    batch = first_batch(run)
    loss, logs = run.method.loss(run.method.embed(batch), batch)
    loss.backward()
    assert loss.ndim == 0
    assert all(isinstance(value, float) for value in logs.values())
    assert all((p.grad is not None) == p.requires_grad for p in run.method.parameters())
    assert all(p.grad.abs().sum() > 0 for p in run.method.encoder.parameters())
    assert all(b.grad is None for b in run.method.buffers())
    moved = {name for group in run.method.parameter_groups() for name in group.names}
    assert moved == {name for name, p in run.method.named_parameters() if p.requires_grad}


@each_variant
def test_computing_the_loss_changes_no_state_but_batch_statistics(method, options, tmp_path):
    run = trainer(method, tmp_path, options=options)
    run.method.eval()
    before = {name: t.clone() for name, t in run.method.state_dict().items()}
    batch = first_batch(run)
    values = [run.method.loss(run.method.embed(batch), batch)[0].item() for _ in range(2)]
    assert values[0] == values[1]
    assert all(torch.equal(t, before[name]) for name, t in run.method.state_dict().items())


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


@each_variant
def test_rows_embedded_in_one_call_or_in_four_give_the_same_loss_in_eval_mode(method, options, tmp_path):
    run = trainer(method, tmp_path, options=options)
    run.method.eval()
    whole = run._batch(np.arange(32), np.zeros(32, dtype=np.int64), 0)
    parts = [run._batch(rows, np.zeros(8, dtype=np.int64), 0) for rows in np.arange(32).reshape(4, 8)]
    with torch.no_grad():
        together = run.method.embed(whole)
        pieces = [run.method.embed(part) for part in parts]
        gathered = {name: torch.cat([piece[name] for piece in pieces]) for name in together}
        losses = [run.method.loss(e, whole)[0] for e in (together, gathered)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


@each_variant
def test_at_collapse_the_loss_is_what_the_method_calls_chance(method, options, tmp_path):
    run = trainer(method, tmp_path, options=options)
    run.method.eval()
    batch = first_batch(run)
    for module in run.method.modules():  # what was embedded before has collapsed as well
        for rows in [getattr(module, name) for name in PAST.get(type(module), [])]:
            rows.fill_(rows.shape[1] ** -0.5)
    chance = run.method.chance(16)
    if chance is None:
        pytest.skip(f"{method} defines no loss at chance")
    with torch.no_grad():
        collapsed = {name: torch.ones_like(t) for name, t in run.method.embed(batch).items()}
        loss, _ = run.method.loss(collapsed, batch)
    assert loss.item() == pytest.approx(chance, rel=1e-5)


SYMMETRIC = ("simclr", "nnclr", "byol", "simsiam", "barlow_twins", "swav", "snclr")  # MoCo has one direction


@pytest.mark.parametrize(("method", "options"), [each for each in VARIANTS if each.values[0] in SYMMETRIC])
def test_a_symmetrised_loss_does_not_tell_the_two_global_views_apart(method, options, tmp_path):
    run = trainer(method, tmp_path, options=options)
    run.method.eval()
    batch = first_batch(run)
    swapped = replace(batch, views=[batch.views[1], batch.views[0], *batch.views[2:]])
    losses = [run.method.loss(run.method.embed(each), each)[0] for each in (batch, swapped)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


class Killed(Exception):
    """Stands for a signal."""


@pytest.mark.parametrize(
    ("method", "options", "precision"),
    [pytest.param(*each.values, "fp32", id=f"{each.id}-fp32") for each in VARIANTS]
    + [pytest.param(method, {}, "bf16", id=f"{method}-bf16") for method in TRAINING],
)
def test_killed_and_resumed_in_mid_epoch_equals_a_straight_run_bit_for_bit(method, options, precision, tmp_path):
    changes = {"epochs": 2, "last_batch": "keep", "precision": precision, "options": options}
    straight = trainer(method, tmp_path / "straight", **changes)
    straight.run()
    assert (straight.per_epoch, straight.steps) == (4, 8)
    for stop in (2, 6):  # inside the first epoch and inside the second

        def kill(step, steps, stop=stop):
            if step == stop:
                raise Killed

        killed = trainer(method, tmp_path / "killed", **changes)
        killed.checkpoint_seconds, killed.report = 0.0, kill
        with pytest.raises(Killed):
            killed.run()
    resumed = trainer(method, tmp_path / "killed", **changes)
    resumed.run()
    whole, again = straight.method.state_dict(), resumed.method.state_dict()
    assert whole.keys() == again.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    assert resumed.history == straight.history
    assert resumed.flops_between == straight.flops_between


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_option_and_a_missing_one_are_errors_at_start(method):
    raw = SETTINGS.model_dump(exclude_unset=True)
    raw["methods"][method]["unheard_of"] = 1
    with pytest.raises(params.ParamsError, match=rf"methods\.{method}\.unheard_of: unknown key"):
        params.check(raw)
    for option in SETTINGS.methods[method]:
        raw = SETTINGS.model_dump(exclude_unset=True)
        del raw["methods"][method][option]
        with pytest.raises(params.ParamsError, match=rf"methods\.{method}\.{option}: missing"):
            params.check(raw)


def bounds():
    """Every option of every method with a bound, and a value just outside."""
    for method in METHODS:
        for option, field in options_model(METHODS.component(method)).model_fields.items():
            optional = [m for kind in get_args(field.annotation) for m in getattr(kind, "__metadata__", ())]
            marks = [
                m for mark in (*field.metadata, *optional) for m in (mark if isinstance(mark, Interval) else [mark])
            ]
            for mark in marks:
                if isinstance(mark, Gt):
                    yield method, option, mark.gt
                if isinstance(mark, Ge):
                    yield method, option, mark.ge - 1
                if isinstance(mark, Le):
                    yield method, option, mark.le + 0.5


@pytest.mark.parametrize(("method", "option", "value"), list(bounds()))
def test_a_value_outside_an_options_bounds_is_refused_at_start(method, option, value):
    raw = SETTINGS.model_dump(exclude_unset=True)
    raw["methods"][method][option] = value
    with pytest.raises(params.ParamsError, match=rf"methods\.{method}\.{option}: .*\(given {value}"):
        params.check(raw)


def test_temperatures_momenta_and_counts_are_bounded():
    bounded = {(method, option) for method, option, _ in bounds()}
    numbers = {"temperature", "momentum", "bank_momentum", "negatives", "clusters", "k", "dim"}
    wanted = {(m, o) for m in METHODS for o in options_model(METHODS.component(m)).model_fields if o in numbers}
    assert wanted <= bounded


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(tmp_path):
    from bench.pretrain import TrainingError

    run = trainer(
        "simclr", tmp_path, optimizer={"name": "adamw", "lr": 1e30, "weight_decay": 0.0, "decay_norm_bias": False}
    )
    with pytest.raises(
        TrainingError, match=r"at step \d+ of 3 \(epoch 0\), learning rate|not finite after the last step"
    ):
        run.run()


SOURCES = ("weights", "order", "crops", "colours", "draws")


def first_steps(folder, sources: dict[str, int]) -> dict:
    """What each source decides: weights, order, views and what the method draws."""
    run = trainer("instdisc", folder, sources=sources)
    batch = first_batch(run)
    weights = run.method.encoder.state_dict()
    return {
        "weights": torch.cat([t.flatten().double() for t in weights.values()]),
        "order": torch.from_numpy(run._order(0)),
        "views": batch.views[0],
        "draws": run.method._draw(batch),
        "bank": run.method.bank.rows,
    }


def test_a_seed_for_every_source_gives_the_cell_of_that_seed_bit_for_bit(tmp_path):
    whole = trainer("nnclr", tmp_path / "a", seed=7)
    apart = trainer("nnclr", tmp_path / "b", seed=0, sources=dict.fromkeys(SOURCES, 7))
    for run in (whole, apart):
        run.run()
    states = [run.method.state_dict() for run in (whole, apart)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.history == apart.history


@pytest.mark.parametrize(
    ("source", "moved"),
    [("weights", {"weights"}), ("order", {"order"}), ("crops", {"views"}), ("colours", {"views"}),
     ("draws", {"draws", "bank"})],
)  # fmt: skip
def test_a_source_of_its_own_moves_what_it_decides_and_nothing_else(source, moved, tmp_path):
    usual, other = first_steps(tmp_path / "a", {}), first_steps(tmp_path / "b", {source: 7})
    assert {name for name in usual if not torch.equal(usual[name], other[name])} == moved


def test_crops_of_their_own_leave_the_colours_and_the_other_way_round(tmp_path):
    """Jitter alone shows the same whatever the crops' seed; a crop alone whatever the colours'."""
    for source, other in (("crops", "colours"), ("colours", "crops")):
        ops = {"crops": {"crop": {"scale": [0.2, 1.0], "ratio": [0.75, 1.33]}},
               "colours": {"jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.0, "hue": 0.0, "p": 1.0}}}  # fmt: skip
        shown = []
        for i, sources in enumerate(({}, {source: 7})):
            run = trainer("instdisc", tmp_path / f"{source}{i}", sources=sources)
            run.training["recipe"]["views"][0]["ops"] = [ops[other]]
            shown.append(first_batch(run).views[0])
        assert torch.equal(*shown), source


def test_the_history_has_how_far_the_loss_swings_from_step_to_step(tmp_path):
    run, losses = trainer("simclr", tmp_path, epochs=2), []
    step = run._run_step

    def noted(batch):
        before = run.sums.get("loss", 0.0)
        step(batch)
        losses.append(run.sums["loss"] - before)

    run._run_step = noted
    run.run()
    assert len(losses) == 6
    for epoch, line in enumerate(run.history):
        steps = range(max(1, 3 * epoch), 3 * epoch + 3)  # the first step has none before it
        assert line["loss_swing"] == pytest.approx(sum(abs(losses[i] - losses[i - 1]) for i in steps) / 3)
