"""Training in shards: its bits depend on how many there are, never on how many processes share them."""

import hashlib
import json
import multiprocessing
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing import start_processes

from bench import params
from bench.checkpoint import Checkpoints
from bench.distributed.connect import connect, leave
from bench.distributed.sharded import Sharded, ShardsError, embed
from bench.distributed.shards import Shards
from bench.distributed.world import DistributedError, World
from bench.errors import StoppedError
from bench.limits import left_out
from bench.methods.base import Batch, Method
from bench.numerics import require
from bench.params import ParamsError
from bench.plan import make_plan
from bench.pretrain import Trainer, pretrain
from tests.test_methods import ROWS, SETTINGS, TEST, TRAINING, images

ALONE = World.alone()
SHARDS = 4
SIZES = (1, 2, 4)  # of worlds
STEPS, MID_EPOCH = 4, 2
CHANGES = {"batch": 48, "shards": SHARDS}  # of 214 rows: 4 batches, and 22 rows of which four shards can share 20


class Odd(Method):
    """Layers, parameters and look-ups of every other kind, over both views at once."""

    views = 2

    def __init__(self, encoder, rows: int):
        super().__init__(encoder)
        self.shift = nn.Parameter(torch.zeros(encoder.dim))
        self.mix = nn.Sequential(
            nn.Unflatten(1, (8, -1)),
            nn.ConvTranspose1d(8, 4, 3),
            nn.GroupNorm(2, 4),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.LazyLinear(12),
            nn.BatchNorm1d(12, affine=False),
            nn.LayerNorm(12),
        )
        self.mix(torch.ones(2, encoder.dim))
        self.prototypes = nn.Linear(12, 6)
        self.register_buffer("bank", torch.arange(rows * 12).reshape(rows, 12).sin())

    def embed(self, batch):
        h = self.encoder(torch.cat(batch.views)) + self.shift  # (2n, dim)
        z = self.mix(h)
        z[:, 0] *= 0.5
        z1, z2 = z.chunk(2)
        unit_weight = F.normalize(self.prototypes.weight, dim=1)
        neighbours = self.bank[(z1 @ self.bank.mT).topk(2, dim=1).indices].mean(1)
        scores = {"s1": z1 @ unit_weight.mT, "s2": F.dropout(self.prototypes(z2), 0.2, self.training)}
        return scores | {"old": self.bank[batch.index] + neighbours, "z": z1, "rows": batch.index + len(z1) * 0}

    def loss(self, e, batch):
        assert torch.equal(e["rows"], batch.index)
        again = self.prototypes(e["z"])  # a parameter of embed and of the loss
        return (e["s1"] - e["s2"]).square().mean() + (again - 1).square().mean() + (e["z"] * e["old"]).mean(), {}

    def after_step(self, e, batch, progress):
        self.bank[batch.index] = e["z"]


def cell(method: str, **changes):
    raw = SETTINGS.model_dump(exclude_unset=True)
    raw["data"] |= {"fraction": 0.99}
    raw["seeds"] = [0]
    raw["defaults"] |= {"epochs": 1, "snapshots": [], **CHANGES}
    raw["methods"] = {method: raw["methods"][method]}
    raw["training"] = {method: raw["training"].get(method, {}) | changes}
    raw["studies"], raw["tuning"]["trials"] = {}, {}
    manifest = {"name": "m", "sha256": "0", "metric": "top1", "channels": 1, "height": 28, "width": 28}
    manifest |= {"rows": ROWS, "test_rows": TEST}
    return make_plan(params.check(raw), dict.fromkeys(SETTINGS.datasets, manifest)).pretrain[method][0].config


def trainer(method: str, folder: Path, *, stop=lambda run: False, world: World = ALONE, **changes) -> Trainer:
    plain = cell("byol" if method == "odd" else method, **changes)
    run = Trainer(plain, images(1), Checkpoints(folder), stop=lambda: stop(run), world=world)
    if method == "odd":
        torch.manual_seed(0)
        run.method = Odd(run.method.encoder, len(run.ids))
    return run


def digest(run: Trainer) -> str:
    """Of everything that training leaves: each tensor's bits, and the history."""
    found = hashlib.sha256(json.dumps(run.history).encode())
    for name, tensor in run.method.state_dict().items():
        found.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


