"""The main table: methods down, protocols across."""

from typing import Any

import pandas as pd

from bench.exhibits.base import DECIMALS, Table, display, headlines, percent
from bench.stats import t_interval


def main_table(frame: pd.DataFrame, gathered: dict[str, Any]) -> Table:
    """The headline metric of every method under every protocol, mean and 95 % interval over seeds.

    Args:
        frame: a row per metric of a record: protocol, metric, method, seed, value.
        gathered: what the frame was made from; gives the order of methods and protocols.
    """
    headline = headlines(frame, gathered)
    missing = {(cell["method"], cell["name"]) for cell in gathered["missing"]}
    costs = {cell["method"]: cell["cost"] for cell in gathered["pretraining"]}  # equal at all seeds
    rows, data = [], []
    for method in gathered["rows"]:
        texts, n = [], 0
        cost = costs.get(method)
        per_image = cost and cost["flops"] / max(1, cost["images"])
        for protocol, metric in headline.items():
            chosen = frame[(frame["method"] == method) & (frame["protocol"] == protocol) & (frame["metric"] == metric)]
            if chosen.empty:
                texts.append("not run" if (method, protocol) in missing else "–")
                continue
            interval = t_interval(chosen.sort_values("seed")["value"].to_list())
            texts.append(percent(interval))
            n = interval.n
            half = "" if interval.half is None else round(interval.half, DECIMALS)
            data.append(
                {"method": method, "protocol": protocol, "metric": metric}
                | {"mean": round(interval.mean, DECIMALS), "half_width_95": half, "n": interval.n}
                | {"flops_per_image": "" if per_image is None else round(per_image)}
            )
        rows.append([display(method), str(n), "–" if per_image is None else f"{per_image / 1e6:.1f}", *texts])
    columns = ["Method", "n", "MFLOP / image", *(f"{p} {metric.replace('_', ' ')}" for p, metric in headline.items())]
    caption = (
        f"Accuracy (%) on {gathered['data']['name']}: mean ± half-width of the 95 % Student t interval over n seeds; "
        "a row of one value has no interval; – where a protocol wants an encoder and the row has none. MFLOP / image: "
        "counted operations (of matrix products and convolutions) that training takes for each image it shows, "
        "by which methods compare at equal compute."
    )
    return Table("main", caption, columns, rows, data)
