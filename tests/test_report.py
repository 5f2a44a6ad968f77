"""Reports: the same records give the same bytes, and the committed ones are those of the committed records."""

import csv
import os
import re
import subprocess
import sys
from itertools import combinations, count
from pathlib import Path
from statistics import fmean, variance

import numpy as np
import pandas as pd
import pytest

from bench.claims.paper import load, published_beside
from bench.exhibits.base import Table
from bench.exhibits.curves import UnknownCurveError, study_curves
from bench.exhibits.growth import growth_figure, growth_table, point
from bench.exhibits.paired_table import paired_table
from bench.exhibits.study import compute_figure, published_table, study_table
from bench.exhibits.tuning_table import best_of, tuning_table
from bench.exhibits.variance import variance_figure, variance_table, varies_sources
from bench.records import GROWTH, Records, read_beside
from bench.report import render
from bench.stats import hierarchical_difference
from bench.yaml12 import parse

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"


def rendered(folder: Path, **environment: str) -> dict[str, bytes]:
    subprocess.run(
        [sys.executable, "-m", "bench", "render", "--to", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=True,
    )
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_committed_records_render_to_the_committed_reports_whatever_the_user_has_set(tmp_path):
    style = tmp_path / "matplotlibrc"
    style.write_text("font.size: 20\nsvg.fonttype: none\nsavefig.dpi: 17\naxes.grid: True\n")
    again = rendered(tmp_path / "a", PYTHONHASHSEED="1")
    styled = rendered(tmp_path / "b", PYTHONHASHSEED="2", MATPLOTLIBRC=str(style))
    assert again == styled
    committed = subprocess.run(
        ["git", "ls-files", "reports"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    names = {name.removeprefix("reports/") for name in committed} - {"probe.json"}
    assert names == set(again)
    for name, content in again.items():
        assert content == (REPORTS / name).read_bytes(), name


def test_every_link_of_the_page_and_the_documents_leads_somewhere():
    pages = [REPORTS / "index.md", ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    told = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for command in re.findall(r"python -m bench (\w+)", text):
        assert re.search(rf"^    {command}\b", told, re.MULTILINE), command
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", text):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target


def test_the_best_of_k_trials_is_expected_over_all_choices_of_k():
    scores = [0.3, 0.9, 0.5, 0.5]
    for k, found in enumerate(best_of(scores), 1):
        assert found == pytest.approx(fmean(max(chosen) for chosen in combinations(scores, k)))
    assert best_of(scores)[0] == pytest.approx(fmean(scores))
    assert best_of(scores)[-1] == 0.9


def test_the_tuning_table_adds_up_a_methods_trials():
    trials = [
        {"method": "simclr", "levels": {"lr": lr}, "scores": scores, "flops": 10**12}
        for lr, scores in ((1, [0.5, 0.7]), (2, [0.8, 0.8]))
    ]
    trials.append({"method": "byol", "levels": {"lr": 1}, "scores": [0.25, 0.75], "flops": 3 * 10**12})
    table = tuning_table({"seeds": [1000, 1001], "protocol": "linear", "images": 400, "trials": trials})
    assert table is not None
    assert table.rows == [["SimCLR", "2", "2.0", "70.00", "80.00"], ["BYOL", "1", "3.0", "50.00", "–"]]
    assert tuning_table({"trials": []}) is None


def grown(method: str, axis: str, value: int, ms: float, flops: int) -> dict:
    text = {"method": method, "axis": axis, "value": value, "batch": 8, "ms": ms, "flops": flops, "bytes": 2 * value}
    origin = {"n": 3, "cpu": "a CPU", "date": "2026-01-02", "commit": "abc1234"}
    return point({name: str(each) for name, each in (text | origin).items()})


def test_the_growth_table_compares_each_step_with_the_smallest_of_its_series():
    steps = [("nnclr", "support_size", 1000, 10.0, 10**9), ("nnclr", "support_size", 4000, 15.0, 3 * 10**9)]
    steps.append(("simclr", "batch", 32, 7.0, 5 * 10**8))
    table = growth_table([grown(*step) for step in steps])
    assert table is not None
    assert table.rows == [
        ["NNCLR", "support set", "1,000", "8", "10.0", "1.0", "0.0", "1.00", "1.00", "1.00"],
        ["NNCLR", "support set", "4,000", "8", "15.0", "3.0", "0.0", "1.50", "3.00", "4.00"],
        ["SimCLR", "batch", "32", "8", "7.0", "0.5", "0.0", "1.00", "1.00", "1.00"],
    ]
    assert table.data[1]["ms_over_smallest"] == 1.5
    assert "medians of 3 on a CPU, 2026-01-02, commit abc1234" in table.caption


def test_where_no_growth_was_measured_nothing_is_shown_of_it(tmp_path):
    assert read_beside(tmp_path) == {"tuning": {"trials": []}, "growth": []}
    assert growth_table([]) is None
    assert growth_figure([], ["nnclr"]) is None


@pytest.mark.parametrize("folder", [ROOT, ROOT / "profiles" / "full", ROOT / "profiles" / "longer"])
def test_the_committed_reports_show_the_growth_that_was_measured(folder):
    assert Records.read(folder / "reports").numbers["growth"] == read_beside(folder)["growth"]


def test_the_stage_that_renders_depends_on_the_growth_that_was_measured():
    assert GROWTH in parse((ROOT / "dvc.yaml").read_text())["stages"]["report"]["deps"]


def test_a_table_is_equal_in_every_form():
    table = Table("t", "100 % of a_b", ["Method", "x_1"], [["A & B", "1.0 ± 0.1"]], [{"method": "a", "mean": 0.01}])
    assert "| A & B | 1.0 ± 0.1 |" in table.markdown()
    assert table.csv() == "method,mean\na,0.01\n"
    latex = table.latex()
    assert r"A \& B & 1.0 $\pm$ 0.1 \\" in latex
    assert r"100 \% of a\_b" in latex
    assert r"x\_1" in latex


@pytest.mark.parametrize("name", ["main.tex", "over_random_init.tex"])
def test_committed_latex_escapes_what_latex_would_read(name):
    text = (REPORTS / "tables" / name).read_text()
    assert not re.search(r"(?<!\\)[%_#]", text)


def test_differences_over_random_init_have_an_interval_over_seeds_and_images_where_records_tell_each_image():
    generator = np.random.default_rng(0)
    hits = {
        (m, s): generator.random(400) < share for m, share in (("nnclr", 0.8), ("random_init", 0.6)) for s in range(5)
    }
    rows = [("knn", "top1_k20", m, s, h.mean()) for (m, s), h in hits.items()]
    rows += [("linear", "top1", m, s, h.mean() + 0.1) for (m, s), h in hits.items()]
    frame = pd.DataFrame(rows, columns=["protocol", "metric", "method", "seed", "value"])
    gathered = {"methods": ["random_init", "nnclr"], "protocols": ["linear", "knn"]}
    table = paired_table(frame, gathered, {"knn": {f"{m} {s}": h for (m, s), h in hits.items()}})
    assert table is not None
    assert table.columns == ["Method", "linear", "knn", "knn, seeds and images"]
    ours, theirs = ({s: h for (m, s), h in hits.items() if m == method} for method in ("nnclr", "random_init"))
    wanted = hierarchical_difference(ours, theirs)
    assert table.rows[0][-1] == f"{100 * wanted.mean:+.1f} [{100 * wanted.low:+.1f}, {100 * wanted.high:+.1f}]*"
    linear, knn = table.data
    assert (linear["low_with_images"], linear["high_with_images"]) == ("", "")
    assert knn["low_with_images"] == pytest.approx(wanted.low, abs=1e-6)
    assert knn["difference"] == pytest.approx(wanted.mean, abs=1e-6)  # the same mean, another interval


# --- studies -------------------------------------------------------------------------------------------------


KEYS = count()


def cells(scores, *, method="nnclr", columns=None, flops=1):
    """A point's gathered cells: a seed for each score, with these columns after each of two epochs."""
    return {
        "evaluations": [
            {"key": f"e{next(KEYS)}", "method": method, "seed": s, "protocol": "knn", "metrics": {"top1": score}}
            for s, score in enumerate(scores)
        ],
        "pretraining": [
            {"key": f"p{s}", "method": method, "seed": s, "cost": {"flops": flops, "images": 1}}
            | {"history": [{"epoch": e, **{c: f(s, e) for c, f in (columns or {}).items()}} for e in (1, 2)]}
            for s in range(len(scores))
        ],
    }


def study(points, **given):
    points = [{"levels": levels, **of} for levels, of in points]
    return {"base": "nnclr", "data": "mnist", "caption": "", "fixed": {}, "protocols": ["knn"]} | {
        "curves": [],
        "points": points,
        **given,
    }


def reported(**studies):
    """Records of a plan whose main table has no cell, and of its studies."""
    empty = ("methods", "protocols", "rows", "judged", "missing", "growth", "pretraining", "evaluations")
    data = {"name": "mnist", "validation": 0.1, "fraction": 1.0}
    numbers = {"data": data, "recipes": {}, "tuning": {"trials": []}, "planned": 0, **{name: [] for name in empty}}
    return Records({**numbers, "studies": studies}, {})


def sizes(**given):
    columns = {"loss": lambda s, e: s - e, "purity": lambda s, e: 0.1 * e + 0.2 * s}
    one = cells([0.5, 0.6, 0.7], columns=columns)
    other = cells([0.4], columns={"loss": lambda s, e: 4.0})
    return study([({"methods.nnclr.dim": 8}, one), ({"methods.nnclr.dim": 16}, other)], **given)


PURITY = """methods.nnclr.dim,epoch,mean,half_width_95,n,seeds
8,1,0.3,0.496828,3,0.1 0.3 0.5
8,2,0.4,0.496828,3,0.2 0.4 0.6
"""  # 4.302653 x 0.2 / sqrt(3): t of two degrees of freedom


def test_a_studys_curve_is_of_each_point_that_has_the_column_the_mean_over_its_seeds():
    purity, loss = study_curves("sizes", sizes(curves=["purity", "loss"]))
    assert purity.csv() == PURITY
    assert [(line["methods.nnclr.dim"], line["mean"]) for line in loss.data] == [(8, 0), (8, -1), (16, 4), (16, 4)]
    assert [line["half_width_95"] == "" for line in loss.data] == [False, False, True, True]
    assert list(study_curves("sizes", sizes())) == []


def test_curves_are_the_same_bytes_each_time():
    drawn = [next(study_curves("sizes", sizes(curves=["purity"]))) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].svg.startswith(b"<?xml")


GROUPS = {
    "instdisc_softmax": ["instdisc-param-vs-nonparam", "instdisc-nce-m"],
    "recipe_full_or_crops": ["nnclr-aug", "nnclr-abstract"],  # several claims name each
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_study_shows_each_published_number_of_its_claims_once_as_the_file_has_it(name):
    with (ROOT / "bench" / "papers" / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = published_table(name, published_beside(load(), name))
    assert table.name == f"study_{name}_published"
    assert table.data == [row for group in GROUPS[name] for row in rows if row["group"] == group]
    for row, data in zip(table.rows, table.data, strict=True):
        shown = dict(zip(table.columns, row, strict=True))
        assert shown["Published"].startswith(data["method"])
        assert shown["Value"].startswith(data["value"])
        assert shown["Value"].endswith("†") == (shown["Certainty"] == "recalled") == (data["certainty"] == "recalled")
        assert (shown["Images"], shown["Metric"]) == (data["data"], data["metric"])
        assert shown["Place"] == f"{data['paper']}, {data['place']}"
    assert table.caption.endswith("† not checked against the paper; no verdict rests on it.")


SOURCES = ("weights", "order")
EFFECTS = {"weights": [0.0, 0.01, 0.05, -0.02], "order": [0.0, 0.001, -0.003, 0.002]}


def drawn(scores, **levels):
    """A point that sets these sources and leaves the others to the cells' seeds; a score for each seed."""
    return {f"defaults.sources.{source}": levels.get(source) for source in SOURCES}, cells(scores)


def additive(weights, order):
    """A score to which either source adds what is its own."""
    return 0.8 + EFFECTS["weights"][weights] + EFFECTS["order"][order]


def one_at_a_time(**given):
    """Each source's seeds 1 to 3, the other's 0; and the point that sets none."""
    points = [drawn([additive(0, 0)])]
    points += [drawn([additive(w, 0)], weights=w) for w in (1, 2, 3)]
    points += [drawn([additive(0, o)], order=o) for o in (1, 2, 3)]
    return study(points, **given)


def gathered(study, scores=()):
    numbers = reported(sources=study).numbers
    return numbers | {"evaluations": cells(scores)["evaluations"] + cells([0.1, 0.9], method="simclr")["evaluations"]}


def test_variance_by_source_is_of_cells_that_differ_by_that_source_alone_and_shares_their_sum():
    found = one_at_a_time()
    table = variance_table("sources", found, gathered(found, [0.7, 0.8, 0.9]))
    by_hand = {source: variance(effects) for source, effects in EFFECTS.items()}
    rows = {row["source"]: row for row in table.data}
    assert list(rows) == [*SOURCES, "all together"]
    for source, expected in by_hand.items():
        assert rows[source]["deviation"] ** 2 == pytest.approx(expected, rel=1e-3)  # six decimals are kept
        assert rows[source]["share"] == pytest.approx(expected / sum(by_hand.values()), abs=1e-6)
    assert rows["all together"]["deviation"] == pytest.approx(0.1)  # the main table's seeds of this method alone
    assert rows["all together"]["share"] == pytest.approx(0.01 / sum(by_hand.values()), abs=1e-6)
    assert [row[:2] for row in table.rows] == [["weights", "3"], ["order", "3"], ["all together", "2"]]
    assert table.columns == ["Varied", "df", "knn", "knn share"]
    assert re.fullmatch(r"2\.94 \[1\.67, 10\.98\]", table.rows[0][2])


def test_variance_by_source_holds_the_other_sources_and_the_seed():
    grid = [drawn([additive(w, o), 0.3 + additive(w, o)], weights=w, order=o) for w in range(4) for o in range(4)]
    table = variance_table("sources", study(grid), gathered(study(grid)))
    for row in table.data:
        assert row["deviation"] ** 2 == pytest.approx(variance(EFFECTS[row["source"]]), rel=1e-3)
        assert row["freedom"] == 2 * 4 * 3
    assert table.rows[-1] == ["all together", "–", "–", "–"]


def test_a_setting_that_two_points_stand_for_counts_once():
    again = one_at_a_time()
    again["points"].append({"levels": drawn([], weights=0)[0], **cells([additive(0, 0)])})  # seed 0's own weights
    tables = [variance_table("sources", x, gathered(x)) for x in (one_at_a_time(), again)]
    assert tables[0].data == tables[1].data


def test_a_cell_that_points_share_counts_once_as_what_it_does_not_read_moves_nothing():
    base = one_at_a_time()
    labels = "evaluations.semisup.draw"
    points = [({**point["levels"], labels: 0}, point) for point in base["points"]]
    points += [({**points[0][0], labels: draw}, base["points"][0]) for draw in (1, 2)]  # the very cells of the first
    found = study(points)
    found["points"] = [{**point, "levels": levels} for levels, point in points]
    assert varies_sources(found)
    table = variance_table("sources", found, gathered(found))
    assert [row[0] for row in table.rows] == [*SOURCES, "labels", "all together"]
    assert table.rows[2] == ["labels", "–", "–", "–"]
    assert table.data == variance_table("sources", base, gathered(base)).data


def test_draws_of_labels_are_a_source_where_a_protocol_reads_them():
    points = [drawn([0.5]), drawn([0.6]), drawn([0.7])]
    found = study([({**levels, "evaluations.semisup.draw": i}, of) for i, (levels, of) in enumerate(points)])
    told = {row["source"]: row for row in variance_table("sources", found, gathered(found)).data}
    assert told["labels"]["deviation"] == pytest.approx(0.1)
    assert told["labels"]["freedom"] == 2


@pytest.mark.parametrize("given", [{"data": "scenes"}, {"fixed": {"defaults.epochs": 3}}], ids=str)
def test_all_together_is_never_of_cells_that_train_otherwise(given):
    found = study([drawn([0.5, 0.6, 0.7]), drawn([0.5], weights=7), drawn([0.6], order=7)], **given)
    told = variance_table("sources", found, gathered(found, [0.1, 0.9])).data[-1]
    assert (told["source"], told["deviation"], told["freedom"]) == ("all together", pytest.approx(0.1), 2)


def test_a_study_of_sources_has_variances_for_a_figure_and_others_have_not(tmp_path):
    found = one_at_a_time()
    assert varies_sources(found)
    assert not varies_sources(sizes())
    assert not varies_sources(study([({**drawn([])[0], "defaults.epochs": 3}, cells([0.5]))]))
    first, second = (variance_figure("sources", found, gathered(found, [0.7, 0.8])) for _ in range(2))
    assert first == second
    render(reported(sources=found, sizes=sizes()), tmp_path)
    drawn_files = {path.stem for path in (tmp_path / "figures").glob("study_*")}
    assert drawn_files == {"study_sources_variance", "study_sizes"}
    assert (tmp_path / "tables" / "study_sources_variance.csv").is_file()


def lengths():
    """Two methods after one and two epochs, the second at twice the cost of the first."""
    grid = [(method, epochs) for method in ("simclr", "nnclr") for epochs in (1, 2)]
    return study(
        [
            ({"method": m, "defaults.epochs": e}, cells([0.5, 0.6], method=m, flops=e * 10**12 * (1 + (m == "nnclr"))))
            for m, e in grid
        ]
    )


def test_a_studys_table_says_what_its_trainings_cost():
    table = study_table("lengths", lengths())
    assert table.columns[:4] == ["method", "epochs", "n", "TFLOP"]
    assert [row[3] for row in table.rows] == ["1.00", "2.00", "2.00", "4.00"]
    assert [row["training_flops"] for row in table.data] == [10**12, 2 * 10**12, 2 * 10**12, 4 * 10**12]


def test_a_study_of_lengths_of_training_is_drawn_against_compute_too_and_others_are_not(tmp_path):
    first, second = (compute_figure("lengths", lengths()) for _ in range(2))
    assert first == second
    assert first is not None
    assert compute_figure("sizes", sizes()) is None
    render(reported(lengths=lengths(), sizes=sizes()), tmp_path)
    drawn_files = {path.stem for path in (tmp_path / "figures").glob("study_*")}
    assert drawn_files == {"study_lengths", "study_lengths_compute", "study_sizes"}


def test_published_numbers_stand_under_the_studys_own_table_and_nowhere_without_a_claim(tmp_path):
    render(reported(instdisc_softmax=sizes(), sizes=sizes()), tmp_path)
    page = (tmp_path / "index.md").read_text()
    places = ["tables/study_instdisc_softmax.csv", "tables/study_instdisc_softmax_published.csv"]
    places += ["figures/study_instdisc_softmax.svg", "tables/study_sizes.csv"]
    assert [page.index(f"({place})") for place in places] == sorted(page.index(f"({place})") for place in places)
    assert [path.name for path in (tmp_path / "tables").glob("*_published.md")] == [
        "study_instdisc_softmax_published.md"
    ]


def test_a_curve_that_no_history_has_is_refused_by_study_and_name_and_leaves_the_report_that_was_there(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "main.md").write_text("before")
    with pytest.raises(UnknownCurveError) as caught:
        render(reported(sizes=sizes(curves=["loss", "purty"])), tmp_path)
    assert str(caught.value) == (
        "studies.sizes.curves: no history of this study has 'purty'; "
        "did you mean 'purity'? allowed: epoch, loss, purity"
    )
    assert {path.name: path.read_text() for path in tmp_path.rglob("*.md")} == {"main.md": "before"}
    waiting = sizes(curves=["purty"])
    waiting["points"] = [point | {"pretraining": []} for point in waiting["points"]]
    assert list(study_curves("sizes", waiting)) == []  # no history is there yet


def test_a_studys_curves_stand_on_the_page_beside_their_numbers(tmp_path):
    render(reported(sizes=sizes(curves=["purity"])), tmp_path)
    drawn = {path.name for path in (tmp_path / "figures").glob("study_*")}
    kinds = {"study_sizes": ("svg", "png"), "study_sizes_purity": ("svg", "png", "csv")}
    assert drawn == {f"{name}.{kind}" for name, own in kinds.items() for kind in own}
    assert (tmp_path / "figures" / "study_sizes_purity.csv").read_text() == PURITY
    page = (tmp_path / "index.md").read_text()
    assert "(figures/study_sizes_purity.svg)" in page
    assert "[csv](figures/study_sizes_purity.csv)" in page


def schema_to(stdout) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "bench", "schema"], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)


def test_a_reader_that_has_had_enough_is_no_error():
    with schema_to(subprocess.PIPE) as command:
        command.stdout.close()
        assert command.stderr.read() == b""


def test_a_full_disk_is_told_in_one_line_with_the_store():
    with Path("/dev/full").open("w") as full, schema_to(full) as command:
        told = command.stderr.read().decode()
    assert told.startswith("error: No space left on device; make room (the store is ")
    assert "Traceback" not in told


def test_the_page_of_findings_names_every_claim_that_is_not_reproduced_with_the_ledgers_numbers():
    def rows(path):
        lines = (
            line.strip().strip("|").split(" | ") for line in path.read_text().splitlines() if line.startswith("| ")
        )
        return [[cell.strip() for cell in line] for line in lines]

    ledger = {
        claim.partition(":")[0].rstrip("*"): (verdict.split(" ", 1)[1].partition(":")[0], estimate)
        for claim, _, verdict, estimate, *_ in rows(ROOT / "profiles/full/reports/tables/claims.md")[2:]
    }
    discussed = {row[0]: (row[1], row[2]) for row in rows(ROOT / "docs/findings.md") if row[0] in ledger}
    wanted = {name: line for name, line in ledger.items() if line[0] in ("contradicted", "inconclusive")}
    assert wanted
    assert discussed == wanted
