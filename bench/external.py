"""Somebody else's encoder under every protocol: from a file to a row beside those of params.yaml.

The file becomes an imported cell of the store, whose key hashes the encoder's tensors and what is done to images before
it; evaluation cells read it as they read a pretraining cell. So a file that has not changed is never evaluated twice,
wherever it lies and whatever it is called. There is one encoder, not one for each seed: n = 1 and no interval.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bench import numerics
from bench.encoders import ENCODERS
from bench.errors import BenchError
from bench.files import read_json, sha256, write_json
from bench.fingerprint import code_hash
from bench.params import check_options, options_model
from bench.plan import DIGITS, RAW_PIXELS, Cell, Plan, code_modules, make_plan, report_plan
from bench.registry import ROOT, nearest_hint
from bench.say import say
from bench.settings import Params
from bench.store import Store
from bench.weights import LAYOUTS, check_layout, digest, encoder_state, read_weights
from bench.yaml12 import parse

if TYPE_CHECKING:
    from torch import Tensor

    from bench.exhibits.base import Table

MODULE = "bench.imported"  # what runs an imported encoder
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# of channels of images in [0, 1]; SwAV's code has 0.228 for the first deviation
NORMALISATIONS: Mapping[str, tuple[list[float], list[float]] | None] = {
    "none": None,
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
# options that choose first weights alone: a file replaces those, so they are set and need not be given
FIRST_WEIGHTS = {"zero_init_residual": False}


class ExternalError(BenchError, ValueError):
    """A checkpoint that cannot be evaluated as asked; one line for each thing wrong."""


@dataclass(frozen=True)
class External:
    """What is asked for.

    Args:
        name: of its row.
        file: the checkpoint.
        layout: a key of `bench.weights.LAYOUTS`.
        encoder: which of our encoders it is for.
        given: the encoder's options.
        normalise: "none", "imagenet", or means and deviations as "0.5,0.5,0.5/0.2,0.2,0.2".
    """

    name: str
    file: Path
    layout: str
    encoder: str
    given: Mapping[str, Any]
    normalise: str

    @property
    def options(self) -> dict[str, Any]:
        """The encoder's options, those that choose first weights among them."""
        known = ENCODERS.component(self.encoder).annotations() if self.encoder in ENCODERS else {}
        return {**self.given, **{option: value for option, value in FIRST_WEIGHTS.items() if option in known}}

    @cached_property
    def normalisation(self) -> dict[str, list[float]] | None:
        """`mean` and `std` by channel; None for images as they are.

        Raises:
            ExternalError: neither a name nor numbers.
        """
        if self.normalise in NORMALISATIONS:
            found = NORMALISATIONS[self.normalise]
            return None if found is None else {"mean": found[0], "std": found[1]}
        try:
            mean, std = ([float(number) for number in part.split(",")] for part in self.normalise.split("/"))
        except ValueError:
            hint = nearest_hint(self.normalise, NORMALISATIONS)
            raise ExternalError(f"normalise: '{self.normalise}'; {hint}, or numbers as in 0.5,0.5/0.2,0.2") from None
        if len(mean) != len(std) or min(std) <= 0:
            raise ExternalError(f"normalise: '{self.normalise}' wants as many deviations, above 0, as means")
        return {"mean": mean, "std": std}


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options of an encoder from texts such as "stem=small", with the types that params.yaml would give them.

    Raises:
        ExternalError: a text without "=", or an option given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or name in found:
            raise ExternalError(f"option: '{pair}' wants NAME=VALUE, each name once")
        try:
            found[name] = parse(value)
        except yaml.YAMLError:
            raise ExternalError(f"option: '{pair}' gives what params.yaml could not hold") from None
    return found


def problems(asked: External, params: Params, protocols: Sequence[str]) -> Iterator[str]:
    """What is wrong with a request, told without opening the file or the data."""
    if not NAME.fullmatch(asked.name):
        yield f"name: '{asked.name}' wants letters, digits, '_', '-' and '.'"
    if asked.name in params.methods or asked.name == RAW_PIXELS:
        yield f"name: '{asked.name}' is a row of params.yaml; choose another"
    if not asked.file.is_file():
        yield f"checkpoint: no file {asked.file}"
    yield from check_options(ENCODERS, "encoder", asked.encoder, asked.options)
    layout = check_layout(asked.layout, {"name": asked.encoder, "options": asked.options})
    if layout and (asked.encoder in ENCODERS or asked.layout not in LAYOUTS):
        yield f"layout: {layout}"
    try:
        asked.normalisation  # noqa: B018
    except ExternalError as error:
        yield str(error)
    for protocol in protocols:
        if protocol not in params.evaluations:
            yield f"protocol: unknown protocol '{protocol}'; {nearest_hint(protocol, params.evaluations)}"


def _data_problems(asked: External, manifest: Mapping[str, Any]) -> Iterator[str]:
    side = min(manifest["height"], manifest["width"])
    smallest = ENCODERS.component(asked.encoder).constant("smallest", 1)
    if side < smallest:
        yield f"the images of {manifest['name']}: {side} pixels; the encoder {asked.encoder} wants at least {smallest}"
    normalisation = asked.normalisation
    if normalisation and len(normalisation["mean"]) != manifest["channels"]:
        yield (
            f"normalise: '{asked.normalise}' is for {len(normalisation['mean'])} channels; "
            f"the images of {manifest['name']} have {manifest['channels']}"
        )


