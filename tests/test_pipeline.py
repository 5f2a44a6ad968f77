"""The whole pipeline, with real DVC, in a clone: what runs, what does not, and that the bits agree."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.workspace import Workspace, git

PARAMS = "profiles/smoke/params.yaml"
METHODS = ("random_init", "supervised", "simclr", "nnclr")
PROTOCOLS = ("", " linear", " knn", " retrieval")
CELLS = 41  # (4 methods x 2 seeds) x (1 + 3 protocols), raw pixels x 3, and a study's other point: 2 x (1 + 2)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A clone in which `python -m bench repro` has run and whose results are committed."""
    space = Workspace(tmp_path_factory.mktemp("pipeline"))
    space.run("bench", "repro")
    space.commit("profiles/smoke/reports", "profiles/smoke/dvc.lock")
    return space


@pytest.fixture
def restored(done):
    """The clone, put back to its committed files afterwards."""
    yield done
    git(done.root, "checkout", "-q", ".")


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(.+?)'", output)


def test_after_repro_nothing_is_left_to_do(done):
    assert "up to date" in done.run("dvc", "repro").stdout
    assert "up to date" in done.run("dvc", "status").stdout
    assert git(done.root, "status", "--porcelain") == ""
    assert done.cells("--missing") == {}


def test_a_clean_checkout_makes_the_same_bytes_again(done):
    before = done.results()
    git(done.root, "clean", "-ffdxq")
    assert not done.store.exists()
    told = done.run("bench", "repro")
    assert git(done.root, "status", "--porcelain") == ""
    assert "byte-identical to the committed" in told.stdout
    assert done.results() == before


@pytest.mark.slow  # every other test here ends with `dvc repro` too, after submitting
def test_dvc_alone_in_one_process_gives_the_same_lock_and_cells_as_submitting_first(done, tmp_path):
    alone = Workspace(tmp_path)
    alone.edit(PARAMS, "name: local", "name: debug")
    alone.edit(PARAMS, "  workers: null", "  # workers: null")
    # the plan does not see the cluster, but its file is a dependency: only that line of the lock differs
    alone.run("dvc", "repro")
    assert alone.results() == done.results()
    assert alone.files(alone.here / "reports").keys() <= done.files(done.here / "reports").keys()
    for name, content in alone.files(alone.here / "reports").items():
        assert content == (done.here / "reports" / name).read_bytes(), name
    without = re.compile(r"- path: params.yaml\n.*\n.*\n.*\n")
    locks = [without.sub("", (space.here / "dvc.lock").read_text()) for space in (alone, done)]
    assert locks[0] == locks[1]


def test_an_option_of_one_method_recomputes_that_method_and_what_follows(restored):
    restored.edit(PARAMS, "temperature: 0.2", "temperature: 0.3")
    wanted = {f"simclr{protocol} seed {seed}" for protocol in PROTOCOLS for seed in (0, 1)}
    assert set(restored.cells("--missing")) == wanted


def test_a_new_seed_recomputes_that_seed(restored):
    restored.edit(PARAMS, "seeds: [0, 1]", "seeds: [0, 1, 2]")
    wanted = {f"{m}{p} seed 2" for m in METHODS for p in PROTOCOLS}
    wanted |= {f"nnclr{p} seed 2 (support_size 32)" for p in ("", " linear", " knn")}
    assert set(restored.cells("--missing")) == wanted


def test_how_cells_are_run_recomputes_nothing(restored):
    restored.edit(PARAMS, "workers: null", "workers: 7")
    restored.edit(PARAMS, "checkpoint_seconds: 5", "checkpoint_seconds: 50")
    assert restored.cells("--missing") == {}


def test_training_settings_do_not_touch_a_method_that_does_not_train(restored):
    restored.edit(PARAMS, "epochs: 2", "epochs: 3")
    assert not any("random_init" in label for label in restored.cells("--missing"))


