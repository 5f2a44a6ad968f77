"""What befalls jobs on a real cluster: after each, submitting again and `dvc repro` give the bits of an undisturbed run.

Each test disturbs with the cluster's own commands. Nothing that was finished is computed again, no job waits for ever,
and `status` names what failed, with the reason.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections import Counter

import pytest

from tests.slurm.cluster import LARGEST

pytestmark = pytest.mark.slurm


def test_the_jobs_of_a_cluster_give_the_bits_of_this_machine(site, undisturbed):
    site.run("bench", "submit")
    site.until(site.quiet, "all jobs have ended")
    finished = site.finished()
    site.run("dvc", "repro")
    assert site.finished() == finished  # collected, not computed
    assert site.lock() == undisturbed.lock()


def test_dvc_repro_submits_the_whole_plan_at_once_and_waits(site, undisturbed):
    running = site.start("dvc", "repro")
    site.until(lambda: len(site.jobs()) >= 5, "two encoders by two seeds, and raw pixels")
    running.communicate(timeout=200)
    assert running.returncode == 0
    assert len(site.jobs()) == 5
    sizes = Counter(job.partition("_")[0] for job in site.jobs())  # of arrays
    assert sorted(sizes.values()) == [5 - LARGEST, LARGEST]
    assert site.lock() == undisturbed.lock()


def test_without_waiting_dvc_repro_names_the_jobs_and_how_to_come_back(site, undisturbed):
    site.configure(wait=False)
    told = site.run("dvc", "repro", check=False)
    assert told.returncode != 0
    assert re.search(
        r"\d+ jobs are queued .*, as \d+(, \d+)*; `python -m bench status`.*the same command again", told.stderr
    )
    site.until(site.quiet, "all jobs have ended")
    site.recover(site.finished(), again=False)
    assert site.lock() == undisturbed.lock()


def test_a_stopped_wait_leaves_the_jobs_and_the_next_call_attaches_to_them(site, undisturbed):
    waiting = site.start("bench", "submit", "--wait")
    site.until(site.training, "a cell trains")
    waiting.send_signal(signal.SIGINT)
    _, told = waiting.communicate(timeout=20)
    assert "the jobs go on" in told
    before = len(site.jobs())
    site.recover(site.finished())
    assert len(site.jobs()) == before
    assert site.lock() == undisturbed.lock()


def test_a_cancelled_job_is_named_and_submitted_again(site, undisturbed):
    site.run("bench", "submit")
    site.until(site.training, "a cell trains")
    job = site.training()[0]
    site.cluster.run("scancel", job)
    site.until(lambda: site.jobs()[job] == "CANCELLED", "the job is cancelled")
    site.until(lambda: f"its job was cancelled (job {job}" in site.status(), "status names it")
    site.recover(site.finished())
    assert site.lock() == undisturbed.lock()


def test_a_killed_process_is_named_and_its_cell_goes_on(site, undisturbed):
    site.run("bench", "submit")
    site.until(site.training, "a cell trains")
    job = site.training()[0]
    for process in site.cluster.processes(job):
        os.kill(process, signal.SIGKILL)
    site.until(lambda: site.jobs()[job] == "FAILED", "the job has failed")
    assert re.search(rf"FAILED .*its job's process ended with an error \(job {job}", site.status())
    site.recover(site.finished())
    assert site.lock() == undisturbed.lock()


def test_the_jobs_of_a_node_that_fails_go_on_elsewhere(site, undisturbed):
    site.run("bench", "submit")
    site.until(site.training, "a cell trains")
    node = site.cluster.run("squeue", "-h", "-j", site.training()[0], "-o", "%N").stdout.strip()
    site.cluster.stop_node(node)
    try:
        site.until(site.quiet, "all jobs have ended, on the other nodes")
        site.recover(site.finished())
        assert site.lock() == undisturbed.lock()
    finally:
        site.cluster.start_node(node)
        site.cluster.await_nodes(5)


def test_preempted_jobs_go_on_when_the_others_are_done(site, undisturbed):
    site.run("bench", "submit")
    site.until(site.training, "a cell trains")
    site.cluster.run("sbatch", "-p", "high", "-N", "4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    site.until(lambda: "PENDING" in site.jobs().values(), "a job is queued again")
    site.until(site.quiet, "all jobs have ended")
    site.recover(site.finished())
    assert site.lock() == undisturbed.lock()


def test_a_job_at_its_time_limit_saves_and_is_queued_again(site, undisturbed):
    site.configure(time=1)
    site.set(seconds=2.5)  # fifty seconds of training; of a minute, a start and the signal ahead of the end leave forty
    site.run("bench", "submit")
    site.until(site.quiet, "all jobs have ended")
    site.recover(site.finished())
    assert site.states() == undisturbed.states()
    logs = "".join(path.read_text() for path in (site.space.store / "submissions").glob("*/*_log.out"))
    assert "saving and leaving" in logs
    assert "queued again" in logs


def test_where_jobs_may_not_be_queued_again_submitting_goes_on_from_the_checkpoint(site, undisturbed):
    site.configure(time=1, requeue=False)
    site.set(seconds=2.5)
    site.run("bench", "submit", "--only", "drowsy")
    site.until(site.quiet, "all jobs have ended")
    assert "FAILED" in site.status()
    site.configure(time=10)
    site.recover(site.finished())
    assert site.states() == undisturbed.states()


def test_an_exception_fails_its_cells_alone_and_status_tells_its_last_line(site, undisturbed):
    site.set(fault=7)
    site.run("bench", "submit")
    site.until(site.quiet, "all jobs have ended")
    told = site.status()
    assert re.search(r"FAILED .* drowsy seed 0: RuntimeError: told to fail with 7\n +/.*\.log", told)
    assert re.search(r"pretrain random_init +2 ", told)
    failed = site.run("dvc", "repro", check=False)
    assert failed.returncode != 0
    site.set()
    site.recover(site.finished())
    assert site.lock() == undisturbed.lock()


def test_a_job_out_of_memory_is_named_with_what_to_raise(site, undisturbed):
    site.set(megabytes=1800)
    site.configure(memory=2.0)
    site.run("bench", "submit")
    site.until(site.quiet, "all jobs have ended")
    assert "ran out of memory; raise cluster.memory" in site.status()
    site.configure(memory=3.5)
    site.recover(site.finished())
    assert site.states() == undisturbed.states()


def test_a_submission_killed_half_way_is_completed_by_the_next(site, undisturbed, tmp_path):
    site.configure(stages={"evaluate": {"cpus": 2}})  # several arrays
    wrapped = tmp_path / "bin" / "sbatch"
    wrapped.parent.mkdir()
    wrapped.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" > {tmp_path}/told\nkill -9 $PPID\n')
    wrapped.chmod(wrapped.stat().st_mode | stat.S_IXUSR)
    path = f"{wrapped.parent}{os.pathsep}{site.space.environment()['PATH']}"
    assert site.run("bench", "submit", check=False, PATH=path).returncode == -signal.SIGKILL
    assert "Submitted batch job" in (tmp_path / "told").read_text()
    site.recover(site.finished())
    assert site.lock() == undisturbed.lock()


def test_two_submissions_at_once_queue_each_cell_once(site, undisturbed):
    both = [site.start("bench", "submit") for _ in range(2)]
    for one in both:
        _, told = one.communicate(timeout=120)
        assert one.returncode == 0, told
    assert len(site.jobs()) == 5
    site.recover(site.finished())
    assert len(site.jobs()) == 5
    sizes = Counter(job.partition("_")[0] for job in site.jobs())  # of arrays
    assert sorted(sizes.values()) == [5 - LARGEST, LARGEST]
    assert site.lock() == undisturbed.lock()


def test_a_full_disk_under_the_store_is_survived(site, undisturbed, tmp_path):
    small = site.space.store
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "none", small], check=True)
    try:
        site.run("bench", "submit")
        site.until(site.training, "a cell trains")
        fill(small / "filler")
        site.until(site.quiet, "all jobs have ended")
        assert "FAILED" in site.status()
        refused = site.run("bench", "submit", check=False)
        assert "cannot be written (No space left on device)" in refused.stderr
        (small / "filler").unlink()
        site.recover(site.finished())
        assert site.lock() == undisturbed.lock()
    finally:
        site.cluster.clear()
        subprocess.run(["umount", "-l", small], check=True)


def test_a_controller_that_restarts_is_waited_for(site, undisturbed):
    waiting = site.start("bench", "submit", "--wait")
    site.until(site.training, "a cell trains")
    site.cluster.stop_controller()
    time.sleep(8)
    site.cluster.start_controller()
    _, told = waiting.communicate(timeout=200)
    assert waiting.returncode == 0, told
    site.recover(site.finished())
    assert site.lock() == undisturbed.lock()


def fill(path):
    """Write until the disk is full."""
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=4k"], check=False, capture_output=True)
