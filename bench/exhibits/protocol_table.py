"""One protocol in full: methods down, all of its metrics across."""

import re
from typing import Any

import pandas as pd

from bench.exhibits.base import DECIMALS, Table, display, percent
from bench.stats import t_interval

# chosen penalties and scores on validation rows are no results; values after earlier epochs have a figure
ASIDE = re.compile(r"(^|_)(l2|validation)$|_epoch\d+$")


def protocol_table(frame: pd.DataFrame, gathered: dict[str, Any], protocol: str) -> Table | None:
    """Every metric of a protocol, mean and 95 % interval over seeds; None where there is one metric only.

    Args:
        frame: a row per metric of a record: protocol, metric, method, seed, value.
        gathered: what the frame was made from; gives the order of methods.
        protocol: its id.
    """
    of_protocol = frame[frame["protocol"] == protocol]
    metrics = [metric for metric in of_protocol["metric"].unique() if not ASIDE.search(metric)]
    if len(metrics) < 2:
        return None
    rows, data = [], []
    for method in gathered["rows"]:
        ours = of_protocol[of_protocol["method"] == method].sort_values("seed")
        if ours.empty:
            continue
        texts = []
        for metric in metrics:
            values = ours.loc[ours["metric"] == metric, "value"].to_list()
            if not values:
                texts.append("–")
                continue
            interval = t_interval(values)
            texts.append(percent(interval))
            half = "" if interval.half is None else round(interval.half, DECIMALS)
            numbers = {"mean": round(interval.mean, DECIMALS), "half_width_95": half, "n": interval.n}
            data.append({"method": method, "metric": metric} | numbers)
        rows.append([display(method), *texts])
    columns = ["Method", *(metric.replace("_", " ") for metric in metrics)]
    caption = (
        f"`{protocol}` in full (%): mean ± half-width of the 95 % Student t interval over seeds; – where a metric does "
        "not exist for the row."
    )
    return Table(f"protocol_{protocol}", caption, columns, rows, data)
