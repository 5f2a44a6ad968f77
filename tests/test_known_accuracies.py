"""Raw pixels of published image sets reach the accuracies that the literature knows.

They need the sets themselves (docs/data.md says which file goes where) and some minutes each.
"""

import pytest
import torch

from bench.data.prepared import data_root, load, prepare
from bench.data.splits import split
from bench.evaluators import knn
from bench.evaluators.linear import fit_path
from bench.features import Trained

NEAR = 3.0  # points: metrics of neighbours, k, penalties and preprocessing differ a little between sources

# folder below the data root; kNN and linear accuracy (%) and where they stand
KNOWN = {
    # LeCun et al., "Gradient-based learning applied to document recognition", 1998, fig. 9: kNN, Euclidean, 5.0 % error;
    # multinomial logistic regression: 92 %, scikit-learn's example "MNIST classification using multinomial logistic"
    "mnist": ("MNIST", 95.0, 92.0),
    # Xiao et al., 1708.07747, table 3: KNeighborsClassifier 0.854, LogisticRegression 0.842
    "fashion_mnist": ("FashionMNIST", 85.4, 84.2),
    # Stanford CS231n's notes on classification: 1-NN, L2, 35.4 %; Krizhevsky, "Learning multiple layers of features",
    # 2009, as quoted by Coates et al., 2011, table 3: logistic regression on raw pixels, 37.3 %
    "cifar10": ("cifar-10-batches-py", 35.4, 37.3),
}
L2 = {"mnist": 1e2, "fashion_mnist": 1e2, "cifar10": 1e4}  # by order of magnitude: what pixels in [0, 1] want


@pytest.fixture(params=KNOWN)
def pixels(request, tmp_path):
    folder, near, linear = KNOWN[request.param]
    if not (data_root() / folder).is_dir():
        pytest.skip(f"{data_root() / folder} is missing; docs/data.md says which files go there")
    images = load(prepare(request.param, "torchvision_set", {"set": request.param, "side": 0}, tmp_path))
    rows = split(images, validation=0.0, fraction=1.0)

    def part(chosen):
        return Trained(None).features(torch.from_numpy(images.images[chosen])), torch.from_numpy(images.labels[chosen])

    return request.param, part(rows.labelled), part(rows.test), near, linear


@pytest.mark.slow
def test_knn_on_raw_pixels(pixels):
    _, (bank, labels), (queries, wanted), known, _ = pixels
    predicted = knn.knn_predict(bank, labels, queries, 5, 0.07, 10)
    found = 100 * (predicted == wanted).double().mean().item()
    print(f"found {found:.2f}, known {known}")
    assert known - NEAR <= found <= known + 2 * NEAR  # cosine is a little better than Euclidean distance


@pytest.mark.slow
def test_a_linear_classifier_on_raw_pixels(pixels):
    name, (x, y), (queries, wanted), _, known = pixels
    weights, bias = fit_path(x, y, [L2[name]], classes=10, tolerance=1e-4)
    found = 100 * ((queries @ weights[0] + bias[0]).argmax(1) == wanted).double().mean().item()
    print(f"found {found:.2f}, known {known}")
    assert abs(found - known) <= NEAR
