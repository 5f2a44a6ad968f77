"""Pins the numerics before any test imports torch."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.numerics import pin

pin("portable", 1)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Before the workers start, each of which would compile the loops again."""
    from tests.loops import compile_once

    if not hasattr(session.config, "workerinput"):
        compile_once()


@pytest.fixture(scope="session", autouse=True)
def _numerics() -> None:
    from bench.numerics import require

    require("portable", 1, "cpu")


# files of few and long tests: begun last, one of two workers would end minutes before the other
FIRST = ("test_pipeline.py", "test_report.py", "test_fingerprint.py", "test_collapse.py", "test_resume.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
