"""`embed` on the shards that a process holds: each operation runs shard by shard.

In `embed` a tensor with a row per image is a `Sharded`. Every operation on it runs once for each shard, so that kernels
see the same shapes whatever the number of processes. A parameter enters each shard as an alias of its own, whose
gradients are added up over all shards in their order; batch normalisation takes its statistics over all of them; each
shard draws dropout from an address of its own. `loss` sees the rows of all shards, on every process: the gradients of
what it uses itself are whole as they are.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.distributed.batch_norm import batch_norm
from bench.distributed.shards import Shards
from bench.distributed.world import World
from bench.draws import seed_torch
from bench.errors import BenchError
from bench.methods.base import Batch, Method

Seed = Callable[[int, int], int]  # of (shard, draw)
# What may be asked of a sharded tensor that is not a tensor: every shard gives the same answer.
_SHAPES = {"__get__", "__len__", "dim", "size", "stride", "numel", "is_floating_point", "is_complex", "is_contiguous"}
_DRAWING = {F.dropout, F.alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout}


class ShardsError(BenchError, RuntimeError):
    """A method that does what has no meaning for some of a batch's rows."""


class Sharded(Tensor):
    """A tensor with a row per image, as one tensor for each shard that this process holds.

    Only `embed` computes with it: `loss` has no use for some of the rows.

    Args:
        parts: of equal shapes.
    """

    parts: list[Tensor]

    @staticmethod
    def __new__(cls, parts: list[Tensor]) -> "Sharded":
        first = parts[0]
        return Tensor._make_wrapper_subclass(cls, first.shape, dtype=first.dtype, device=first.device)

    def __init__(self, parts: list[Tensor]):
        self.parts = parts

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ShardsError(
            f"{func.__name__} of rows that are cut into shards: outside of embed they are not to be had; "
            "let embed return what is needed of them"
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise ShardsError(f"{func} cannot run shard by shard; set shards: 1")


def embed(shards: Shards, method: Method, batch: Batch, seed: Seed) -> dict[str, Tensor]:
    """What `method.embed` makes of the shards that this process holds, among what it makes of the others.

    Args:
        shards: how the batch is cut.
        method: whose `embed` it is.
        batch: the whole batch, but its views as `Sharded`s.
        seed: of what dropout draws, for each shard and each draw of a step.

    Returns:
        Tensors of all rows, in order; gradients flow back to this process's.

    Raises:
        ShardsError: `embed` does what has no meaning for some of the rows.
    """
    cuts = shards.cuts(len(batch.index))
    index, labels, shown = (Sharded([x[c] for c in cuts]) for x in (batch.index, batch.labels, batch.occurrence))
    where = f"{type(method).__name__}.embed"
    before = _generator_states(batch.index.device)
    with _ShardByShard(shards, seed):
        e = method.embed(replace(batch, index=index, labels=labels, occurrence=shown))
    if not all(map(torch.equal, before, _generator_states(batch.index.device))):
        raise ShardsError(f"{where} draws random numbers other than dropout's; set shards: 1")
    return {name: _all_rows(f"{where}: {name}", shards.world, x, cuts) for name, x in e.items()}


def _all_rows(what: str, world: World, x: Tensor, cuts: list[slice]) -> Tensor:
    if not isinstance(x, Sharded):
        raise ShardsError(f"{what} does not depend on the batch; it wants a row per image")
    shape, wanted = x.parts[0].shape, cuts[0].stop - cuts[0].start
    if not shape or shape[0] != wanted:
        raise ShardsError(f"{what} is {tuple(shape)} for {wanted} images; it wants a row for each")
    return _Gather.apply(world, cuts, *x.parts)


class _ShardByShard(TorchFunctionMode):
    """Runs each operation on `Sharded`s once for every shard, and batch normalisation for all of them together."""

    def __init__(self, shards: Shards, seed: Seed):
        super().__init__()
        self.shards, self.seed = shards, seed
        self.draws = 0
        self.fanned: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        if not any(isinstance(t, Sharded) for t in tensors):
            return func(*args, **kwargs)
        if func is F.batch_norm and kwargs["training"] and isinstance(args[0], Sharded):
            options = {name: kwargs[name] for name in ("weight", "bias", "momentum", "eps")}
            return Sharded(batch_norm(self.shards, args[0].parts, *args[1:], **options))
        shared = {id(t): t for t in tensors if not isinstance(t, Sharded)}
        aliases = {key: self._fan_out(t) for key, t in shared.items() if t.requires_grad and torch.is_grad_enabled()}
        versions = [t._version for t in shared.values()]
        calls = [(_part(args, i, aliases), _part(kwargs, i, aliases)) for i in range(len(self.shards.local))]
        results = self._draw(func, calls) if func in _DRAWING else [func(*a, **k) for a, k in calls]
        if versions != [t._version for t in shared.values()]:
            raise ShardsError(f"{func.__name__} in embed changes a tensor that all shards share; set shards: 1")
        return _joined(func, results)

    def _fan_out(self, shared: Tensor) -> tuple[Tensor, ...]:
        """One alias of a tensor for each shard: their gradients are added up in the order of the shards."""
        if id(shared) not in self.fanned:
            self.fanned[id(shared)] = shared, _FanOut.apply(self.shards, shared)
        return self.fanned[id(shared)][1]

    def _draw(self, func: Any, calls: list[tuple[Any, Any]]) -> list[Any]:
        """Each shard draws from an address of its own; torch's generator is left as it was, here as elsewhere."""
        on_gpu = [t.device for t in _tensors(calls[0]) if t.is_cuda][:1]
        results = []
        with torch.random.fork_rng(devices=on_gpu):
            for shard, (args, kwargs) in zip(self.shards.local, calls, strict=True):
                seed_torch(self.seed(shard, self.draws))
                results.append(func(*args, **kwargs))
        self.draws += 1
        return results


class _FanOut(torch.autograd.Function):
    """A tensor that all shards share -> an alias for each shard of this process; gradients add up over all."""

    @staticmethod
    def forward(ctx: Any, shards: Shards, shared: Tensor) -> tuple[Tensor, ...]:
        ctx.shards = shards
        return tuple(shared.view_as(shared) for _ in shards.local)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.shards.total(gradients)


class _Gather(torch.autograd.Function):
    """The rows of this process's shards -> those of all; the loss is everyone's, so each takes its rows' gradient."""

    @staticmethod
    def forward(ctx: Any, world: World, cuts: list[slice], *parts: Tensor) -> Tensor:
        ctx.cuts = cuts
        return world.gather(torch.cat(parts))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient[cut] for cut in ctx.cuts)


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments, also inside lists, tuples and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))


def _part(values: Any, i: int, aliases: Mapping[int, tuple[Tensor, ...]]) -> Any:
    """Arguments as the i-th of this process's shards sees them."""
    if isinstance(values, Sharded):
        return values.parts[i]
    if isinstance(values, Tensor):
        return aliases[id(values)][i] if id(values) in aliases else values
    if isinstance(values, list | tuple) and type(values) in (list, tuple):
        return type(values)(_part(value, i, aliases) for value in values)
    if isinstance(values, dict):
        return {name: _part(value, i, aliases) for name, value in values.items()}
    return values


def _joined(func: Any, results: list[Any]) -> Any:
    """What an operation gave for each shard, as one answer."""
    first = results[0]
    if isinstance(first, Tensor):
        return Sharded(results)
    if first is None or func.__name__ in _SHAPES:
        return first
    if isinstance(first, list | tuple):
        return type(first)(_joined(func, list(each)) for each in zip(*results, strict=True))
    raise ShardsError(f"{func.__name__} in embed asks for numbers of all rows, of which each process holds some only")


def _generator_states(device: torch.device) -> list[Tensor]:
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]