def test_a_comment_in_a_method_runs_the_plan_and_nothing_that_computes(restored):
    restored.edit("bench/methods/simclr.py", "n = len(z1)", "n = len(z1)  # rows")
    assert stages_run(restored.run("dvc", "repro").stdout) == ["plan"]


def test_a_removed_output_is_collected_again_without_importing_torch(restored):
    shutil.rmtree(restored.here / "records" / "knn")
    told = restored.run("dvc", "repro", "--force", "--single-item", "evaluate@knn", PYTHONPROFILEIMPORTTIME="1")
    assert "evaluate@knn" in stages_run(told.stdout)[0]
    assert "pydantic" in told.stderr
    assert not re.search(r"\| +torch(vision)?$", told.stderr, re.MULTILINE)


def test_a_damaged_cell_is_computed_again_with_the_same_bits(restored):
    key = restored.cells()["simclr seed 1"]
    state = restored.store / "cells" / key / "method.safetensors"
    before = state.read_bytes()
    state.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    told = restored.run("bench", "submit")
    assert "damaged" in told.stderr
    assert state.read_bytes() == before


def test_show_tells_what_a_cell_is_and_gave(done):
    key = done.cells()["nnclr linear seed 1"]
    told = done.run("bench", "show", key[:8]).stdout
    assert told.startswith(f"{key}  evaluate nnclr linear seed 1")
    assert re.search(r"top1 = 0\.\d+", told)
    assert f"reads the encoder of {done.cells()['nnclr seed 1']}" in told
    refused = done.run("bench", "show", "nothing", check=False)
    assert "0 cells have a key that begins with 'nothing'" in refused.stderr


def test_committed_records_render_to_the_same_bytes(done):
    done.run("bench", "render", "--to", "again")
    again = done.files(done.here / "again")
    shutil.rmtree(done.here / "again")
    committed = done.files(done.here / "reports")
    assert again == {name: content for name, content in committed.items() if name in again}
    assert committed.keys() - again.keys() == {"probe.json"}


def test_a_studys_curves_are_drawn_from_its_own_histories(done):
    rows = (done.here / "reports" / "figures" / "study_nnclr_support_size_neighbour_purity.csv").read_text().split("\n")
    assert rows[0] == "methods.nnclr.support_size,epoch,mean,half_width_95,n,seeds"
    assert [row.split(",")[:2] for row in rows[1:-1]] == [["32", "1"], ["32", "2"], ["64", "1"], ["64", "2"]]


def test_metrics_and_plots_are_there_for_dvc(done):
    shown = json.loads(done.run("dvc", "metrics", "show", "--json").stdout)
    numbers = shown[""]["data"]["reports/metrics.json"]["data"]
    assert numbers["cells"] == {"planned": CELLS, "done": CELLS}
    assert set(numbers["knn"]) == {"raw_pixels", *METHODS}
    drawn = done.run("dvc", "plots", "show", "--json").stdout
    assert "reports/plots/loss.json" in drawn


def test_a_nan_fails_its_cells_with_step_and_rate_while_the_others_finish(restored):
    restored.edit(PARAMS, "training: {}", "training: {simclr: {optimizer: {lr: 1e+30}}}")
    reports = restored.files(restored.here / "reports")
    told = restored.run("bench", "repro", check=False)
    assert told.returncode != 0
    assert re.search(r"simclr seed 0: TrainingError: the loss is \w+ at step \d+ of 10 .*learning rate", told.stderr)
    assert "simclr knn seed 1: the encoder it needs failed" in told.stderr
    missing = set(restored.cells("--missing"))
    assert missing == {f"simclr{p} seed {s}" for p in PROTOCOLS for s in (0, 1)}
    page = (restored.here / "reports-partial" / "index.md").read_text()
    assert f"Not whole: 8 of {CELLS} cells are missing" in page
    assert all(key in page for key in restored.cells("--missing").values())
    assert restored.files(restored.here / "reports") == reports
    refused = restored.run("bench", "report", check=False)
    assert refused.returncode != 0
    assert "--partial" in refused.stderr