CASES = {
    **{method: (method, {}) for method in TRAINING},
    **{f"{method} in bf16": (method, {"precision": "bf16"}) for method in ("nnclr", "snclr", "byol")},
    "a short last batch": ("instdisc", {"last_batch": "keep", "epochs": 2}),
    "multi-crop": ("swav", {"recipe": "multi_crop"}),
    "every other layer": ("odd", {"last_batch": "keep"}),
}
FEW = ["nnclr", "byol in bf16", "every other layer"]  # of four processes, but for the slow test
STOPPED = {"nnclr": {"precision": "bf16"}, "odd": {"last_batch": "keep"}}
STRAIGHT = {"nnclr": "nnclr in bf16", "odd": "every other layer"}


def straight(folder: Path, world: World, cases=tuple(CASES)) -> dict[str, str]:
    found = {}
    for name in cases:
        method, changes = CASES[name]
        run = trainer(method, folder, world=world, **changes)
        run.checkpoint_seconds = float("inf")
        run.run()
        found[name] = digest(run)
    return found


def own(folder: Path, world: World) -> Path:
    """The folder itself for rank 0, one inside it for each other process: it is to stay empty."""
    place = folder / f"rank {world.rank}" if world.rank else folder
    place.mkdir(parents=True, exist_ok=True)
    return place


def stopped(folder: Path, world: World) -> None:
    """Stops in mid epoch because the last process alone is asked to; rank 0 leaves its checkpoint."""
    for method, changes in STOPPED.items():

        def stop(run: Trainer) -> bool:
            return run.step == MID_EPOCH and world.rank == world.size - 1

        place = own(folder / method, world)
        with pytest.raises(StoppedError, match=f"step {MID_EPOCH} of"):
            trainer(method, place, stop=stop, world=world, **changes).run()
        assert len(list(place.glob("*.*"))) == (world.rank == 0)


def resumed(folder: Path, world: World) -> dict[str, str]:
    found = {}
    for method, changes in STOPPED.items():
        run = trainer(method, folder / method, world=world, **changes)
        run.checkpoint_seconds = float("inf")
        run.run()
        found[f"resumed {method}"] = digest(run)
    return found


def published(folder: Path, world: World) -> None:
    place = own(folder, world)
    running = own(place / "running", world)
    never = {"report": lambda step, steps: None, "stop": lambda: False}
    pretrain(cell("nnclr", snapshots=[1]), images(1), running, place, checkpoint_seconds=0, world=world, **never)
    assert any(running.glob("*.*")) == any(place.glob("*.*")) == (world.rank == 0)


def meet(rank: int, size: int, port: int) -> World:
    """The world of a process."""
    require("portable", 1, "cpu")
    world = connect(rank, size, host="localhost", port=port, local=rank)
    assert (world.rank, world.size) == (rank, size)
    assert world.gather(torch.tensor([[rank, 7]])).tolist() == [[r, 7] for r in range(size)]
    return world


def work(rank: int, size: int, port: int, folder: Path) -> None:
    """What one process of a world does; it writes down what it found."""
    world = meet(rank, size, port)
    found = straight(folder / "straight", world, list(CASES) if size == 2 else FEW)
    stopped(folder / f"stopped by {size}", world)
    found |= resumed(folder / f"stopped by {SIZES[SIZES.index(size) - 1]}", world)
    published(folder / f"published by {size}", world)
    run = trainer("simclr", folder, world=world)
    run.method.projector[0].weight.data[0, 0] += rank * 1e-3
    with pytest.raises(DistributedError, match=r"disagree about the state they start from.*one kind"):
        run.run()
    if (rank, size) == (0, 2):
        with pytest.raises(DistributedError, match="rank 0 of 2 lost the others"):
            world.any(True)  # the other one has left
    leave()
    (folder / f"{size}-{rank}.json").write_text(json.dumps(found))


def work_straight(rank: int, size: int, port: int, folder: Path) -> None:
    """All cases on as many processes as there are shards."""
    found = straight(folder, meet(rank, size, port))
    leave()
    (folder / f"{rank}.json").write_text(json.dumps(found))


