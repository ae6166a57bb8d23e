"""Whether what GIFT learns makes its cluster maps find objects: trained against untrained against random, by seed.

    python -m jobs.benchmarks.gift_maps --model MODEL --weights FILE --seeds 3 --steps 60

On images with planted objects of six shapes: for every seed a generator is drawn, its maps are scored on held-out
images, it learns to name the shapes on other images, and its maps are scored again. Scores: `gift explain`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from privshard.adaptation.gift.adapter import GiftAdapter
from privshard.adaptation.gift.localization import Localization, spread
from privshard.adaptation.gift.planted import SHAPES, Planted, planted_images
from privshard.adaptation.gift.scoring import score, score_random
from privshard.adaptation.gift.spec import GiftSpec
from privshard.adaptation.method import AdapterMethod
from privshard.core.jobs import TrainingParams
from privshard.core.model import BaseSpec
from privshard.core.privacy import PrivacyParams
from privshard.models.base import EMBEDDED_MODEL, Base, load_base
from privshard.privacy.plan import make_plan
from privshard.privacy.stream import insecure_key
from privshard.training.shard import train_shard

TEST_SEED = 1_000_000
KEYS = ("pointing", "iou", "best_iou")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write what was asked for."""
    asked = _parser().parse_args(arguments)
    base = load_base(BaseSpec(asked.model, len(SHAPES), weights=asked.weights))
    size = base.transform_config["input_size"][1]
    tests = planted_images(asked.test_images, size=size, seed=TEST_SEED)
    masks_BHW = torch.stack([torch.from_numpy(item.mask_HW) for item in tests])
    x_test, y_test = _tensors(base, tests)
    adapter = GiftAdapter(base.view, GiftSpec(generator=asked.generator, rank=asked.rank))
    rows: list[dict[str, Any]] = []
    for seed in range(asked.seeds):
        x, y = _tensors(base, planted_images(asked.train_images, size=size, seed=seed))
        method = AdapterMethod(base.view, adapter, seed=seed)
        plan = make_plan(
            PrivacyParams(epsilon=None),
            sample_rate=asked.batch / len(x),
            steps=asked.steps,
            nominal_units_per_shard=len(x),
        )
        trained = train_shard(
            method,
            {"x": torch.cat([method.encode(x[at : at + 8])["x"] for at in range(0, len(x), 8)])},
            labels_B=y,
            unit_of_row=[f"{row:05d}" for row in range(len(x))],
            plan=plan,
            params=TrainingParams(lr=asked.lr, optimizer="adam", average_from=0.75),
            root_key=insecure_key(seed, shard=0, attempt=0),
            max_rows=asked.batch,
        )
        right = [
            method.logits(method.encode(x_test[at : at + 8]), trained.tensors).argmax(1) == y_test[at : at + 8]
            for at in range(0, len(x_test), 8)
        ]
        count = sum(vectors.shape[1] for vectors in adapter.gift.cluster_vectors(trained.parameters).values())
        rows.append(
            {
                "seed": seed,
                "accuracy": float(torch.cat(right).double().mean()),
                "train_s": trained.train_s,
                "trained": score(adapter, trained.parameters, list(x_test), masks_BHW),
                "untrained": score(adapter, adapter.initial(seed), list(x_test), masks_BHW),
                "random": score_random(base.view, count, masks_BHW, torch.Generator().manual_seed(seed)),
            }
        )
        print(f"seed {seed}: " + _line(rows[-1]), flush=True)
    report = {"arguments": vars(asked) | {"json": str(asked.json)}, **_summary(rows)}
    print(json.dumps(report["scores"], indent=1))
    if asked.json is not None:
        asked.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _tensors(base: Base, images: Sequence[Planted]) -> tuple[torch.Tensor, torch.Tensor]:
    names = list(SHAPES)
    x = torch.stack([base.transform(Image.fromarray(item.image_HW3)) for item in images])
    return x, torch.tensor([names.index(item.label) for item in images])


def _line(item: dict[str, Any]) -> str:
    sets = [(name, item[name]) for name in ("trained", "untrained", "random")]
    shown = "; ".join(f"{name} pointing {found.pointing:.3f}, IoU {found.iou:.3f}" for name, found in sets)
    return f"accuracy {item['accuracy']:.3f}; {shown}"


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds of every score, and of what training changed in each seed."""
    scores: dict[str, Any] = {"accuracy": spread([item["accuracy"] for item in rows])}
    for name in ("trained", "untrained", "random"):
        scores[name] = {key: spread([getattr(item[name], key) for item in rows]) for key in KEYS}
    scores["trained - untrained"] = {
        key: spread([getattr(item["trained"], key) - getattr(item["untrained"], key) for item in rows]) for key in KEYS
    }
    plain = [
        {key: value.to_json() if isinstance(value, Localization) else value for key, value in item.items()}
        for item in rows
    ]
    return {"scores": scores, "seeds": plain}


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default=EMBEDDED_MODEL)
    found.add_argument("--weights", default="embedded", help="embedded, pretrained, or a safetensors file")
    found.add_argument("--generator", default="compact", choices=("compact", "paca"))
    found.add_argument("--rank", type=int, default=16)
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--steps", type=int, default=100)
    found.add_argument("--batch", type=int, default=16)
    found.add_argument("--lr", type=float, default=3e-3)
    found.add_argument("--train-images", type=int, default=480)
    found.add_argument("--test-images", type=int, default=60)
    found.add_argument("--json", type=Path, default=None)
    return found


if __name__ == "__main__":
    main()
