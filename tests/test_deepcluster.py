"""DeepCluster: uniform sampling, a new classifier at each clustering, pseudo-labels from clean images, resumption."""

import copy
import math

import numpy as np
import pytest
import torch

import bench.pretrain
from bench.checkpoint import Checkpoints
from bench.clustering import nmi
from bench.errors import BenchError
from bench.features import extract
from bench.methods.base import Batch, DataInfo
from bench.methods.deepcluster import DeepCluster, uniform_order
from bench.pretrain import Trainer
from tests.test_methods import config, images

# The uniform order

LABELLINGS = {
    "even": torch.arange(60) % 6,
    "one_large": torch.cat([torch.zeros(80, dtype=torch.int64), torch.arange(1, 5).repeat(5)]),
    "names_with_gaps": torch.tensor([3, 7, 12]).repeat_interleave(torch.tensor([4, 30, 16])),
    "single_rows": torch.cat([torch.zeros(40, dtype=torch.int64), torch.arange(1, 11)]),
    "each_its_own": torch.arange(25),
    "one_cluster": torch.zeros(30, dtype=torch.int64),
    "one_cluster_of_another_name": torch.full((30,), 9),
    "one_row": torch.zeros(1, dtype=torch.int64),
    "as_large_as_the_quota": torch.tensor([0] * 6 + [1] * 4),  # int(10 / 2) + 1 = 6
    "one_below_the_quota": torch.tensor([0] * 7 + [1] * 5 + [2] * 3),  # int(15 / 3) + 1 = 6
}
labellings = pytest.mark.parametrize("labels", LABELLINGS.values(), ids=LABELLINGS)


def counts(order, labels):
    return torch.bincount(labels[order], minlength=int(labels.max()) + 1)


@labellings
def test_an_order_has_as_many_rows_as_there_are_all_of_them_valid(labels):
    for epoch in range(5):
        order = uniform_order(labels, 0, epoch)
        assert order.shape == (len(labels),)
        assert order.dtype == torch.int64
        assert order.min() >= 0
        assert order.max() < len(labels)


@labellings
def test_no_cluster_is_shown_more_often_than_the_quota_and_no_empty_one_at_all(labels):
    sizes = torch.bincount(labels)
    quota = int(len(labels) / (sizes > 0).sum()) + 1
    for epoch in range(5):
        shown = counts(uniform_order(labels, 0, epoch), labels)
        assert shown.max() <= quota
        assert (shown[sizes == 0] == 0).all()


@labellings
def test_clusters_larger_than_the_quota_show_no_row_twice(labels):
    sizes = torch.bincount(labels)
    quota = int(len(labels) / (sizes > 0).sum()) + 1
    for epoch in range(20):
        order = uniform_order(labels, 0, epoch)
        for cluster in torch.nonzero(sizes > quota)[:, 0]:
            rows = order[labels[order] == cluster]
            assert len(rows.unique()) == len(rows)


@labellings
def test_clusters_are_shown_equally_often_in_expectation(labels):
    epochs, n = 200, len(labels)
    shown = sum(counts(uniform_order(labels, 1, epoch), labels).double() for epoch in range(epochs)) / epochs
    there = torch.bincount(labels) > 0
    # N of m quotas, at most m of them left out: a cluster's count has a variance below 1; five deviations
    torch.testing.assert_close(
        shown[there], torch.full_like(shown[there], n / there.sum()), rtol=0, atol=5 / epochs**0.5
    )


@labellings
def test_rows_of_a_cluster_are_shown_equally_often_in_expectation(labels):
    epochs = 200
    shown = sum(torch.bincount(uniform_order(labels, 2, e), minlength=len(labels)).double() for e in range(epochs))
    sizes = torch.bincount(labels)
    wanted = epochs * len(labels) / (sizes > 0).sum() / sizes[labels]
    # at most binomial, of variance below its mean; five deviations, and one more for the 60 rows looked at
    assert ((shown - wanted).abs() <= 6 * wanted.sqrt()).all()


def test_a_small_cluster_is_drawn_from_with_replacement():
    labels = LABELLINGS["one_below_the_quota"]
    repeated = 0
    for epoch in range(20):
        order = uniform_order(labels, 0, epoch)
        rows = order[labels[order] == 2]
        repeated += len(rows) - len(rows.unique())
    assert repeated > 20  # 3 rows shown 5 times or so each epoch