def demand(found: Iterator[str]) -> None:
    """Raise ExternalError where anything was found wrong."""
    if lines := list(dict.fromkeys(found)):
        raise ExternalError("\n".join(lines))


def checkpoint_manifest(asked: External, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds, read strictly: the checksum of the encoder's tensors, and where they are.

    Args:
        asked: what is asked for.
        manifest: of the image set.

    Raises:
        ExternalError: the encoder cannot see these images, or the file is not that encoder in that layout.
    """
    demand(_data_problems(asked, manifest))
    place = {"file": str(asked.file.resolve()), "layout": asked.layout}
    return {**place, "sha256": digest(_state(_config(asked, manifest), place))}


def imported_cell(asked: External, manifest: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Cell:
    """The imported cell of a file: all that makes its features, in its key; the file's place, in its manifest.

    Args:
        asked: what is asked for.
        manifest: of the image set.
        checkpoint: as `checkpoint_manifest` gives it.
    """
    config = {**_config(asked, manifest), "sha256": checkpoint["sha256"]}
    place = {name: checkpoint[name] for name in ("file", "layout")}
    return _keyed("import", asked.name, asked.name, config, place, [MODULE, ENCODERS.component(asked.encoder).module])


def _config(asked: External, manifest: Mapping[str, Any]) -> dict[str, Any]:
    options = options_model(ENCODERS.component(asked.encoder)).model_validate(asked.options).model_dump()
    return {
        "stage": "import",
        "encoder": {"name": asked.encoder, "options": options},
        "channels": manifest["channels"],
        "normalise": asked.normalisation,
        "seed": 0,
    }


def _state(config: Mapping[str, Any], place: Mapping[str, str]) -> "dict[str, Tensor]":
    from bench.build import build_encoder

    encoder = config["encoder"]["name"]
    expected = build_encoder(config["encoder"], config["channels"], config["seed"]).state_dict()
    try:
        return encoder_state(read_weights(Path(place["file"])), place["layout"], encoder, expected)
    except BenchError as error:
        text = str(error)
        raise ExternalError(text if place["file"] in text else f"{place['file']} is {text}") from None


def import_encoder(config: Mapping[str, Any], place: Mapping[str, str], folder: Path) -> None:
    """Write an imported cell's files: the encoder's tensors under our names.

    Args:
        config: the cell's.
        place: its manifest: the file and its layout.
        folder: where its files go.

    Raises:
        ExternalError: the file no longer holds the tensors that the key stands for.
    """
    from bench.checkpoint import save_tensors
    from bench.imported import ENCODER

    state = _state(config, place)
    if digest(state) != config["sha256"]:
        raise ExternalError(f"{place['file']} has changed since its key was made; run the command again")
    save_tensors(folder / ENCODER, state)


def evaluation_cells(params: Params, made: Plan, imported: Cell, protocols: Sequence[str]) -> list[Cell]:
    """One cell for each protocol: what is asked of the plan's other encoders, asked of an imported one.

    Args:
        params: the whole file.
        made: its plan.
        imported: the encoder's cell.
        protocols: by id.
    """
    machine = params.defaults.model_dump(include={"numerics", "threads", "device"})
    cells = []
    for protocol in protocols:
        other = made.evaluate[protocol][0]
        config = {**other.config, **machine, "source": {"pretrained": imported.key}, "seed": imported.seed}
        cell = _keyed("evaluate", protocol, imported.method, config, other.manifest, code_modules(config))
        cells.append(replace(cell, needs=imported.key))
    return cells


def _keyed(
    stage: str, name: str, method: str, config: Mapping[str, Any], manifest: Mapping[str, Any], modules: Sequence[str]
) -> Cell:
    whole = {**config, "code": code_hash(modules)}
    text = json.dumps(whole, sort_keys=True, allow_nan=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    return Cell(key, stage, name, method, whole["seed"], whole, dict(manifest))


def requests(params: Params) -> dict[str, External]:
    """What `checkpoints` of params.yaml asks for, by name."""
    return {
        name: External(name, Path(c.file), c.layout, c.encoder.name, c.encoder.options, c.normalise)
        for name, c in params.checkpoints.items()
    }


def import_checkpoint(asked: External, manifest: Mapping[str, Any], folder: Path, store: Store) -> None:
    """Write `checkpoints/<name>.json` below the folder of manifests, and have the imported cell; imports torch."""
    found = {"request": _request(asked), **checkpoint_manifest(asked, manifest)}
    write_json(folder / "checkpoints" / f"{asked.name}.json", found)
    ensure([imported_cell(asked, manifest, found)], store)


def _import_apart(name: str) -> None:
    """Run the stage in a process of its own: who plans or submits must not import torch."""
    if subprocess.run([sys.executable, str(ROOT / "stages" / "import.py"), name]).returncode:
        raise ExternalError(f"checkpoints.{name} cannot be imported (see above)")


def _request(asked: External) -> dict[str, Any]:
    return {"bytes": sha256(asked.file), "encoder": asked.encoder, "options": asked.options, "layout": asked.layout}


def read_manifests(params: Params, folder: Path, *, fresh: bool) -> dict[str, dict[str, Any]]:
    """The manifests of `checkpoints`, as "checkpoints/<name>".

    Args:
        params: the whole file.
        folder: of manifests.
        fresh: have those that are absent or of another file written anew.
    """
    found = {}
    for name, asked in requests(params).items():
        path = folder / "checkpoints" / f"{name}.json"
        if fresh and not (path.is_file() and read_json(path)["request"] == _request(asked)):
            _import_apart(name)
        if not path.is_file():
            raise ExternalError(f"no {path}; run `dvc repro import@{name}` first")
        found[f"checkpoints/{name}"] = read_json(path)
    return found


def planned(params: Params, manifests: Mapping[str, Any], made: Plan) -> list[Cell]:
    """The evaluation cells of `checkpoints`."""
    cells = []
    for name, asked in requests(params).items():
        imported = imported_cell(asked, manifests[params.data.name], manifests[f"checkpoints/{name}"])
        cells += evaluation_cells(params, made, imported, list(params.evaluations))
    return cells


def import_needed(params: Params, cells: Sequence[Cell], store: Store) -> None:
    """Import the checkpoints that missing cells need and the store lacks."""
    for name in params.checkpoints:
        needed = {cell.needs for cell in cells if cell.method == name and not store.has(cell.key)}
        lacking = {key for key in needed if key is not None and not store.has(key)}
        if lacking:
            _import_apart(name)
        if any(not store.has(key) for key in lacking):
            raise ExternalError(f"checkpoints.{name}: its file has changed since the plan; run the plan again")


def ensure(cells: Sequence[Cell], store: Store) -> None:
    """Have cells computed that are not in the store yet, in this process and in order.

    Raises:
        ExternalError: after all others are done, names those that failed.
    """
    store.check()
    failed = []
    for i, cell in enumerate(cells, 1):
        if damage := store.set_aside_if_damaged(cell.key):
            say(f"{cell.label}: {damage} and computed again")
        with store.holds.held(cell.key):
            if store.has(cell.key):
                continue
            try:
                _compute(cell, store)
            except BenchError as error:
                failed.append(f"{cell.label}: {error}")
            except Exception as error:  # one protocol that fails never stops the others
                say(traceback.format_exc())
                failed.append(f"{cell.label}: {type(error).__name__}: {error}")
            else:
                say(f"[{i}/{len(cells)}] {_label(cell)}: done")
        if failed and cell.stage == "import":
            break
    if failed:
        raise ExternalError("\n  ".join(["could not be computed; all others are done:", *failed]))


def _label(cell: Cell) -> str:
    return f"{cell.method} imported" if cell.stage == "import" else f"{cell.method} {cell.name}"


def _compute(cell: Cell, store: Store) -> None:
    if cell.stage == "evaluate":
        from bench.compute import compute

        compute(cell, store, checkpoint_seconds=0.0)  # an evaluation keeps no checkpoint
        return
    folder = store.running(cell.key) / "publish"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    import_encoder(cell.config, cell.manifest, folder)
    store.publish(cell.key, cell.config, folder, {**numerics.environment(), **cell.manifest})


def evaluate_external(
    asked: External, params: Params, manifests: Mapping[str, Any], protocols: Sequence[str], store: Store
) -> "tuple[list[Cell], Table]":
    """Compute what is missing of a checkpoint's row.

    Args:
        asked: what is asked for, without `problems`.
        params: the whole file.
        manifests: of its data sets.
        protocols: by id.
        store: where cells go.

    Returns:
        Its evaluation cells, and the main table with its row below those whose cells are computed.
    """
    manifest = manifests[params.data.name]
    imported = imported_cell(asked, manifest, checkpoint_manifest(asked, manifest))
    made = make_plan(params, manifests)
    cells = evaluation_cells(params, made, imported, protocols)
    ensure([imported, *cells], store)
    return cells, _table(report_plan(made, params), cells, protocols, store)


def _table(plan: dict[str, Any], cells: Sequence[Cell], protocols: Sequence[str], store: Store) -> "Table":
    from bench.exhibits.main_table import main_table
    from bench.records import gather, metrics_frame

    name = cells[0].method
    ours = [{k: getattr(cell, k) for k in ("key", "stage", "name", "method", "seed")} for cell in cells]
    theirs = [cell for cell in plan["cells"] if cell["stage"] == "evaluate" and cell["name"] in protocols]
    shown = {**plan, "studies": {}, "protocols": list(protocols), "cells": [*theirs, *ours]}
    numbers = gather(shown, lambda cell: store.path(cell["key"]), {}).numbers
    computed = {cell["method"] for cell in numbers["evaluations"]}
    numbers["rows"] = [row for row in (*plan["rows"], name) if row in computed]
    return main_table(metrics_frame(numbers), numbers)
