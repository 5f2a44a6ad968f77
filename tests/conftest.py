"""Pins the numerics before any test imports torch."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.numerics import pin

pin("portable", 1)


@pytest.fixture(scope="session", autouse=True)
def _numerics() -> None:
    from bench.numerics import require

    require("portable", 1, "cpu")
