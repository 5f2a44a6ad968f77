"""Compiles the loops of bench/kernels.py, so that what is kept beside it serves every test and every copied checkout."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "bench" / "kernels.py"


def compile_once() -> None:
    """Do it in a process of its own, unless all of it is there: half a minute that else each copy would take."""
    kept = SOURCE.parent / "__pycache__"
    since = SOURCE.stat().st_mtime
    done = [path for path in kept.glob("kernels.*.nbi") if path.stat().st_mtime > since]
    if len(done) < SOURCE.read_text(encoding="utf-8").count("\n@compiled\n"):
        subprocess.run([sys.executable, "-m", "tests.loops"], cwd=ROOT, check=True)


def main() -> None:
    """Call each of them as cells do."""
    from bench.numerics import pin

    pin("portable", 1)
    import numpy as np
    import torch

    from bench.augment import make_views
    from bench.evaluators.knn import nearest_rows
    from bench.products import maximum_inner_product
    from bench.random import Address

    ops = [{"crop": {"scale": [0.5, 1.0], "ratio": [0.75, 1.25]}}]
    recipe = {"views": [{"role": "global", "count": 1, "size": 8, "ops": ops}]}
    make_views(recipe, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), Address(0, "views", np.arange(2)))
    rows = torch.eye(8)
    nearest_rows(rows, rows, 2)
    maximum_inner_product(rows, rows)


if __name__ == "__main__":
    main()
