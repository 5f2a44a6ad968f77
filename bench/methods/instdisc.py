"""InstDisc: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination".

arXiv 1805.01978, section 3. One view x of image i; v = f(x), projected; every image is a class of its own. The
memory bank holds one unit v_i for each of the N images, from its last visit. tau: temperature.

`softmax` chooses the classifier: `parametric`, w_i . v with a weight per image (eq. 1); `full`, v_i . v / tau over the
whole bank, v of unit length (eq. 2); `nce`, noise-contrastive estimation of that with m drawn negatives (eq. 4 to
7), whose constant Z is estimated in the first `z_batches` batches (eq. 8) and then frozen, as state; or, as
ablations, estimated anew in each batch, or each row's own sum over the bank. lambda: `proximal`, the pull of v towards
its row of the bank (section 3.3). The bank is updated after the step: row =
momentum * row + (1 - momentum) * v, made unit.

Deviations: the bank begins as unit rows (the released code's have that length in expectation); Z is estimated from
the drawn negatives alone (the released code counts the positive among them); negatives are drawn with replacement from
all N images, as in the released code, so a draw may be the positive.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.encoders.base import Encoder
from bench.heads import Projector
from bench.losses import scaled, unit
from bench.methods.base import Batch, DataInfo, Method, Progress
from bench.options import Fraction, Head, NonNegative, Positive, PositiveInt, TrainingRowCount
from bench.random import Address
from bench.support import MemoryBank

ENTRIES = 2**19  # of the negatives' rows that are gathered at a time on a CPU, so that they stay in the cache


class InstDisc(Method):
    """InstDisc.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        softmax: parametric, full or nce.
        negatives: m, of nce.
        z: of nce: frozen, reestimated or exact.
        z_batches: batches from which the frozen Z is estimated.
        temperature: tau, of full and nce.
        normalize: of full and nce: v is of unit length, as the bank's rows are.
        proximal: lambda; 0 for none.
        bank_momentum: share of the old row in the bank's new one; the paper replaces rows (0), its code mixes (0.5).
        head: of the projection: none, linear (the paper's) or mlp.
        hidden: width of the mlp's hidden layer.
        dim: of v.
    """

    title: ClassVar[str] = "InstDisc"
    views: ClassVar[int] = 1
    z_sum: Tensor
    z_count: Tensor

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        softmax: Literal["parametric", "full", "nce"],
        negatives: TrainingRowCount,
        z: Literal["frozen", "reestimated", "exact"],
        z_batches: PositiveInt,
        temperature: Positive,
        normalize: bool,
        proximal: NonNegative,
        bank_momentum: Fraction,
        head: Head,
        hidden: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [hidden], dim, last="linear")
        dim = self.projector.dim
        self.classifier = nn.Linear(dim, data.rows, bias=False) if softmax == "parametric" else None
        self.bank = MemoryBank(data.rows, dim, bank_momentum, seed)
        self.register_buffer("z_sum", torch.zeros((), dtype=torch.float64))  # of the estimates so far
        self.register_buffer("z_count", torch.zeros((), dtype=torch.int64))
        self.seed, self.softmax, self.negatives, self.z_batches = seed, softmax, negatives, z_batches
        self.z, self.temperature, self.normalize, self.proximal = z, temperature, normalize, proximal

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        v = self.projector(self.encoder(batch.views[0]))  # (n, d)
        return {"v": v} if self.classifier is None else {"v": v, "logits": self.classifier(v)}

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        rows, logs = self.bank.rows, {}
        if self.softmax == "parametric":
            loss = F.cross_entropy(e["logits"].float(), batch.index)
        elif self.softmax == "full":
            loss = softmax_loss(e["v"], rows, batch.index, self.temperature, normalize=self.normalize)
        else:
            drawn = self._draw(batch)
            z = self._z(e["v"].detach(), drawn)
            loss = nce_loss(e["v"], rows, batch.index, drawn, self.temperature, z, normalize=self.normalize)
            logs["z"] = float(z.mean())
        return loss + self.proximal * proximal_term(e["v"], rows[batch.index]), logs

    def _z(self, v: Tensor, drawn: Tensor) -> Tensor:
        """Z, in double precision: one for all rows, or (n,)."""
        if self.z == "exact":
            return exact_z(v, self.bank.rows, self.temperature, normalize=self.normalize)
        if self.z == "reestimated":
            return self._estimate_z(v, drawn)
        z_sum, z_count = self._estimate(v, drawn)
        return z_sum / z_count

    def _estimate_z(self, v: Tensor, drawn: Tensor) -> Tensor:
        return estimate_z(v, self.bank.rows, drawn, self.temperature, normalize=self.normalize)

    def chance(self, rows: int) -> float:
        m = self.negatives
        if self.softmax == "nce":  # every P is 1 / N
            return math.log1p(m) + m * math.log1p(1 / m)
        return math.log(len(self.bank.rows))

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        if self.softmax == "nce" and self.z == "frozen" and self.z_count < self.z_batches:
            z_sum, z_count = self._estimate(e["v"].detach(), self._draw(batch))
            self.z_sum.copy_(z_sum)
            self.z_count.copy_(z_count)
        self.bank.update(batch.index, e["v"])

    def _estimate(self, v: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and number of the estimates of Z with this batch's, or without once it is frozen."""
        if self.z_count >= self.z_batches:
            return self.z_sum, self.z_count
        return self.z_sum + self._estimate_z(v, drawn), self.z_count + 1

    def _draw(self, batch: Batch) -> Int[Tensor, "n m"]:
        """Addressed negatives, uniform over all images; more of them begin with fewer."""
        ids, shown = batch.index.cpu().numpy(), batch.occurrence.cpu().numpy()
        words = Address(self.seed, "negatives", ids, batch.epoch, shown).words("row", self.negatives)
        rows = torch.from_numpy(words.astype("int64") * len(self.bank.rows) >> 32)  # (n, m)
        return rows.to(batch.index.device)


def softmax_loss(
    v: Float[Tensor, "n d"],
    bank: Float[Tensor, "N d"],
    index: Int[Tensor, " n"],
    temperature: float,
    *,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Eq. 2: -log P(i | v) with P the softmax of v_j . v / tau over the bank; mean. At chance it is ln N."""
    with torch.autocast(v.device.type, enabled=False):
        v = scaled(v, normalize=normalize)
        logits = v @ bank.to(v.dtype).mT / temperature  # (n, N)
    return F.cross_entropy(logits, index)


def nce_loss(
    v: Float[Tensor, "n d"],
    bank: Float[Tensor, "N d"],
    index: Int[Tensor, " n"],
    negatives: Int[Tensor, "n m"],
    temperature: float,
    z: float | Tensor,
    *,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Eq. 7: -log h(i, v) - sum over the m negatives j of log(1 - h(j, v)); mean over rows.

    h = P / (P + m / N) (eq. 6) with P(j | v) = exp(v_j . v / tau) / Z (eq. 4). v is normalised here, unless `normalize`
    is false. Z is one number, or one for each row (n,); no gradient flows into it.
    """
    v = scaled(v, normalize=normalize)
    z = torch.as_tensor(z, dtype=torch.float64, device=v.device).detach()
    ratio = z * (negatives.shape[1] / len(bank))  # Z m / N
    log_ratio = ratio.log().to(v.dtype).expand(len(v))  # h = sigmoid(v_j . v / tau - this)
    positive = (v * bank[index].to(v.dtype)).sum(1) / temperature - log_ratio  # (n,)
    negative: Tensor = _Rejections.apply(v, bank.to(v.dtype), negatives, temperature, log_ratio)  # (n,)
    return -(F.logsigmoid(positive) + negative).mean()


def estimate_z(
    v: Float[Tensor, "n d"],
    bank: Float[Tensor, "N d"],
    negatives: Int[Tensor, "n m"],
    temperature: float,
    *,
    normalize: bool = True,
) -> Tensor:
    """Eq. 8: Z is about N times the mean of exp(v_j . v / tau) over the rows' negatives j; in double precision.

    It carries no gradient.
    """
    v = scaled(v.detach(), normalize=normalize)
    blocks = _gathered(bank.to(v.dtype), negatives)
    products = torch.cat([_products(rows, v[block]) for block, rows in blocks])  # (n, m)
    return len(bank) * (products.double() / temperature).exp().mean()


def exact_z(
    v: Float[Tensor, "n d"], bank: Float[Tensor, "N d"], temperature: float, *, normalize: bool = True
) -> Float[Tensor, " n"]:
    """Eq. 4: each row's Z, the sum of exp(v_j . v / tau) over the whole bank; in double precision."""
    v = scaled(v, normalize=normalize)
    with torch.autocast(v.device.type, enabled=False):
        return ((v @ bank.to(v.dtype).mT).double() / temperature).exp().sum(1)


def proximal_term(v: Float[Tensor, "n d"], old: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Section 3.3, eq. 9: |v - v'|^2 with v' the row of the last visit; mean over rows. v is normalised here."""
    v = unit(v)
    return (v - old.to(v.dtype)).square().sum(1).mean()


class _Rejections(torch.autograd.Function):
    """(n,) sums over each row's negatives j of log(1 - h(j, v)), the second term of eq. 7.

    Value and gradient are worked out together, block by block: the bank's rows are gathered once, and all of them are
    never in memory.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, bank: Tensor, negatives: Tensor, temperature: float, log_ratio: Tensor) -> Tensor:
        sums, gradients = list[Tensor](), list[Tensor]()
        for block, rows in _gathered(bank, negatives):
            part = v[block].detach().requires_grad_(ctx.needs_input_grad[0])
            with torch.enable_grad(), torch.autocast(v.device.type, enabled=False):
                logits = _products(rows, part) / temperature - log_ratio[block, None]
                rejected = F.logsigmoid(-logits).sum(1)
                sums.append(rejected.detach())
                if part.requires_grad:
                    gradients += torch.autograd.grad(rejected, part, torch.ones_like(rejected))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(sums)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors  # (n, d)
        return outer[0][:, None] * gradient, None, None, None, None


def _gathered(bank: Tensor, rows: Int[Tensor, "n m"]) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the batch and the bank's rows (b, m, d) that are wanted for them; the next block's take their place."""
    n, m = rows.shape
    size = max(1, ENTRIES // max(1, m * bank.shape[1])) if bank.device.type == "cpu" else n
    room = bank.new_empty(min(size, n) * m, bank.shape[1])
    for start in range(0, n, size):
        chosen = rows[start : start + size]
        # index_select is twice as fast as indexing on a CPU; the rows are most of a step's cost beside the encoder
        found = torch.index_select(bank, 0, chosen.flatten(), out=room[: chosen.numel()])
        yield slice(start, start + size), found.view(*chosen.shape, -1)


def _products(rows: Float[Tensor, "n m d"], v: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """The products of each v with its own rows."""
    with torch.autocast(v.device.type, enabled=False):
        return torch.bmm(rows, v[:, :, None])[:, :, 0]
