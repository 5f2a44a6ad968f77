"""Somebody else's weights: read without running anything the file holds, and given to an encoder key by key.

A file is a mapping of tensors, perhaps nested: names are joined by "/" ("state_dict/module.encoder_q.conv1.weight").
A layout says, as data, which of them are the encoder's and which other ones such a file may hold. All else is an error:
a key that nothing asks for, or one that is not there, means that the file is not what its user takes it for.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.registry import nearest_hint

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 5  # keys of each kind that an error lists
GUIDE = "docs/checkpoints.md"
WRAPPER = "module."  # of nn.DataParallel and DistributedDataParallel, round a whole model
OPTIONAL = ".num_batches_tracked"  # no feature depends on it

# what training code keeps beside its model, whatever the layout
TRAINING = (
    "*optim*/*",
    "*scheduler*/*",
    "*scaler*/*",
    "amp*/*",
    "callbacks/*",
    "loops/*",
    "epoch",
    "step",
    "iteration",
    "best_*",
)

# children of a ResNet in an nn.Sequential: torchvision's, and those of lightly's own, which has no max pooling
TORCHVISION_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
LIGHTLY_CHILDREN = {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"}

# beginnings of torchvision's names, and of ours; "" is every name that no other beginning fits
TORCHVISION_NAMES: Mapping[str, Mapping[str, str]] = {
    "resnet18": {"": "trunk."},
    "resnet50": {"": "trunk."},
    "vgg16_bn": {
        "features.": "features.",
        "classifier.0.": "fully_connected.1.",
        "classifier.3.": "fully_connected.4.",
    },
}


class WeightsError(BenchError, ValueError):
    """Weights that cannot be read or are not the encoder's; says which keys, and what is allowed."""


@dataclass(frozen=True)
class Layout:
    """Where a code base's checkpoints keep the encoder, under torchvision's names unless `ours`.

    `module.`, where it begins a key within the file's model, is taken off before anything is compared. Patterns are
    those of shells.

    Args:
        whose: the code that writes such files.
        within: where the model is: the first of these beginnings that a key has.
        prefixes: of the encoder's keys within the model: the first that a key has.
        heads: patterns of keys, behind the prefix, that are dropped.
        rest: patterns of keys of the model, beside the prefix, that are dropped.
        beside: patterns of keys outside the model that are dropped; `TRAINING` always is.
        children: readings of the numbers that stand for modules' names; the first that knows all of a file's numbers.
        unlike: stems of the ResNets here that have that code's keys and compute something else.
        ours: names are those of our encoders.
    """

    whose: str
    within: tuple[str, ...] = ("state_dict/", "")
    prefixes: tuple[str, ...] = ("",)
    heads: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    children: tuple[Mapping[str, str], ...] = ()
    unlike: tuple[str, ...] = ()
    ours: bool = False

    def dropped(self) -> list[str]:
        """All patterns of keys that are dropped by rule, as an error lists them."""
        return [*(f"<encoder>.{head}" for head in self.heads), *self.rest, *self.beside, *TRAINING]


LAYOUTS: Mapping[str, Layout] = {
    "torchvision": Layout(
        "torchvision's models; DataParallel and the reference training scripts too",
        within=("state_dict/", "model/", ""),
        heads=("fc.*", "classifier.6.*"),
        beside=("model_ema/*",),
    ),
    "moco": Layout(
        "facebookresearch/moco and moco-v3 (ResNet)",
        prefixes=("encoder_q.", "base_encoder."),
        heads=("fc.*",),
        rest=("encoder_k.*", "queue", "queue_ptr", "momentum_encoder.*", "predictor.*"),
    ),
    "simclr": Layout(
        "sthalles/SimCLR (backbone.) and Spijkervet/SimCLR (encoder.)",
        prefixes=("backbone.", "encoder."),
        heads=("fc.*",),
        rest=("projector.*", "projection_head.*"),
    ),
    "byol": Layout(
        "lucidrains/byol-pytorch (the learner) and sthalles/PyTorch-BYOL",
        within=("online_network_state_dict/", "state_dict/", ""),
        prefixes=("online_encoder.net.", "encoder."),
        heads=("fc.*",),
        rest=(
            "net.*",  # the very tensors of online_encoder.net
            "online_encoder.projector.*",
            "online_predictor.*",
            "target_encoder.*",
            "projetion.*",  # as it is spelt there
            "projection.*",
        ),
        beside=("encoder_state_dict/*", "target_network_state_dict/*", "predictor_state_dict/*"),
        children=(TORCHVISION_CHILDREN,),
    ),
    "swav": Layout("facebookresearch/swav", heads=("projection_head.*", "prototypes.*")),
    "barlow": Layout(
        "facebookresearch/barlowtwins: resnet50.pth, or checkpoint.pth",
        within=("model/", ""),
        prefixes=("backbone.", ""),
        rest=("projector.*", "bn.*"),
    ),
    "simsiam": Layout("facebookresearch/simsiam", prefixes=("encoder.",), heads=("fc.*",), rest=("predictor.*",)),
    "dino": Layout(
        "facebookresearch/dino (ResNet): the backbone alone, or the teacher of a full checkpoint",
        within=("teacher/", ""),
        prefixes=("backbone.", ""),
        rest=("head.*",),
        beside=("student/*", "dino_loss/*"),
    ),
    "lightly": Layout(
        "lightly-ai/lightly: torchvision's ResNets, whole or in an nn.Sequential, and lightly's own",
        prefixes=("backbone.", ""),
        heads=("fc.*",),
        rest=(
            "projection_head.*",
            "prediction_head.*",
            "prototypes.*",
            "*_momentum.*",
            "online_classifier.*",
            "criterion.*",
        ),
        children=(TORCHVISION_CHILDREN, LIGHTLY_CHILDREN),
    ),
    "solo": Layout(
        "vturrisi/solo-learn; before 1.0.3 `encoder.` for `backbone.`",
        prefixes=("backbone.", "encoder."),
        heads=("fc.*",),
        rest=("projector.*", "predictor.*", "prototypes.*", "classifier.*", "head.*", "momentum_*", "queue*"),
        unlike=("small",),  # for CIFAR its 3x3 convolution pads by 2, ours by 1: equal keys, another function
    ),
    "vissl": Layout(
        "facebookresearch/vissl",
        within=("classy_state_dict/base_model/model/trunk/", "model_state_dict/", ""),
        prefixes=("_feature_blocks.", ""),
        beside=("classy_state_dict/*",),
    ),
    "bench": Layout(
        "this project: method.safetensors of a pretraining cell, or an encoder's own state",
        within=("",),
        prefixes=("encoder.", ""),
        rest=("*",),  # a method's own state
        ours=True,
    ),
}


