"""Benchmarks: every row is listed, ours and the peer compute the same thing, and the results files can be read."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import params
from bench.clustering import kmeans as our_kmeans
from bench.data.source import ImageSet
from bench.evaluators.knn import nearest_rows
from bench.support import SupportSet
from bench.yaml12 import parse
from benchmarks import (
    cells,
    growth,
    kmeans,
    knn,
    l2_path,
    lookup,
    makespan,
    nce,
    pipeline,
    results,
    steps,
    timing,
    training,
    views,
)
from benchmarks.registry import GROUPS, chosen, parser, rows
from benchmarks.rows import Measured, Row, faster, limit, overhead

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("torchvision", "lightly", "faiss", "scikit-learn")


def row(target, theirs="peer"):
    return Row("nce", "what", theirs, "ms", target, lambda: Measured(1.0, 2.0, 3))


def test_help_lists_every_row_and_group():
    told = parser().format_help()
    assert all(name in told for name in [*GROUPS, *(each.name for each in rows())])


def test_an_unknown_row_is_refused(capsys):
    assert parser().parse_args([]).name == []
    with pytest.raises(SystemExit):
        parser().parse_args(["no-such-row"])
    assert "invalid choice" in capsys.readouterr().err


def test_names_are_unique_and_what_takes_minutes_is_left_to_who_asks():
    names = [each.name for each in rows()]
    assert len(names) == len(set(names))
    assert {each.name for each in rows()} - {each.name for each in chosen([])} == {
        "makespan-slurm",
        "makespan-repro",
        "path-50k-100",
    }
    assert chosen(["knn"]) == GROUPS["knn"]
    assert [each.name for each in chosen(["makespan-slurm", "nce"])] == ["nce", "makespan-slurm"]


def test_every_peer_has_a_row():
    against = " ".join(each.against for each in rows())
    assert all(peer in against for peer in PEERS)


VERDICTS = {
    "faster": (faster(2), Measured(1.0, 2.0, 1), 2.0, "reached"),
    "not fast enough": (faster(2.1), Measured(1.0, 2.0, 1), 2.0, "falls short"),
    "overhead": (overhead(1.1), Measured(1.05, 1.0, 1), 1.05, "reached"),
    "too much": (overhead(1.1), Measured(1.2, 1.0, 1), 1.2, "falls short"),
    "limit": (limit(3), Measured(2.9, None, 1), None, "reached"),
    "above it": (limit(3), Measured(3.1, None, 1), None, "falls short"),
    "none": (limit(None), Measured(3.1, None, 1), None, "no target"),
}


@pytest.mark.parametrize(("target", "measured", "ratio", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_a_verdict_is_the_ratio_against_the_target(target, measured, ratio, verdict):
    assert row(target).ratio(measured) == ratio
    assert row(target).verdict(measured) == verdict


def test_results_are_read_as_written_and_say_what_falls_short(tmp_path):
    lines = [results.line(row(faster(3)), Measured(1.0, 2.0, 5, "a note"))]
    results.write(lines, tmp_path)
    assert list(results.read(tmp_path / "results.csv").values()) == lines
    text = (tmp_path / "results.md").read_text()
    assert "| 1 | 2 | ms | 2x | 5 | at least 3x | **falls short** |" in text
    assert "a note" in text
    assert torch.__version__.partition("+")[0] in text


def test_what_was_tried_is_told_where_a_row_falls_short_and_only_there():
    tried = next(each.tried for each in rows() if each.name == "nce")
    found = {wanted: results.render([results.line(row(faster(wanted)), Measured(1.0, 2.0, 5))]) for wanted in (2, 3)}
    assert [f"- **nce**: {tried}" in text for text in found.values()] == [False, True]


def test_a_peer_that_is_absent_is_named_in_its_row():
    line = results.line(row(faster(3)), None, "cannot be imported: No module named 'peer'")
    assert line["ratio"] == ""
    assert "No module named 'peer'" in line["reached"]


def test_the_results_in_the_repository_can_be_read():
    known = results.read(results.FOLDER / "results.csv")
    assert set(known) <= {each.name for each in rows()}
    told = {each.name: each.tried for each in rows()}
    assert [
        line["name"] for line in known.values() if line["reached"] == "falls short" and not told[line["name"]]
    ] == []
    assert results.render(known.values()) == (results.FOLDER / "results.md").read_text()
    for line in known.values():
        assert set(line) == set(results.COLUMNS)
        assert line["reached"].startswith(("reached", "falls short", "no target", "not measured"))


def test_growth_can_be_read():
    with growth.FILE.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert {each["axis"] for each in found} == {"support_size", "bank", "batch"}
    assert {each["method"] for each in found if each["axis"] == "batch"} == set(growth.methods())
    assert all(float(each["ms"]) > 0 and int(each["bytes"]) > 0 for each in found)
    assert all(each["date"] and each["commit"] for each in found)


def test_a_point_of_the_growth_tells_where_it_was_measured():
    found = growth.point("simclr", growth.methods()["simclr"], "batch", 8, rows=20, size=8)
    assert tuple(found) == growth.COLUMNS
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", found["commit"])


def test_time_is_that_of_the_steps_that_count():
    clock = timing.Clock(skip=2)
    clock.marks = [timing.Spent(at, 2 * at) for at in (0.0, 5.0, 6.0, 8.0, 8.5, 9.0)]
    assert clock.per_step == timing.Spent(1.5, 3.0)


def test_the_best_is_the_one_with_the_least_of_what_is_asked_for():
    candidates = {"a": lambda: timing.Spent(1.0, 3.0), "b": lambda: timing.Spent(2.0, 1.0)}
    spent = timing.in_turn(candidates, 3)
    assert spent["b"] == timing.Spent(2.0, 1.0)
    assert [timing.least(spent, by) for by in ("wall", "cpu")] == ["a", "b"]


@pytest.mark.parametrize("peer", [views.torchvision_views, views.lightly_views])
def test_loaders_give_as_many_views_of_the_same_kind(peer):
    images = views.pictures(8)
    ours = views.make_views(views.RECIPE, images, views.Address(0, "views", np.arange(8)))
    theirs = next(iter(views.loader(images, peer(), 0, batch=8)))
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.dtype, 0 <= mine.min(), mine.max() <= 1) == (other.dtype, 0 <= other.min(), other.max() <= 1)
        assert abs(mine.mean() - other.mean()) < 0.2


def test_the_support_set_finds_what_faiss_finds():
    support, z = SupportSet(300, 16, 0), lookup.queries(40, 16)
    theirs = lookup.flat_index(support.rows).search(z.numpy(), 1)[1]
    assert lookup.agreement(support.nearest(z)[1], torch.from_numpy(theirs)) == 1


@pytest.mark.parametrize("peer", [knn.faiss_search, knn.sklearn_search])
def test_neighbours_are_the_peers(peer):
    bank, queries = knn.features(400, 16, 0), knn.features(30, 16, 1)
    assert knn.shared(nearest_rows(bank, queries, 7)[0].numpy(), peer(bank, queries, 7)()) == 1


@pytest.mark.parametrize("peer", [kmeans.faiss_kmeans, kmeans.sklearn_kmeans])
def test_kmeans_makes_the_peers_iterations_from_the_same_centroids(peer):
    x = knn.features(600, 8, 0)
    theirs = peer(x, 5, 3)
    np.testing.assert_allclose(kmeans.ours(x, 5, 3), theirs, atol=1e-5)
    assert kmeans.inertia(x, theirs) < 0.9 * kmeans.inertia(x, kmeans.first_centroids(x, 5))
    assert np.abs(theirs - our_kmeans(x, 5, 4, kmeans.SEED)[1].numpy()).max() > 1e-4  # another number of them


def test_the_path_reaches_the_peers_objectives():
    x, y = l2_path.features(200, 12, 3)
    path = [1e-2, 1.0, 100.0]
    _, ours = l2_path.ours(x, y, 3, path)
    theirs = [l2_path.theirs(x, y, l2)[1] for l2 in path]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize("encoder", [cells.CONV4, cells.WIDE], ids=["narrow", "wide"])
def test_the_documented_loop_trains_our_encoder_with_heads_of_our_size(encoder):
    loop = training.DocumentedLoop(0, 1, training.Setup(encoder, 1, ()))
    loop.batches = [[torch.rand(8, 3, 32, 32) for _ in range(2)]] * 11
    before = [p.clone() for p in loop.model.parameters()]
    assert loop().wall > 0
    assert any(not torch.equal(p, q) for p, q in zip(before, loop.model.parameters(), strict=True))
    assert training.config("nnclr", training.NNCLR, 256, encoder=encoder)["encoder"]["options"] == encoder
    ours = steps.build("nnclr", training.NNCLR, 10, {"name": "conv4", "options": encoder})
    assert [p.shape for p in ours.encoder.parameters()] == [p.shape for p in loop.model.backbone.parameters()]
    heads = [loop.model.projection_head, loop.model.prediction_head]
    matrices = [[p.shape for p in part.parameters() if p.ndim == 2] for part in (ours.projector, heads[0])]
    assert matrices[0] == matrices[1]
    assert ours.predictor[0].weight.shape == heads[1].layers[0].weight.shape


def test_views_that_are_ready_give_the_same_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "images", lambda rows: ours)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (81, 32, 32, 3), dtype=np.uint8)
    ours = ImageSet(pixels, np.arange(81) % 10, np.arange(81) == 80, 10)
    cell = training.config("nnclr", training.NNCLR | {"support_size": 16}, 80, optimizer=training.SGD, batch=8)
    kept = {}
    finished = []
    for kind in (training.Trainer, training.Ready, training.Ready):

        class Kept(kind):
            def __init__(self, *arguments, **named):
                super().__init__(*arguments, **named)
                finished.append(self)

        named = {"views": kept} if kind is training.Ready else {}
        training.train(cell, 80, kind=lambda *a, named=named, Kept=Kept, **b: Kept(*a, **named, **b))
    assert len(kept) == 10
    states = [run.method.state_dict() for run in finished]
    assert all(torch.equal(states[0][name], state[name]) for state in states for name in states[0])


def test_a_bare_step_is_a_step_without_bank_and_loss():
    method = steps.build("instdisc", nce.INSTDISC | {"negatives": 4, "dim": 8}, 20)
    shown = steps.batch(4, 20, 1)
    before = method.bank.rows.clone()
    steps.Bare(method, shown)()
    assert torch.equal(method.bank.rows, before)
    steps.Step(method, shown)()
    assert (method.bank.rows != before).any(1).sum() == 4


def test_a_makespan_is_measured_against_the_cells_times_shared_by_the_slots():
    found = makespan.against_ideal(6.0, [2.0, 3.0, 5.0], 2)
    assert (found.ours, found.theirs) == (6.0, 5.0)
    assert "20.0 % above the ideal" in found.note


def test_the_project_of_the_makespan_trains_several_methods_for_longer():
    text = makespan.lengthened((ROOT / "profiles" / "smoke" / "params.yaml").read_text())
    settings = params.check(parse(text))
    assert set(settings.methods) == set(makespan.METHODS)
    assert (settings.defaults.epochs, settings.data.fraction, settings.seeds) == (makespan.EPOCHS, 1.0, [0])


def test_the_small_project_has_one_cell_of_each_kind():
    text = pipeline.shrunk((ROOT / "profiles" / "smoke" / "params.yaml").read_text())
    settings = params.check(parse(text))
    assert (settings.seeds, list(settings.methods), list(settings.evaluations)) == ([0], ["random_init"], ["knn"])
