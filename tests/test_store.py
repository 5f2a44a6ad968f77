"""The store: cells appear whole, once, and damage is seen."""

import re
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.cluster import Debug
from bench.files import UnwritableError, write_bytes, write_json
from bench.launch import CellsFailedError, ensure
from bench.launch.peak import peak_told
from bench.launch.submission import MixedNumericsError
from bench.launch.worker import Worker
from bench.plan import Cell
from bench.store import Store

ROOT = Path(__file__).resolve().parents[1]


def publish(store: Store, key: str, text: str = "x") -> None:
    folder = store.running(key) / "publish"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(text)
    store.publish(key, {"a": 1}, folder, {"host": "here"})


def test_a_published_cell_is_whole_and_leaves_nothing_running(tmp_path):
    store = Store(tmp_path)
    assert not store.has("k")
    publish(store, "k")
    assert store.has("k")
    assert store.damaged("k") == []
    assert not (tmp_path / "running" / "k").exists()


def test_a_cell_published_twice_keeps_the_first(tmp_path):
    store = Store(tmp_path)
    publish(store, "k", "first")
    publish(store, "k", "second")
    assert (store.path("k") / "record.json").read_text() == "first"
    assert store.damaged("k") == []


def test_what_is_copied_out_tells_nothing_of_the_machine(tmp_path):
    store = Store(tmp_path / "store")
    publish(store, "k")
    store.copy_out("k", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cell.json", "record.json"]
    assert "here" not in "".join(p.read_text() for p in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("harm", ["changed", "removed"])
def test_damage_to_a_finished_cell_is_seen(tmp_path, harm):
    store = Store(tmp_path)
    publish(store, "k")
    path = store.path("k") / "record.json"
    if harm == "changed":
        path.write_text("y")
    else:
        path.unlink()
    assert store.damaged("k") == ["record.json"]


def test_a_cell_is_held_by_one_process_and_freed_when_it_dies(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from bench.store import Store\n"
        "held = Store(Path(sys.argv[1])).holds.take('k')\n"
        "print(held is not None, flush=True); time.sleep(60)"
    )
    store = Store(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        assert store.holds.take("k") is None
        assert store.holds.holder("k") is not None
        holder.kill()
        holder.wait()
        assert store.holds.holder("k") is None
        taken = store.holds.take("k")
        assert taken is not None
        taken.release()


def test_a_store_that_cannot_be_written_is_an_error_that_says_how_to_mend_it():
    with pytest.raises(UnwritableError, match=r"/proc/nowhere.*BENCH_STORE"):
        Store(Path("/proc/nowhere")).check()


def test_a_write_leaves_no_half_file(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    write_bytes(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b", float("nan"))
    assert not (tmp_path / "b").exists()


def cell(key: str, needs: str | None = None) -> Cell:
    """A cell whose computation fails at once: its config names no method."""
    stage = "evaluate" if needs else "pretrain"
    config = {"stage": stage, "numerics": "portable", "threads": 1, "device": "cpu", "code": "", "versions": {}}
    config |= {"protocol": {"name": "knn"}} if needs else {"method": {"name": "none"}, "encoder": {"name": "conv4"}}
    return Cell(key, stage, "m", "m", 0, config, {"name": "none", "sha256": "0" * 12, "reader": "none"}, needs)


def test_a_training_cell_says_its_own_peak_memory_and_not_that_of_the_one_before(capsys):
    shown = replace(cell("a"), stage="pretrain", method="nnclr", config={"device": "cpu"})
    for size in (300, 20):
        with peak_told(shown):
            len(b"x" * (size * 1_000_000))
    with peak_told(replace(shown, stage="evaluate")):
        pass
    told = re.findall(r"^nnclr seed 0: peak memory (\d+) MB$", capsys.readouterr().err, re.MULTILINE)
    first, second = map(int, told)
    assert 200 < first - second < 400


def test_a_failed_cell_names_its_reason_and_fails_what_needs_it(tmp_path):
    store, cluster = Store(tmp_path), Debug(checkpoint_seconds=0)
    with pytest.raises(CellsFailedError) as caught:
        ensure([cell("aa"), cell("bb", needs="aa")], [], cluster, store)
    message = str(caught.value)
    assert "unknown method 'none'; " in message
    assert "the encoder it needs failed" in message
    assert str(tmp_path / "failed" / "aa.log") in message


def test_a_cell_whose_process_dies_is_failed_after_two_starts_and_stops_no_other(tmp_path):
    store = Store(tmp_path)
    listed = tmp_path / "submission" / "cells.json"
    write_json(listed, [asdict(cell("aa"))])
    cut_off = {"starts": 2, "deaths": 1, "stops": 0, "step": 0, "ended": False}
    write_json(listed.parent / "aa.starts", cut_off)
    Worker(listed, tmp_path, 0.0)()
    failure = store.failure("aa")
    assert failure is not None
    assert "died 2 times" in failure["error"]


@pytest.mark.parametrize(
    ("change", "reason"), [({"code": "other"}, "code has changed"), ({"versions": {"torch": "0"}}, "the plan is for")]
)
def test_other_code_or_packages_than_the_key_says_are_refused(tmp_path, change, reason):
    from bench.compute import PlanIsStaleError, compute
    from bench.fingerprint import code_hash
    from bench.plan import code_modules, current_versions

    planned = cell("aa")
    config = {**planned.config, "method": {"name": "simclr"}, "versions": current_versions()}
    config["code"] = code_hash(code_modules(config))
    stale = replace(planned, config=config | change)
    with pytest.raises(PlanIsStaleError, match=reason):
        compute(stale, Store(tmp_path), checkpoint_seconds=0.0)
    assert not Store(tmp_path).has("aa")


def test_a_cell_folder_that_is_not_whole_is_set_aside(tmp_path):
    store = Store(tmp_path)
    store.path("k").mkdir(parents=True)
    assert "damaged" in (store.set_aside_if_damaged("k") or "")
    publish(store, "k")
    (store.path("k") / "cell.json").write_text("{")
    assert "cell.json damaged" in (store.set_aside_if_damaged("k") or "")
    assert not store.path("k").exists()
    assert store.set_aside_if_damaged("k") is None


def test_an_evaluation_whose_encoder_is_nowhere_fails_instead_of_waiting_for_ever(tmp_path):
    listed = tmp_path / "submission" / "cells.json"
    write_json(listed, [asdict(cell("bb", needs="zz"))])
    Worker(listed, tmp_path, 0.0)()
    failure = Store(tmp_path).failure("bb")
    assert failure is not None
    assert "neither computed nor planned" in failure["error"]


def test_cells_of_several_numerics_cannot_share_one_process(tmp_path):
    cluster = Debug(checkpoint_seconds=0)
    other = cell("bb")
    native = replace(other, config=other.config | {"numerics": "native"})
    with pytest.raises(MixedNumericsError, match="use cluster: local"):
        ensure([cell("aa"), native], [], cluster, Store(tmp_path))


def test_a_worker_that_finds_a_cell_held_says_by_whom_and_goes_on_when_it_is_free(tmp_path, capsys):
    store = Store(tmp_path / "store")
    listed = tmp_path / "submission" / "cells.json"
    write_json(listed, [asdict(cell("aa"))])
    held = store.holds.take("aa")
    assert held is not None
    free = threading.Timer(1.0, held.release)
    free.start()
    Worker(listed, store.root, 0.0)()
    free.join()
    assert f"waiting for m seed 0, which {held.holder} computes" in capsys.readouterr().err
    assert "unknown method" in (store.failure("aa") or {})["error"]