def start(does, size: int, folder: Path) -> None:
    """Run the processes of a world to their end."""
    multiprocessing.set_forkserver_preload([__name__])  # torch is imported once for all
    start_processes(does, (size, free_port(), folder), nprocs=size, start_method="forkserver")


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What every process of every world found, by world size and rank."""
    folder = tmp_path_factory.mktemp("worlds")
    (folder / "straight").mkdir()
    alone = straight(folder / "straight", ALONE)
    stopped(folder / "stopped by 1", ALONE)
    published(folder / "published by 1", ALONE)
    for size in SIZES[1:]:
        start(work, size, folder)
    alone |= resumed(folder / f"stopped by {SIZES[-1]}", ALONE)
    others = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    files = [{f.name: f.read_bytes() for f in (folder / f"published by {n}").glob("*.*")} for n in SIZES]
    return {"1-0": alone, "files": files} | others


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_the_same_whatever_the_number_of_processes(found, case):
    ranks = [rank for rank, told in found.items() if case in told]
    assert len(ranks) == (7 if case in FEW else 3)
    assert {rank: found[rank][case] for rank in ranks} == dict.fromkeys(ranks, found["1-0"][case])


@pytest.mark.parametrize("method", STOPPED)
def test_resumed_with_another_number_of_processes_the_bits_stay(found, method):
    ranks = ["1-0", "2-0", "2-1", "4-0", "4-1", "4-2", "4-3"]
    assert [found[rank][f"resumed {method}"] for rank in ranks] == [found["1-0"][STRAIGHT[method]]] * len(ranks)


@pytest.mark.slow
def test_a_process_for_each_shard_gives_the_same_bits(found, tmp_path):
    start(work_straight, SHARDS, tmp_path)
    expected = {case: found["1-0"][case] for case in CASES}
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(SHARDS)] == [expected] * SHARDS


def test_the_published_files_are_the_same_whatever_the_number_of_processes(found):
    alone, *others = found["files"]
    assert {"method.safetensors", "history.jsonl", "views.safetensors", "snapshot-00001.safetensors"} <= set(alone)
    assert all(other == alone for other in others)


def first_step(method: str, folder: Path, shards: int):
    """Loss, gradients and state of a first step in double precision."""
    run = trainer(method, folder, shards=shards)
    run._prepare()
    run.method.double().train()
    batch = run._batch(run._order(0)[:48], run._order(0)[:48] * 0, 0)
    views = [Sharded([p.double() for p in v.parts]) if shards > 1 else v.double() for v in batch.views]
    batch = replace(batch, views=views)
    e = run._embed(batch)
    loss, _ = run.method.loss(e, batch)
    loss.backward()
    gradients = {name: p.grad for name, p in run.method.named_parameters() if p.grad is not None}
    return loss, gradients, run.method.state_dict()


@pytest.mark.parametrize("method", TRAINING)
def test_shards_change_no_more_than_the_last_bits(method, tmp_path):
    ours, theirs = (first_step(method, tmp_path, shards) for shards in (SHARDS, 1))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0)
    for mine, plain in zip(ours[1:], theirs[1:], strict=True):
        assert mine.keys() == plain.keys()
        for name in plain:
            scale = plain[name].abs().max().item()
            torch.testing.assert_close(mine[name], plain[name], rtol=1e-9, atol=1e-9 * scale + 1e-14, msg=name)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(24, 6), (24, 6, 5, 5)])
def test_batch_normalisation_is_torchs_over_all_rows(shape, affine, kind):
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(6, affine=affine)
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    torch.manual_seed(0)
    x, g = ((100 + torch.randn(shape)).to(kind), torch.randn(shape).to(kind))
    found = []
    for shards in (1, 3):
        layer.reset_running_stats()
        layer.zero_grad()
        rows = x.clone().requires_grad_()
        y = normalised(layer, rows, shards)
        y.backward(g)
        own = [p.grad.clone() for p in layer.parameters()]
        found.append([y, rows.grad, *own, layer.running_mean.clone(), layer.running_var.clone()])
    close = {"rtol": 1e-3, "atol": 1e-3} if kind == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    for plain, ours in zip(*found, strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, **close)


class Bare(Method):
    """A method that is what it is given."""

    def __init__(self, does):
        nn.Module.__init__(self)
        self.does = does
        self.register_buffer("seen", torch.zeros(3))

    def embed(self, batch):
        return self.does(self, batch)

    def loss(self, e, batch):
        raise AssertionError


def embedded(method: Method, x: torch.Tensor, shards: int, seed=lambda shard, draw: 10 * shard + draw):
    cut = Shards(shards, ALONE)
    index = torch.arange(len(x))
    views = [Sharded([x[c] for c in cut.cuts(len(x))])]
    return embed(cut, method, Batch(views, index, index, index, 0, 0), seed)


def normalised(layer: nn.Module, x: torch.Tensor, shards: int) -> torch.Tensor:
    if shards == 1:
        return layer(x)
    return embedded(Bare(lambda self, batch: {"y": layer(batch.views[0])}), x, shards)["y"]


def test_each_shard_draws_dropout_from_an_address_of_its_own():
    def twice(self, batch):
        return {"first": F.dropout(batch.views[0]), "second": F.dropout(batch.views[0])}

    before = torch.get_rng_state()
    e = embedded(Bare(twice), torch.ones(6, 50), 3)
    blocks = [block for x in e.values() for block in x.chunk(3)]
    assert len({tuple(block.flatten().tolist()) for block in blocks}) == 6
    torch.manual_seed(10)
    expected = F.dropout(torch.ones(2, 50))
    assert torch.equal(blocks[1], expected)
    torch.set_rng_state(before)


def test_one_shard_runs_as_if_there_were_none(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.pretrain.embed", None)
    run = trainer("nnclr", tmp_path, shards=1)
    run.run()
    assert type(run._batch(run._order(0)[:48], run._order(0)[:48] * 0, 0).views[0]) is torch.Tensor


REFUSED = {
    "a number of all rows": (lambda self, b: {"z": b.views[0] * b.views[0].sum().item()}, "item in embed"),
    "a choice by rows": (lambda self, b: {"z": b.views[0]} if (b.views[0] > 0).all() else {}, "__bool__ in embed"),
    "other random numbers": (lambda self, b: {"z": b.views[0] + torch.rand_like(b.views[0])}, "Bare.embed draws"),
    "shared state": (lambda self, b: {"z": self.seen.add_(b.views[0].sum(0))}, "add_ in embed changes a tensor"),
    "no row": (lambda self, b: {"z": self.seen}, "Bare.embed: z does not depend on the batch"),
    "another number of rows": (lambda self, b: {"z": torch.cat([b.views[0]] * 2)}, r"z is \(4, 3\) for 2 images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_for_some_of_the_rows_is_refused(name):
    does, message = REFUSED[name]
    with pytest.raises(ShardsError, match=message):
        embedded(Bare(does), torch.ones(4, 3), 2)


def test_views_in_shards_are_for_embed_alone():
    with pytest.raises(ShardsError, match="add of rows that are cut into shards: outside of embed"):
        Sharded([torch.ones(2, 3)]) + 1


@pytest.mark.parametrize(("shards", "batch"), [(3, 64), (64, 64), (128, 64)])
def test_shards_that_cannot_share_a_batch_evenly_are_refused(shards, batch):
    raw = SETTINGS.model_dump(exclude_unset=True)
    raw["training"]["byol"] = {"batch": batch, "shards": shards}
    with pytest.raises(ParamsError, match=f"training.byol.shards: {shards} cannot share a batch of 64.*divisor of 64"):
        params.check(raw)


def test_rows_that_shards_cannot_share_evenly_are_named():
    raw = SETTINGS.model_dump(exclude_unset=True)
    raw["training"]["byol"] = {"batch": 32, "shards": 4, "last_batch": "keep"}
    settings = params.check(raw)
    manifest = {"name": "mnist", "rows": 5000, "test_rows": 1000 - 60}  # 365 for training
    assert left_out(settings, dict.fromkeys(settings.datasets, manifest)) == [
        "byol: 365 training images in batches of 32 leave 13, which 4 shards cannot share evenly; the last 1 of each "
        "epoch's order are left out"
    ]


def test_a_short_last_batch_gives_each_shard_as_many_rows(tmp_path):
    run = trainer("simclr", tmp_path, last_batch="keep")
    run.run()
    assert run.steps == STEPS + 1
    assert run.per_epoch_rows == 212


def test_processes_that_cannot_share_the_shards_evenly_are_refused(tmp_path):
    with pytest.raises(DistributedError, match=r"3 processes cannot share 4 shards evenly.*multiple of 3"):
        trainer("simclr", tmp_path, world=World(0, 3))


def test_a_method_that_does_not_train_runs_in_any_world(tmp_path):
    trainer("random_init", tmp_path, world=World(1, 3)).run()


def test_waiting_for_a_process_that_never_comes_ends():
    with pytest.raises(DistributedError, match="rank 1 of 2 did not find the others at localhost"):
        connect(1, 2, host="localhost", port=free_port(), meeting=timedelta(seconds=1))
