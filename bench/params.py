"""params.yaml as typed, frozen objects; anything unknown, missing or out of bounds is an error.

Every error names the key, the value given, what is allowed and, for a name, its nearest kin.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from bench.cluster import Cluster
from bench.data import READERS
from bench.encoders import ENCODERS
from bench.errors import BenchError
from bench.evaluators import EVALUATORS
from bench.methods import METHODS
from bench.options import AsManyAs, AtMost, Distinct, NamesDataSets, Ordered
from bench.refusals import refusals
from bench.registry import Component, Registry, nearest_hint
from bench.settings import METHOD, Params, Training, combinations
from bench.strict import Strict
from bench.yaml12 import read

TUNING = "tuning.json"  # beside params.yaml: the trials that `bench tune` made


class ParamsError(BenchError, ValueError):
    """A params.yaml that cannot be used; one line for each thing wrong."""


@dataclass(frozen=True)
class Point:
    """One combination of levels, by dotted path, and the whole params with them set."""

    levels: dict[str, Any]
    params: Params


def points(
    params: Params, where: str, wanted: Iterable[dict[str, Any]], fixed: Mapping[str, Any] | None = None
) -> list[Point]:
    """Combinations of levels, each with the params it stands for.

    Args:
        params: the whole file.
        where: the entry of this file that asks, for errors.
        wanted: the levels of each, by dotted path; the path `method` sets nothing.
        fixed: what is set first, by dotted path.

    Raises:
        ParamsError: a path that does not exist or a level that is not allowed there.
    """
    found = []
    for levels in wanted:
        raw = params.model_dump(exclude_unset=True)
        raw["studies"], raw["tuning"]["trials"] = {}, {}
        for path, value in {**(fixed or {}), **levels}.items():
            if path != METHOD:
                _set(raw, path, value, where)
        found.append(Point(levels, check(raw, f"{where}, {levels}")))
    return found


def _set(raw: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set what a dotted path names; only below `training` may it name what is not there yet."""
    parts = path.split(".")
    node: Any = raw
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            place: Any = int(part)
        elif isinstance(node, dict) and (part in node or parts[0] == "training"):
            place = part
        else:
            known = node if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0)
            raise ParamsError(f"{where}: '{path}' names nothing at '{part}'; {nearest_hint(part, known)}")
        if last:
            node[place] = value
        else:
            node = node.setdefault(place, {}) if isinstance(node, dict) else node[place]


def load(path: Path) -> Params:
    """Read and check params.yaml; its section `cluster` is that of the file BENCH_CLUSTER names, where it names one.

    Raises:
        ParamsError: a file is absent or holds anything unknown, missing, ill-typed or out of bounds.
    """
    if not path.is_file():
        raise ParamsError(f"no {path}; run in a folder that holds a params.yaml")
    params = check(read(path, path, ParamsError), path.name)
    own = os.environ.get("BENCH_CLUSTER")
    return params.model_copy(update={"cluster": _load_cluster(Path(own))}) if own else params


class _ClusterFile(Strict):
    cluster: Cluster


def _load_cluster(path: Path) -> Cluster:
    if not path.is_file():
        raise ParamsError(f"BENCH_CLUSTER: no {path}; it wants a file that holds a section `cluster`")
    try:
        return _ClusterFile.model_validate(read(path, path, ParamsError)).cluster
    except ValidationError as error:
        raise ParamsError("\n".join(f"{path}: {line}" for line in refusals(error, _ClusterFile))) from None


def check(raw: Any, name: str = "params.yaml") -> Params:
    """The typed params of a parsed file.

    Raises:
        ParamsError: one line for each thing wrong.
    """
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        lines = [f"{name}: {line}" for line in refusals(error, Params)]
        raise ParamsError("\n".join(lines)) from None
    # combinations of levels are checked once the rest is sound, or each would tell of the same fault
    found = list(_cross_checks(params)) or [*_study_checks(params), *_tuning_checks(params)]
    problems = [f"{name}: {line}" for line in dict.fromkeys(found)]
    if problems:
        raise ParamsError("\n".join(problems))
    return params


def marked(component: Component, mark: type) -> Iterator[str]:
    """A component's options that carry a mark of `bench.options`."""
    for name, field in options_model(component).model_fields.items():
        if any(isinstance(found, mark) for found in field.metadata):
            yield name


@cache
def options_model(component: Component) -> type[BaseModel]:
    """The strict model of a component's options, read from its source."""
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in component.option_types().items()}
    return create_model(component.name, __base__=Strict, **fields)


