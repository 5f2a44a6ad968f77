"""A run that is killed and started again gives the bits of one that never stopped."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.workspace import Workspace

# Computes a method's first cell and its evaluation; SIGKILLs itself after the given step, if any.
DRIVER = """
import os, signal, sys
from pathlib import Path
from bench import params, plan
from bench.numerics import pin
pin("portable", 1)
from bench.compute import compute
from bench.progress import Reporter
from bench.store import Store

method, killed_after = sys.argv[1], int(sys.argv[2])
def report(self, step, steps):
    if step == killed_after:
        os.kill(os.getpid(), signal.SIGKILL)
Reporter.__call__ = report
settings = params.load(Path("params.yaml"))
made = plan.make_plan(settings, plan.prepare_all(settings, Path("data/manifests")))
store = Store()
for cell in made.cells():
    if cell.method == method and cell.seed == 0 and not store.has(cell.key):
        compute(cell, store, checkpoint_seconds=0.0)
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("resume"))


def compute(space: Workspace, store: str, method: str, killed_after: int = 0) -> int:
    probes = space.root / store / "probes"  # the machine's probe takes seconds: one for all stores
    if not probes.exists():
        probes.parent.mkdir()
        (space.store / "probes").mkdir(parents=True, exist_ok=True)
        probes.symlink_to(space.store / "probes")
    return subprocess.run(
        [sys.executable, "-c", DRIVER, method, str(killed_after)],
        cwd=space.here,
        env=space.environment(BENCH_STORE=str(space.root / store)),
        check=False,
        stderr=subprocess.PIPE,
    ).returncode


def results(space: Workspace, store: str) -> dict[str, bytes]:
    found = space.files(space.root / store / "cells")
    return {name: content for name, content in found.items() if not name.endswith("environment.json")}


@pytest.mark.parametrize(("method", "optimizer", "precision"), [("nnclr", "adamw", "fp32"), ("simclr", "sgd", "bf16")])
def test_killed_twice_in_mid_epoch_equals_a_straight_run_bit_for_bit(workspace, method, optimizer, precision):
    # 5 steps an epoch: both kills fall inside one, the second inside the next
    settings = workspace.here / "params.yaml"
    text = settings.read_text()
    try:
        if optimizer == "sgd":
            workspace.edit(
                "profiles/smoke/params.yaml",
                "{name: adamw, lr: 2e-3,",
                "{name: sgd, lr: 0.03, momentum: 0.9,",
            )
        workspace.edit("profiles/smoke/params.yaml", "precision: fp32", f"precision: {precision}")
        straight, killed = f"straight-{optimizer}-{precision}", f"killed-{optimizer}-{precision}"
        assert compute(workspace, straight, method) == 0
        assert compute(workspace, killed, method, killed_after=3) == -9
        assert compute(workspace, killed, method, killed_after=7) == -9
        assert any((workspace.root / killed / "running").rglob("checkpoint-*"))
        assert compute(workspace, killed, method) == 0
        expected = results(workspace, straight)
        assert {Path(name).name for name in expected} >= {
            "method.safetensors",
            "history.jsonl",
            "record.json",
            "snapshot-00001.safetensors",
            "snapshot-00002.safetensors",
        }
        assert results(workspace, killed) == expected
        assert not any((workspace.root / killed / "running").iterdir())
    finally:
        settings.write_text(text)


def test_a_damaged_newest_checkpoint_is_passed_over(workspace):
    assert compute(workspace, "whole", "simclr") == 0
    assert compute(workspace, "damaged", "simclr", killed_after=7) == -9
    newest = sorted((workspace.root / "damaged" / "running").rglob("checkpoint-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    assert compute(workspace, "damaged", "simclr") == 0
    assert results(workspace, "damaged") == results(workspace, "whole")
