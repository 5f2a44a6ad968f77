"""What a method is: the interface between one paper and the trainer."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from bench.encoders.base import Encoder


@dataclass(frozen=True)
class Batch:
    """A batch of images as the recipe shows them.

    Args:
        views: one (n, c, s, s) tensor per view.
        index: (n,) rows of the cell's training subset; they address memory banks.
        labels: (n,) classes; only supervised methods and logs read them.
        occurrence: (n,) how often the image came before in this epoch.
        epoch: from 0.
        step: from 0, over the whole training.
    """

    views: list[Tensor]
    index: Tensor
    labels: Tensor
    occurrence: Tensor
    epoch: int
    step: int


@dataclass(frozen=True)
class Progress:
    """How far training is: `step` of `steps`, in `epoch`."""

    step: int
    steps: int
    epoch: int


@dataclass(frozen=True)
class DataInfo:
    """The cell's training subset: rows, classes, channels, and the images' side in pixels.

    `labels` (rows,) are for the history alone, as `Batch.labels` are; None where nothing is trained.
    """

    rows: int
    classes: int
    channels: int
    size: int
    labels: Tensor | None = None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the optimiser treats alike.

    Args:
        names: of the parameters.
        lr: factor of the learning rate.
        decay: factor of the weight decay.
        momentum: factor of the momentum, where the optimiser has one.
        frozen_until: the step, from 0, before which they do not move.
    """

    names: list[str]
    lr: float = 1.0
    decay: float = 1.0
    momentum: float = 1.0
    frozen_until: int = 0


Extract = Callable[[nn.Module], Tensor]


class Method(nn.Module, ABC):
    """A pretraining method.

    A subclass takes `encoder`, `data` and keyword-only `seed` and options, none with a default. All
    state that matters is a parameter or a persistent buffer, so that a checkpoint holds all of it. A method that
    projects h to z has the module that does as `projector`, so that z can be evaluated.
    The trainer calls, per step: embed, loss, the optimiser, after_step.
    """

    title: ClassVar[str]  # as papers print it
    trains: ClassVar[bool] = True
    views: ClassVar[int | None] = None  # how many global views a recipe must show; None: any views
    local_views: ClassVar[bool] = False  # whether local views (multi-crop) may follow them
    encoder: Encoder

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Everything the loss needs that depends on parameters; each tensor has a row per image.

        With several shards each operation runs on one of them at a time, but for batch normalisation.
        """

    @abstractmethod
    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of all gathered rows, and numbers for the history."""

    def chance(self, rows: int) -> float | None:
        """The loss of an encoder that tells nothing apart, on a batch of `rows` images; None: undefined.

        Plots divide by it, so that methods can share an axis.
        """
        return None

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        """Effects that follow the optimiser: momentum, enqueue, bank, prototypes."""

    def before_epoch(self, epoch: int, extract: Extract) -> None:
        """Effects that precede an epoch; `extract(module)` embeds the clean training images, (N, d)."""

    def resets(self, epoch: int) -> list[nn.Module]:
        """Modules that `before_epoch` has made anew for this epoch: the trainer drops their optimiser state."""
        return []

    def order(self, epoch: int) -> Tensor | None:
        """(m,) rows to show in this epoch, or None for the addressed permutation."""
        return None

    def parameter_groups(self) -> list[ParameterGroup]:
        """What the optimiser moves: by default every parameter that wants a gradient."""
        return [ParameterGroup([n for n, p in self.named_parameters() if p.requires_grad])]
