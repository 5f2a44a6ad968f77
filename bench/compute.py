"""Computing one cell: check that it is what was planned, run it, publish what it made."""

import importlib
import json
import shutil
import time
import zlib

from bench import numerics
from bench.data.prepared import load
from bench.distributed.world import World
from bench.errors import BenchError
from bench.evaluate import evaluate
from bench.fingerprint import code_hash
from bench.plan import Cell, code_modules, current_versions
from bench.pretrain import ALONE, ONE_KIND, pretrain
from bench.probe import cached_probe
from bench.progress import Reporter
from bench.stop import Stop
from bench.store import Store


class PlanIsStaleError(BenchError):
    """Code or packages that are no longer those that a cell's key stands for."""


def compute(
    cell: Cell,
    store: Store,
    *,
    checkpoint_seconds: float,
    stop: Stop | None = None,
    world: World = ALONE,
) -> None:
    """Compute a cell and publish it. The caller holds it; of several processes, rank 0 does, and publishes.

    Args:
        cell: what is to be computed.
        store: where it goes.
        checkpoint_seconds: how often training saves its state.
        stop: whether training is to save its state and end; other work it interrupts itself.
        world: the processes that train the cell together.

    Raises:
        PlanIsStaleError: this process runs other code or packages than the key says.
        Exception: whatever the cell's computation raises; nothing is published then.
    """
    config = cell.config
    numerics.require(config["numerics"], config["threads"], config["device"])
    _check_is_current(cell)
    probe = cached_probe(store.root, config["device"])
    world.demand_equal("the numerics probe", zlib.crc32(json.dumps(probe).encode()), ONE_KIND)
    environment = {**numerics.environment(config["device"]), "probe": probe, "started": time.time()}
    images = load(cell.manifest)
    folder = store.running(cell.key) / "publish"
    if world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process had half written
        folder.mkdir(parents=True)
    if cell.stage == "pretrain":
        stop, running, report = stop or Stop(), store.running(cell.key), Reporter(store, cell.key)
        with stop.patiently():
            pretrain(
                config,
                images,
                running,
                folder,
                checkpoint_seconds=checkpoint_seconds,
                report=report,
                stop=stop,
                world=world,
            )
    else:
        source = store.path(cell.needs) if cell.needs is not None else None
        targets = {name: load(manifest) for name, manifest in cell.manifest.get("targets", {}).items()}
        evaluate(config, images, targets, source, folder)
    if world.rank == 0:
        environment |= {"seconds": time.time() - environment["started"], "processes": world.size}
        store.publish(cell.key, config, folder, environment)


def _check_is_current(cell: Cell) -> None:
    modules = code_modules(cell.config)
    for module in modules:  # what runs from here on is what is hashed next
        importlib.import_module(module)
    if code_hash(modules) != cell.config["code"]:
        raise PlanIsStaleError("the code has changed since the plan was made; run the command again")
    installed = current_versions()
    if installed != cell.config["versions"]:
        raise PlanIsStaleError(
            f"the plan is for {cell.config['versions']}, installed are {installed}; "
            "run `make setup` and the command again"
        )
