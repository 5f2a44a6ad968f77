"""The types of params.yaml: frozen, strict, and bounded."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Len, MinLen
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.cluster import Cluster
from bench.options import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from bench.strict import Strict

Range = Annotated[list[float], Len(2, 2)]
Scaling = Literal["none", "linear", "sqrt"]  # of lr with the batch: not, times batch / 256, times sqrt(batch)


class Dataset(Strict):
    """An image set that `prepare` makes ready."""

    reader: str
    options: dict[str, Any] = Field(default_factory=dict)


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
    scaling: Scaling = "none"
    momentum: Fraction
    weight_decay: NonNegative
    decay_norm_bias: bool


class AdamW(Strict):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    lr: Positive
    scaling: Scaling = "none"
    weight_decay: NonNegative
    decay_norm_bias: bool


class Lars(Strict):
    """Layer-wise adaptive rates, for large batches; `norm_bias_lr` is a factor of the learning rate."""

    name: Literal["lars"]
    lr: Positive
    scaling: Scaling = "none"
    momentum: Fraction
    eta: Positive
    weight_decay: NonNegative
    decay_norm_bias: bool
    adapt_norm_bias: bool = False
    norm_bias_lr: Positive = 1.0


Optimizer = Annotated[Sgd | AdamW | Lars, Field(discriminator="name")]


class Schedule(Strict):
    """The learning rate over training; `warmup` and `milestones` in epochs, `warmup_from` and `end` as shares of it."""

    warmup: NonNegative
    warmup_from: Fraction = 0.0
    decay: Literal["cosine", "step", "constant"]
    end: Fraction | None = None  # of a cosine; 0 unless given
    milestones: list[PositiveInt] | None = None  # of a step decay: the rate is multiplied by factor at each
    factor: Annotated[float, Interval(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _belongs_to_its_decay(self) -> "Schedule":
        owners = {"end": "cosine", "milestones": "step", "factor": "step"}
        for name, owner in owners.items():
            if getattr(self, name) is not None and self.decay != owner:
                raise ValueError(f"{name} belongs to decay: {owner}, not to {self.decay}; remove it")
        if self.decay == "step":
            if not self.milestones or self.factor is None:
                raise ValueError("decay: step wants milestones (epochs) and a factor")
            if self.milestones != sorted(set(self.milestones)):
                raise ValueError(f"milestones want to rise, not {self.milestones}")
        return self


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


class Blur(Strict):
    """Gaussian blur with probability p: kernel side in pixels (odd), range of sigma."""

    kernel: PositiveInt
    sigma: Range
    p: Fraction

    @model_validator(mode="after")
    def _odd(self) -> "Blur":
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel wants an odd number of pixels, not {self.kernel}")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma wants 0 < low <= high, not {self.sigma}")
        return self


class Solarise(Strict):
    """Invert what is at least as bright as the threshold, with probability p."""

    threshold: Fraction
    p: Fraction


class Op(Strict):
    """One step of a view: exactly one of the keys."""

    crop: Crop | None = None
    flip: Flip | None = None
    jitter: Jitter | None = None
    grayscale: Grayscale | None = None
    blur: Blur | None = None
    solarise: Solarise | None = None

    @model_validator(mode="after")
    def _one(self) -> "Op":
        given = sorted(self.model_fields_set)
        if len(given) != 1 or getattr(self, given[0]) is None:
            raise ValueError(f"an op is one key with its settings, not {given}")
        return self


class View(Strict):
    """`count` views of `size` pixels, made by `ops` in order; a crop, where there is one, is first."""

    role: Literal["global", "local"]
    count: PositiveInt
    size: PositiveInt
    ops: list[Op]

    @model_validator(mode="after")
    def _blur_fits(self) -> "View":
        wide = [op.blur.kernel for op in self.ops if op.blur is not None and op.blur.kernel // 2 >= self.size]
        if wide:
            raise ValueError(f"blur.kernel: {wide[0]} reaches beyond a view of {self.size} pixels")
        return self

    @model_validator(mode="after")
    def _crop_is_first(self) -> "View":
        if any(op.crop is not None for op in self.ops[1:]):
            raise ValueError("a crop stands first: later ops work at the view's size")
        return self


class Recipe(Strict):
    """An augmentation, as data; global views stand before local ones."""

    views: Annotated[list[View], MinLen(1)]

    def count(self, role: str) -> int:
        """How many views of a role it shows."""
        return sum(view.count for view in self.views if view.role == role)

    @model_validator(mode="after")
    def _global_first(self) -> "Recipe":
        roles = [view.role for view in self.views]
        if roles != sorted(roles):  # "global" sorts before "local"
            raise ValueError("global views stand before local ones")
        return self


class Sources(Strict):
    """Seeds of single sources of randomness; the cell's own seed where none is given.

    Args:
        weights: of encoder and heads, before training.
        order: of the images, in each epoch.
        crops: where views are cut and whether they are mirrored.
        colours: what else is done to them.
        draws: the method's own: negatives, first centroids, first rows of a bank or support set.
    """

    weights: NonNegativeInt | None = None
    order: NonNegativeInt | None = None
    crops: NonNegativeInt | None = None
    colours: NonNegativeInt | None = None
    draws: NonNegativeInt | None = None


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
    shards: PositiveInt
    snapshots: list[PositiveInt]
    sources: Sources = Field(default_factory=Sources)

    @model_validator(mode="after")
    def _portable_is_one_thread(self) -> "Training":
        if self.numerics == "portable" and self.threads != 1:
            raise ValueError(f"portable numerics need threads: 1, not {self.threads} (or numerics: native)")
        return self


Vary = Annotated[dict[str, Annotated[list[Any], MinLen(1)]], MinLen(1)]  # levels by path
METHOD = "method"  # a path of a study that stands for the method itself


def combinations(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of levels by path."""
    return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