def test_a_fresh_clone_with_a_filled_cache_and_one_more_seed_computes_that_seed_only(done, tmp_path):
    clone = tmp_path / "clone"
    git(done.root, "clone", "-q", str(done.root), str(clone))
    shutil.copytree(done.here / ".dvc" / "cache", clone / "profiles" / "smoke" / ".dvc" / "cache")
    space = object.__new__(Workspace)
    space.root, space.here, space.store = clone, clone / "profiles" / "smoke", clone / "work"
    space.edit(PARAMS, "seeds: [0, 1]", "seeds: [0, 1, 2]")
    told = space.run("bench", "submit")
    computed = re.findall(r"\] (.+?): done", told.stderr)
    assert computed
    assert all(" seed 2" in label for label in computed)
    assert {k: v for k, v in space.results().items() if k in done.results()} == done.results()
    space.run("dvc", "repro")
    assert "up to date" in space.run("dvc", "status").stdout


def test_a_stage_takes_its_cells_from_the_cache_where_the_store_is_empty(restored, tmp_path):
    restored.run("dvc", "repro", "plan")  # an earlier test's plan may lie there
    store = str(tmp_path / "store")
    told = restored.run("dvc", "repro", "--force", "--single-item", "pretrain@simclr", BENCH_STORE=store)
    assert stages_run(told.stdout) == ["pretrain@simclr"]
    assert ": done" not in told.stderr
    environments = list((tmp_path / "store" / "cells").glob("*/environment.json"))
    assert len(environments) == 2
    assert all("adopted" in path.read_text() for path in environments)


def test_a_method_in_one_file_and_a_line_of_params_is_in_every_table(done, tmp_path):
    more = Workspace(tmp_path)
    shutil.copytree(done.store, more.store)
    source = (more.root / "bench" / "methods" / "simclr.py").read_text()
    mine = source.replace("class SimCLR(", "class Mine(").replace('= "SimCLR"', '= "My method"')
    (more.root / "bench" / "methods" / "mine.py").write_text(mine)
    text = (more.root / PARAMS).read_text()
    options = re.search(r"(?m)^  simclr: (\{candidates.*)$", text)
    more.edit(PARAMS, options[0], f"{options[0]}\n  mine: {options[1]}")
    more.run("bench", "submit")
    more.run("bench", "report", "--partial")
    tables = sorted((more.here / "reports-partial" / "tables").glob("*.md"))
    tables = [path for path in tables if path.name != "growth.md"]  # of benchmarks that were run before
    with_methods = [path.name for path in tables if "| NNCLR |" in path.read_text()]
    assert with_methods == [path.name for path in tables if "| My method |" in path.read_text()]
    assert {"main.md", "over_random_init.md"} <= set(with_methods)


STUDY = """judged: [mine]

studies:
  mine:
    seeds: [0, 1, 2, 3, 4]
    fixed: {defaults.epochs: 1, defaults.snapshots: [1]}
    points: [{method: supervised, data.fraction: 1.0}, {method: random_init, data.fraction: 0.5}]
    protocols: [knn]
"""
CLAIM = """
  - id: mine
    statement: Labels help.
    source: {place: Table 9, certainty: noted}
    study: mine
    quantity: {metric: knn.top1_k20, along: method}
    predicate: {name: greater, left: supervised, right: random_init}
    margin: 0.0
    primary: false
    published: []
untested:
"""


