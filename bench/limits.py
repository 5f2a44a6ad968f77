"""What the data, the recipe and the encoder allow: refused on the plan, before any work starts."""

from collections.abc import Mapping
from typing import Any

from bench.encoders import ENCODERS
from bench.errors import BenchError
from bench.evaluators import EVALUATORS
from bench.methods import METHODS
from bench.options import AtMostRows, AtMostTrainingRows
from bench.params import marked
from bench.settings import Params, Training


class LimitError(BenchError, ValueError):
    """Params that are sound in themselves but ask for more than there is; says what to change."""


def check_pretraining(params: Params, manifest: Mapping[str, Any], method: str) -> None:
    """Check the pretraining of a method against the data it would see.

    Args:
        params: the whole file.
        manifest: of the image set.
        method: its id.

    Raises:
        LimitError: the batch or a count above the training images, another number of views than the method
            works on, or images too small for the encoder.
    """
    training = params.training_of(method)
    _check_labels(params, manifest)
    _check_rows(params, manifest, method, training)
    _check_views(params, method, training)
    _check_sides(params, manifest, training)


def left_out(params: Params, manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each method of whose epochs rows are left out though short last batches are kept.

    A last batch of one has no batch statistics; of another, its shards share as many rows as they can evenly.
    """
    rows = _training_rows(params, manifests[params.data.name])
    lines = []
    for method in params.methods:
        training = params.training_of(method)
        trains = METHODS.component(method).constant("trains", True)
        if not trains or training.last_batch != "keep":
            continue
        short = rows % training.batch
        lost = short % training.shards
        what = f"{method}: {rows} training images in batches of {training.batch} leave"
        if training.shards == 1 and short == 1:
            lines.append(
                f"{what} one; the last image of each epoch's order is left out, since a batch of one has no statistics"
            )
        elif lost:
            lines.append(
                f"{what} {short}, which {training.shards} shards cannot share evenly; the last {lost} of each epoch's "
                "order are left out"
            )
    return lines


def check_protocol(params: Params, manifest: Mapping[str, Any], protocol: str) -> None:
    """Check an evaluation's options against the rows it can choose from.

    Raises:
        LimitError: a count above the rows that are not test rows.
    """
    _check_labels(params, manifest)
    rows = manifest["rows"] - manifest["test_rows"]
    for name in marked(EVALUATORS.component(protocol), AtMostRows):
        given = params.evaluations[protocol][name]
        if max(given) > rows:
            raise LimitError(
                f"evaluations.{protocol}.{name}: {given} asks for more than the {rows} rows of "
                f"{params.data.name} that are not test rows"
            )


def _check_labels(params: Params, manifest: Mapping[str, Any]) -> None:
    if manifest.get("metric") == "map11":
        raise LimitError(
            f"data.name: the images of {params.data.name} carry several labels each; it is for transfer alone"
        )


def _training_rows(params: Params, manifest: Mapping[str, Any]) -> int:
    rows = manifest["rows"] - manifest["test_rows"]
    return round(params.data.fraction * (rows - round(params.data.validation * rows)))


def _check_rows(params: Params, manifest: Mapping[str, Any], method: str, training: Training) -> None:
    rows = _training_rows(params, manifest)
    if rows < (max(2, training.shards) if training.last_batch == "keep" else training.batch):
        raise LimitError(
            f"{method}: batch {training.batch} is more than the {rows} training images of "
            f"{params.data.name}; lower training.{method}.batch or raise data.fraction"
        )
    for name in marked(METHODS.component(method), AtMostTrainingRows):
        given = params.methods[method][name]
        if given > rows:
            raise LimitError(
                f"methods.{method}.{name}: {given} is more than the {rows} training images of "
                f"{params.data.name}; lower it or raise data.fraction"
            )


def _check_views(params: Params, method: str, training: Training) -> None:
    component, recipe = METHODS.component(method), params.recipes[training.recipe]
    wanted = component.constant("views")
    if wanted is None:
        return
    shown, local = recipe.count("global"), recipe.count("local")
    if shown != wanted:
        problem = f"{method} wants {wanted} global views, recipe '{training.recipe}' shows {shown}"
    elif local and not component.constant("local_views", False):
        problem = f"{method} has no use for local views, recipe '{training.recipe}' shows {local}"
    else:
        return
    raise LimitError(f"{problem}; name another under training.{method}.recipe")


def _check_sides(params: Params, manifest: Mapping[str, Any], training: Training) -> None:
    smallest = ENCODERS.component(params.encoder.name).constant("smallest", 1)
    sides = {f"the images of {params.data.name}": min(manifest["height"], manifest["width"])}
    for i, view in enumerate(params.recipes[training.recipe].views):
        sides[f"recipes.{training.recipe}.views.{i}.size"] = view.size
    for where, side in sides.items():
        if side < smallest:
            raise LimitError(f"{where}: {side} pixels; the encoder {params.encoder.name} wants at least {smallest}")
