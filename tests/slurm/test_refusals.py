"""What a cluster is not asked for: bad settings, and folders that are not safe or not shared, are told before or at once."""

import os
import re
import stat

import pytest

pytestmark = pytest.mark.slurm


def refused(site, *command: str, **extra: str) -> str:
    told = site.run("bench", *command, check=False, **extra)
    assert told.returncode != 0
    return told.stderr


def test_an_unknown_setting_is_named_with_its_nearest_kin_and_the_file(site):
    site.configure(partiton="main")
    assert f"{site.file}: cluster.partiton: unknown key (given 'main')" in (told := refused(site, "submit"))
    assert "partition" in told
    assert site.jobs() == {} or site.quiet()


def test_a_partition_that_does_not_exist_is_named_with_those_that_do(site):
    site.configure(partition="mian")
    told = refused(site, "submit")
    assert "cluster.partition: no 'mian' on this cluster" in told
    assert "main" in told
    site.configure(stages={"evaluate": {"partition": "hihg"}})
    assert "no 'hihg'" in refused(site, "submit")


def test_workers_are_of_a_local_cluster_alone(site):
    told = refused(site, "submit", "--workers", "3")
    assert "--workers 3 is for cluster local, not slurm" in told
    assert "cluster.max_jobs" in told


def test_no_sbatch_is_an_error_that_says_where_to_run(site, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("git", "python3"):
        path = next(p for d in os.environ["PATH"].split(os.pathsep) if os.access(p := f"{d}/{name}", os.X_OK))
        (bare / name).symlink_to(path)
    told = refused(site, "submit", PATH=str(bare))
    assert "no sbatch, squeue, scancel, srun on this machine" in told
    assert "--cluster local" in told


def test_a_store_that_a_machine_does_not_see_is_told_by_the_first_job(site):
    hidden = site.cluster.hidden / site.folder.name
    site.configure(partition="blind")
    told = site.run("bench", "submit", "--wait", "--only", "random_init", check=False, BENCH_STORE=str(hidden))
    assert told.returncode != 0
    assert f"does not see {hidden}; set BENCH_STORE to a folder that all machines share" in told.stderr


def test_job_folders_are_their_owners_alone_and_a_job_refuses_one_that_is_not(site):
    site.configure(extra={"begin": "now+5"})
    site.run("bench", "submit", "--only", "random_init")
    (folder,) = (site.space.store / "submissions").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o770)
    site.until(site.quiet, "all jobs have ended")
    assert site.finished() == {}
    assert "nobody else can enter" in site.status()


def test_a_job_that_would_never_start_is_told_and_ended(site):
    site.cluster.run("scontrol", "create", "PartitionName=short", "Nodes=n1", "MaxTime=1", "State=UP")
    try:
        site.configure(partition="short", time=60)
        told = site.run("bench", "submit", "--wait", "--only", "random_init", check=False)
        assert told.returncode != 0
        assert "would never start: PartitionTimeLimit" in told.stderr
        assert len(site.jobs()) <= 2  # what was asked for, and no more
        site.until(site.quiet, "the job is gone")
    finally:
        site.cluster.clear()
        site.cluster.run("scontrol", "delete", "PartitionName=short")


def test_where_the_cluster_takes_fewer_jobs_cells_share_them(site, undisturbed):
    site.configure(max_jobs=2)
    site.run("bench", "submit")
    assert len(site.jobs()) == 2
    site.recover(site.finished())
    assert site.lock() == undisturbed.lock()


def test_evaluations_with_other_resources_follow_their_encoders(site, undisturbed):
    site.configure(stages={"evaluate": {"cpus": 2}})
    told = site.run("bench", "submit", "--dry-run").stdout
    assert "element i after element i of bench-new-0" in told
    assert "cpus 2" in told
    site.run("bench", "submit", "--wait")
    site.run("dvc", "repro")
    assert site.lock() == undisturbed.lock()


def test_cancel_ends_the_jobs_and_logs_shows_what_they_printed(site):
    site.run("bench", "submit")
    site.until(site.training, "a cell trains")
    assert re.search(r"cancelled \d jobs", site.run("bench", "cancel").stdout)
    site.until(site.quiet, "all jobs have ended")
    (failed, *_) = [line.split()[1] for line in site.status().splitlines() if "FAILED" in line and "drowsy" in line]
    told = site.run("bench", "logs", failed).stdout
    assert "its job was cancelled" in told
    assert "SIGTERM: saving and leaving" in told
