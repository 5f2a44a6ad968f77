"""Computing one cell: load what it needs, run it, publish what it made."""

import json
import shutil
import time
from pathlib import Path

from safetensors.numpy import save_file

from bench import numerics
from bench.checkpoint import Checkpoints, load_tensors, save_tensors
from bench.data.prepared import load
from bench.data.source import ImageSet
from bench.evaluate import evaluate
from bench.features import Trained
from bench.files import write_json, write_text
from bench.plan import Cell
from bench.pretrain import Trainer, trained_encoder
from bench.probe import cached_probe
from bench.progress import Reporter
from bench.store import CELL, Store

STATE = "method.safetensors"
HISTORY = "history.jsonl"
RECORD = "record.json"
ARRAYS = "arrays.safetensors"


def compute(cell: Cell, store: Store, *, checkpoint_seconds: float) -> None:
    """Compute a cell and publish it. The caller holds its lock.

    Raises:
        Exception: whatever the cell's computation raises; nothing is published then.
    """
    config = cell.config
    numerics.require(config["numerics"], config["threads"], config["device"])
    images = load(cell.manifest)
    folder = store.running(cell.key) / "publish"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process had half written
    folder.mkdir(parents=True)
    started = time.time()
    if cell.stage == "pretrain":
        _pretrain(cell, store, images, folder, checkpoint_seconds)
    else:
        _evaluate(cell, store, images, folder)
    environment = {
        **numerics.environment(),
        "probe": cached_probe(store.root),
        "started": started,
        "seconds": time.time() - started,
    }
    store.publish(cell.key, config, folder, environment)


def _pretrain(cell: Cell, store: Store, images: ImageSet, folder: Path, checkpoint_seconds: float) -> None:
    running = store.running(cell.key)
    trainer = Trainer(
        cell.config,
        images,
        Checkpoints(running),
        checkpoint_seconds=checkpoint_seconds,
        report=Reporter(store, cell.key),
    )
    trainer.run()
    save_tensors(folder / STATE, trainer.method.state_dict())
    write_text(folder / HISTORY, "".join(json.dumps(line) + "\n" for line in trainer.history))
    for snapshot in sorted(running.glob("snapshot-*.safetensors")):
        shutil.copyfile(snapshot, folder / snapshot.name)


def _evaluate(cell: Cell, store: Store, images: ImageSet, folder: Path) -> None:
    trained = Trained(None)
    if cell.needs is not None:
        source = store.path(cell.needs)
        config = json.loads((source / CELL).read_text())["config"]
        state = load_tensors(source / STATE).tensors
        trained = Trained(trained_encoder(config, images.images.shape[3], state))
    result = evaluate(cell.config, images, trained)
    write_json(folder / RECORD, {"key": cell.key, "metrics": result.metrics})
    save_file(dict(result.arrays), folder / ARRAYS)