def test_a_study_is_an_entry_of_params_and_a_claim_an_entry_of_its_paper(done, tmp_path):
    more = Workspace(tmp_path)
    shutil.copytree(done.store, more.store)
    more.edit(PARAMS, "studies:\n", STUDY)
    more.edit("bench/papers/nnclr.yaml", "\nuntested:\n", CLAIM)
    more.run("bench", "submit", "--only", "mine")
    more.run("bench", "report", "--partial")
    shown = more.here / "reports-partial"
    rows = [line for line in (shown / "tables" / "study_mine.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[:3] for row in rows[2:]] == [["| Supervised", "1.0", "5"], ["| Random init", "0.5", "5"]]
    assert (shown / "figures" / "study_mine.svg").is_file()
    (row,) = [line for line in (shown / "tables" / "claims.md").read_text().splitlines() if line.startswith("| mine:")]
    assert any(verdict in row for verdict in ("reproduced", "contradicted", "inconclusive"))
    assert "not testable" not in row
    assert sum(json.loads((shown / "metrics.json").read_text())["claims"].values()) > 50
    more.edit(PARAMS, "seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2, 3]")
    refused = more.run("bench", "cells", check=False)
    assert refused.returncode == 1
    assert "nnclr.yaml: claim 'mine': study 'mine' has 4 seeds; 5 are needed" in refused.stderr


def test_the_ledger_is_printed_and_its_findings_are_no_error(done):
    printed = done.run("bench", "claims").stdout
    assert "not testable here" in printed
    assert "this profile judges no study 'main'" in printed


def test_a_removed_method_leaves_nothing_behind(done, tmp_path):
    fewer = Workspace(tmp_path)
    fewer.store.parent.mkdir(exist_ok=True)
    shutil.copytree(done.store, fewer.store)
    fewer.run("dvc", "repro")
    fewer.edit(PARAMS, "  supervised: {}\n", "")
    fewer.run("dvc", "repro")
    locked = (fewer.here / "dvc.lock").read_bytes()
    assert not (fewer.here / "runs" / "supervised").exists()
    fewer.commit("profiles/smoke/dvc.lock")
    git(fewer.root, "clean", "-ffdxq", "-e", "work")
    fewer.run("dvc", "repro")
    assert (fewer.here / "dvc.lock").read_bytes() == locked


def submission(done, store, *command: str) -> subprocess.Popen[bytes]:
    """A process that computes for a store of its own."""
    (done.here / "dvc.lock").unlink()  # or all would be adopted from the cache
    environment = done.environment(BENCH_STORE=str(store))
    nowhere = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, *command], cwd=done.here, env=environment, stdout=nowhere, stderr=nowhere)


def test_a_stopped_submission_leaves_no_worker_behind(restored, tmp_path):
    store = tmp_path / "store"
    running = submission(restored, store, "-m", "bench", "submit")
    wait_for(lambda: workers(store))
    running.terminate()
    assert running.wait(60) == 130
    wait_for(lambda: not workers(store), 30)


STOPPED_WHILE_IT_BEGINS_A_WORKER = """
import os, signal, submitit
from bench.cli import main

begin = submitit.LocalExecutor._submit_command

def begun(executor, command):
    job = begin(executor, command)
    os.kill(os.getpid(), signal.SIGTERM)
    return job

submitit.LocalExecutor._submit_command = begun
main(["submit", "--workers", "1"])
"""


def test_a_submission_stopped_while_it_begins_a_worker_leaves_none_behind(restored, tmp_path):
    store = tmp_path / "store"
    running = submission(restored, store, "-c", STOPPED_WHILE_IT_BEGINS_A_WORKER)
    assert running.wait(60) == 130
    # its work is where it looks for it: else it would wait a minute for that, whoever has gone
    assert len(list(store.glob("submissions/*/*_submitted.pkl"))) == 1
    wait_for(lambda: not workers(store), 30)


def workers(store) -> list[int]:
    """Processes that compute for a store."""
    command = ["pgrep", "-f", f"submitit.core._submit {store}"]
    return [int(pid) for pid in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()]


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_worker_killed_mid_way_is_replaced_and_the_bits_stay(restored, tmp_path):
    done, store = restored, tmp_path / "store"
    running = submission(done, store, "-m", "bench", "submit", "--workers", "1")
    killed = False
    while running.poll() is None:
        found = workers(store)
        if not killed and found and any((store / "submissions").glob("*/*.starts")):
            os.kill(found[0], signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    assert killed
    assert running.returncode == 0
    found = done.files(store / "cells")
    assert {k: v for k, v in found.items() if not k.endswith("environment.json")} == done.results()
