"""NNCLR: what a step looks up, stores and compares, and what each of its ablations changes."""

import pytest
import torch
import torch.nn.functional as F

from bench.losses import info_nce
from bench.methods.base import Batch, DataInfo, Progress
from bench.methods.nnclr import NNCLR, nnclr_loss, soft_neighbour


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Flat(torch.nn.Module):
    """An encoder that shows the pixels: embeddings can be followed by hand."""

    dim = 4

    def forward(self, x):
        return x.flatten(1)


OPTIONS = {"temperature": 0.1, "normalize": True, "positive": "nearest", "k": 1, "support_size": 16} | {
    "warm_up": False,
    "refresh": False,
    "momentum": None,
    "head": "mlp",
    "hidden": 8,
    "dim": 4,
    "predictor": True,
    "predictor_hidden": 8,
}


def nnclr(rows: int = 64, **options) -> NNCLR:
    torch.manual_seed(0)
    return NNCLR(Flat(), DataInfo(rows, 10, 1, 2), seed=0, **OPTIONS | options)  # type: ignore[arg-type]


def batch(step: int, n: int = 8) -> Batch:
    views = [numbers(n, 1, 2, 2, seed=10 * step + v) for v in range(2)]
    index = torch.arange(n) + n * step
    return Batch(views, index, index % 10, torch.zeros(n, dtype=torch.int64), 0, step)


def test_a_step_looks_up_before_it_enqueues_and_never_finds_its_own_rows():
    method = nnclr()
    for step in range(6):
        b = batch(step)
        before = method.support.rows.clone()
        e = method.embed(b)
        loss, logs = method.loss(e, b)
        expected = [
            nnclr_loss(before[(F.normalize(e[z], dim=1) @ before.mT).argmax(1)], e[p], 0.1)
            for z, p in (("z1", "p2"), ("z2", "p1"))
        ]
        torch.testing.assert_close(loss, sum(expected) / 2)
        assert logs["same_image"] == 0.0  # every image comes once here, so its own row could only be its own
        assert torch.equal(method.support.rows, before)
        method.after_step({k: v.detach() for k, v in e.items()}, b, Progress(step, 6, 0))
        torch.testing.assert_close(method.support.rows[-8:], F.normalize(e["z1"], dim=1).detach())
        assert method.support.index[-8:].tolist() == b.index.tolist()


def test_purity_and_same_image_are_counted_from_the_origins():
    method = nnclr()
    first = batch(0)
    e = method.embed(first)
    assert method.loss(e, first)[1] == {"neighbour_purity": 0.0, "same_image": 0.0}  # noise counts as neither
    for _ in range(2):  # fill all 16 rows with these 8 images
        method.after_step({k: v.detach() for k, v in e.items()}, first, Progress(0, 2, 0))
    assert method.loss(e, first)[1] == {"neighbour_purity": 1.0, "same_image": 1.0}
    other = Batch(first.views, first.index + 8, (first.labels + 1) % 10, first.occurrence, 0, 1)
    assert method.loss(e, other)[1] == {"neighbour_purity": 0.0, "same_image": 0.0}


def test_the_loss_does_not_change_when_the_views_are_swapped():
    method, b = nnclr().eval(), batch(0)
    swapped = Batch(b.views[::-1], b.index, b.labels, b.occurrence, 0, 0)
    torch.testing.assert_close(method.loss(method.embed(b), b)[0], method.loss(method.embed(swapped), swapped)[0])


# ---- the ablations of NNCLR


def filled(**options) -> NNCLR:
    """After two steps, which fill the support set."""
    method = nnclr(**options)
    for step in range(2):
        b = batch(step)
        method.after_step({k: v.detach() for k, v in method.embed(b).items()}, b, Progress(step, 6, 0))
    return method


def expected_loss(method: NNCLR, e: dict, positives) -> torch.Tensor:
    """Of a naive loop over positives: (n, k, d) by view."""
    pairs = [(positives(e[z]), e[p]) for z, p in (("z1", "p2"), ("z2", "p1"))]
    return torch.stack([nnclr_loss(one, p, 0.1) for many, p in pairs for one in many.unbind(1)]).mean()


def nearest_of(rows: torch.Tensor, k: int):
    return lambda z: rows[(F.normalize(z, dim=1) @ rows.mT).argsort(1, descending=True)[:, :k]]


def test_the_self_positive_is_one_directional_info_nce_of_the_images_own_projection():
    method, b = filled(positive="self"), batch(3)
    e = method.embed(b)
    loss, logs = method.loss(e, b)
    torch.testing.assert_close(loss, expected_loss(method, e, lambda z: z.detach()[:, None]))
    torch.testing.assert_close(
        loss, (info_nce(e["z1"].detach(), e["p2"], 0.1) + info_nce(e["z2"].detach(), e["p1"], 0.1)) / 2
    )
    assert logs == {}


def test_k_neighbours_are_k_positives_whose_losses_are_averaged():
    method, b = filled(k=3), batch(3)
    e = method.embed(b)
    torch.testing.assert_close(method.loss(e, b)[0], expected_loss(method, e, nearest_of(method.support.rows, 3)))


