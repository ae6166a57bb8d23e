"""The linear probe: what a logistic regression reads off the frozen class feature, beside a random initialization.

    python -m jobs.pretrain.probe FILE --cifar CIFAR10.parquet --json

It reports; nothing is chosen by it. Features are standardized with the training rows; the regression minimizes
sum of cross-entropies + |W|^2 / 2, as scikit-learn does with C = 1, by L-BFGS in double precision.

Letters: N examples, D feature width, C classes, 3HW images.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from jobs.pretrain.train import build_encoder, normalize

NUM_DIGIT_PARTITIONS = 5
FEW_DIGITS = 400


def load_encoder(path: Path) -> VisionTransformer:
    """Build what the header of the file describes and load the weights strictly."""
    with safe_open(path, framework="pt") as file:
        architecture = json.loads(file.metadata()["architecture"])
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    encoder = VisionTransformer(**architecture)
    encoder.load_state_dict(state, strict=True)
    return encoder


def random_encoder(path: Path, *, seed: int) -> VisionTransformer:
    """The same architecture at its random initialization."""
    with safe_open(path, framework="pt") as file:
        return build_encoder(json.loads(file.metadata()["architecture"]), seed=seed)


@torch.no_grad()
def class_features(encoder: VisionTransformer, image_N3HW: Tensor, device: torch.device) -> Tensor:
    """The class token after the last norm, `feature_ND`, in double precision."""
    encoder = encoder.to(device).eval()
    return torch.cat([encoder(normalize(part.to(device))).double() for part in image_N3HW.split(2048)])


def fit_and_score(train_ND: Tensor, train_N: Tensor, test_ND: Tensor, test_N: Tensor, *, num_classes: int) -> float:
    """Accuracy on the test rows of the regression fitted to the training rows."""
    mean_D, deviation_D = train_ND.mean(dim=0), train_ND.std(dim=0).clamp_min(1e-8)
    train_ND, test_ND = (train_ND - mean_D) / deviation_D, (test_ND - mean_D) / deviation_D
    weight_CD = train_ND.new_zeros(num_classes, train_ND.shape[1], requires_grad=True)
    bias_C = train_ND.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_CD, bias_C], max_iter=300, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(train_ND, weight_CD, bias_C), train_N, reduction="sum")
        loss = (loss + weight_CD.square().sum() / 2) / len(train_N)
        loss.backward()
        return loss

    optimizer.step(closure)
    return (functional.linear(test_ND, weight_CD, bias_C).argmax(dim=1) == test_N).double().mean().item()


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits as `image_N3HW` in [0, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    small_N1hw = torch.from_numpy(pixels / 16.0).float().reshape(-1, 1, 8, 8)
    image_N1HW = functional.interpolate(small_N1hw, size=32, mode="bicubic", align_corners=False).clamp(0, 1)
    return image_N1HW.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long()


def cifar(path: Path, rows: str) -> tuple[Tensor, Tensor]:
    """The training or the test rows of a CIFAR-10 Parquet file (columns image, label, split)."""
    table = pq.read_table(path, columns=["image", "label"], filters=[("split", "==", rows)])
    pictures = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table["image"].to_pylist()]
    image_N3HW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    labels = table["label"].to_pylist()
    classes = sorted(set(labels))
    return image_N3HW, torch.tensor([classes.index(label) for label in labels])


def orders(num: int) -> Iterator[Tensor]:
    """Random orders of the digits, of which the last fifth is held out."""
    for seed in range(NUM_DIGIT_PARTITIONS):
        yield torch.randperm(num, generator=torch.Generator().manual_seed(seed))


def probe_digits(encoder: VisionTransformer, device: torch.device) -> dict[str, float]:
    """Mean accuracy over random 80/20 partitions, with all training digits and with the first 400 of them."""
    image_N3HW, label_N = digits()
    feature_ND, label_N = class_features(encoder, image_N3HW, device), label_N.to(device)
    num_train = len(label_N) * 4 // 5
    scores = {"digits": [], f"digits_{FEW_DIGITS}": []}
    for order_N in orders(len(label_N)):
        test_N = order_N[num_train:].to(device)
        for name, size in (("digits", num_train), (f"digits_{FEW_DIGITS}", FEW_DIGITS)):
            train_N = order_N[:size].to(device)
            rows = (feature_ND[train_N], label_N[train_N], feature_ND[test_N], label_N[test_N])
            scores[name].append(fit_and_score(*rows, num_classes=10))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def probe_cifar(encoder: VisionTransformer, path: Path, device: torch.device) -> dict[str, float]:
    """Accuracy on the test rows after fitting all training rows."""
    (train_N3HW, train_N), (test_N3HW, test_N) = cifar(path, "train"), cifar(path, "test")
    train_ND, test_ND = class_features(encoder, train_N3HW, device), class_features(encoder, test_N3HW, device)
    return {"cifar10": fit_and_score(train_ND, train_N.to(device), test_ND, test_N.to(device), num_classes=10)}


def main(arguments: list[str] | None = None) -> None:
    """Parse, probe, print."""
    parser = argparse.ArgumentParser(prog="python -m jobs.pretrain.probe", description="Probe an embedded base.")
    parser.add_argument("file", type=Path, help="weights that jobs.pretrain.train wrote")
    parser.add_argument("--cifar", type=Path, help="a CIFAR-10 Parquet file; without it only the digits are probed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    report: dict[str, dict[str, float]] = {}
    for name, encoder in (("file", load_encoder(options.file)), ("random", random_encoder(options.file, seed=0))):
        report[name] = probe_digits(encoder, device)
        if options.cifar is not None:
            report[name] |= probe_cifar(encoder, options.cifar, device)
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in report[name].items()), file=sys.stderr)
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
