"""The pretraining job: contrast views of drawn scenes, then write the embedded base.

    python -m jobs.pretrain.train --out FILE --minutes 8 --device cuda --seed 0

Two views of a scene are a positive pair, the views of the other scenes **of its kind** are the negatives: what kind a
picture is never answers the question, so all of the class feature is left for what tells scenes apart. The loss is
NT-Xent on a projection of the class feature (Chen et al. 2020, equation 1). A linear map of the class feature also
predicts the sketch, so that a linear head can read off what there is to see. The last norm is then set so that every
coordinate of the class feature has mean 0 and deviation 1 over drawn images.

Letters: B views, D feature width, X numbers of a sketch, 3HW images, 4hw sketches.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from jobs.pretrain.draw import KINDS, SKETCH_SIZE, Pairs, draw_pairs

ARCHITECTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "in_chans": 3,
    "embed_dim": 192,
    "depth": 7,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "num_classes": 0,
    "class_token": True,
    "global_pool": "token",
}
MEAN = 0.5  # of each colour channel
STD = 0.5
SOURCE = "Pretrained by privshard's jobs.pretrain.train on images that a program drew; it carries nobody's data."
PROJECTION_WIDTHS = (1024, 1024, 128)
TEMPERATURE = 0.15
PEAK_LR = 1.2e-3
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 200
SKETCH_WEIGHT = 6.0
BATCHES_AT_ONCE = 8  # drawn ahead on a GPU, where small kernels cost mostly their launch
STANDARDIZING_SCENES = 4096


@dataclass(frozen=True)
class Schedule:
    """How long to train: a number of steps, which repeats exactly on one machine, or a number of minutes."""

    steps: int | None
    minutes: float

    def progress(self, step: int, elapsed_s: float) -> float:
        """The part of the training that is done, 0 to 1."""
        done = step / self.steps if self.steps is not None else elapsed_s / (60 * self.minutes)
        return min(1.0, done)


def build_encoder(architecture: dict[str, Any], *, seed: int) -> VisionTransformer:
    """The transformer at its random initialization, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(**architecture)


