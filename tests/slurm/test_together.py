"""Several processes for one cell: on a cluster they give the bits of one process."""

import pytest

from tests.slurm.site import Site

pytestmark = pytest.mark.slurm


@pytest.fixture
def two(site: Site) -> Site:
    """A site whose batches are cut into two shards, with two processes for each job."""
    site.text = site.text.replace("shards: 1", "shards: 2")
    site.set()
    site.configure(tasks=2)
    return site


def test_two_processes_of_a_job_train_to_the_bits_of_one(two, tmp_path):
    two.run("bench", "submit", "--wait")
    two.run("dvc", "repro")
    assert len(list((two.space.store / "submissions").glob("*/*_1_log.out"))) == 5  # each job had a second process
    alone = Site(tmp_path / "alone", None)
    alone.text = two.text
    alone.set()
    alone.run("bench", "submit")
    alone.run("dvc", "repro")
    assert two.lock() == alone.lock()


def test_processes_that_are_told_to_stop_save_once_and_go_on_together(two):
    two.set(seconds=0.6)
    two.run("bench", "submit", "--only", "drowsy")
    two.until(two.training, "a cell trains")
    job = two.training()[0]
    two.cluster.run("scancel", "--signal=USR2", job)
    two.until(lambda: two.jobs()[job] == "PENDING", "the job is queued again")
    two.until(two.quiet, "all jobs have ended")
    log = next((two.space.store / "submissions").glob(f"*/{job}_0_log.out")).read_text()
    assert "stopped at step" in log
    assert "queued again" in log
    before = two.finished()
    assert len(before) == 4  # two encoders and their evaluations
    two.recover(before)


def test_processes_that_cannot_share_the_shards_are_refused_before_anything_is_queued(two):
    two.configure(tasks=2, nodes=2)
    told = two.run("bench", "submit", check=False)
    assert told.returncode == 1
    assert "a job has 4 processes, which cannot share the 2 shards of drowsy seed 0 evenly" in told.stderr
    assert "multiple of 4" in told.stderr
    assert two.jobs() == {}
