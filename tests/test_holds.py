"""Who holds what: one process at a time, and never for ever."""

import json
import multiprocessing
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import bench.holds
from bench.holds import Holds, _myself


@pytest.fixture
def fast(monkeypatch):
    """Heartbeats of a tenth of a second, stale after half of one."""
    monkeypatch.setattr(bench.holds, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(bench.holds, "STALE_SECONDS", 0.5)


def far_away(folder: Path, name: str = "k", **changes):
    """A hold of a process on another machine, of which no heartbeat comes."""
    holder = replace(_myself(), place="elsewhere", host="n7", token="far", **changes)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(asdict(holder)))
    return holder


def test_what_is_held_is_not_given_twice_until_it_is_released(tmp_path):
    hold = Holds(tmp_path).take("k")
    assert hold is not None
    assert Holds(tmp_path).take("k") is None
    assert Holds(tmp_path).take("other") is not None
    hold.release()
    assert Holds(tmp_path).take("k") is not None


def test_a_hold_leaves_nothing_behind(tmp_path):
    hold = Holds(tmp_path).take("k")
    assert hold is not None
    hold.release()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_of_another_machine_is_believed_until_its_heartbeat_stops(tmp_path, fast):
    far_away(tmp_path)
    holds = Holds(tmp_path)
    assert holds.take("k") is None
    assert "process" in str(holds.holder("k"))
    assert "on n7" in str(holds.holder("k"))
    time.sleep(0.6)
    taken = holds.take("k")
    assert taken is not None
    assert Holds(tmp_path).take("k") is None
    taken.release()


def test_a_heartbeat_keeps_a_holder_of_another_machine(tmp_path, fast):
    holds = Holds(tmp_path)
    for beat in range(8):
        far_away(tmp_path, beat=beat)
        assert holds.take("k") is None
        time.sleep(0.1)


def test_a_living_holder_beats(tmp_path, fast):
    hold = Holds(tmp_path).take("k")
    assert hold is not None
    time.sleep(0.45)
    noted = json.loads((tmp_path / "k.json").read_text())
    assert noted["beat"] >= 2
    hold.release()


def test_a_holder_that_was_taken_over_knows_it_and_releases_nothing(tmp_path, fast):
    hold = Holds(tmp_path).take("k")
    assert hold is not None
    far_away(tmp_path)
    time.sleep(0.3)
    assert hold.lost
    hold.release()
    assert (tmp_path / "k.json").exists()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    dead = replace(_myself(), born="1", token="dead")
    (tmp_path / "k.json").write_text(json.dumps(asdict(dead)))
    hold = Holds(tmp_path).take("k")
    assert hold is not None
    hold.release()


def _take(folder: Path, gate, results) -> None:
    holds = Holds(folder)
    gate.wait()
    hold = holds.take("k")
    results.put(hold is not None)
    time.sleep(1)  # whoever has it keeps it while the others try


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_processes_one_gets_it(tmp_path, stale):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if stale:
            (folder / "k.json").write_text(json.dumps(asdict(replace(_myself(), born="1", token="dead"))))
        gate, results = context.Event(), context.Queue()
        processes = [context.Process(target=_take, args=(folder, gate, results)) for _ in range(8)]
        for process in processes:
            process.start()
        gate.set()
        assert sum(results.get(timeout=20) for _ in processes) <= 1
        for process in processes:
            process.join()
        if stale:
            assert list(folder.glob(".*")) == []  # no half-made takeover


def test_held_waits_and_says_for_whom(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench.holds, "PATIENCE_SECONDS", 0.3)
    first = Holds(tmp_path).take("k")
    assert first is not None
    timer = threading.Timer(1.0, first.release)
    timer.start()
    with Holds(tmp_path).held("k"):
        timer.join()
    assert f"waiting for {first.holder}, which holds k" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