class Study(Strict):
    """An ablation: a base method, and dotted paths into this file with the levels each takes.

    All combinations of `vary`; or `one_by_one`, each path through its levels while the others stay at their first; or
    the `points` listed. The path `method` stands for the method. What is `fixed` is set at every point. `data` and
    `seeds` are those of the whole file where none are given. `curves` names columns of the histories, each drawn
    against the epoch.
    """

    base: str | None = None
    data: str | None = None
    seeds: Annotated[list[NonNegativeInt], MinLen(1)] | None = None
    fixed: dict[str, Any] = Field(default_factory=dict)
    vary: Vary | None = None
    one_by_one: Vary | None = None
    points: Annotated[list[Annotated[dict[str, Any], MinLen(1)]], MinLen(1)] | None = None
    protocols: Annotated[list[str], MinLen(1)]
    curves: list[str] = Field(default_factory=list)

    @field_validator("curves")
    @classmethod
    def _distinct_curves(cls, curves: list[str]) -> list[str]:
        if len(set(curves)) < len(curves):
            raise ValueError(f"{curves} names a column twice")
        return curves

    @model_validator(mode="after")
    def _one_kind(self) -> "Study":
        if [self.vary, self.one_by_one, self.points].count(None) != 2:
            raise ValueError(
                "give one of vary (all combinations), one_by_one (a path at a time) and points (those listed)"
            )
        return self

    @field_validator("vary", "one_by_one")
    @classmethod
    def _distinct_levels(cls, vary: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        for path, levels in (vary or {}).items():
            if any(level in levels[:i] for i, level in enumerate(levels)):
                raise ValueError(f"'{path}' has a level twice: {levels}")
        return vary

    @field_validator("points")
    @classmethod
    def _distinct_points(cls, points: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for i, point in enumerate(points or []):
            if points and point in points[:i]:
                raise ValueError(f"{point} stands twice")
            if points and point.keys() != points[0].keys():
                raise ValueError(f"{point} wants the paths of the first point: {', '.join(points[0])}")
        return points

    def combinations(self) -> list[dict[str, Any]]:
        """The levels of each point, by path."""
        if self.points is not None:
            return list(self.points)
        if self.one_by_one is None:
            return combinations(self.vary or {})
        first = {path: levels[0] for path, levels in self.one_by_one.items()}
        return [first, *({**first, path: level} for path, levels in self.one_by_one.items() for level in levels[1:])]

    def overrides(self) -> dict[str, Any]:
        """What every point sets, by path."""
        given = {"data.name": self.data, "seeds": self.seeds}
        return {**{path: value for path, value in given.items() if value is not None}, **self.fixed}

    def method_of(self, levels: Mapping[str, Any]) -> str | None:
        """The method at a point."""
        return levels.get(METHOD, self.base)


class Tuning(Strict):
    """Trials on the validation part: for each method the same number, at seeds that no table uses."""

    seeds: Annotated[list[Annotated[int, Ge(1000)]], MinLen(1)]
    protocol: str
    trials: dict[str, Vary]

    @model_validator(mode="after")
    def _equal(self) -> "Tuning":
        counts = {method: math.prod(map(len, vary.values())) for method, vary in self.trials.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"every method wants the same number of trials, not {counts}")
        return self


class Checkpoint(Strict):
    """Somebody else's encoder: a row of every table."""

    file: str
    layout: str
    encoder: Named
    normalise: str


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
    checkpoints: dict[str, Checkpoint]
    evaluations: Annotated[dict[str, dict[str, Any]], MinLen(1)]
    studies: dict[str, Study]
    judged: list[str] = Field(
        default_factory=list
    )  # studies, or single claims, that get a verdict; `main` is the main table
    tuning: Tuning
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
