"""How a step grows with the support set, the bank and the batch: growth.csv, beside counted operations and bytes."""

import csv
import subprocess
from collections.abc import Iterator
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from bench import params
from bench.cost import counting
from bench.methods import METHODS
from bench.numerics import environment
from benchmarks.cells import NNCLR, PROFILE
from benchmarks.nce import INSTDISC
from benchmarks.rows import Measured, Row, limit
from benchmarks.steps import Step, batch, build
from benchmarks.timing import in_turn

FILE = Path(__file__).with_name("growth.csv")
COLUMNS = ("method", "axis", "value", "batch", "ms", "flops", "bytes", "n", "cpu", "date", "commit")
BATCH, REPEATS = 256, 3
SUPPORTS = (1024, 4096, 16_384, 65_536, 98_304)
BANKS = (10_000, 100_000, 1_280_000)
BATCHES = (32, 128, 512)
IMAGES = 10_000  # where the number of images does not vary
SMOKE = PROFILE.parents[1] / "smoke" / "params.yaml"
WIDE = {"hidden": 256, "dim": 64, "predictor_hidden": 256, "support_size": 4096, "queue_size": 4096}


@cache
def commit() -> str:
    """That of the checkout, and whether it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=FILE.parent, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def methods() -> dict[str, dict[str, Any]]:
    """Options of every method that trains: the smoke profile's, wider."""
    given = params.load(SMOKE).methods
    training = {name: dict(options) for name, options in given.items() if name != "random_init"}
    return {name: options | {k: v for k, v in WIDE.items() if k in options} for name, options in training.items()}


def point(
    method: str, options: dict[str, Any], axis: str, value: int, *, rows: int = IMAGES, size: int = BATCH
) -> dict[str, Any]:
    """One measured step."""
    made = build(method, options, rows)
    step = Step(made, batch(size, rows, METHODS[method].views or 1))
    with counting() as flops:
        step()
    ms = 1e3 * in_turn({f"{method}, {axis} {value}": step}, REPEATS)[f"{method}, {axis} {value}"].wall
    held = sum(t.nbytes for t in made.state_dict().values())
    told = {"method": method, "axis": axis, "value": value, "batch": size, "ms": f"{ms:.2f}", "flops": flops.count}
    origin = {"cpu": environment()["cpu"], "date": date.today().isoformat(), "commit": commit()}
    return told | {"bytes": held, "n": REPEATS, **origin}


def points() -> Iterator[dict[str, Any]]:
    """All of them."""
    for size in SUPPORTS:
        yield point("nnclr", NNCLR | {"support_size": size}, "support_size", size)
    for rows in BANKS:
        yield point("instdisc", INSTDISC, "bank", rows, rows=rows)
    for name, options in methods().items():
        for size in BATCHES:
            yield point(name, options, "batch", size, size=size)


def write(found: list[dict[str, Any]], file: Path = FILE) -> None:
    """Write growth.csv."""
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def measure() -> Measured:
    """Write growth.csv; the row tells the step with the largest support set."""
    found = list(points())
    write(found)
    supports = [float(each["ms"]) for each in found if each["axis"] == "support_size"]
    note = f"{len(found)} points in growth.csv; with {SUPPORTS[0]:,} rows {supports[0]:.0f} ms"
    return Measured(supports[-1], None, REPEATS, note)


WHAT = f"a step of NNCLR, conv4, batch {BATCH}, with {SUPPORTS[-1]:,} rows to look up"
ROWS = [Row("growth", WHAT, "none: growth.csv has the curves", "ms", limit(None), measure)]
