"""What tuning cost each method, and what more trials were worth."""

from collections.abc import Mapping, Sequence
from math import comb
from statistics import fmean
from typing import Any

from bench.exhibits.base import DECIMALS, Table, display


def tuning_table(tuning: Mapping[str, Any]) -> Table | None:
    """Trials, budget and the best-of-k curve of every method; None where nothing was tuned.

    Args:
        tuning: `seeds`, `protocol`, `images` (validation rows) and `trials`: each with method, levels, scores by seed
            and the counted operations of its training.
    """
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for trial in tuning["trials"]:
        by_method.setdefault(trial["method"], []).append(trial)
    if not by_method:
        return None
    most = max(map(len, by_method.values()))
    rows, data = [], []
    for method, trials in by_method.items():
        curve = best_of([fmean(trial["scores"]) for trial in trials])
        flops = sum(trial["flops"] for trial in trials)
        rows.append([display(method), str(len(trials)), f"{flops / 1e12:.1f}", *(f"{100 * b:.2f}" for b in curve)])
        rows[-1] += ["–"] * (most - len(curve))
        data += [
            {"method": method, "trials": len(trials), "flops": flops, "k": k, "best": round(b, DECIMALS)}
            for k, b in enumerate(curve, 1)
        ]
    caption = (
        f"Tuning: accuracy (%) by {tuning['protocol']} on the {tuning['images']} validation images that the best of k "
        "trials reaches, expected over which k of a method's trials are run; the last is the best of all, and used. "
        f"TFLOP: counted, of all of a method's trials. Seeds {tuning['seeds']}, which no other table uses. "
        f"One image is {100 / tuning['images']:.2f} points."
    )
    columns = ["Method", "trials", "TFLOP", *(f"best of {k}" for k in range(1, most + 1))]
    return Table("tuning", caption, columns, rows, data)


def best_of(scores: Sequence[float]) -> list[float]:
    """The expected best of k of the scores, drawn without replacement, for each k.

    The i-th smallest of n is the best of k with the probability C(i - 1, k - 1) / C(n, k) (Dodge et al., 1909.03004,
    section 3, which draws with replacement).
    """
    n, ordered = len(scores), sorted(scores)
    return [sum(comb(i, k - 1) * score for i, score in enumerate(ordered)) / comb(n, k) for k in range(1, n + 1)]
