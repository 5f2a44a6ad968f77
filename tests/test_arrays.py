"""Job arrays: every cell once, an encoder with its evaluations, no more jobs than the cluster takes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cluster import Slurm
from bench.launch.arrays import Array, plan_arrays
from bench.plan import Cell

ENVIRONMENT = {"numerics": "portable", "threads": 1, "device": "cpu"}


def encoder(key: str, **changes: object) -> Cell:
    return Cell(key, "pretrain", "m", "m", 0, ENVIRONMENT | changes, {})


def evaluation(key: str, needs: str | None, **changes: object) -> Cell:
    return Cell(key, "evaluate", "knn", "m", 0, ENVIRONMENT | changes, {}, needs)


def plan(count: int, each: int = 2) -> list[Cell]:
    """Encoders, evaluations of each, some of an encoder that is there already, and one of raw pixels."""
    encoders = [encoder(f"e{i}") for i in range(count)]
    evaluations = [evaluation(f"v{i}-{j}", f"e{i}") for i in range(count + 1) for j in range(each)]
    return [*encoders, *evaluations, evaluation("pixels", None)]


def elements(arrays: list[Array]) -> list[tuple[str, ...]]:
    return [keys for array in arrays for keys in array.elements]


def test_a_job_is_an_encoder_and_its_evaluations():
    arrays = plan_arrays(plan(2), Slurm(), "s", 1000, None)
    assert len(arrays) == 1
    assert elements(arrays) == [("e0", "v0-0", "v0-1"), ("e1", "v1-0", "v1-1"), ("v2-0", "v2-1"), ("pixels",)]


def test_where_resources_differ_element_i_of_the_evaluations_follows_element_i_of_the_encoders():
    arrays = plan_arrays(plan(2), Slurm.model_validate({"stages": {"evaluate": {"cpus": 2}}}), "s", 1000, None)
    trained, judged, rest = arrays
    assert trained.elements == (("e0",), ("e1",))
    assert judged.elements == (("v0-0", "v0-1"), ("v1-0", "v1-1"))
    assert judged.after == trained.name
    assert rest.elements == (("v2-0", "v2-1"), ("pixels",))
    assert rest.after is None
    assert [array.stage for array in arrays] == ["pretrain", "evaluate", "evaluate"]


def test_overrides_that_change_nothing_split_nothing():
    same = Slurm.model_validate({"cpus": 2, "stages": {"evaluate": {"cpus": 2}}})
    assert len(plan_arrays(plan(2), same, "s", 1000, None)) == 1


def test_cells_of_other_numerics_or_devices_share_no_array():
    cells = [
        encoder("a"),
        encoder("b", numerics="native"),
        encoder("c", device="cuda"),
        evaluation("d", "c", device="cuda"),
    ]
    arrays = plan_arrays(cells, Slurm(), "s", 1000, None)
    assert sorted(array.environment for array in arrays) == [
        ("native", 1, "cpu"),
        ("portable", 1, "cpu"),
        ("portable", 1, "cuda"),
    ]


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(0, 12),
    each=st.integers(0, 3),
    largest=st.integers(1, 5),
    room=st.none() | st.integers(-3, 8),
    apart=st.booleans(),
)
def test_every_cell_is_sent_once_and_limits_are_kept(count, each, largest, room, apart):
    cells = plan(count, each)
    cluster = Slurm.model_validate({"stages": {"evaluate": {"cpus": 2}} if apart else {}})
    arrays = plan_arrays(cells, cluster, "s", largest, room)
    sent = [key for keys in elements(arrays) for key in keys]
    assert sorted(sent) == sorted(cell.key for cell in cells)
    assert len({array.name for array in arrays}) == len(arrays)
    assert all(1 <= len(array.elements) <= largest for array in arrays)
    if room is not None:
        assert len(elements(arrays)) <= max(room, 3)  # a job for each kind there is, at the least
    by_name = {array.name: array for array in arrays}
    place = {key: (array, i) for array in arrays for i, keys in enumerate(array.elements) for key in keys}
    for cell in cells:
        if cell.needs in place:
            mine, i = place[cell.key]
            theirs, j = place[cell.needs]
            assert i == j
            assert mine is theirs or by_name[mine.after or ""] is theirs


def test_a_written_array_reads_back(tmp_path):
    array = Array("bench-1-0", ("portable", 1, "cpu"), "pretrain", (("a", "b"), ("c",)), None)
    array.write(tmp_path)
    path = tmp_path / "bench-1-0.array.json"
    assert Array.read(path) == array
    array.forget(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("stage", ["pretrain", "evaluate"])
def test_an_override_replaces_what_all_have_and_null_takes_it_back(stage):
    cluster = Slurm.model_validate(
        {"gpus": 2, "time": 600, "setup": ["module load a"], "stages": {"evaluate": {"gpus": None, "time": 20}}}
    )
    wanted = cluster.resources(stage)
    assert (wanted.gpus, wanted.time) == ((2, 600) if stage == "pretrain" else (None, 20))
    assert wanted.setup == ["module load a"]