def read_weights(path: Path) -> dict[str, "Tensor"]:
    """Every tensor of a file by its joined name; what is not a tensor is left out.

    `.safetensors` and `.npz` hold no code. Anything else is read as torch.save's format by its safe unpickler, which
    builds tensors and plain containers and refuses all else.

    Raises:
        WeightsError: there is no such file, it cannot be read, or it holds objects that would have to be run.
    """
    if not path.is_file():
        raise WeightsError(f"no checkpoint {path}")
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    found: dict[str, Tensor] = {}
    for name, tensor in flatten(readers.get(path.suffix, _read_torch)(path)):
        if name in found:
            raise WeightsError(f"{path}: two tensors are called '{name}'")
        found[name] = tensor
    if not found:
        raise WeightsError(f"{path} holds no tensor that has a name")
    return found


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error})") from None


def _read_npz(path: Path) -> Any:
    import numpy as np
    import torch

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # damaged files raise anything
        raise WeightsError(f"{path} cannot be read as NumPy arrays ({error})") from None


def _read_torch(path: Path) -> Any:
    import pickle

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, _unsafe(path, str(error)))) from None
    except Exception as error:  # a damaged or foreign file raises anything
        raise WeightsError(f"{path} cannot be read as torch.save's format ({type(error).__name__}: {error})") from None


