"""One cluster for each process of the test run, and a project whose cells are slow enough to be disturbed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, unavailable
from tests.slurm.site import Site


def _worker() -> int:
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    why = unavailable()
    if why:
        pytest.skip(f"no SLURM cluster: {why}")
    folder = tmp_path_factory.mktemp("slurm")
    started = Cluster(folder, 17000 + 100 * _worker(), folder / "hidden")
    try:
        started.up()
        yield started
    finally:
        started.down()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Site:
    """The same project, computed on this machine without a cluster."""
    site = Site(tmp_path_factory.mktemp("local"), None)
    site.run("bench", "submit")
    site.run("dvc", "repro")
    return site


@pytest.fixture
def site(tmp_path: Path, cluster: Cluster) -> Iterator[Site]:
    made = Site(tmp_path, cluster)
    yield made
    cluster.clear()