def check_options(registry: Registry, where: str, name: str, given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options given to a component, one line each."""
    if name not in registry:
        return [f"{where}: {_unknown(registry, name)}"]
    model = options_model(registry.component(name))
    try:
        model.model_validate(given)
    except ValidationError as error:
        return list(refusals(error, model, where))
    return [
        f"{where}.{option}: {problem}"
        for option, field in model.model_fields.items()
        for mark in field.metadata
        if (problem := _conflict(mark, option, given))
    ]


def _conflict(mark: object, option: str, given: Mapping[str, Any]) -> str | None:
    """What is wrong between an option and what it is marked to agree with."""
    value = given[option]
    if isinstance(mark, AtMost) and value > given[mark.other]:
        return f"{value} is more than {mark.other}, {given[mark.other]}"
    if isinstance(mark, AsManyAs) and len(value) != len(given[mark.other]):
        return f"{value} wants as many entries as {mark.other}, {given[mark.other]}"
    if isinstance(mark, Distinct) and len(set(value)) < len(value):
        return f"{value} holds something twice"
    if isinstance(mark, Ordered) and value[0] > value[1]:
        return f"{value} wants the lower number first"
    return None


def _unknown(registry: Registry, name: str) -> str:
    return f"unknown {registry.kind} '{name}'; {nearest_hint(name, registry)}"


def _cross_checks(p: Params) -> Iterator[str]:
    for name, dataset in p.datasets.items():
        if dataset.reader not in READERS:
            yield f"datasets.{name}.reader: {_unknown(READERS, dataset.reader)}"
        else:
            yield from check_options(READERS, f"datasets.{name}.options", dataset.reader, dataset.options)
    if p.data.name not in p.datasets:
        yield f"data.name: unknown data set '{p.data.name}'; {nearest_hint(p.data.name, p.datasets)}"
    yield from check_options(ENCODERS, "encoder", p.encoder.name, p.encoder.options)
    for name, options in p.methods.items():
        yield from check_options(METHODS, f"methods.{name}", name, options)
    for name, options in p.evaluations.items():
        problems = check_options(EVALUATORS, f"evaluations.{name}", name, options)
        yield from problems or _target_checks(p, name, options)
    if len(set(p.seeds)) != len(p.seeds):
        yield f"seeds: {p.seeds} holds a seed twice"
    yield from _training_checks(p)
    yield from _checkpoint_checks(p)


def _target_checks(p: Params, protocol: str, options: Mapping[str, Any]) -> Iterator[str]:
    for option in marked(EVALUATORS.component(protocol), NamesDataSets):
        for target in options[option]:
            if target not in p.datasets:
                hint = nearest_hint(target, p.datasets)
                yield f"evaluations.{protocol}.{option}: unknown data set '{target}'; {hint}"


def _checkpoint_checks(p: Params) -> Iterator[str]:
    if not p.checkpoints:
        return
    from bench.external import problems, requests  # it imports this module

    for name, asked in requests(p).items():
        yield from (f"checkpoints.{name}: {line}" for line in problems(asked, p, []))


def _study_checks(p: Params) -> Iterator[str]:
    for name, study in p.studies.items():
        where = f"studies.{name}"
        for method in dict.fromkeys(study.method_of(levels) for levels in study.combinations()):
            if method is None:
                yield f"{where}: names no method; give base, or vary the path 'method'"
            elif method not in p.methods:
                place = f"{where}.base" if method == study.base else f"{where}, path 'method'"
                yield f"{place}: '{method}' is not one of the methods; {nearest_hint(method, p.methods)}"
        if study.data is not None and study.data not in p.datasets:
            yield f"{where}.data: unknown data set '{study.data}'; {nearest_hint(study.data, p.datasets)}"
        for protocol in study.protocols:
            if protocol not in p.evaluations:
                hint = nearest_hint(protocol, p.evaluations)
                yield f"{where}.protocols: unknown protocol '{protocol}'; {hint}"
        try:
            points(p, where, study.combinations(), study.overrides())
        except ParamsError as error:
            yield str(error)


def _tuning_checks(p: Params) -> Iterator[str]:
    if p.tuning.protocol not in p.evaluations:
        hint = nearest_hint(p.tuning.protocol, p.evaluations)
        yield f"tuning.protocol: unknown protocol '{p.tuning.protocol}'; {hint}"
    shared = set(p.tuning.seeds) & set(p.seeds)
    if shared:
        yield f"tuning.seeds: {sorted(shared)} are seeds of the tables"
    for method, vary in p.tuning.trials.items():
        where = f"tuning.trials.{method}"
        if method not in p.methods:
            yield f"{where}: not one of the methods; {nearest_hint(method, p.methods)}"
            continue
        try:
            points(p, where, combinations(vary))
        except ParamsError as error:
            yield str(error)


def _training_checks(p: Params) -> Iterator[str]:
    for name in p.training:
        if name not in p.methods:
            yield f"training.{name}: not one of the methods; {nearest_hint(name, p.methods)}"
    for name in p.methods:
        where = f"training.{name}" if name in p.training else "defaults"
        try:
            training = p.training_of(name)
        except ValidationError as error:
            yield from refusals(error, Training, where)
            continue
        own = p.training.get(name, {}).keys()
        if training.recipe not in p.recipes:
            place = where if "recipe" in own else "defaults"
            hint = nearest_hint(training.recipe, p.recipes)
            yield f"{place}.recipe: unknown recipe '{training.recipe}'; {hint}"
        late = [e for e in training.snapshots if e > training.epochs]
        if late:
            place = where if own & {"snapshots", "epochs"} else "defaults"
            yield f"{place}.snapshots: {late} come after the last epoch, {training.epochs}"
        shards, batch = training.shards, training.batch
        if batch % shards or batch < 2 * shards:
            place = where if own & {"shards", "batch"} else "defaults"
            yield (
                f"{place}.shards: {shards} cannot share a batch of {batch} evenly, two rows or more each; "
                f"use a divisor of {batch} up to {batch // 2}, or another batch"
            )


def json_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, with every known component's options in it."""
    schema = Params.model_json_schema()
    for section, registry in (("methods", METHODS), ("evaluations", EVALUATORS)):
        schema["properties"][section] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {n: options_model(registry.component(n)).model_json_schema() for n in registry},
        }
    return schema
