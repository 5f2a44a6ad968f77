"""The support set's look-up, exact top-1, against faiss's exact index."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.support import SupportSet
from benchmarks.rows import Measured, Row, faster
from benchmarks.timing import Candidate, in_turn, least

SIZE, DIM = 98_304, 256
REPEATS = 3


def flat_index(rows: Tensor) -> object:
    """faiss's exact index of inner products, on one thread."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows.numpy())
    return index


def queries(count: int, dim: int = DIM) -> Tensor:
    """(n, dim) unit rows."""
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(drawn, dim=1)


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """The share of equal positions."""
    return (ours == theirs).double().mean().item()


def by_blas(search: Candidate) -> Candidate:
    """The same with faiss's searches done by BLAS, which it takes by itself from very many queries on only."""

    def run() -> object:
        import faiss

        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            return search()
        finally:
            faiss.cvar.distance_compute_blas_threshold = before

    return run


def faster_search(search: Candidate) -> tuple[str, Callable[[Candidate], Candidate]]:
    """Which of faiss's two ways is faster at a search, with what the other took, and what makes a candidate go it."""
    spent = in_turn({"its own kernels": search, "BLAS": by_blas(search)}, 1)
    name = least(spent)
    other = next(each for each in spent if each != name)
    told = f"{name} (by {other} it takes {spent[other].wall / spent[name].wall:.1f} times as long)"
    return told, by_blas if name == "BLAS" else lambda same: same


def measure(count: int) -> Measured:
    """Milliseconds of looking up `count` queries. The peer's index is ready, its queries have unit length."""
    support = SupportSet(SIZE, DIM, 0)
    index, z = flat_index(support.rows), queries(count)
    same = agreement(support.nearest(z)[1], torch.from_numpy(index.search(z.numpy(), 1)[1]))
    name, so = faster_search(lambda: index.search(z.numpy(), 1))
    spent = in_turn({"ours": lambda: support.nearest(z), "theirs": so(lambda: index.search(z.numpy(), 1))}, REPEATS)
    note = f"equal neighbours: {100 * same:.2f} %; the index is built before, ours gives the rows too; faiss by {name}"
    return Measured(1e3 * spent["ours"].wall, 1e3 * spent["theirs"].wall, REPEATS, note)


TRIED = (
    "blocks whose products stay in the cache, a ring that is not put in order first, products in bfloat16 where the "
    "CPU has instructions for it (twice as fast as single precision), between whose largest double precision decides; "
    "products in 8 bits would be 1.4 times as fast again, less what rounding the rows to them costs; the rest is the "
    "product, in which this peer reaches 60 to 90 Gflop/s on an AMD, and 23 on an Intel, where 3.7x was measured"
)


def _row(count: int, wanted: float) -> Row:
    what = f"support set look-up, {count:,} queries in {SIZE:,} rows, d = {DIM}, exact top-1"
    return Row(
        f"lookup-{count}",
        what,
        "faiss IndexFlatIP, the faster of its searches",
        "ms",
        faster(wanted),
        lambda: measure(count),
        tried=TRIED,
    )


ROWS = [_row(256, 4), _row(4096, 1)]
