"""What exhibits are made of: a table and its writers, and figures that are the same bytes each time."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.stats import Interval

NAMES = {"raw_pixels": "Raw pixels", "random_init": "Random init", "simclr": "SimCLR"}
# Okabe and Ito's colours that reach a contrast of 3:1 on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
DECIMALS = 6  # of plotted and tabulated values: noise of the last bits must not reach a file


def display(name: str) -> str:
    """A method's name as papers print it."""
    return NAMES.get(name, name)


def percent(interval: Interval) -> str:
    """'93.1 ± 0.4' of a fraction; no interval for a single value."""
    mean = f"{100 * interval.mean:.1f}"
    return mean if interval.half is None else f"{mean} ± {100 * interval.half:.1f}"


@dataclass(frozen=True)
class Table:
    """A table: `rows` are printed; `data` are the numbers behind them, a mapping per row."""

    name: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    data: list[dict[str, Any]]

    def markdown(self) -> str:
        """The table and its caption in Markdown."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"{self.caption}\n\n{body}\n"

    def csv(self) -> str:
        """The numbers behind the table."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.data[0]) if self.data else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.data)
        return text.getvalue()


@dataclass(frozen=True)
class Figure:
    """A figure as SVG, with the caption and the text for those who cannot see it."""

    name: str
    caption: str
    alt: str
    svg: bytes


@contextmanager
def drawing(name: str) -> Iterator[Any]:
    """Matplotlib's pyplot, set so that equal data give equal bytes in every process."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {
        "svg.hashsalt": name,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        yield plt
        plt.close("all")


def to_svg(figure: Any) -> bytes:
    """The figure's bytes, without date or version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
