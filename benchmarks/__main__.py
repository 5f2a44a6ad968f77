"""Speed against peers, as ratios of medians of things run in turn in this process.

`python -m benchmarks` prints a table and writes benchmarks/results.md.
"""

from bench.numerics import environment, pin

pin("native", 1)

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

REPEATS = 7
WHAT = {"augmentation": "two views of 256 images 32x32x3", "knn": "vote of 1,000 in 4,000 rows, d = 512"}


def timed(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, run in turn so that a busy machine slows all alike."""
    seen: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(REPEATS + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first round warms up
                seen[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seen.items()}


def augmentation() -> dict[str, float]:
    from torchvision.transforms import v2

    from bench.augment import make_views
    from bench.random import Address

    images = torch.randint(0, 256, (256, 32, 32, 3), dtype=torch.uint8)
    ops = [
        {"crop": {"scale": [0.2, 1.0], "ratio": [0.75, 4 / 3]}},
        {"flip": {"p": 0.5}},
        {"jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}},
        {"grayscale": {"p": 0.2}},
    ]
    recipe = {"views": [{"count": 2, "size": 32, "ops": ops}]}
    address = Address(0, "views", np.arange(256))
    peer = v2.Compose(
        [
            v2.RandomResizedCrop(32, (0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    floats = images.permute(0, 3, 1, 2).float() / 255
    return timed(
        {
            "ours": lambda: make_views(recipe, images, address),
            "torchvision v2, per image": lambda: [torch.stack([peer(x) for x in floats]) for _ in range(2)],
        }
    )


def knn() -> dict[str, float]:
    from sklearn.neighbors import KNeighborsClassifier

    from bench.evaluators.knn import knn_predict

    bank, queries = torch.randn(4000, 512), torch.randn(1000, 512)
    labels = torch.arange(4000) % 10
    peer = KNeighborsClassifier(20, algorithm="brute", metric="cosine").fit(bank.numpy(), labels.numpy())
    return timed(
        {
            "ours": lambda: knn_predict(bank, labels, queries, 20, 0.07, 10),
            "scikit-learn brute force": lambda: peer.predict(queries.numpy()),
        }
    )


def main() -> None:
    rows = ["| what | against | ours (ms) | theirs (ms) | ratio |", "|---|---|---:|---:|---:|"]
    for name, run in (("augmentation", augmentation), ("knn", knn)):
        times = run()
        ours = times.pop("ours")
        for peer, theirs in times.items():
            row = f"| {WHAT[name]} | {peer} | {1e3 * ours:.1f} | {1e3 * theirs:.1f} | {theirs / ours:.1f}x |"
            rows.append(row)
            print(row, flush=True)
    about = f"Medians of {REPEATS}, one thread, torch {torch.__version__}, {environment()['cpu']}."
    Path(__file__).with_name("results.md").write_text("\n".join([about, "", *rows]) + "\n")


if __name__ == "__main__":
    main()
