"""All methods through the whole pipeline: profiles/smoke as it is shipped."""

import json
import math

import pytest

from bench.evaluators import EVALUATORS
from bench.methods import METHODS
from tests.workspace import Workspace

pytestmark = pytest.mark.slow  # the whole profile, two minutes: other tests run a few of its methods


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("smoke"), whole=True)
    space.edit("profiles/smoke/params.yaml", "seeds: [0, 1]", "seeds: [0]")  # one is enough to run everything
    space.run("bench", "repro")
    return space


def test_every_method_has_a_number_under_every_protocol(done):
    numbers = json.loads((done.here / "reports" / "metrics.json").read_text())
    assert numbers["cells"]["planned"] == numbers["cells"]["done"]
    for protocol in EVALUATORS:
        pixels = [] if EVALUATORS.component(protocol).module_constant("NEEDS_ENCODER", False) else ["raw_pixels"]
        assert set(numbers[protocol]) == {*pixels, *METHODS}, protocol
        assert all(math.isfinite(value) for row in numbers[protocol].values() for value in flat(row))


def flat(node) -> list[float]:
    if isinstance(node, dict):
        return [value for child in node.values() for value in flat(child)]
    if isinstance(node, list):
        return [value for child in node for value in flat(child)]
    return [] if node is None or isinstance(node, str) else [float(node)]


def test_every_method_that_trains_has_a_history_of_every_epoch(done):
    trained = [name for name in METHODS if METHODS.component(name).constant("trains", True)]
    for name in trained:
        for folder in sorted((done.here / "runs" / name).iterdir()):
            lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
            assert [line["epoch"] for line in lines] == [1, 2], name
            assert all(math.isfinite(value) for line in lines for value in line.values()), name


def test_after_repro_nothing_is_left_to_do(done):
    assert "up to date" in done.run("dvc", "repro").stdout
    assert done.cells("--missing") == {}
