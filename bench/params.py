"""params.yaml as typed, frozen objects; anything unknown, missing or out of bounds is an error.

Every error names the key, the value given, what is allowed and, for a name, its nearest kin.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from annotated_types import Ge, Interval, Len, MinLen
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from bench.data import READERS
from bench.encoders import ENCODERS
from bench.errors import BenchError
from bench.evaluators import EVALUATORS
from bench.methods import METHODS
from bench.options import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from bench.registry import Component, Registry, nearest_hint

Range = Annotated[list[float], Len(2, 2)]


class ParamsError(BenchError, ValueError):
    """A params.yaml that cannot be used; one line for each thing wrong."""


class Strict(BaseModel):
    """Frozen, and no key beyond the declared ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Dataset(Strict):
    """An image set that `prepare` makes ready."""

    reader: str
    options: dict[str, Any] = {}


class Data(Strict):
    """What encoders train on."""

    name: str
    validation: Annotated[float, Interval(ge=0, lt=1)]
    fraction: Annotated[float, Interval(gt=0, le=1)]


class Named(BaseModel):
    """A component by name, with its options beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """All but the name."""
        return dict(self.model_extra or {})


class Sgd(Strict):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    lr: Positive
    momentum: Fraction
    weight_decay: NonNegative
    decay_norm_bias: bool


class AdamW(Strict):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    lr: Positive
    weight_decay: NonNegative
    decay_norm_bias: bool


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="name")]


class Schedule(Strict):
    """The learning rate over training; `warmup` in epochs."""

    warmup: NonNegative
    decay: Literal["cosine", "constant"]


class Crop(Strict):
    """Random resized crop: share of the area and aspect ratio."""

    scale: Range
    ratio: Range

    @model_validator(mode="after")
    def _ordered(self) -> "Crop":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} wants 0 < low <= high, not [{low}, {high}]")
        return self


class Flip(Strict):
    """Horizontal flip with probability p."""

    p: Fraction


class Jitter(Strict):
    """Colour jitter, in an order drawn per image, with probability p."""

    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: Annotated[float, Interval(ge=0, le=0.5)]
    p: Fraction


class Grayscale(Strict):
    """Grayscale with probability p."""

    p: Fraction


class Op(Strict):
    """One step of a view: exactly one of the keys."""

    crop: Crop | None = None
    flip: Flip | None = None
    jitter: Jitter | None = None
    grayscale: Grayscale | None = None

    @model_validator(mode="after")
    def _one(self) -> "Op":
        if len(self.model_fields_set) != 1:
            raise ValueError(f"an op is one key, not {sorted(self.model_fields_set)}")
        return self


class View(Strict):
    """`count` views of `size` pixels, made by `ops` in order; a crop, where there is one, is first."""

    role: Literal["global", "local"]
    count: PositiveInt
    size: PositiveInt
    ops: list[Op]

    @model_validator(mode="after")
    def _crop_is_first(self) -> "View":
        if any(op.crop is not None for op in self.ops[1:]):
            raise ValueError("a crop stands first: later ops work at the view's size")
        return self


class Recipe(Strict):
    """An augmentation, as data."""

    views: Annotated[list[View], MinLen(1)]


class Training(Strict):
    """How one method is pretrained."""

    epochs: PositiveInt
    batch: Annotated[int, Ge(2)]
    last_batch: Literal["drop", "keep"]
    optimizer: Optimizer
    schedule: Schedule
    recipe: str
    precision: Literal["fp32", "bf16"]
    numerics: Literal["portable", "native"]
    device: Literal["cpu", "cuda"]
    threads: PositiveInt
    shards: Literal[1]  # until distributed training is built
    snapshots: list[PositiveInt]

    @model_validator(mode="after")
    def _portable_is_one_thread(self) -> "Training":
        if self.numerics == "portable" and self.threads != 1:
            raise ValueError(f"portable numerics need threads: 1, not {self.threads} (or numerics: native)")
        return self


class Cluster(Strict):
    """How cells are run; never part of a key."""

    name: Literal["local", "debug"]
    workers: PositiveInt | None
    checkpoint_seconds: NonNegative


class Params(Strict):
    """The whole file."""

    seeds: Annotated[list[NonNegativeInt], MinLen(1)]
    datasets: Annotated[dict[str, Dataset], MinLen(1)]
    data: Data
    encoder: Named
    defaults: Training
    recipes: dict[str, Recipe]
    methods: Annotated[dict[str, dict[str, Any]], MinLen(1)]
    training: dict[str, dict[str, Any]]
    raw_pixels: bool
    evaluations: Annotated[dict[str, dict[str, Any]], MinLen(1)]
    cluster: Cluster

    def training_of(self, method: str) -> Training:
        """The defaults with the method's own settings laid over them."""
        changes = self.training.get(method, {})
        return Training.model_validate(overlay(self.defaults.model_dump(), changes))


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base` key by key; a mapping that gives a `name` stands alone."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = overlay(old, value) if both and "name" not in value else value  # type: ignore[arg-type]
    return merged


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: the file is absent or holds anything unknown, missing, ill-typed or out of bounds.
    """
    if not path.is_file():
        raise ParamsError(f"no {path}; run in a folder that holds a params.yaml")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: {error}") from None
    return check(raw, path.name)


def check(raw: Any, name: str = "params.yaml") -> Params:
    """The typed params of a parsed file.

    Raises:
        ParamsError: one line for each thing wrong.
    """
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError("\n".join(_lines(name, error, Params))) from None
    problems = [f"{name}: {line}" for line in _cross_checks(params)]
    if problems:
        raise ParamsError("\n".join(problems))
    return params


@cache
def options_model(component: Component) -> type[BaseModel]:
    """The strict model of a component's options, read from its source."""
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in component.option_types().items()}
    return create_model(component.name, __base__=Strict, **fields)


def check_options(registry: Registry, where: str, name: str, given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options given to a component, one line each."""
    if name not in registry:
        return [f"{where}: unknown {registry.kind} '{name}'; {nearest_hint(name, registry)}"]
    model = options_model(registry.component(name))
    try:
        model.model_validate(given)
    except ValidationError as error:
        return [line for line in _lines("", error, model, where)]
    return []


def _cross_checks(p: Params) -> Iterator[str]:
    for name, dataset in p.datasets.items():
        where = f"datasets.{name}"
        yield from check_options(READERS, where, dataset.reader, dataset.options)
    if p.data.name not in p.datasets:
        yield f"data.name: unknown data set '{p.data.name}'; {nearest_hint(p.data.name, p.datasets)}"
    yield from check_options(ENCODERS, "encoder", p.encoder.name, p.encoder.options)
    for name, options in p.methods.items():
        yield from check_options(METHODS, f"methods.{name}", name, options)
    for name, options in p.evaluations.items():
        yield from check_options(EVALUATORS, f"evaluations.{name}", name, options)
    if len(set(p.seeds)) != len(p.seeds):
        yield f"seeds: {p.seeds} holds a seed twice"
    yield from _training_checks(p)


def _training_checks(p: Params) -> Iterator[str]:
    for name in p.training:
        if name not in p.methods:
            yield f"training.{name}: not one of the methods; {nearest_hint(name, p.methods)}"
    for name in p.methods:
        where = f"training.{name}" if name in p.training else "defaults"
        try:
            training = p.training_of(name)
        except ValidationError as error:
            yield from _lines("", error, Training, where)
            continue
        if training.recipe not in p.recipes:
            hint = nearest_hint(training.recipe, p.recipes)
            yield f"{where}.recipe: unknown recipe '{training.recipe}'; {hint}"
        late = [e for e in training.snapshots if e > training.epochs]
        if late:
            yield f"{where}.snapshots: {late} come after the last epoch, {training.epochs}"


def _lines(name: str, error: ValidationError, model: type[BaseModel], where: str = "") -> Iterator[str]:
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        shown = ".".join([where, *path] if where else path) or "the file"
        lead = f"{name}: {shown}" if name else shown
        if item["type"] == "extra_forbidden":
            hint = nearest_hint(path[-1], _keys_at(model, item["loc"][:-1]))
            yield f"{lead}: unknown key (given {item['input']!r}); {hint}"
        elif item["type"] == "missing":
            hint = f"its neighbours: {', '.join(sorted(_keys_at(model, item['loc'][:-1])))}"
            yield f"{lead}: missing; add it ({hint})"
        else:
            yield f"{lead}: {item['msg']} (given {item['input']!r})"


def _keys_at(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys a model allows at a place of an error, as far as its types tell."""
    schema = model.model_json_schema()
    node = schema
    for part in loc:
        node = _child(schema, node, part)
    node = _resolve(schema, node)
    return list(node.get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _child(schema: dict[str, Any], node: dict[str, Any], part: Any) -> dict[str, Any]:
    node = _resolve(schema, node)
    choices = [_resolve(schema, n) for n in node.get("oneOf", []) + node.get("anyOf", [])]
    if isinstance(part, int):
        return node.get("items", {})
    for choice in [node, *choices]:
        properties = choice.get("properties", {})
        if part in properties:
            return properties[part]
        if properties.get("name", {}).get("const") == part:  # a discriminator's tag
            return choice
    extra = node.get("additionalProperties", {})
    return extra if isinstance(extra, dict) else {}


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2's scalars (1e-3 is a number, `on` a string); a key given twice is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _resolver(tag: str, pattern: str, first: str) -> None:
    import re

    _Loader.add_implicit_resolver(tag, re.compile(pattern), list(first))


_resolver("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolver("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN")
_resolver("tag:yaml.org,2002:null", r"^$", " ")
_resolver("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", "-+0123456789")
_resolver(
    "tag:yaml.org,2002:float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN))$",
    "-+.0123456789",
)
_Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan")),
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