def test_the_oracle_finds_the_nearest_of_the_same_class_and_else_takes_the_image_itself():
    method, b = filled(positive="oracle"), batch(2)  # images 16 to 23, of classes 6 to 9 and 0 to 3
    method.labels[:8] = 6  # half of the support set is of one class, the others are of classes 8, 9 and 0 to 5
    e = method.embed(b)
    classes = method.labels[method.support.index]

    def positives(z):
        found = []
        for row, label in zip(z.detach(), b.labels, strict=True):
            same = method.support.rows[classes == label]
            found.append(same[(same @ F.normalize(row, dim=0)).argmax()] if len(same) else row)
        return torch.stack(found)[:, None]

    assert 0 < sum(int((classes == label).any()) for label in b.labels) < len(b.labels)
    loss, logs = method.loss(e, b)
    torch.testing.assert_close(loss, expected_loss(method, e, positives))
    assert 0 < logs["neighbour_purity"] < 1


def test_the_soft_neighbour_is_the_mean_of_the_support_set_by_softmax_and_hardens_as_tau_falls():
    method, b = filled(positive="soft"), batch(3)
    e, rows = method.embed(b), method.support.rows
    soft = lambda z: ((F.normalize(z, dim=1) @ rows.mT / 0.1).softmax(1) @ rows).detach()[:, None]  # noqa: E731
    torch.testing.assert_close(method.loss(e, b)[0], expected_loss(method, e, soft))
    torch.testing.assert_close(soft_neighbour(e["z1"], rows, 1e-4), nearest_of(rows, 1)(e["z1"])[:, 0])


def test_warm_up_takes_the_image_itself_until_embeddings_have_replaced_all_noise():
    ours, itself, usual = nnclr(warm_up=True), nnclr(positive="self"), nnclr()
    for step in range(4):
        b = batch(step)
        losses = [m.loss(m.embed(b), b)[0] for m in (ours, itself, usual)]
        assert ours.loss(ours.embed(b), b)[1].keys() == usual.loss(usual.embed(b), b)[1].keys()  # in every epoch
        torch.testing.assert_close(losses[0], losses[1] if step < 2 else losses[2], rtol=0, atol=0)
        for m in (ours, itself, usual):
            m.after_step({k: v.detach() for k, v in m.embed(b).items()}, b, Progress(step, 6, 0))


def test_a_refreshed_support_set_holds_what_the_present_weights_give_and_its_noise_stays():
    method = nnclr(refresh=True)
    b = batch(0)
    method.after_step({k: v.detach() for k, v in method.embed(b).items()}, b, Progress(0, 6, 0))
    before, asked = method.support.rows.clone(), []

    def extract(module):
        asked.append(module)
        return numbers(64, 4, seed=5)

    method.before_epoch(0, extract)
    assert asked == []  # nothing is stale yet
    method.before_epoch(1, extract)
    x = numbers(6, 1, 2, 2, seed=6)
    torch.testing.assert_close(asked[0].eval()(x), method.eval().projector(method.encoder(x)))
    assert torch.equal(method.support.rows[:8], before[:8])
    torch.testing.assert_close(method.support.rows[8:], F.normalize(numbers(64, 4, seed=5)[b.index], dim=1))
    nnclr().before_epoch(1, extract)
    assert len(asked) == 1


def test_a_momentum_branch_gives_what_is_looked_up_and_stored_and_follows_after_the_step():
    method, b = nnclr(momentum=0.75), batch(0)
    with torch.no_grad():
        for p in method.projector.parameters():
            p.add_(1.0)  # away from the branch
    e = method.embed(b)
    torch.testing.assert_close(e["z1"], method.branch(b.views[0]))
    torch.testing.assert_close(e["p1"], method.predictor(method.projector(method.encoder(b.views[0]))))
    online, before = ([p.clone() for p in m.parameters()] for m in (method.projector, method.branch))
    method.after_step({k: v.detach() for k, v in e.items()}, b, Progress(0, 6, 0))
    torch.testing.assert_close(method.support.rows[-8:], F.normalize(e["z1"], dim=1))
    for after, p, q in zip(method.branch.parameters(), before, online, strict=True):
        torch.testing.assert_close(after, 0.75 * p + 0.25 * q)


def test_without_a_predictor_p_is_z():
    method, b = nnclr(predictor=False), batch(0)
    e = method.embed(b)
    assert torch.equal(e["p1"], e["z1"])
    assert list(method.predictor.parameters()) == []


@pytest.mark.parametrize(("head", "layers", "dim"), [("none", 0, 4), ("linear", 1, 6), ("mlp", 3, 6)])
def test_a_projection_head_has_no_layer_one_or_several(head, layers, dim):
    method = nnclr(head=head, dim=6)
    assert sum(isinstance(m, torch.nn.Linear) for m in method.projector.modules()) == layers
    e = method.embed(batch(0))
    assert e["z1"].shape == e["p1"].shape == (8, dim)
    assert method.support.rows.shape == (16, dim)
    if head == "none":
        assert torch.equal(e["z1"], batch(0).views[0].flatten(1))
