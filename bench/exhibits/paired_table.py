"""Each method's paired difference over random initialisation, on every protocol."""

from typing import Any

import pandas as pd

from bench.exhibits.base import DECIMALS, Table, display, headlines
from bench.stats import Interval, paired_difference

BASELINE = "random_init"


def paired_table(frame: pd.DataFrame, gathered: dict[str, Any]) -> Table | None:
    """Differences in percentage points with 95 % t intervals over seeds; None without the baseline.

    Args:
        frame: a row per metric of a record: protocol, metric, method, seed, value.
        gathered: what the frame was made from.
    """
    if BASELINE not in gathered["methods"]:
        return None
    headline = headlines(frame, gathered)
    rows, data = [], []
    for method in (m for m in gathered["methods"] if m != BASELINE):
        texts = []
        for protocol, metric in headline.items():
            ours, theirs = (_by_seed(frame, m, protocol, metric) for m in (method, BASELINE))
            if not ours.keys() & theirs.keys():
                texts.append("not run")
                continue
            interval = paired_difference(ours, theirs)
            texts.append(_text(interval))
            numbers = {"difference": interval.mean, "low": interval.low, "high": interval.high}
            data.append(
                {"method": method, "protocol": protocol, "metric": metric}
                | {name: round(value, DECIMALS) for name, value in numbers.items()}
                | {"n": interval.n}
            )
        rows.append([display(method), *texts])
    caption = (
        f"What training adds: paired difference over {display(BASELINE).lower()} at the same seeds, in percentage "
        "points, mean [95 % Student t interval]; * marks an interval wholly above or below 0."
    )
    return Table("over_random_init", caption, ["Method", *headline], rows, data)


def _by_seed(frame: pd.DataFrame, method: str, protocol: str, metric: str) -> dict[int, float]:
    chosen = frame[(frame["method"] == method) & (frame["protocol"] == protocol) & (frame["metric"] == metric)]
    return dict(zip(chosen["seed"], chosen["value"], strict=True))


def _text(interval: Interval) -> str:
    shown = f"{100 * interval.mean:+.1f}"
    if interval.half is None:
        return shown
    sure = "*" if interval.low > 0 or interval.high < 0 else ""
    return f"{shown} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]{sure}"
