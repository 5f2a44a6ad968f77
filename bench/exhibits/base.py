"""What exhibits are made of: a table and its writers, and figures that are the same bytes each time."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.methods import METHODS
from bench.stats import Interval

# Okabe and Ito's colours that reach a contrast of 3:1 on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
MARKERS = "osD^vPX*"
STYLES = ("-", "--", ":", "-.")
RAW_PIXELS = "raw_pixels"
DPI = 150  # of PNG files
DECIMALS = 6  # of plotted and tabulated values: noise of the last bits must not reach a file


def display(name: str) -> str:
    """A method's name as papers print it; a checkpoint's as it is."""
    if name in METHODS:
        return str(METHODS.component(name).constant("title", name))
    return "Raw pixels" if name == RAW_PIXELS else name


def look(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """A method's colour, marker and line style: the same in every figure, and never colour alone."""
    i = list(methods).index(method)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": STYLES[i // len(COLOURS) % len(STYLES)],
    }


def headlines(frame: pd.DataFrame, gathered: dict[str, Any]) -> dict[str, str]:
    """Each protocol's headline metric: the first of its records."""
    present = set(frame["protocol"])
    return {p: str(frame.loc[frame["protocol"] == p, "metric"].iloc[0]) for p in gathered["protocols"] if p in present}


def percent(interval: Interval) -> str:
    """'93.1 ± 0.4' of a fraction; no interval for a single value."""
    mean = f"{100 * interval.mean:.1f}"
    return mean if interval.half is None else f"{mean} ± {100 * interval.half:.1f}"


def _csv(data: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(data[0]) if data else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(data)
    return text.getvalue()


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
        return _csv(self.data)

    def latex(self) -> str:
        """The table in LaTeX, for booktabs."""
        head, *body = [[_escape(cell) for cell in row] for row in [self.columns, *self.rows]]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape(self.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$", "{": r"\{", "}": r"\}"}
_LATEX |= {"−": "$-$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


@dataclass(frozen=True)
class Figure:
    """A figure, with the caption and the text for those who cannot see it; `data` where no table has its numbers."""

    name: str
    caption: str
    alt: str
    svg: bytes
    png: bytes
    data: Sequence[dict[str, Any]] = ()

    def csv(self) -> str:
        """The numbers behind the figure."""
        return _csv(self.data)


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
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not reach a figure
        matplotlib.use("Agg")
        matplotlib.rcParams.update(style)
        yield plt
        plt.close("all")


def epochs_on(axis: Any) -> None:
    """Label an axis with epochs, which are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def finish(name: str, caption: str, alt: str, figure: Any, data: Sequence[dict[str, Any]] = ()) -> Figure:
    """The figure as SVG and PNG, without date or version."""
    nothing: dict[str, dict[str, None]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    files = {}
    for kind, metadata in nothing.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata, dpi=DPI)
        files[kind] = buffer.getvalue()
    return Figure(name, caption, alt, **files, data=data)