def _unsafe(path: Path, message: str) -> list[str]:
    """What the safe unpickler refuses to build: all of it, or the first where the format tells no more."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        named = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # only of the format's newer half
        named = []
    return sorted(named) or re.findall(r"GLOBAL (\S+)", message)[:1]


def _refusal(path: Path, names: Sequence[str]) -> str:
    what = _some(names) if names else "what is no tensor, number, text or container"
    return (
        f"{path} was refused: besides tensors it holds {what}, and to build those is to run code of the file's "
        f"choosing. If you trust where it comes from, convert it once: {GUIDE} has the lines, which keep only tensors"
    )


def flatten(value: Any, name: str = "") -> "Iterator[tuple[str, Tensor]]":
    """Every tensor of nested mappings and lists, under their keys and numbers joined by "/"."""
    from torch import Tensor

    if isinstance(value, Tensor):
        if name:
            yield name, value.detach()
        return
    if isinstance(value, Mapping):
        children: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        return
    for key, child in children:
        yield from flatten(child, f"{name}/{key}" if name else str(key))


def encoder_state(
    weights: "Mapping[str, Tensor]", layout: str, encoder: str, expected: "Mapping[str, Tensor]"
) -> "dict[str, Tensor]":
    """The state of one of our encoders from a file's tensors: every key exactly once, in shape and finite.

    Tensors of another floating type become the encoder's own.

    Args:
        weights: as `read_weights` gives them.
        layout: a key of `LAYOUTS`.
        encoder: the encoder's id.
        expected: its state before loading; only shapes and types matter.

    Raises:
        WeightsError: names missing, left-over and mis-shaped keys, and what the layout drops.
    """
    if problem := check_layout(layout, {"name": encoder, "options": {}}):
        raise WeightsError(problem)
    given, extra = _given(weights, LAYOUTS[layout], encoder)
    problems = []
    if missing := [key for key in expected if key not in given and not key.endswith(OPTIONAL)]:
        problems.append(f"{len(missing)} of the encoder's {len(expected)} keys are not given: {_some(missing)}")
    extra += [theirs for key, (theirs, _) in given.items() if key not in expected]
    if extra:
        problems.append(f"{len(extra)} keys of the file have no place in the encoder: {_some(extra)}")
    if shaped := list(_misfits(given, expected)):
        problems.append(f"{len(shaped)} keys do not fit: {_some(shaped)}")
    if problems:
        drops = f"Beside the encoder, layout {layout} may hold: {', '.join(LAYOUTS[layout].dropped())}"
        raise WeightsError("\n  ".join([f"not a {encoder} in layout {layout}:", *problems, drops]))
    return {
        key: (given[key][1].to(own.dtype) if key in given else own.new_zeros(own.shape)).contiguous()
        for key, own in expected.items()
    }


Given = dict[str, "tuple[str, Tensor]"]  # by our name: the file's name, and the tensor


def _given(weights: "Mapping[str, Tensor]", layout: Layout, encoder: str) -> tuple[Given, list[str]]:
    """What a file gives under our names, and the keys of which nothing is known."""
    within = _first(layout.within, weights)
    model = {key.removeprefix(within).removeprefix(WRAPPER): key for key in weights if key.startswith(within)}
    outside = [key for key in weights if not key.startswith(within)]
    if len(model) + len(outside) < len(weights):
        raise WeightsError(f"the file has keys twice, with and without '{WRAPPER}'")
    prefix = _first(layout.prefixes, model)
    extra = [key for key in outside if not _matches(key, (*layout.beside, *TRAINING))]
    theirs: dict[str, str] = {}
    for key, full in model.items():
        if not key.startswith(prefix):
            extra += [] if _matches(key, (*layout.rest, *layout.beside, *TRAINING)) else [full]
        elif not _matches(key.removeprefix(prefix), layout.heads):
            # with no prefix to tell it by, a training state stands among the encoder's keys
            beside = not prefix and not layout.ours and _matches(key, (*layout.rest, *layout.beside, *TRAINING))
            theirs |= {} if beside else {key.removeprefix(prefix): full}
    given: Given = {}
    reading = _reading(theirs, layout)
    for key, full in theirs.items():
        ours = _our_name(key, reading, encoder) if not layout.ours else key
        if ours is None or ours in given:
            extra.append(full)
        else:
            given[ours] = full, weights[full]
    return given, extra


def _first(beginnings: Sequence[str], keys: Iterable[str]) -> str:
    """The first beginning that some key has; the last where none has any."""
    known = list(keys)
    found = (beginning for beginning in beginnings if any(key.startswith(beginning) for key in known))
    return next(found, beginnings[-1])


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _reading(keys: Iterable[str], layout: Layout) -> Mapping[str, str]:
    """What numbers in place of modules' names stand for in this file."""
    numbers = {number for key in keys if (number := key.partition(".")[0]).isdigit()}
    return next((children for children in layout.children if numbers <= children.keys()), {})


def _our_name(key: str, children: Mapping[str, str], encoder: str) -> str | None:
    first, dot, others = key.partition(".")
    if children:
        key = children.get(first, first) + dot + others.replace("shortcut.", "downsample.")
    for theirs, ours in TORCHVISION_NAMES[encoder].items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None


def _misfits(given: Given, expected: "Mapping[str, Tensor]") -> Iterator[str]:
    first = next((key for key, own in expected.items() if own.ndim == 4), None)
    for key, own in expected.items():
        if key not in given:
            continue
        theirs, tensor = given[key]
        if tensor.shape != own.shape:
            channels = ""
            if key == first and tensor.ndim == 4 and tensor.shape[1] != own.shape[1]:
                channels = f" (it sees {tensor.shape[1]} channels, the images have {own.shape[1]})"
            yield f"{theirs} has shape {tuple(tensor.shape)}, the encoder's {tuple(own.shape)}{channels}"
        elif tensor.is_floating_point() != own.is_floating_point():
            yield f"{theirs} is of {tensor.dtype}, the encoder's of {own.dtype}"
        elif not tensor.isfinite().all():
            yield f"{theirs} holds values that are not finite"


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def digest(state: "Mapping[str, Tensor]") -> str:
    """The checksum of named tensors: names, types, shapes and bytes, in the names' order."""
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()


def check_layout(name: str, encoder: Mapping[str, Any]) -> str | None:
    """What is wrong with a layout for an encoder, told from names alone; None where nothing is.

    Args:
        name: the layout.
        encoder: `name` and `options`.
    """
    if name not in LAYOUTS:
        return f"unknown layout '{name}'; {nearest_hint(name, LAYOUTS)}"
    if not LAYOUTS[name].ours and encoder["name"] not in TORCHVISION_NAMES:
        known = ", ".join(TORCHVISION_NAMES)
        return f"layout {name} has torchvision's names, which lead to {known}; for {encoder['name']} there is bench"
    if (stem := encoder["options"].get("stem")) in LAYOUTS[name].unlike:
        return (
            f"layout {name}: with stem: {stem} that code's encoder has equal keys but is another function (see {GUIDE})"
        )
    return None
