"""Keys change exactly where a result could."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.evaluators import EVALUATORS
from bench.fingerprint import closure, code_hash, module_hash
from bench.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]

# Mutates every file in turn, in a copy of the checkout, and prints the names of the cells whose keys moved.
DRIVER = """
import json, sys
from pathlib import Path
from bench import fingerprint, params, plan, registry

settings = params.load(Path("params.yaml")).model_copy(update={"seeds": [0], "studies": {}, "judged": []})  # enough of each kind
manifest = {"name": "m", "sha256": "0", "metric": "top1", "channels": 1, "rows": 5000, "test_rows": 1000}
manifests = dict.fromkeys(settings.datasets, manifest | {"height": 28, "width": 28})

def keys():
    for cached in (fingerprint._module_hash, fingerprint._imports, registry.parse):
        cached.cache_clear()
    return {c.label: c.key for c in plan.make_plan(settings, manifests).cells()}

before, moved = keys(), {}
for path in sorted(Path("bench").rglob("*.py")):
    text = path.read_text()
    path.write_text(text + sys.argv[1])
    after = keys()
    moved[str(path)] = sorted(label for label in before if before[label] != after[label])
    path.write_text(text)
assert keys() == before
print(json.dumps(moved))
"""

ORACLE = """
import sys
for name in sys.argv[1:]:
    __import__(name)
print(" ".join(sorted(m for m in sys.modules if m.split(".")[0] == "bench")))
"""


def copy_checkout(target: Path) -> Path:
    shutil.copytree(ROOT / "bench", target / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "params.yaml", target / "params.yaml")
    return target


def run(folder: Path, code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def imported(*modules: str) -> set[str]:
    """The files that importing these modules really reads, as Python itself tells."""
    files = set()
    for name in run(ROOT, ORACLE, *modules).split():
        base = Path(*name.split("."))
        files.add(str(base / "__init__.py" if (ROOT / base).is_dir() else base.with_suffix(".py")))
    return files


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    folder = copy_checkout(tmp_path_factory.mktemp("checkout"))
    return json.loads(run(folder, DRIVER, "\nMUTATED = 1\n"))


BOTH = ("bench.numerics", "bench.data.prepared")
CELLS = {
    "random_init": (*BOTH, "bench.pretrain", "bench.methods.random_init", "bench.encoders.conv4"),
    "simclr": (*BOTH, "bench.pretrain", "bench.methods.simclr", "bench.encoders.conv4"),
    "nnclr": (*BOTH, "bench.pretrain", "bench.methods.nnclr", "bench.encoders.conv4"),
    "raw_pixels knn": (*BOTH, "bench.evaluate", "bench.evaluators.knn"),
    "raw_pixels linear": (*BOTH, "bench.evaluate", "bench.evaluators.linear"),
}


@pytest.mark.parametrize("who", CELLS)
def test_a_key_changes_exactly_where_an_imported_file_does(moved, who):
    label = f"{who} seed 0"
    assert {path for path, labels in moved.items() if label in labels} == imported(*CELLS[who])


def test_an_evaluation_follows_its_encoder_and_its_own_code(moved):
    label = "simclr knn seed 0"
    wanted = imported(*CELLS["simclr"]) | imported(*CELLS["raw_pixels knn"])
    assert {path for path, labels in moved.items() if label in labels} == wanted


PROTOCOLS = tuple(EVALUATORS)
OF_PIXELS = [p for p in PROTOCOLS if not EVALUATORS.component(p).module_constant("NEEDS_ENCODER", False)]


def everything_of(*methods: str) -> set[str]:
    return {name for method in methods for name in (method, *(f"{method} {p}" for p in PROTOCOLS))}


WITH_HEADS = ("instdisc", "simclr", "moco_v2", "byol", "simsiam", "swav", "barlow_twins", "nnclr", "snclr")
ALL = everything_of(*METHODS) | {f"raw_pixels {p}" for p in OF_PIXELS}


@pytest.mark.parametrize(
    ("path", "cells"),
    [
        ("bench/methods/simclr.py", everything_of("simclr")),
        ("bench/methods/random_init.py", everything_of("random_init")),
        ("bench/evaluators/linear.py", {name for name in ALL if name.endswith((" linear", " layers", " transfer"))}),
        ("bench/heads.py", everything_of(*WITH_HEADS)),
        ("bench/support.py", everything_of("instdisc", "moco_v2", "swav", "nnclr", "snclr")),
        ("bench/pretrain.py", everything_of(*METHODS)),
        ("bench/random.py", ALL),
        ("bench/numerics.py", ALL),
        ("bench/exhibits/main_table.py", set()),
        ("bench/records.py", set()),
        ("bench/report.py", set()),
        ("bench/launch/worker.py", set()),
        ("bench/store.py", set()),
        ("bench/plan.py", set()),
        ("bench/cli.py", set()),
        ("bench/data/readers/embedded_mnist.py", set()),
    ],
)
def test_what_follows_from_a_changed_file(moved, path, cells):
    assert {label.partition(" seed ")[0] for label in moved[path]} == cells


def test_comments_docstrings_and_signatures_move_no_key(tmp_path):
    folder = copy_checkout(tmp_path)
    assert not any(json.loads(run(folder, DRIVER, "\n# a remark\n")).values())
    assert same(
        "def f(x):\n    return x + 1\n",
        'def f(x: int) -> int:\n    """Adds."""\n    return x + 1\n',
        tmp_path,
    )
    assert same("X = 1\n", '"""A module."""\n\n# why\nX   = (1)\n', tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("X = 1\n", "X = 1.0\n"),
        ("X = 1\n", "X = True\n"),
        ("X = '1'\n", "X = b'1'\n"),
        ("def f(x): return x + 1\n", "def f(x): return x - 1\n"),
        ("def f(x=1): return x\n", "def f(x=2): return x\n"),
        ("class A:\n    x: int\n", "class A:\n    x: float\n"),
        ("def f(): return None\n", "def f(): return 'None'\n"),
        ("def f(*, a): pass\n", "def f(a): pass\n"),
        ("x = f'{y}'\n", "x = f'{y!r}'\n"),
    ],
    ids=[
        "float",
        "bool",
        "bytes",
        "operator",
        "default",
        "class annotation",
        "constant",
        "keyword-only",
        "format",
    ],
)
def test_behaviour_moves_the_hash(before, after, tmp_path):
    assert not same(before, after, tmp_path)


def same(before: str, after: str, folder: Path) -> bool:
    hashes = []
    for name, text in (("a", before), ("b", after)):
        place = folder / name
        (place / "bench").mkdir(parents=True, exist_ok=True)
        (place / "bench" / "m.py").write_text(text)
        hashes.append(module_hash("bench.m", place))
    for name in ("a", "b"):
        shutil.rmtree(folder / name)
        from bench import fingerprint

        fingerprint._module_hash.cache_clear()
    return hashes[0] == hashes[1]


def test_the_closure_holds_no_other_method():
    assert not any("simclr" in m for m in closure(["bench.pretrain", "bench.methods.random_init"]))


def test_a_module_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no first-party module"):
        code_hash(["bench.nothing"], tmp_path)