@pytest.mark.parametrize("name", ["one_cluster", "one_cluster_of_another_name"])
def test_one_cluster_shows_rows_in_a_random_order(name):
    labels = LABELLINGS[name]
    orders = [uniform_order(labels, 0, epoch) for epoch in range(50)]
    # 31 rows drawn from 30 with replacement: 1 - (29 / 30)^30 = 0.64 of them distinct, which five deviations keep
    distinct = np.mean([len(order.unique()) / 30 for order in orders])
    assert distinct == pytest.approx(1 - (29 / 30) ** 30, abs=5 * 0.06 / 50**0.5)
    assert not any(torch.equal(order, order.sort().values) for order in orders)


@pytest.mark.parametrize("name", ["even", "one_large", "names_with_gaps"])
def test_clusters_are_mixed_along_the_order(name):
    labels, epochs = LABELLINGS[name], 200
    n = len(labels)
    places = torch.arange(n).double().add(0.5) / n
    for cluster in labels.unique():
        means = [places[labels[uniform_order(labels, 3, e)] == cluster].mean() for e in range(epochs)]
        # places have a deviation below 0.3, several to a mean; five deviations
        assert torch.stack(means).mean().item() == pytest.approx(0.5, abs=5 * 0.3 / epochs**0.5 / 2)


@labellings
def test_an_order_follows_its_address(labels):
    order = uniform_order(labels, 0, 1)
    torch.rand(3)
    assert torch.equal(order, uniform_order(labels, 0, 1))
    if len(labels) > 1:
        assert not torch.equal(order, uniform_order(labels, 0, 2))
        assert not torch.equal(order, uniform_order(labels, 1, 1))


# The method


class Tiny(torch.nn.Module):
    """Linear and batch-normalised: it has statistics, and outputs of both signs."""

    def __init__(self, dim=6):
        super().__init__()
        self.dim = dim
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, dim), torch.nn.BatchNorm1d(dim))

    def forward(self, x):
        return self.body(x)


ROWS = 64
OPTIONS = {"clusters": 5, "pca_dim": 4, "iterations": 10, "interval": 1, "uniform": True, "split_empty": True}


def deepcluster(dim=6, rows=ROWS, **changes):
    torch.manual_seed(0)
    return DeepCluster(Tiny(dim), DataInfo(rows, 10, 1, 3), seed=0, **OPTIONS | changes)


def pixels(n=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 3, 1), dtype=torch.uint8, generator=generator)


def clustered(**changes):
    method = deepcluster(**changes)
    method.before_epoch(0, lambda module: extract(module, pixels()))
    return method


def batch(n=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, ROWS, (n,), generator=generator)
    view = torch.randn(n, 1, 3, 3, dtype=torch.float64, generator=generator)
    return Batch([view], index, index % 10, torch.zeros(n, dtype=torch.int64), 0, 0)


def test_the_loss_equals_a_naive_loop():
    method, b = clustered().double().eval(), batch()
    weight, bias = method.head.weight, method.head.bias
    total = 0.0
    for h, row in zip(method.encoder(b.views[0]), b.index.tolist(), strict=True):
        # the classifier stands on the rectified representation; cross-entropy, 1807.05520, eq. 1
        logits = [sum(w * max(x, 0 * x) for w, x in zip(weight[j], h, strict=True)) + bias[j] for j in range(5)]
        label = int(method.assignments[row])
        total = total - (logits[label].exp() / sum(logit.exp() for logit in logits)).log()
    loss, _ = method.loss(method.embed(b), b)
    torch.testing.assert_close(loss.double(), total / len(b.index), rtol=0, atol=1e-6)  # logits are taken in single


