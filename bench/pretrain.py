"""The trainer: one pretraining cell from its config, resumable at any step with the same bits."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.augment import GEOMETRY, make_views
from bench.build import build_method, seed_of, training_info
from bench.checkpoint import (
    Checkpoint,
    Checkpoints,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
)
from bench.cores import cores
from bench.cost import counting
from bench.data.source import DataError, ImageSet
from bench.data.splits import split
from bench.distributed.sharded import Sharded, embed
from bench.distributed.shards import Shards
from bench.distributed.world import World
from bench.draws import seed_torch
from bench.errors import BenchError, StoppedError
from bench.features import BATCH, STATE, extract
from bench.files import write_json, write_text
from bench.methods.base import Batch, Progress
from bench.optim import build, drop_frozen_gradients, learning_rate, scaled, set_learning_rate
from bench.random import Address, derive, permutation

ALONE = World.alone()
ONE_KIND = "their machines compute differently; use nodes of one kind, with the same packages"
Report = Callable[[int, int], None]
Item = TypeVar("Item")
Made = TypeVar("Made")


class TrainingError(BenchError, RuntimeError):
    """Training that cannot go on; says at which step and learning rate."""


class Trainer:
    """Trains one cell.

    Args:
        config: the cell's config, as the plan writes it.
        images: the image set.
        checkpoints: where the run's state is kept, and resumed from.
        checkpoint_seconds: how often; 0 is after every step.
        report: called with (steps done, steps) as training goes on.
        stop: asked after every step; once it says so, to any of the processes, the state is saved and training ends
            with StoppedError.
        world: the processes that train the cell together; rank 0 alone writes and reports.

    Raises:
        DistributedError: the processes cannot share the cell's shards.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        images: ImageSet,
        checkpoints: Checkpoints,
        *,
        checkpoint_seconds: float = 60.0,
        report: Report = lambda step, steps: None,
        stop: Callable[[], bool] = lambda: False,
        world: World = ALONE,
    ):
        self.config, self.checkpoints, self.report, self.stop = config, checkpoints, report, stop
        self.training = config["training"] or {}
        self.world = world
        self.shards = Shards(self.training.get("shards", world.size), world)  # a method that does not train has none
        self.checkpoint_seconds = checkpoint_seconds
        data = config["data"]
        self.ids = split(images, validation=data["validation"], fraction=data["fraction"]).train
        self.source = images.images  # mapped from disk: its rows are read as they are wanted, never all copied
        self.labels = torch.from_numpy(images.labels[self.ids])
        self.info = training_info(images, len(self.ids), self.labels)
        self.method = build_method(config, self.info)
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.last_loss: float | None = None
        self.flops_between = 0  # epochs: of clusterings and the like
        self.step = 0

    def run(self) -> None:
        """Train to the end, from the newest checkpoint where there is one.

        Raises:
            TrainingError: the loss is not finite.
            DataError: fewer images than a batch.
            StoppedError: `stop` said so.
            DistributedError: a process is gone, or its machine computes differently.
        """
        if not self.method.trains:
            return
        self._prepare()
        saved = self.checkpoints.newest()
        if saved is not None:
            self._restore(saved)
        self.world.demand_equal("the step to go on from", self.step, "put the store where all nodes see the same files")
        self.world.demand_same("the state they start from", self.method.state_dict(), ONE_KIND)
        self._last_saved = time.monotonic()
        while self.step < self.steps:
            self._run_epoch(*divmod(self.step, self.per_epoch))
        self.world.demand_same("the state they end with", self.method.state_dict(), ONE_KIND)
        # a loss is checked before its step, so what the last step did is checked here
        broken = [n for n, t in self.method.state_dict().items() if not t.isfinite().all()]
        if broken:
            raise TrainingError(f"{broken[0]} is not finite after the last step, {self.steps}; lower the lr")

    def _prepare(self) -> None:
        batch, rows, keep = (
            self.training["batch"],
            self.info.rows,
            self.training["last_batch"] == "keep",
        )
        if rows < batch and not keep:
            raise DataError(f"batch: {batch} is more than the {rows} training images; lower it")
        # a last batch of one row has no batch statistics, so it is left out even where short ones stay; rows that
        # the shards cannot share evenly are left out of it
        short = self.shards.usable(rows % batch)
        self.per_epoch = rows // batch + (keep and short > 1)
        self.per_epoch_rows = rows - rows % batch + short
        self.steps = self.per_epoch * self.training["epochs"]
        self.optimizer = build(self.method, self.method.parameter_groups(), self.training["optimizer"])

    def _run_epoch(self, epoch: int, done: int) -> None:
        if done == 0:
            with counting() as flops:
                self.method.before_epoch(epoch, self._extract)
            self.flops_between += flops.count
            for module in self.method.resets(epoch):
                for p in module.parameters():
                    self.optimizer.state.pop(p, None)
            self.sums = {}
        self.method.train()
        rows = self._order(epoch)
        seen = _occurrences(rows)
        size = self.training["batch"]

        def batch(position: int) -> Batch:
            chosen = slice(position * size, min((position + 1) * size, self.per_epoch_rows))
            return self._batch(rows[chosen], seen[chosen], epoch, epoch * self.per_epoch + position)

        shown = ahead if self._leaves_a_core() else each
        for position, made in shown(batch, range(done, self.per_epoch)):
            self._run_step(made)
            del made  # its views, before the next step begins
            if position + 1 == self.per_epoch:
                self._close_epoch(epoch)
            self._maybe_save()
            if self.world.rank == 0:
                self.report(self.step, self.steps)

    def _leaves_a_core(self) -> bool:
        """Whether a step leaves a core to make views on: without one, making them would hold up all its threads."""
        return self.config["device"] != "cpu" or torch.get_num_threads() < cores()

    def _order(self, epoch: int) -> NDArray[np.int64]:
        own = self.method.order(epoch)
        if own is not None:
            if len(own) != self.info.rows:
                raise ValueError(f"an order wants {self.info.rows} rows, not {len(own)}")
            return own.cpu().numpy()
        return permutation(seed_of(self.config, "order"), "order", self.ids, epoch)

    def _batch(self, rows: NDArray[np.int64], seen: NDArray[np.int64], epoch: int, step: int = 0) -> Batch:
        # each shard in memory of its own, whatever else this process holds: where rows lie may choose a kernel
        parts = [self._views(rows[cut], seen[cut], epoch) for cut in self.shards.cuts(len(rows))]
        sharded = self.shards.count > 1
        views = [Sharded(list(view)) for view in zip(*parts, strict=True)] if sharded else parts[0]
        return self._labelled(views, rows, seen, epoch, step)

    def _labelled(
        self, views: Sequence[Tensor], rows: NDArray[np.int64], seen: NDArray[np.int64], epoch: int, step: int
    ) -> Batch:
        device, index = self.config["device"], torch.from_numpy(rows)
        return Batch(
            views=list(views),
            index=index.to(device),
            labels=self.labels[index].to(device),
            occurrence=torch.from_numpy(seen).to(device),
            epoch=epoch,
            step=step,
        )

    def _pixels(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.source[self.ids[rows]])

    def _extract(self, module: nn.Module) -> Tensor:
        """Features (N, d) of the clean training images."""
        rows = np.arange(len(self.ids))
        starts = range(0, len(rows), BATCH)
        return torch.cat([extract(module, self._pixels(rows[i : i + BATCH])) for i in starts])

    def _views(self, rows: NDArray[np.int64], seen: NDArray[np.int64], epoch: int) -> list[Tensor]:
        crops, colours = seed_of(self.config, "crops"), seed_of(self.config, "colours")
        address = Address(colours, "views", self.ids[rows], epoch, seen, seeds=dict.fromkeys(GEOMETRY, crops))
        views = make_views(self.training["recipe"], self._pixels(rows), address)
        return [view.to(self.config["device"]) for view in views]

    def _embed(self, batch: Batch) -> dict[str, Tensor]:
        seed = partial(derive, self.config["seed"], "torch", self.step)  # of a shard
        seed_torch(seed(0))
        half = self.training["precision"] == "bf16"
        with torch.autocast(torch.device(self.config["device"]).type, torch.bfloat16, enabled=half):
            return self.method.embed(batch) if self.shards.count == 1 else embed(self.shards, self.method, batch, seed)

    def _run_step(self, batch: Batch) -> None:
        rate = self._rate()
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()  # before the activations are made: they take the gradients' place
        e = self._embed(batch)
        loss, logs = self.method.loss(e, batch)
        value = loss.item()
        self.world.demand_equal(f"the loss at step {self.step}", value, ONE_KIND)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step} of {self.steps} (epoch {batch.epoch}), "
                f"learning rate {rate:g}; lower training's lr or lengthen its warmup"
            )
        loss.backward()
        drop_frozen_gradients(self.optimizer, self.step)
        self.optimizer.step()
        detached = {name: tensor.detach() for name, tensor in e.items()}
        self.method.after_step(detached, batch, Progress(self.step, self.steps, batch.epoch))
        swing = 0.0 if self.last_loss is None else abs(value - self.last_loss)
        self.last_loss = value
        for name, number in {"loss": value, "loss_swing": swing, "lr": rate, **logs}.items():
            self.sums[name] = self.sums.get(name, 0.0) + number
        self.step += 1

    def _rate(self) -> float:
        optimizer, schedule = self.training["optimizer"], self.training["schedule"]
        return learning_rate(
            self.step,
            base=scaled(optimizer["lr"], optimizer["scaling"], self.training["batch"]),
            steps=self.steps,
            warmup=schedule["warmup"] * self.per_epoch,
            decay=schedule["decay"],
            warmup_from=schedule["warmup_from"],
            end=schedule["end"] or 0.0,
            milestones=[epoch * self.per_epoch for epoch in schedule["milestones"] or []],
            factor=schedule["factor"] or 1.0,
        )

    def _close_epoch(self, epoch: int) -> None:
        line: dict[str, float] = {"epoch": epoch + 1, "step": self.step}
        line |= {name: total / self.per_epoch for name, total in self.sums.items()}
        chance = self.method.chance(self.training["batch"])
        self.history.append(line if chance is None else line | {"chance": chance})
        if epoch + 1 in self.training["snapshots"] and self.world.rank == 0:
            save_tensors(self.snapshot_path(epoch + 1), self.method.state_dict())

    def gallery(self, count: int) -> dict[str, Tensor]:
        """Images evenly spaced over the training subset and their views in epoch 0, (n, h, w, c) bytes."""
        rows = np.arange(count) * len(self.ids) // count
        shown = self._views(rows, np.zeros(count, dtype=np.int64), 0)
        views = {f"view{i}": (x.permute(0, 2, 3, 1) * 255).round().byte() for i, x in enumerate(shown)}
        return {"image": self._pixels(rows), **views}

    def cost(self) -> dict[str, int]:
        """What the whole training and its use cost, counted; changes batch statistics.

        `flops` of training and the `images` it shows; the `representation_bytes` of an image's h, the
        `embedding_bytes` of its z (h where nothing is projected), and the `search_flops` of one query's products with
        the embeddings of all training images.
        """
        projector = getattr(self.method, "projector", None) or nn.Identity()
        image = self._pixels(np.arange(1))
        h, z = (extract(m, image) for m in (self.method.encoder, nn.Sequential(self.method.encoder, projector)))
        use = {
            "representation_bytes": h.shape[1] * h.element_size(),
            "embedding_bytes": z.shape[1] * z.element_size(),
            "search_flops": 2 * z.shape[1] * len(self.ids),
        }
        if not self.method.trains:
            return {"flops": 0, "images": 0, **use}
        rows = np.arange(self.training["batch"])
        seen = np.zeros_like(rows)
        batch = self._labelled(self._views(rows, seen, 0), rows, seen, 0, 0)
        self.method.train()
        with counting() as step:
            self.method.loss(self.method.embed(batch), batch)[0].backward()
        return {"flops": step.count * self.steps + self.flops_between, "images": self.steps * len(rows), **use}

    def snapshot_path(self, epoch: int) -> Path:
        """Where the method's state after an epoch is kept."""
        return self.checkpoints.folder / f"snapshot-{epoch:05d}.safetensors"

    def _maybe_save(self) -> None:
        if self.step == self.steps:
            return
        stopping = self.world.any(self.stop())
        due = stopping or time.monotonic() - self._last_saved >= self.checkpoint_seconds
        if due and self.world.rank == 0:
            method = {f"method.{name}": t for name, t in self.method.state_dict().items()}
            meta = {"step": self.step, "history": self.history, "sums": self.sums, "flops": self.flops_between}
            meta["last_loss"] = self.last_loss
            self.checkpoints.save(self.step, method | optimizer_tensors(self.optimizer), meta)
            self._last_saved = time.monotonic()
        if stopping:
            self.world.any(False)  # the others may end only once rank 0 has saved
            raise StoppedError(f"stopped at step {self.step} of {self.steps}")

    def _restore(self, saved: Checkpoint) -> None:
        method = {k.removeprefix("method."): t for k, t in saved.tensors.items() if k.startswith("method.")}
        self.method.load_state_dict(method)
        restore_optimizer(self.optimizer, saved.tensors)
        self.step, self.history = saved.meta["step"], saved.meta["history"]
        self.sums, self.flops_between = saved.meta["sums"], saved.meta["flops"]
        self.last_loss = saved.meta["last_loss"]


