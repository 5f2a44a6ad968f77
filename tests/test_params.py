"""params.yaml: what is read, what is refused, and what a refusal tells."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.params import ParamsError, check, json_schema, load
from bench.settings import overlay

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = [ROOT / "params.yaml", *sorted(ROOT.glob("profiles/*/params.yaml"))]
ABSENT = object()
VIEW = "recipes.symmetric.views.0"
STUDY = {"base": "simclr", "vary": {"methods.simclr.dim": [8, 16]}, "protocols": ["knn"]}
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.0, "hue": 0.0, "p": 0.8}
CROP = {"scale": [0.3, 1.0], "ratio": [0.75, 1.25]}
LOCAL = {"role": "local", "count": 1, "size": 14, "ops": [{"crop": CROP}]}
SNCLR = {"temperature": 0.2, "normalize": True, "queue_size": 64, "k": 5, "positiveness": "softmax"} | {
    "attention": "learnt",
    "scale": 1.0,
    "momentum": 0.9,
    "head": "mlp",
    "hidden": 8,
    "dim": 8,
}


def raw():
    """The shipped file as plain values, free to be changed."""
    return load(SHIPPED[0]).model_dump(exclude_unset=True)


def changed(edits):
    """The shipped file with values put at dotted paths, or taken away."""
    params = copy.deepcopy(raw())
    for path, value in edits.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node = params
        for part in parents:
            node = node[part]
        if value is ABSENT:
            del node[last]
        else:
            node[last] = value
    return params


def refusal(edits):
    with pytest.raises(ParamsError) as caught:
        check(changed(edits))
    return str(caught.value)


def written(folder, text):
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_every_shipped_file_is_accepted(path):
    params = load(path)
    assert set(params.training) <= set(params.methods)
    assert all(params.training_of(method).epochs > 0 for method in params.methods)


def test_params_cannot_be_changed():
    params = load(SHIPPED[0])
    with pytest.raises(ValidationError, match="frozen"):
        params.seeds = [1]
    with pytest.raises(ValidationError, match="frozen"):
        params.defaults.optimizer.lr = 1.0


# case: what is changed, and what the message must hold: the key, the value given, what is allowed
REFUSED = {
    "unknown_key": ({"sedes": [1]}, ["params.yaml: sedes:", "[1]", "mean 'seeds'", "cluster, data"]),
    "unknown_nested_key": (
        {"defaults.epohcs": 3},
        ["defaults.epohcs:", "3", "mean 'epochs'", "batch, device"],
    ),
    "unknown_key_of_an_optimiser": (
        {"defaults.optimizer.lrr": 3},
        ["defaults.optimizer", ".lrr:", "3", "mean 'lr'", "name, scaling, weight_decay"],
    ),
    "missing_key": ({"seeds": ABSENT}, ["seeds: missing", "evaluations, judged, methods"]),
    "missing_nested_key": ({"defaults.batch": ABSENT}, ["defaults.batch: missing", "device, epochs"]),
    "text_for_a_number": ({"defaults.epochs": "12"}, ["defaults.epochs:", "valid integer", "'12'"]),
    "fraction_for_a_count": ({"defaults.epochs": 1.5}, ["defaults.epochs:", "integer", "1.5"]),
    "truth_for_a_count": ({"defaults.epochs": True}, ["defaults.epochs:", "valid integer", "True"]),
    "number_for_a_list": ({"seeds": 3}, ["seeds:", "valid list", "3"]),
    "below_its_bound": ({"defaults.batch": 1}, ["defaults.batch:", "greater than or equal to 2", "1"]),
    "above_its_bound": ({"data.fraction": 1.5}, ["data.fraction:", "less than or equal to 1", "1.5"]),
    "not_one_of_the_words": (
        {"defaults.precision": "fp16"},
        ["defaults.precision:", "'fp32' or 'bf16'", "fp16"],
    ),
    "no_seed": ({"seeds": []}, ["seeds:", "at least 1 item", "[]"]),
    "negative_seed": ({"seeds": [0, -1]}, ["seeds.1:", "greater than or equal to 0", "-1"]),
    "seed_twice": ({"seeds": [4, 2, 4]}, ["seeds:", "[4, 2, 4]", "twice"]),
    "unknown_method": (
        {"methods.simlcr": {}},
        ["methods.simlcr:", "'simlcr'", "mean 'simclr'", "random_init"],
    ),
    "misspelt_option_of_a_method": (
        {"methods.simclr.temprature": 0.2},
        ["methods.simclr.temprature:", "0.2", "mean 'temperature'", "dim, head, hidden"],
    ),
    "missing_option_of_a_method": ({"methods.simclr.dim": ABSENT}, ["methods.simclr.dim: missing", "hidden"]),
    "option_of_a_method_at_its_bound": (
        {"methods.simclr.temperature": 0},
        ["methods.simclr.temperature:", "greater than 0", "given 0"],
    ),
    "infinite_option": (
        {"methods.simclr.temperature": float("inf")},
        ["methods.simclr.temperature:", "finite number", "inf"],
    ),
    "unknown_encoder": ({"encoder.name": "con4"}, ["encoder", "'con4'", "mean 'conv4'"]),
    "misspelt_option_of_an_encoder": (
        {"encoder.widht": 4},
        ["encoder.widht:", "4", "mean 'width'", "stem_stride"],
    ),
    "unknown_data_set": ({"data.name": "mnits"}, ["data.name:", "'mnits'", "mean 'mnist'"]),
    "unknown_reader": ({"datasets.mnist.reader": "nope"}, ["datasets.mnist", "'nope'", "embedded_mnist"]),
    "bad_option_of_a_reader": (
        {"datasets.mnist.options.test": 0},
        ["datasets.mnist", "test:", "than 0", "given 0"],
    ),
    "unknown_protocol": ({"evaluations.kn": {}}, ["evaluations.kn:", "'kn'", "mean 'knn'"]),
    "bad_option_of_a_protocol": (
        {"evaluations.knn.k": [5, 0]},
        ["evaluations.knn.k.1:", "greater than 0", "0"],
    ),
    "unknown_optimiser": (
        {"defaults.optimizer.name": "adam"},
        ["defaults.optimizer", "'adam'", "'sgd', 'adamw'"],
    ),
    "unknown_recipe": (
        {"defaults.recipe": "symetric"},
        ["defaults.recipe:", "'symetric'", "mean 'symmetric'"],
    ),
    "unknown_op": (
        {f"{VIEW}.ops": [{"flipp": {"p": 0.5}}]},
        [f"{VIEW}.ops.0.flipp:", "{'p': 0.5}", "mean 'flip'", "crop, flip, grayscale, jitter"],
    ),
    "two_ops_in_one": (
        {f"{VIEW}.ops": [{"flip": {"p": 0.5}, "grayscale": {"p": 0.1}}]},
        [f"{VIEW}.ops.0:", "one key", "['flip', 'grayscale']"],
    ),
    "op_without_settings": ({f"{VIEW}.ops": [{"flip": None}]}, [f"{VIEW}.ops.0:", "one key", "['flip']"]),
    "crop_after_another_op": (
        {f"{VIEW}.ops": [{"flip": {"p": 0.5}}, {"crop": CROP}]},
        [f"{VIEW}:", "crop stands first"],
    ),
    "range_turned_round": (
        {f"{VIEW}.ops": [{"crop": CROP | {"scale": [1.0, 0.3]}}]},
        [f"{VIEW}.ops.0.crop", "scale wants 0 < low <= high", "[1.0, 0.3]"],
    ),
    "range_of_three": (
        {f"{VIEW}.ops": [{"crop": CROP | {"ratio": [1.0, 1.1, 1.2]}}]},
        [f"{VIEW}.ops.0.crop.ratio:", "at most 2 items", "[1.0, 1.1, 1.2]"],
    ),
    "portable_with_two_threads": (
        {"defaults.threads": 2, "defaults.numerics": "portable"},
        ["defaults", "portable", "threads: 1, not 2", "numerics: native"],
    ),
    "snapshot_after_the_last_epoch": (
        {"defaults.snapshots": [1, 99], "defaults.epochs": 12},
        ["defaults.snapshots:", "[99]", "after the last epoch, 12"],
    ),
    "training_of_no_method": ({"training.simcrl": {}}, ["training.simcrl:", "mean 'simclr'", "random_init"]),
    "unknown_key_of_a_training": (
        {"training.simclr": {"epoch": 2}},
        ["training.simclr.epoch:", "2", "mean 'epochs'"],
    ),
    "unknown_recipe_of_a_training": (
        {"training.simclr": {"recipe": "symetric"}},
        ["training.simclr.recipe:", "'symetric'", "mean 'symmetric'"],
    ),
    "another_optimiser_without_its_keys": (
        {"training.simclr": {"optimizer": {"name": "sgd", "lr": 0.1}}},
        ["training.simclr.optimizer", ".momentum: missing", ".weight_decay: missing"],
    ),
    "study_of_no_method": (
        {"studies.one": STUDY | {"base": "simcrl"}},
        ["studies.one.base:", "mean 'simclr'", "random_init"],
    ),
    "study_by_no_protocol": (
        {"studies.one": STUDY | {"protocols": ["kn"]}},
        ["studies.one.protocols:", "'kn'", "mean 'knn'"],
    ),
    "curve_twice": (
        {"studies.one": STUDY | {"curves": ["loss", "lr", "loss"]}},
        ["studies.one.curves:", "['loss', 'lr', 'loss'] names a column twice"],
    ),
    "study_of_a_path_that_leads_nowhere": (
        {"studies.one": STUDY | {"vary": {"methods.simclr.dimm": [8]}}},
        ["studies.one", "'methods.simclr.dimm'", "mean 'dim'", "hidden"],
    ),
    "level_that_is_not_allowed": (
        {"studies.one": STUDY | {"vary": {"methods.simclr.dim": [8, 0]}}},
        ["studies.one", "methods.simclr.dim", "greater than 0", "given 0"],
    ),
    "study_of_no_listed_method": (
        {"studies.one": {"vary": {"method": ["simclr", "byool"]}, "protocols": ["knn"]}},
        ["studies.one, path 'method':", "mean 'byol'"],
    ),
    "study_without_a_method": (
        {"studies.one": {"vary": {"methods.simclr.dim": [8]}, "protocols": ["knn"]}},
        ["studies.one: names no method", "give base"],
    ),
    "study_with_two_kinds_of_points": (
        {"studies.one": STUDY | {"points": [{"methods.simclr.dim": 8}]}},
        ["studies.one:", "one of vary", "one_by_one", "points"],
    ),
    "point_twice": (
        {"studies.one": {"base": "simclr", "points": [{"methods.simclr.dim": 8}] * 2, "protocols": ["knn"]}},
        ["studies.one.points:", "stands twice"],
    ),
    "points_of_other_paths": (
        {
            "studies.one": {
                "base": "simclr",
                "points": [{"methods.simclr.dim": 8}, {"encoder.width": 8}],
                "protocols": ["knn"],
            }
        },
        ["studies.one.points:", "paths of the first", "methods.simclr.dim"],
    ),
    "study_of_unknown_data": (
        {"studies.one": STUDY | {"data": "mnits"}},
        ["studies.one.data:", "mean 'mnist'"],
    ),
    "fixed_path_of_nothing": (
        {"studies.one": STUDY | {"fixed": {"defaults.epoch": 3}}},
        ["studies.one:", "'defaults.epoch' names nothing", "epochs"],
    ),
    "no_levels": (
        {"studies.one": STUDY | {"vary": {"methods.simclr.dim": []}}},
        ["studies.one.vary", "methods.simclr.dim"],
    ),
    "level_twice": (
        {"studies.one": STUDY | {"vary": {"methods.simclr.dim": [8, 16, 8]}}},
        ["studies.one.vary:", "twice", "[8, 16, 8]"],
    ),
    "study_without_levels": (
        {"studies.one": STUDY | {"vary": {"methods.simclr.dim": []}}},
        ["studies.one.vary.methods.simclr.dim:", "at least 1 item", "[]"],
    ),
    "scaling_that_is_none_of_them": (
        {"defaults.optimizer.scaling": "square"},
        ["defaults.optimizer", "scaling", "'none', 'linear' or 'sqrt'", "square"],
    ),
    "steps_without_milestones": (
        {"defaults.schedule": {"warmup": 0, "decay": "step"}},
        ["defaults.schedule", "decay: step wants milestones (epochs) and a factor"],
    ),
    "milestones_that_fall": (
        {"defaults.schedule": {"warmup": 0, "decay": "step", "milestones": [3, 2], "factor": 0.1}},
        ["defaults.schedule", "milestones want to rise, not [3, 2]"],
    ),
    "milestones_of_a_cosine": (
        {"defaults.schedule.milestones": [3]},
        ["defaults.schedule", "milestones belongs to decay: step, not to cosine; remove it"],
    ),
    "end_of_a_constant": (
        {"defaults.schedule.decay": "constant", "defaults.schedule.end": 0.1},
        ["defaults.schedule", "end belongs to decay: cosine, not to constant"],
    ),
    "local_view_before_a_global_one": (
        {"recipes.turned": {"views": [LOCAL, LOCAL | {"role": "global"}]}},
        ["recipes.turned", "global views stand before local ones"],
    ),
    "option_above_the_one_that_bounds_it": (
        {"methods.snclr": SNCLR | {"k": 65}},
        ["methods.snclr.k: 65 is more than queue_size, 64"],
    ),
    "momentum_above_1": ({"methods.snclr": SNCLR | {"momentum": 1.5}}, ["methods.snclr.momentum:", "1.5"]),
    "threads_of_a_training": ({"training.simclr": {"threads": 2}}, ["training.simclr", "threads: 1, not 2"]),
}


@pytest.mark.parametrize(("edits", "told"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_key_the_value_and_the_choices(edits, told):
    message = refusal(edits)
    assert [part for part in told if part not in message] == [], message


def test_every_fault_has_its_line():
    message = refusal({"seeds": ABSENT, "defaults.batch": 0, "data.nome": 1})
    assert len(message.splitlines()) == 3
    assert all(line.startswith("params.yaml: ") for line in message.splitlines())


def test_a_file_that_is_no_mapping_is_refused():
    with pytest.raises(ParamsError, match=r"params\.yaml: the file: .*\[1\]"):
        check([1])


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"no .*params\.yaml; run in a folder that holds"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "key"), [("a: 1\nb: 2\na: 3\n", "a"), ("d: {e: 1, e: 1}\n", "e")], ids=["top", "nested"]
)
def test_a_key_given_twice_is_refused(text, key, tmp_path):
    with pytest.raises(ParamsError, match=rf"params\.yaml: key '{key}' is given twice"):
        load(written(tmp_path, text))


def test_text_that_is_no_yaml_is_refused(tmp_path):
    with pytest.raises(ParamsError, match=r"(?s)params\.yaml: .*line 1"):
        load(written(tmp_path, "a: [1, 2"))


def reread(folder, key, value):
    """The shipped file read again with the first value of `key` written otherwise."""
    text, found = re.subn(rf"\b{key}: [^\s,}}]+", f"{key}: {value}", SHIPPED[0].read_text("utf-8"), count=1)
    assert found == 1
    return load(written(folder, text))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("5E-2", 5e-2), (".5", 0.5), ("1", 1.0), ("1.", 1.0), ("+2.5e+0", 2.5)],
    ids=lambda case: str(case),
)
def test_a_number_reads_as_a_number(text, value, tmp_path):
    params = reread(tmp_path, "lr", text)
    assert params.defaults.optimizer.lr == value
    assert isinstance(params.defaults.optimizer.lr, float)


def test_yes_and_on_are_words(tmp_path):
    with pytest.raises(ParamsError, match=r"raw_pixels: .*given 'yes'"):
        reread(tmp_path, "raw_pixels", "yes")


OVERLAYS = {
    "nothing": ({"a": 1}, {}, {"a": 1}),
    "a_value": ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
    "a_new_key": ({"a": 1}, {"b": 3}, {"a": 1, "b": 3}),
    "key_by_key": ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
    "a_list_is_replaced": ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    "a_name_stands_alone": ({"a": {"name": "x", "c": 2}}, {"a": {"name": "y"}}, {"a": {"name": "y"}}),
    "a_named_one_keeps_its_keys": (
        {"a": {"name": "x", "c": 2}},
        {"a": {"c": 3}},
        {"a": {"name": "x", "c": 3}},
    ),
    "null_is_a_value": ({"a": {"b": 1}}, {"a": None}, {"a": None}),
    "a_mapping_over_a_value": ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
}


@pytest.mark.parametrize(("base", "changes", "merged"), OVERLAYS.values(), ids=OVERLAYS)
def test_changes_are_laid_over_key_by_key(base, changes, merged):
    before = copy.deepcopy((base, changes))
    assert overlay(base, changes) == merged
    assert (base, changes) == before


def test_a_methods_training_is_the_defaults_but_for_its_own():
    params = check(changed({"training.simclr": {"batch": 30, "optimizer": {"lr": 0.5}}}))
    own, others = params.training_of("simclr"), params.training_of("random_init")
    assert others == params.defaults
    assert (own.batch, own.optimizer.lr) == (30, 0.5)
    assert own.optimizer.weight_decay == params.defaults.optimizer.weight_decay
    assert own.model_copy(update={"batch": others.batch, "optimizer": others.optimizer}) == others


def test_the_schema_beside_params_is_up_to_date():
    written_now = json.dumps(json_schema(), indent=1, sort_keys=True) + "\n"
    assert (ROOT / "params.schema.json").read_text(encoding="utf-8") == written_now, (
        "write it anew: python -m bench schema > params.schema.json"
    )


PLANNING = """
import sys
from pathlib import Path
from bench.params import load
from bench.plan import make_plan, prepare_all
params = load(Path("params.yaml"))
cells = make_plan(params, prepare_all(params, Path(sys.argv[1]))).cells()
heavy = {"torch", "torchvision", "sklearn", "scipy", "pandas", "matplotlib"}
print(len(cells), sorted(heavy & set(sys.modules)))
"""


def test_planning_imports_no_torch(tmp_path):
    environment = os.environ | {"BENCH_DATA": str(tmp_path / "raw"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PLANNING, str(tmp_path / "manifests")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, _, imported = done.stdout.strip().partition(" ")
    assert int(count) > 0
    assert imported == "[]"


WRONG_YAML = {
    "octal": ("010", 10),
    "octal_with_an_eight": ("08", 8),
}


@pytest.mark.parametrize(("text", "value"), WRONG_YAML.values(), ids=WRONG_YAML)
def test_a_leading_zero_changes_no_number(text, value, tmp_path):
    assert reread(tmp_path, "batch", text).defaults.batch == value


def test_an_empty_value_is_null(tmp_path):
    assert reread(tmp_path, "workers", "").cluster.workers is None


@pytest.mark.parametrize("text", ["a: .NaN", "a: -.Inf", "{[1]: 2}"], ids=["nan", "infinity", "list_as_key"])
def test_an_unusable_scalar_is_refused_by_file(text, tmp_path):
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        load(written(tmp_path, text))


def test_a_misspelt_option_of_an_op_has_a_nearest_kin():
    message = refusal({f"{VIEW}.ops": [{"jitter": JITTER | {"huge": 0.1}}]})
    assert f"{VIEW}.ops.0.jitter.huge: unknown key (given 0.1); did you mean 'hue'?" in message


def test_one_fault_has_one_line():
    assert len(refusal({"defaults.recipe": "symetric"}).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [("defaults.optimizer.lr", -1.0), ("datasets.mnist.options.test", 0)],
    ids=["optimiser", "reader"],
)
def test_a_refusal_gives_the_path_as_it_stands_in_the_file(path, value):
    assert f"params.yaml: {path}:" in refusal({path: value})


def test_the_command_line_offers_every_cluster():
    from bench.cluster import KINDS
    from bench.commands import CLUSTERS

    assert sorted(KINDS) == list(CLUSTERS)
