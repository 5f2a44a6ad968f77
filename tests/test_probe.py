"""The numerics probe tells machines apart, and the run goes on accordingly."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare import ReportsDifferError, compare, first_difference
from bench.numerics import NumericsError, pin, pins, require
from tests.workspace import git

ROOT = Path(__file__).resolve().parents[1]
PROBE = "import json; from bench.probe import probe; print(json.dumps(probe()))"


def probed(**changes: str) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **pins("portable", 1), **changes}
    told = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, check=True, capture_output=True, text=True
    ).stdout
    return json.loads(told)


@pytest.fixture(scope="module")
def ours() -> dict[str, str]:
    return probed()


def test_the_probe_is_equal_in_every_process(ours):
    assert probed(PYTHONHASHSEED="7") == ours


def test_another_instruction_set_is_named_by_the_first_part_that_differs(ours):
    other = probed(ATEN_CPU_CAPABILITY="default")
    part = first_difference(other, ours)
    assert part is not None
    assert other[part] != ours[part]
    assert all(other[p] == ours[p] for p in list(ours)[: list(ours).index(part)])
    assert other["training"] != ours["training"]


@pytest.fixture
def committed(tmp_path, ours):
    """A repository with committed reports, computed under this machine's numerics."""
    reports = tmp_path / "reports"
    shutil.copytree(ROOT / "reports", reports)
    (reports / "probe.json").write_text(json.dumps(ours))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "reports")
    return reports


def move(reports: Path, by: float) -> None:
    cells = json.loads((reports / "cells.json").read_text())
    for cell in cells["evaluations"]:
        cell["metrics"] = {name: value + by for name, value in cell["metrics"].items()}
    (reports / "cells.json").write_text(json.dumps(cells))


def test_equal_records_are_told_to_be_byte_identical(committed, ours):
    assert "byte-identical" in compare(committed, ours)


def test_equal_numerics_and_other_numbers_are_an_error_that_names_the_cells(committed, ours):
    move(committed, 1e-6)
    key = json.loads((committed / "cells.json").read_text())["evaluations"][0]["key"]
    with pytest.raises(ReportsDifferError, match=key):
        compare(committed, ours)


@pytest.mark.parametrize(("by", "verdict"), [(1e-6, "within"), (0.5, "OUTSIDE")])
def test_other_numerics_are_compared_within_the_committed_intervals(committed, ours, by, verdict):
    move(committed, by)
    told = compare(committed, {**ours, "products": "other"})
    assert "first in 'products'" in told
    assert verdict in next(line for line in told.splitlines() if "knn" in line and "simclr" in line)
    assert json.loads((committed / "probe.json").read_text())["products"] == "other"


def test_pins_that_come_after_torch_are_refused_not_ignored():
    import torch  # noqa: F401

    with pytest.raises(NumericsError, match=r"before torch is imported.*OMP_NUM_THREADS=1 .wants 2"):
        pin("native", 2)


def test_a_device_that_is_absent_is_an_error():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(NumericsError, match="device: cuda"):
        require("portable", 1, "cuda")


def test_unknown_numerics_are_named_with_the_choices():
    with pytest.raises(NumericsError, match="'exact'; allowed: native, portable"):
        pins("exact", 1)


def test_portable_numerics_on_another_kind_of_cpu_say_what_to_set(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(NumericsError, match="this one is arm64; set numerics: native"):
        pins("portable", 1)


def calls_of_roots(path: Path) -> list[str]:
    """Square roots, distances and powers of one half that torch may take."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, on = node.func.attr, node.func.value
            elsewhere = isinstance(on, ast.Name) and on.id in {"math", "np"}
            halved = called in {"pow", "pow_"} and any(map(_is_half, node.args))
            if not elsewhere and (called in {"sqrt", "sqrt_", "cdist", "pdist"} or halved):
                found.append(f"{path.name}:{node.lineno} {called}")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _is_half(node.right):
            found.append(f"{path.name}:{node.lineno} **")
    return found


def _is_half(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0.5


def test_no_number_is_decided_by_the_square_root_that_differs_between_makers(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text("x.sqrt()\ntorch.sqrt(x)\nx ** 0.5\nx.pow(0.5)\ntorch.pow(x, 0.5)\ntorch.cdist(x, y)\n")
    assert len(calls_of_roots(probe)) == 6
    probe.write_text("math.sqrt(2)\nnp.sqrt(x)\nx ** 2\nx.pow(2)\nx.rsqrt()\n")
    assert calls_of_roots(probe) == []
    assert [root for path in sorted((ROOT / "bench").rglob("*.py")) for root in calls_of_roots(path)] == []


ROOTS = """
import numpy as np, torch, torch.nn.functional as F
from bench.optim import build
from bench.methods.base import ParameterGroup
x = torch.rand(100_003, generator=torch.Generator().manual_seed(0)) + 0.01
assert (x.rsqrt().numpy() == 1 / np.sqrt(x.numpy())).all()
rows = x[:99_000].view(-1, 33)
squares = torch.zeros(len(rows))
for column in rows.mT:
    squares += column * column
exact = rows.double().square().sum(1).sqrt()
assert ((rows.norm(dim=1) - exact).abs() <= 3e-7 * exact).all()
pairs = torch.stack([x[:999], torch.zeros(999)], 1)  # the root of a square, of which nothing is lost but in rounding
squared = (pairs[:, 0] * pairs[:, 0]).numpy()
assert (pairs.norm(dim=1).numpy() == np.sqrt(squared)).all()
weight = torch.nn.Module()
weight.x = torch.nn.Parameter(torch.zeros(1000, 100))
options = {"name": "adamw", "lr": 1.0, "weight_decay": 0.0, "decay_norm_bias": True}
optimizer = build(weight, [ParameterGroup(["x"])], options)
weight.x.grad = x[:100_000].view(1000, 100).clone()
optimizer.step()
seen = optimizer.state[weight.x]
root = np.sqrt(seen["exp_avg_sq"].numpy()) / np.float32(np.sqrt(1 - 0.999)) + np.float32(1e-8)
step = np.float32(1.0 / (1 - 0.9)) * seen["exp_avg"].numpy() / root
off = np.abs(weight.x.detach().numpy() + step)
assert off.max() == 0, off.max()
"""


def test_the_roots_that_numbers_rest_on_round_correctly():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **pins("portable", 1)}
    subprocess.run([sys.executable, "-c", ROOTS], env=environment, check=True)
