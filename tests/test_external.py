"""Somebody else's encoder under every protocol: its features, its cells and their keys, and the command line."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from bench import params
from bench.build import build_encoder
from bench.checkpoint import save_tensors
from bench.external import (
    External,
    ExternalError,
    checkpoint_manifest,
    demand,
    ensure,
    evaluation_cells,
    imported_cell,
    parse_options,
    problems,
)
from bench.features import Trained
from bench.imported import ENCODER, Normalised, load_imported
from bench.plan import make_plan, prepare_all
from bench.registry import ROOT
from bench.store import Store
from bench.yaml12 import parse
from tests.workspace import Workspace

CONV4 = {"name": "conv4", "options": {"width": 4, "blocks": 4, "stem_stride": 2, "sobel": False}}
RESNET = {"name": "resnet18", "options": {"stem": "small", "zero_init_residual": False}}


@pytest.fixture(scope="module")
def settings():
    return params.load(ROOT / "profiles" / "smoke" / "params.yaml")


@pytest.fixture(scope="module")
def manifests(settings, tmp_path_factory):
    return prepare_all(settings, tmp_path_factory.mktemp("manifests"))


@pytest.fixture(scope="module")
def made(settings, manifests):
    return make_plan(settings, manifests)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def trained(config=CONV4, channels=1, seed=5):
    """An encoder with running statistics of its own."""
    encoder = build_encoder(config, channels, seed)
    with torch.no_grad():
        encoder(torch.rand(8, channels, 28, 28, generator=torch.Generator().manual_seed(seed)))
    return encoder.eval()


def conv4_file(folder, name="theirs.safetensors", seed=5):
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"encoder.{key}": tensor for key, tensor in trained(seed=seed).state_dict().items()}
    save_tensors(folder / name, state | {"projector.0.weight": torch.zeros(2)})
    return folder / name


def asked(path, **changes):
    return replace(External("theirs", path, "bench", "conv4", CONV4["options"], "none"), **changes)


def imported(request, manifest):
    return imported_cell(request, manifest, checkpoint_manifest(request, manifest))


def manifest(manifests, **changes):
    return {**manifests["mnist"], **changes}


def images(channels=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 28, 28, channels), dtype=torch.uint8, generator=generator)


def test_an_imported_encoder_gives_the_bits_of_the_one_that_was_saved(tmp_path, manifests, store):
    cell = imported(asked(conv4_file(tmp_path)), manifests["mnist"])
    ensure([cell], store)
    wanted = Trained(trained().to(memory_format=torch.channels_last))
    found = load_imported(store.path(cell.key), "cpu")
    assert torch.equal(found.features(images()), wanted.features(images()))
    assert torch.equal(found.features(images(), "layer2"), wanted.features(images(), "layer2"))
    assert found.places == wanted.places
    assert found.snapshots == {}


def test_images_are_normalised_before_the_encoder(tmp_path, manifests, store):
    encoder = trained(RESNET, 3)
    torch.save({n.removeprefix("trunk."): t for n, t in encoder.state_dict().items()}, tmp_path / "x.pth")
    request = External("x", tmp_path / "x.pth", "torchvision", "resnet18", {"stem": "small"}, "imagenet")
    cell = imported(request, manifest(manifests, channels=3))
    ensure([cell], store)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((images(3) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = encoder(x)
    torch.testing.assert_close(load_imported(store.path(cell.key), "cpu").features(images(3)), wanted)


def test_what_normalises_has_the_encoders_dim_and_layers():
    encoder = trained()
    wrapped = Normalised(encoder, [0.5], [0.5])
    assert wrapped.dim == encoder.dim
    assert wrapped.layers() == encoder.layers()
    assert wrapped.state_dict().keys() == {f"encoder.{name}" for name in encoder.state_dict()}


def test_a_key_is_that_of_the_tensors_not_of_the_file(tmp_path, manifests):
    first = conv4_file(tmp_path / "a")
    torch.save(dict(trained().state_dict()), tmp_path / "other name.pth")
    same = imported(asked(tmp_path / "other name.pth", name="other"), manifests["mnist"])
    assert same.key == imported(asked(first), manifests["mnist"]).key


def test_a_key_changes_with_whatever_changes_features(tmp_path, manifests, settings, made):
    def keys(request, **changes):
        cell = imported(request, manifest(manifests, **changes))
        return [cell.key, *(c.key for c in evaluation_cells(settings, made, cell, ["knn", "linear"]))]

    first, second = conv4_file(tmp_path, "a.safetensors"), conv4_file(tmp_path, "b.safetensors", seed=6)
    variants = [
        keys(asked(first)),
        keys(asked(second)),
        keys(asked(first, normalise="0.5/0.5")),
        keys(asked(first, normalise="0.5/0.4")),
        keys(asked(first, given=CONV4["options"] | {"stem_stride": 1})),
    ]
    assert len({key for variant in variants for key in variant}) == 3 * len(variants)
    assert keys(asked(first)) == variants[0]


def test_a_cell_asks_of_the_encoder_what_the_plan_asks_of_its_own(tmp_path, manifests, settings, made):
    theirs = imported(asked(conv4_file(tmp_path)), manifests["mnist"])
    for cell in evaluation_cells(settings, made, theirs, list(settings.evaluations)):
        planned = next(c for c in made.evaluate[cell.name] if c.method == "simclr")
        differing = {key for key, value in planned.config.items() if cell.config[key] != value}
        assert differing == {"source"}
        assert cell.config["source"] == {"pretrained": theirs.key}
        assert (cell.needs, cell.method, cell.seed) == (theirs.key, "theirs", 0)
        assert cell.manifest == planned.manifest


def test_a_file_that_changed_since_its_key_was_made_is_an_error(tmp_path, manifests, store):
    cell = imported(asked(conv4_file(tmp_path)), manifests["mnist"])
    conv4_file(tmp_path, seed=6)
    with pytest.raises(ExternalError, match="has changed since its key was made"):
        ensure([cell], store)
    assert not store.has(cell.key)


def test_one_protocol_that_fails_does_not_stop_the_others(tmp_path, manifests, settings, made, store, capsys):
    cell = imported(asked(conv4_file(tmp_path)), manifests["mnist"])
    knn, retrieval = evaluation_cells(settings, made, cell, ["knn", "retrieval"])
    options = {**knn.config["protocol"]["options"], "k": [10**6]}
    broken = replace(knn, config={**knn.config, "protocol": {"name": "knn", "options": options}})
    with pytest.raises(ExternalError, match=r"all others are done:\n  theirs knn.*k wants 1 to"):
        ensure([cell, broken, retrieval], store)
    assert not store.has(broken.key)
    assert store.has(retrieval.key)
    assert "theirs retrieval: done" in capsys.readouterr().err


def test_every_protocol_takes_an_imported_encoder(tmp_path, manifests, settings, made, store):
    cell = imported(asked(conv4_file(tmp_path)), manifests["mnist"])
    cells = evaluation_cells(settings, made, cell, list(settings.evaluations))
    ensure([cell, *cells], store)
    assert [cell.name for cell in cells] == list(settings.evaluations)
    assert all(store.has(cell.key) for cell in cells)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": Path("absent.pth")}, "checkpoint: no file absent.pth"),
        ({"layout": "mocco"}, "layout: unknown layout 'mocco'; did you mean 'moco'?"),
        ({"layout": "moco"}, "which lead to resnet18, resnet50, vgg16_bn; for conv4 there is bench"),
        ({"encoder": "conv5"}, "encoder: unknown encoder 'conv5'; did you mean 'conv4'?"),
        ({"given": {"width": 4, "blocks": 4, "sobel": False}}, "encoder.stem_stride: missing"),
        ({"given": {**CONV4["options"], "widht": 4}}, "encoder.widht: unknown key"),
        ({"given": CONV4["options"] | {"width": "four"}}, "encoder.width: Input should be a valid integer"),
        ({"encoder": "resnet18", "given": {"stem": "big"}, "layout": "moco"}, "'imagenet' or 'small'"),
        ({"normalise": "imagenett"}, "did you mean 'imagenet'?"),
        ({"normalise": "0.5,0.5/0.2"}, "as many deviations"),
        ({"normalise": "0.5/0"}, "above 0"),
        ({"name": "simclr"}, "name: 'simclr' is a row of params.yaml"),
        ({"name": "raw_pixels"}, "name: 'raw_pixels' is a row"),
        ({"name": "a b"}, "name: 'a b' wants letters"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else ",".join(value),
)
def test_a_request_that_cannot_be_met_is_refused_by_name(tmp_path, settings, changes, message):
    with pytest.raises(ExternalError) as caught:
        demand(problems(asked(conv4_file(tmp_path), **changes), settings, ["knn"]))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_protocol_is_refused_by_name(tmp_path, settings):
    with pytest.raises(ExternalError, match="unknown protocol 'kn'; did you mean 'knn'"):
        demand(problems(asked(conv4_file(tmp_path)), settings, ["knn", "kn"]))
    demand(problems(asked(conv4_file(tmp_path)), settings, list(settings.evaluations)))


def test_images_that_the_encoder_cannot_see_are_refused(tmp_path, manifests):
    file = conv4_file(tmp_path)
    with pytest.raises(ExternalError, match="is for 3 channels; the images of mnist have 1"):
        imported(asked(file, normalise="imagenet"), manifests["mnist"])
    with pytest.raises(ExternalError, match="it sees 1 channels, the images have 3"):
        imported(asked(file), manifest(manifests, channels=3))
    vgg = {"sobel": False, "pooled": 1, "fc_width": 4}
    with pytest.raises(ExternalError, match="28 pixels; the encoder vgg16_bn wants at least 32"):
        imported(asked(file, encoder="vgg16_bn", given=vgg), manifests["mnist"])


def test_options_have_the_types_that_params_yaml_would_give_them():
    assert parse_options(["stem=small", "a=1", "b=true", "c=1e-3"]) == {"stem": "small", "a": 1, "b": True, "c": 1e-3}
    for pairs in (["stem"], ["=small"], ["a=1", "a=2"], ["a=["]):
        with pytest.raises(ExternalError, match=re.escape(pairs[-1])):
            parse_options(pairs)


# The command line, in a checkout of its own.


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("external"))
    path = space.here / "params.yaml"
    raw = parse(path.read_text())
    raw |= {"methods": {"random_init": {}}, "training": {}, "studies": {}}
    raw["evaluations"] = {name: raw["evaluations"][name] for name in ("linear", "knn", "retrieval")}
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    conv4_file(space.here / "files")
    return space


COMMAND = ("bench", "evaluate", "--checkpoint", "files/theirs.safetensors", "--layout", "bench")
ENCODER_OPTIONS = (
    "--encoder",
    "conv4",
    "--option",
    "width=4",
    "blocks=4",
    "stem_stride=2",
    "sobel=false",
    "--normalise",
    "none",
)


def table(text):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_a_checkpoint_gets_its_row_and_is_never_evaluated_twice(space):
    first = space.run(*COMMAND, *ENCODER_OPTIONS)
    (name, row), *others = table(first.stdout).items()
    assert (name, row["n"], others) == ("theirs", "1", [])
    evaluations = params.load(space.here / "params.yaml").evaluations
    assert len(row) == 3 + len(evaluations)  # its name, n and cost
    assert row["MFLOP / image"] == "–"  # nobody counted what its training took
    assert all(0 < float(value) <= 100 for key, value in list(row.items())[3:])
    records = [Path(line.rpartition(": ")[2]) for line in first.stdout.splitlines() if line.endswith("record.json")]
    assert len(records) == len(evaluations)
    shown = float(row["knn top1 k20"]) if "knn top1 k20" in row else None
    metrics = json.loads(next(p for p, n in zip(records, evaluations, strict=True) if n == "knn").read_text())[
        "metrics"
    ]
    assert shown in (None, round(100 * metrics["top1_k20"], 1))

    before = space.results()
    shutil.copy(space.here / "files" / "theirs.safetensors", space.here / "files" / "copy.safetensors")
    again = space.run(*COMMAND[:3], "files/copy.safetensors", *COMMAND[4:], *ENCODER_OPTIONS, "--name", "copy")
    assert again.stderr == ""
    assert space.results() == before
    assert list(table(again.stdout).values()) == [row | {"Method": "copy"}]


def test_the_row_stands_below_those_that_are_computed(space):
    space.run("bench", "submit")
    found = table(space.run(*COMMAND, *ENCODER_OPTIONS, "--protocol", "knn").stdout)
    assert list(found)[-1] == "theirs"
    assert [row["n"] for row in found.values()] == ["1", "2", "1"]  # raw pixels, the only method, this one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--checkpoint", "absent.pth"), "error: checkpoint: no file absent.pth"),
        (("--layout", "swaw"), "did you mean 'swav'?"),
        (("--protocol", "retrival"), "did you mean 'retrieval'?"),
        (("--option", "width"), "wants NAME=VALUE"),
        (("--option", "depth=3"), "encoder.depth: unknown key"),
    ],
)
def test_a_wrong_command_says_so_before_any_work(space, change, message):
    done = space.run(*COMMAND, *ENCODER_OPTIONS, *change, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_another_encoder_is_an_error_without_a_row(space):
    torch.save(trained(RESNET, 1).state_dict(), space.here / "files" / "resnet.pth")
    done = space.run(*COMMAND, *ENCODER_OPTIONS, "--checkpoint", "files/resnet.pth", check=False)
    assert done.returncode == 1
    assert "resnet.pth is not a conv4 in layout bench" in done.stderr
    assert done.stdout == ""


def test_help_tells_layouts_and_encoders(space):
    text = " ".join(space.run("bench", "evaluate", "--help").stdout.split())
    for word in ("moco, simclr", "resnet18, resnet50", "docs/checkpoints.md", "--normalise imagenet"):
        assert word in text


def test_the_imported_cell_keeps_where_it_came_from(space):
    folders = [path.parent for path in (space.store / "cells").glob(f"*/{ENCODER}")]
    notes = [json.loads((folder / "environment.json").read_text()) for folder in folders]
    assert {Path(note["file"]).name for note in notes} == {"theirs.safetensors"}