HISTORY = "history.jsonl"
COST = "cost.json"
VIEWS = "views.safetensors"
SHOWN = 6  # images of the training subset whose views are kept for the recipe gallery


def pretrain(
    config: Mapping[str, Any],
    images: ImageSet,
    running: Path,
    folder: Path,
    *,
    checkpoint_seconds: float,
    report: Report,
    stop: Callable[[], bool],
    world: World = ALONE,
) -> None:
    """Train a cell, from its newest checkpoint in `running`, and let rank 0 write its files to `folder`.

    They are the method's whole state, the history, snapshots, a few images as the recipe shows them, and the counted
    cost.
    """
    trainer = Trainer(
        config,
        images,
        Checkpoints(running),
        checkpoint_seconds=checkpoint_seconds,
        report=report,
        stop=stop,
        world=world,
    )
    trainer.run()
    if world.rank > 0:
        return
    save_tensors(folder / STATE, trainer.method.state_dict())
    write_text(folder / HISTORY, "".join(json.dumps(line) + "\n" for line in trainer.history))
    for snapshot in sorted(running.glob("snapshot-*.safetensors")):
        shutil.copyfile(snapshot, folder / snapshot.name)
    if trainer.method.trains:
        save_tensors(folder / VIEWS, trainer.gallery(SHOWN))
    write_json(folder / COST, trainer.cost())


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[tuple[Item, Made]]:
    """Each item and what is made of it, which is kept no longer, while a thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        waiting: list[tuple[Item, Future[Made]]] = []
        for item in items:
            waiting.append((item, thread.submit(make, item)))
            if len(waiting) > 1:
                yield _given(waiting.pop(0))
        while waiting:
            yield _given(waiting.pop(0))


def _given(waited: tuple[Item, Future[Made]]) -> tuple[Item, Made]:
    item, made = waited
    return item, made.result()


def each(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[tuple[Item, Made]]:
    """Each item and what is made of it, in turn."""
    return ((item, make(item)) for item in items)


def _occurrences(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each row came before in the order."""
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    counts = np.diff(np.r_[starts, len(ranked)])
    seen = np.empty_like(rows)
    seen[order] = np.arange(len(rows)) - np.repeat(starts, counts)
    return seen