def test_names_of_pseudo_labels_do_not_matter():
    method, b = clustered().double(), batch()
    names = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        method.head.weight.mul_(100)  # logits that matter
    renamed = copy.deepcopy(method)
    renamed.assignments.copy_(names[method.assignments])
    with torch.no_grad():
        renamed.head.weight[names] = method.head.weight
        renamed.head.bias[names] = method.head.bias
    results = []
    for m in (method, renamed):
        loss, _ = m.loss(m.embed(b), b)
        results.append((loss, *torch.autograd.grad(loss, [*m.encoder.parameters()])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # logits are taken in single
    assert results[0][1].abs().max() > 1e-4
    assert nmi(method.assignments, renamed.assignments) == pytest.approx(1, abs=1e-12)


def test_the_head_starts_with_deviation_a_hundredth_and_no_bias():
    method = clustered(dim=400, clusters=60)
    weight = method.head.weight.detach()
    assert weight.std().item() == pytest.approx(0.01, rel=0.03)  # 24,000 draws: 0.5 % a deviation
    assert weight.mean().item() == pytest.approx(0, abs=5 * 0.01 / 24_000**0.5)
    assert (method.head.bias == 0).all()


def test_the_head_is_another_one_at_each_clustering_whatever_torch_has_drawn():
    heads = []
    for noise in (1, 5):
        method = deepcluster()
        for epoch in (0, 1):
            torch.rand(noise)
            method.before_epoch(epoch, lambda module: extract(module, pixels()))
            heads.append(method.head.weight.detach().clone())
    assert torch.equal(heads[0], heads[2])
    assert torch.equal(heads[1], heads[3])
    assert not torch.equal(heads[0], heads[1])


def test_at_its_start_the_loss_is_near_chance():
    method, b = clustered().double(), batch()
    loss, _ = method.loss(method.embed(b), b)
    assert method.chance(16) == pytest.approx(math.log(5))
    assert loss.item() == pytest.approx(math.log(5), abs=0.05)  # logits: 0.01 times a norm of 2 or so


def test_clustering_sees_clean_images_in_eval_mode_and_changes_nothing_in_the_encoder():
    method = deepcluster().train()
    before = copy.deepcopy(method.encoder.state_dict())
    seen = []

    def recording(module):
        assert module is method.encoder
        features = [extract(module, pixels()) for _ in range(2)]
        assert torch.equal(*features)
        seen.append(features[0])
        return features[0]

    method.before_epoch(0, recording)
    assert len(seen) == 1
    assert method.training
    assert method.encoder.training
    assert all(torch.equal(t, before[name]) for name, t in method.encoder.state_dict().items())


def test_pseudo_labels_are_the_groups_that_images_fall_into():
    truth = torch.arange(ROWS) % 2
    shown = (40 + 150 * truth)[:, None, None, None] + pixels() // 16
    method = deepcluster(clusters=2, pca_dim=1)
    method.before_epoch(0, lambda module: extract(module, shown.to(torch.uint8)))
    assert nmi(method.assignments, truth) == pytest.approx(1, abs=1e-12)


def test_features_are_whitened_and_made_unit_before_they_are_clustered():
    # one direction a thousand times the other, lengths over three decades: whitened and unit, four points are left
    corners = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    lengths = torch.logspace(-1, 2, ROWS // 4).double()
    plane = (lengths[:, None, None] * corners).flatten(0, 1) * torch.tensor([1e3, 1.0])
    features = torch.cat([plane, torch.zeros(ROWS, 4)], 1)
    found = []
    for epoch in range(30):
        method = deepcluster(clusters=4, pca_dim=2)
        method.before_epoch(epoch, lambda module: features)
        found.append(nmi(method.assignments, torch.arange(4).repeat(ROWS // 4)))
    # k-means begins with a row of each in 9 % of its starts
    assert max(found) == pytest.approx(1, abs=1e-12)


def test_agreement_with_the_last_clustering_and_sizes_are_logged():
    method, b = deepcluster(), batch()
    for epoch, seed in ((0, 0), (1, 1)):
        last = method.assignments.clone()
        method.before_epoch(epoch, lambda module, seed=seed: extract(module, pixels(seed=seed)))
        _, logs = method.double().loss(method.embed(b), b)
        method.float()
        assert logs["nmi_with_last"] == pytest.approx(nmi(last, method.assignments), abs=1e-6)
        sizes = torch.bincount(method.assignments, minlength=5)
        assert (logs["smallest_cluster"], logs["largest_cluster"]) == (sizes.min(), sizes.max())
        assert logs["empty_clusters"] == 0


@pytest.mark.parametrize("split", [True, False])
def test_identical_images_leave_clusters_empty_only_where_they_are_not_split(split):
    method = deepcluster(split_empty=split)
    same = pixels(1).repeat(ROWS, 1, 1, 1)
    method.before_epoch(0, lambda module: extract(module, same))
    empty = (torch.bincount(method.assignments, minlength=5) == 0).sum()
    assert empty == (0 if split else 4)
    assert method.order(0).shape == (ROWS,)


def test_between_clusterings_nothing_is_made_anew():
    method = clustered(interval=3)
    before = copy.deepcopy(method.state_dict())
    for epoch in (1, 2):
        method.before_epoch(epoch, lambda module: pytest.fail("extracted between clusterings"))
        assert method.resets(epoch) == []
    assert all(torch.equal(t, before[name]) for name, t in method.state_dict().items())
    assert [epoch for epoch in range(7) if method.resets(epoch)] == [0, 3, 6]
    assert method.resets(3) == [method.head]
    method.before_epoch(3, lambda module: extract(module, pixels(seed=1)))
    assert not torch.equal(method.head.weight, before["head.weight"])


def test_the_order_follows_the_switch():
    method = clustered()
    for epoch in (0, 1):
        assert torch.equal(method.order(epoch), uniform_order(method.assignments, 0, epoch))
    assert clustered(uniform=False).order(0) is None


def test_more_dimensions_than_the_encoder_has_is_an_error():
    assert deepcluster(pca_dim=6).pca_dim == 6
    with pytest.raises(BenchError, match="pca_dim: 7 is more than the encoder's 6 dimensions; lower it"):
        deepcluster(pca_dim=7)


# Training: 216 rows, 3 steps an epoch

OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "decay_norm_bias": True},
    "adamw": {"name": "adamw", "lr": 0.002, "weight_decay": 0.01, "decay_norm_bias": True},
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
STEPS = 3
PARTS = ("head.weight", "head.bias")


class Recorded:
    """A trainer that keeps what each step began and ended with."""

    def __init__(self, folder, optimizer, epochs=3, killed_after=0, checkpoint_seconds=0.0, **options):
        cell = copy.deepcopy(config("deepcluster", epochs=epochs))
        filled = config("simclr", optimizer=optimizer)  # a method that does not choose its own
        cell["training"]["optimizer"] = copy.deepcopy(filled["training"]["optimizer"])
        cell["training"]["schedule"] = {**cell["training"]["schedule"], "warmup": 0, "decay": "constant"}
        cell["method"]["options"] |= options
        folder.mkdir(exist_ok=True)
        self.killed_after, self.starts, self.ends = killed_after, [], []
        self.run = Trainer(
            cell, images(1), Checkpoints(folder), checkpoint_seconds=checkpoint_seconds, report=self._report
        )
        self.method = self.run.method
        embed, after_step = self.method.embed, self.method.after_step
        self.method.embed = lambda b: (self.starts.append(self._state() | {"index": b.index}), embed(b))[1]
        self.method.after_step = lambda *given: (self._grads(), after_step(*given))[1]

    def _grads(self):
        self.ends.append(
            {name: p.grad.clone() for name, p in self.method.named_parameters()}
            | {"rates": [group["lr"] for group in self.run.optimizer.param_groups]}
        )

    def _state(self):
        held = self.run.optimizer.state
        return {
            "method": copy.deepcopy(self.method.state_dict()),
            "optimizer": {name: copy.deepcopy(dict(held.get(p, {}))) for name, p in self.method.named_parameters()},
        }

    def _report(self, step, steps):
        self.ends[-1] |= self._state()
        if step == self.killed_after:
            raise KeyboardInterrupt

    def go(self):
        self.run.run()
        return self


def tensors(state):
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


@optimizers
def test_each_clustering_drops_the_heads_state_and_keeps_the_encoders(tmp_path, optimizer):
    done = Recorded(tmp_path, optimizer).go()
    for epoch in (1, 2):
        last, first = done.ends[STEPS * epoch - 1], done.starts[STEPS * epoch]
        for name, held in first["optimizer"].items():
            if name in PARTS:
                assert not tensors(held)
            else:
                assert tensors(held)
                assert all(torch.equal(t, last["optimizer"][name][key]) for key, t in tensors(held).items())
        head = first["method"]["head.weight"]
        assert head.std().item() == pytest.approx(0.01, rel=0.2)  # 20 clusters of 16 or more: 4 % a deviation
        assert (first["method"]["head.bias"] == 0).all()
        assert not torch.equal(head, done.starts[STEPS * (epoch - 1)]["method"]["head.weight"])
        assert not torch.equal(last["method"]["head.weight"], head)


def test_a_new_heads_first_adaptive_step_counts_from_one(tmp_path):
    done = Recorded(tmp_path, OPTIMIZERS["adamw"]).go()
    for step, end in enumerate(done.ends):
        for name, held in end["optimizer"].items():
            assert held["step"] == (step % STEPS if name in PARTS else step) + 1


@optimizers
def test_between_clusterings_state_head_and_assignments_are_carried(tmp_path, optimizer):
    done = Recorded(tmp_path, optimizer, interval=2).go()
    last, first = done.ends[STEPS - 1], done.starts[STEPS]
    assert all(torch.equal(t, last["method"][name]) for name, t in first["method"].items())
    for name, held in first["optimizer"].items():
        assert all(torch.equal(t, last["optimizer"][name][key]) for key, t in tensors(held).items())
    assert not torch.equal(
        done.starts[2 * STEPS]["method"]["head.weight"], done.ends[2 * STEPS - 1]["method"]["head.weight"]
    )


def test_with_sgd_the_head_has_no_momentum_and_the_encoder_has(tmp_path):
    done = Recorded(tmp_path, OPTIMIZERS["sgd"]).go()
    rate, decay = 0.05, 0.01
    for start, end in zip(done.starts, done.ends, strict=True):
        assert set(end["rates"]) == {rate}
        for name in PARTS:
            before = start["method"][name]
            plain = before - rate * (end[name] + decay * before)
            torch.testing.assert_close(end["method"][name], plain, rtol=1e-5, atol=1e-7)
            assert not tensors(end["optimizer"][name])
    weights = [name for name in done.ends[-1] if name.startswith("encoder")]
    for name in weights:
        velocity = torch.zeros_like(done.starts[0]["method"][name])
        for start, end in zip(done.starts, done.ends, strict=True):
            velocity = 0.9 * velocity + end[name] + decay * start["method"][name]
            torch.testing.assert_close(
                end["method"][name], start["method"][name] - rate * velocity, rtol=1e-4, atol=1e-6
            )


def test_the_trainer_clusters_its_clean_images_once_an_interval(tmp_path, monkeypatch):
    done = Recorded(tmp_path, OPTIMIZERS["sgd"], epochs=4, interval=2)
    seen, shown = [], []

    def recording(module, images):
        before = copy.deepcopy(done.method.encoder.state_dict())
        features = extract(module, images)
        assert torch.equal(features, extract(module, images))
        assert all(torch.equal(t, before[name]) for name, t in done.method.encoder.state_dict().items())
        seen.append(done.run.step)
        shown.append(images)
        return features

    monkeypatch.setattr(bench.pretrain, "extract", recording)
    done.go()
    assert sorted(set(seen)) == [0, 2 * STEPS]
    clean = torch.from_numpy(done.run.source[done.run.ids])
    assert torch.equal(torch.cat(shown), torch.cat([clean, clean]))


@pytest.mark.parametrize("uniform", [True, False])
def test_rows_are_shown_in_the_uniform_order_or_each_at_most_once(tmp_path, uniform):
    done = Recorded(tmp_path, OPTIMIZERS["sgd"], uniform=uniform).go()
    for epoch in range(3):
        steps = done.starts[STEPS * epoch : STEPS * (epoch + 1)]
        shown = torch.cat([start["index"] for start in steps])
        if uniform:
            order = uniform_order(steps[0]["method"]["assignments"], 0, epoch)
            assert torch.equal(shown, order[: len(shown)])
        else:
            assert len(shown.unique()) == len(shown)


@optimizers
@pytest.mark.parametrize("interval", [1, 2])
def test_killed_and_resumed_it_has_the_same_assignments_head_and_order(tmp_path, optimizer, interval):
    straight = Recorded(tmp_path / "straight", optimizer, interval=interval).go()
    folder = tmp_path / "killed"
    parts = []
    for killed_after in (2, 3, 4, 8):  # in mid-epoch, at its end, and again
        part = Recorded(folder, optimizer, killed_after=killed_after, interval=interval)
        with pytest.raises(KeyboardInterrupt):
            part.go()
        parts.append(part)
    parts.append(Recorded(folder, optimizer, interval=interval).go())
    starts = [start for part in parts for start in part.starts]
    assert len(starts) == len(straight.starts) == 3 * STEPS
    for ours, theirs in zip(starts, straight.starts, strict=True):
        assert torch.equal(ours["index"], theirs["index"])
        assert all(torch.equal(t, theirs["method"][name]) for name, t in ours["method"].items())
        for name, held in ours["optimizer"].items():
            assert tensors(held).keys() == tensors(theirs["optimizer"][name]).keys()
            assert all(torch.equal(t, theirs["optimizer"][name][key]) for key, t in tensors(held).items())
    assert parts[-1].run.history == straight.run.history
    final = straight.method.state_dict()
    assert all(torch.equal(t, final[name]) for name, t in parts[-1].method.state_dict().items())


def test_the_history_has_the_clusters_agreement_with_the_labels_and_no_label_moves_anything_else():
    labels = torch.arange(ROWS) % 7
    told, untold = clustered(), clustered()
    told.labels = labels
    for method in (told, untold):
        method.before_epoch(1, lambda module: extract(module, pixels()))
    (loss, logs), (other, without) = (
        m.loss(m.embed(b), b) for m, b in ((told.double(), batch()), (untold.double(), batch()))
    )
    assert logs["nmi_with_labels"] == pytest.approx(nmi(labels, told.assignments))
    assert logs["nmi_with_labels"] > without["nmi_with_labels"] == 0
    assert torch.equal(loss, other)
    assert torch.equal(told.assignments, untold.assignments)
