"""Computing one cell: check that it is what was planned, run it, publish what it made."""

import importlib
import shutil
import time

from bench import numerics
from bench.data.prepared import load
from bench.errors import BenchError
from bench.evaluate import evaluate
from bench.fingerprint import code_hash
from bench.plan import Cell, code_modules, current_versions
from bench.pretrain import pretrain
from bench.probe import cached_probe
from bench.progress import Reporter
from bench.store import Store


class PlanIsStaleError(BenchError):
    """Code or packages that are no longer those that a cell's key stands for."""


def compute(cell: Cell, store: Store, *, checkpoint_seconds: float) -> None:
    """Compute a cell and publish it. The caller holds its lock.

    Raises:
        PlanIsStaleError: this process runs other code or packages than the key says.
        Exception: whatever the cell's computation raises; nothing is published then.
    """
    config = cell.config
    numerics.require(config["numerics"], config["threads"], config["device"])
    _check_is_current(cell)
    environment = {**numerics.environment(), "probe": cached_probe(store.root), "started": time.time()}
    images = load(cell.manifest)
    running = store.running(cell.key)
    folder = running / "publish"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process had half written
    folder.mkdir(parents=True)
    if cell.stage == "pretrain":
        reporter = Reporter(store, cell.key)
        pretrain(config, images, running, folder, checkpoint_seconds=checkpoint_seconds, report=reporter)
    else:
        source = store.path(cell.needs) if cell.needs is not None else None
        targets = {name: load(manifest) for name, manifest in cell.manifest.get("targets", {}).items()}
        evaluate(config, images, targets, source, folder)
    environment["seconds"] = time.time() - environment["started"]
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
