"""The main table: methods down, protocols across."""

from typing import Any

import pandas as pd

from bench.exhibits.base import DECIMALS, Table, display, percent
from bench.stats import t_interval


def main_table(frame: pd.DataFrame, gathered: dict[str, Any]) -> Table:
    """Top-1 of every method under every protocol, mean and 95 % interval over seeds.

    Args:
        frame: a row per metric of a record: protocol, metric, method, seed, value.
        gathered: what the frame was made from; gives the order of methods and protocols.
    """
    protocols = [p for p in gathered["protocols"] if p in set(frame["protocol"])]
    headline = {p: frame.loc[frame["protocol"] == p, "metric"].iloc[0] for p in protocols}
    rows, data = [], []
    for method in gathered["rows"]:
        texts, seeds = [], 0
        for protocol in protocols:
            chosen = frame[
                (frame["method"] == method)
                & (frame["protocol"] == protocol)
                & (frame["metric"] == headline[protocol])
            ]
            if chosen.empty:
                texts.append("not run")
                continue
            interval = t_interval(chosen.sort_values("seed")["value"].to_list())
            texts.append(percent(interval))
            seeds = interval.n
            half = "" if interval.half is None else round(interval.half, DECIMALS)
            data.append(
                {
                    "method": method,
                    "protocol": protocol,
                    "metric": headline[protocol],
                    "mean": round(interval.mean, DECIMALS),
                    "half_width_95": half,
                    "n": interval.n,
                }
            )
        rows.append([display(method), str(seeds), *texts])
    columns = ["Method", "n", *(f"{p} {headline[p].replace('_', ' ')}" for p in protocols)]
    caption = (
        f"Top-1 (%) on {gathered['data']['name']}: mean ± half-width of the 95 % Student t interval over "
        "n seeds; raw pixels have one value and no interval."
    )
    return Table("main", caption, columns, rows, data)
