"""Each method's paired difference over random initialisation, on every protocol."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.exhibits.base import DECIMALS, Table, display, headlines
from bench.stats import Interval, hierarchical_difference, paired_difference

BASELINE = "random_init"


def paired_table(
    frame: pd.DataFrame, gathered: dict[str, Any], correct: Mapping[str, Mapping[str, np.ndarray]]
) -> Table | None:
    """Differences in percentage points with 95 % t intervals over seeds; None without the baseline.

    Args:
        frame: a row per metric of a record: protocol, metric, method, seed, value.
        gathered: what the frame was made from.
        correct: by protocol and "METHOD SEED", which test images were classified correctly; such a protocol has a
            second column, whose intervals are over seeds and test images together.
    """
    if BASELINE not in gathered["methods"]:
        return None
    headline = headlines(frame, gathered)
    rows, data = [], []
    for method in (m for m in gathered["methods"] if m != BASELINE):
        texts, texts_of_both = [], []
        for protocol, metric in headline.items():
            ours, theirs = (_by_seed(frame, m, protocol, metric) for m in (method, BASELINE))
            over_both = _over_both(correct.get(protocol, {}), method)
            if protocol in correct:
                texts_of_both.append("not run" if over_both is None else _text(over_both))
            if not ours.keys() & theirs.keys():
                texts.append("not run")
                continue
            interval = paired_difference(ours, theirs)
            texts.append(_text(interval))
            numbers: dict[str, float | None] = {"difference": interval.mean, "low": interval.low, "high": interval.high}
            numbers["low_with_images"] = None if over_both is None else over_both.low
            numbers["high_with_images"] = None if over_both is None else over_both.high
            data.append(
                {"method": method, "protocol": protocol, "metric": metric}
                | {name: "" if value is None else round(value, DECIMALS) for name, value in numbers.items()}
                | {"n": interval.n}
            )
        rows.append([display(method), *texts, *texts_of_both])
    caption = (
        f"What training adds: paired difference over {display(BASELINE).lower()} at the same seeds, in percentage "
        "points, mean [95 % Student t interval]; * marks an interval wholly above or below 0."
        " Where a protocol has a second column, its intervals are over seeds and test images together."
    )
    second = [f"{protocol}, seeds and images" for protocol in headline if protocol in correct]
    return Table("over_random_init", caption, ["Method", *headline, *second], rows, data)


def _over_both(correct: Mapping[str, np.ndarray], method: str) -> Interval | None:
    sides: dict[str, dict[int, np.ndarray]] = {method: {}, BASELINE: {}}
    for name, rows in correct.items():
        who, seed = name.split(" ")
        if who in sides:
            sides[who][int(seed)] = rows
    ours, theirs = sides.values()
    return hierarchical_difference(ours, theirs) if len(ours.keys() & theirs.keys()) > 1 else None


def _by_seed(frame: pd.DataFrame, method: str, protocol: str, metric: str) -> dict[int, float]:
    chosen = frame[(frame["method"] == method) & (frame["protocol"] == protocol) & (frame["metric"] == metric)]
    return dict(zip(chosen["seed"], chosen["value"], strict=True))


def _text(interval: Interval) -> str:
    shown = f"{100 * interval.mean:+.1f}"
    if interval.half is None:
        return shown
    sure = "*" if interval.low > 0 or interval.high < 0 else ""
    return f"{shown} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]{sure}"
