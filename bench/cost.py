"""What training costs, counted rather than timed: the same on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

from bench.products import FORMULAS


@dataclass
class Flops:
    """Floating-point operations of matrix products and convolutions, a multiplication and an addition are one each."""

    count: int = 0


@contextmanager
def counting() -> Iterator[Flops]:
    """Count the operations inside, backwards too; they compute what they would without."""
    flops, counter = Flops(), FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter:
        yield flops
    flops.count = counter.get_total_flops()
