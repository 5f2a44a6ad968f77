"""Retrieval's mean average precision against a loop written from its definition."""

import pytest
import torch
import torch.nn.functional as F

from bench.evaluators.retrieval import mean_average_precision


def naive(bank, queries, labels, wanted):
    """Of each query, the mean over rows of its class of the share of its class down to that row."""
    found = []
    for query, mine in zip(queries.double(), wanted.tolist(), strict=True):
        cosines = [float(F.cosine_similarity(row, query, dim=0)) for row in bank.double()]
        ranked = sorted(range(len(bank)), key=lambda i: (-round(cosines[i], 12), i))
        precisions, hits = [], 0
        for rank, i in enumerate(ranked, 1):
            if int(labels[i]) == mine:
                hits += 1
                precisions.append(hits / rank)
        found.append(sum(precisions) / max(1, len(precisions)))
    return sum(found) / len(found)


def case(n=40, q=9, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bank, queries = (torch.randn(rows, 3, generator=generator) for rows in (n, q))
    return bank, queries, torch.arange(n) * 7 % classes, torch.arange(q) % classes


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_the_naive_loop(seed):
    assert mean_average_precision(*case(seed=seed)) == pytest.approx(naive(*case(seed=seed)), abs=1e-12)


def test_of_equal_cosines_the_lower_row_is_ranked_first():
    bank = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    query = torch.tensor([[1.0, 0.0]])
    assert mean_average_precision(bank, query, torch.tensor([0, 1, 1]), torch.tensor([0])) == 1
    assert mean_average_precision(bank, query, torch.tensor([1, 0, 1]), torch.tensor([0])) == 1 / 2


def test_it_is_1_where_every_query_finds_its_class_first_and_0_where_the_bank_lacks_it():
    bank = torch.eye(3).repeat(4, 1)
    assert mean_average_precision(bank, torch.eye(3), torch.arange(12) % 3, torch.arange(3)) == 1
    assert mean_average_precision(bank, torch.eye(3), torch.arange(12) % 3, torch.full((3,), 5)) == 0


def test_lengths_do_not_matter():
    bank, queries, labels, wanted = case()
    lengths = torch.rand(len(bank), 1) + 0.1
    assert mean_average_precision(bank * lengths, 3 * queries, labels, wanted) == mean_average_precision(
        bank, queries, labels, wanted
    )