def build_projection(width: int, *, seed: int) -> nn.Sequential:
    """The head that only pretraining uses: linear layers with batch norm and ReLU between them."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for out in PROJECTION_WIDTHS[:-1]:
            layers += [nn.Linear(width, out, bias=False), nn.BatchNorm1d(out), nn.ReLU()]
            width = out
        return nn.Sequential(*layers, nn.Linear(width, PROJECTION_WIDTHS[-1], bias=False))


def normalize(image_B3HW: Tensor) -> Tensor:
    """Images in [0, 1] as the transformer takes them."""
    return (image_B3HW - MEAN) / STD


def nt_xent(view_BD: Tensor, kind_B: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean of -log softmax of the positive among the other views of its kind, and which positives come first."""
    view_BD = functional.normalize(view_BD.float(), dim=-1)
    index_B = torch.arange(len(view_BD), device=view_BD.device)
    excluded_BB = (kind_B[:, None] != kind_B) | (index_B[:, None] == index_B)
    logits_BB = (view_BD @ view_BD.T / temperature).masked_fill(excluded_BB, -math.inf)
    positive_B = index_B.roll(len(view_BD) // 2)
    return functional.cross_entropy(logits_BB, positive_B), logits_BB.argmax(dim=1) == positive_B


class Pretext(nn.Module):
    """The encoder with the two heads that only pretraining uses."""

    def __init__(self, encoder: VisionTransformer, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sketch = nn.Linear(width, 4 * SKETCH_SIZE**2)
            layers: list[nn.Module] = []
            for out in PROJECTION_WIDTHS[:-1]:
                layers += [nn.Linear(width, out, bias=False), nn.BatchNorm1d(out), nn.ReLU()]
                width = out
            self.projection = nn.Sequential(*layers, nn.Linear(width, PROJECTION_WIDTHS[-1], bias=False))

    def forward(self, image_B3HW: Tensor, sketch_B4hw: Tensor, kind_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The contrastive loss, the part of the sketches' variance left unexplained, and which positives come first."""
        with torch.autocast(image_B3HW.device.type, torch.bfloat16):
            feature_BD = self.encoder(normalize(image_B3HW))
            projected_BD, guess_BX = self.projection(feature_BD), self.sketch(feature_BD).float()
        contrast, found_B = nt_xent(projected_BD, kind_B, temperature=TEMPERATURE)
        target_BX = sketch_B4hw.flatten(1)
        unexplained = (guess_BX - target_BX).square().mean() / (target_BX - target_BX.mean(dim=0)).square().mean()
        return contrast, unexplained, found_B


def build_optimizer(pretext: Pretext, device: torch.device) -> torch.optim.Optimizer:
    """AdamW that decays matrices only."""
    kept = {f"encoder.{name}" for name in pretext.encoder.no_weight_decay()}
    decayed = [value for name, value in pretext.named_parameters() if value.ndim > 1 and name not in kept]
    others = [value for name, value in pretext.named_parameters() if value.ndim <= 1 or name in kept]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=device.type == "cuda")


def endless_batches(generator: torch.Generator, num: int) -> Iterator[Pairs]:
    """Fresh scenes for every step."""
    while True:
        yield from draw_pairs(generator, num, batches=BATCHES_AT_ONCE if generator.device.type == "cuda" else 1)


def pretrain(
    *, schedule: Schedule, batch: int, device: torch.device, seed: int
) -> tuple[VisionTransformer, dict[str, Any]]:
    """Train one encoder; give it with what is worth recording."""
    encoder = build_encoder(ARCHITECTURE, seed=seed).to(device)
    pretext = Pretext(encoder, seed=seed + 1).to(device)
    optimizer = build_optimizer(pretext, device)
    forward = torch.compile(pretext) if device.type == "cuda" else pretext
    begin_s = reported_s = time.perf_counter()
    progress, record = 0.0, {}
    for step, pairs in enumerate(endless_batches(torch.Generator(device).manual_seed(seed), batch), start=1):
        lr = PEAK_LR * min(1, step / WARMUP_STEPS) * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        contrast, unexplained, found_B = forward(pairs.image_B3HW, pairs.sketch_B4hw, pairs.kind_B)
        optimizer.zero_grad(set_to_none=True)
        (contrast + SKETCH_WEIGHT * unexplained).backward()
        nn.utils.clip_grad_norm_(pretext.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # keep the clock honest
        now_s = time.perf_counter()
        progress = schedule.progress(step, now_s - begin_s)
        if now_s - reported_s > 10 or progress == 1:
            reported_s = now_s
            found = {kind.name: found_B[pairs.kind_B == index].float().mean() for index, kind in enumerate(KINDS)}
            record = {
                "steps": step,
                "views": step * len(pairs.kind_B),
                "train_s": round(now_s - begin_s, 1),
                "contrast": round(contrast.item(), 4),
                "unexplained": round(unexplained.item(), 4),
                "found": {name: round(value.item(), 3) for name, value in found.items()},
            }
            print(json.dumps(record), file=sys.stderr, flush=True)
        if progress == 1:
            break
    return encoder.eval(), record


@torch.no_grad()
def standardize_features(encoder: VisionTransformer, image_B3HW: Tensor) -> None:
    """Fold the mean and deviation of the class feature over these images into the last norm."""
    feature_BD = torch.cat([encoder(part) for part in normalize(image_B3HW).split(1024)])
    mean_D, deviation_D = feature_BD.mean(dim=0), feature_BD.std(dim=0)
    norm = encoder.get_submodule("norm")
    norm.get_parameter("weight").div_(deviation_D)
    norm.get_parameter("bias").sub_(mean_D).div_(deviation_D)


def write_base(encoder: VisionTransformer, path: Path, *, source: str) -> None:
    """Write the weights in half precision, with what is needed to build the model, whole or not at all."""
    state = {name: value.detach().cpu().half().contiguous() for name, value in encoder.state_dict().items()}
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise RuntimeError(f"Expected finite weights, but {broken} overflow or are NaN; lower the learning rate.")
    metadata = {
        "architecture": json.dumps(ARCHITECTURE),
        "mean": json.dumps([MEAN] * 3),
        "std": json.dumps([STD] * 3),
        "source": source,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata=metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse, train, write; print one JSON object about the run."""
    parser = argparse.ArgumentParser(prog="python -m jobs.pretrain.train", description="Pretrain the embedded base.")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--minutes", type=float, default=8.0, help="how long to train, unless --steps is given")
    parser.add_argument("--steps", type=int, help="train for so many steps instead")
    parser.add_argument("--batch", type=int, default=1024, help="scenes a step; each is seen twice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    schedule = Schedule(steps=options.steps, minutes=options.minutes)
    encoder, record = pretrain(schedule=schedule, batch=options.batch, device=device, seed=options.seed)
    generator = torch.Generator(device).manual_seed(options.seed + 1)
    (pairs,) = draw_pairs(generator, min(STANDARDIZING_SCENES, 2 * options.batch))
    standardize_features(encoder, pairs.image_B3HW)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    source = f"{SOURCE} Seed {options.seed}, {record['steps']} steps, {record['views']} views."
    write_base(encoder, options.out, source=source)
    print(json.dumps(record | {"out": str(options.out), "file_bytes": options.out.stat().st_size}))


if __name__ == "__main__":
    main()
