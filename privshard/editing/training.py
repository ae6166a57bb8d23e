"""Training a locator, resumable: masks of episodes chunk by chunk, then the fit; every part is kept as it is done.

The same images, options and seed give the same locator, interrupted or not. D width, K neurons.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privshard.core.digest import json_digest
from privshard.core.errors import InputError
from privshard.editing.episodes import cutmix
from privshard.editing.hypernetwork import SHARPNESS, Hypernetwork, HypernetworkShape, shape_for
from privshard.editing.locator import Locator
from privshard.editing.meta import MetaOptions, fit_loss, free_masks, soft_targets
from privshard.editing.places import Place, slots_of
from privshard.editing.tail import Tail, features
from privshard.store.objects import ObjectStore
from privshard.store.tensors import load_tensors, save_tensors

OnDone = Callable[[str, int, int], None]
EVERY = 200


@dataclass(frozen=True)
class LocatorOptions:
    """episodes: how many CutMix pairs. batch: episodes at once. depth: blocks of the hypernetwork. fit_steps,
    fit_batch, fit_lr: AdamW with a cosine schedule. seed: of everything that is drawn."""

    episodes: int = 4000
    batch: int = 64
    depth: int = 2
    fit_steps: int = 2000
    fit_batch: int = 256
    fit_lr: float = 3e-4
    seed: int = 0
    meta: MetaOptions = field(default_factory=MetaOptions)

    def __post_init__(self) -> None:
        for name, least in (("episodes", 2), ("batch", 2), ("depth", 1), ("fit_steps", 1), ("fit_batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: expected at least {least}, got {getattr(self, name)}.")


ImagesOf = Callable[[Sequence[int]], Tensor]


def train_locator(
    tail: Tail,
    images_of: ImagesOf,
    *,
    num_images: int,
    places: Sequence[Place],
    base: str,
    identity: str,
    state: ObjectStore,
    options: LocatorOptions,
    on_done: OnDone = lambda stage, done, total: None,
) -> Locator:
    """Meta-train a hypernetwork for `tail`, decoupled: a free mask for every episode, then a fit to all of them.

    images_of: row numbers -> images (B, 3, H, W) on the tail's device. identity: a digest of the images and of
    whatever the tail depends on beside the base; it decides what may be resumed. state: where chunks of masks and the
    fit's checkpoints are kept; deletion is the caller's. They are personal data where the images are.

    InputError for fewer than two images, and where `state` holds the parts of another training.
    """
    if num_images < 2:
        raise InputError(f"images: expected at least two to mix, got {num_images}.")
    _claim(state, _key(base, identity, places, options))
    slots = slots_of(tail.view, places)
    pairs = [
        _chunk(tail, images_of, num_images, places, state, options, number, on_done)
        for number in range(_num_chunks(options))
    ]
    feature_MD, v_MK = (torch.cat([pair[at] for pair in pairs]) for at in range(2))
    view = tail.view
    shape = shape_for(width=view.head.in_features, num_heads=view.blocks[0].num_heads, depth=options.depth, slots=slots)
    network = _fit(shape, feature_MD, soft_targets(v_MK, sharpness=SHARPNESS), state, options, on_done)
    trained = {"options": asdict(options), "num_images": num_images, "identity": identity, "space": tail.space}
    return Locator(network.cpu().eval().requires_grad_(False), base, tuple(places), len(view.blocks), trained)


def _num_chunks(options: LocatorOptions) -> int:
    """The last chunk may be smaller, but never a single episode, which would have nothing to be mixed with."""
    whole, rest = divmod(options.episodes, options.batch)
    return whole + (rest > 1)


def _chunk(
    tail: Tail,
    images_of: ImagesOf,
    num_images: int,
    places: Sequence[Place],
    state: ObjectStore,
    options: LocatorOptions,
    number: int,
    on_done: OnDone,
) -> tuple[Tensor, Tensor]:
    """Features (B, D) of mixed images and the free parameters (B, K) of their masks: kept, or made and kept."""
    path = f"episodes-{number:05d}.safetensors"
    size = min(options.batch, options.episodes - number * options.batch)
    if not state.exists(path):
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
        rows = _rows(num_images, size, generator)
        images = images_of(rows)
        view = tail.view
        mixed = cutmix(images, patch_size=view.model.patch_embed.patch_size, generator=generator)
        with torch.no_grad():
            tokens = view.tokens(torch.cat([images, mixed]), first_block=tail.first_block)
            target_BC = tail.logits(tokens[: len(images)], {})
        mixed_BND = tokens[len(images) :]
        v_BK = free_masks(tail, mixed_BND, target_BC, slots_of(view, places), options=options.meta)
        feature_BD = features(view, mixed_BND, first_block=tail.first_block)
        arrays = {"feature": feature_BD.float().cpu().numpy(), "v": v_BK.float().cpu().numpy()}
        save_tensors(state, path, arrays)
    on_done("episodes", min((number + 1) * options.batch, options.episodes), options.episodes)
    arrays, _ = load_tensors(state, path)
    device = tail.view.head.weight.device
    return torch.from_numpy(arrays["feature"]).to(device), torch.from_numpy(arrays["v"]).to(device)


def _rows(num_images: int, size: int, generator: torch.Generator) -> list[int]:
    """Rows of one chunk: all different where there are enough images."""
    if num_images >= size:
        return torch.randperm(num_images, generator=generator)[:size].tolist()
    return torch.randint(num_images, (size,), generator=generator).tolist()


def _fit(
    shape: HypernetworkShape,
    feature_MD: Tensor,
    target_MK: Tensor,
    state: ObjectStore,
    options: LocatorOptions,
    on_done: OnDone,
) -> Hypernetwork:
    """The hypernetwork after all steps; a checkpoint is kept every so often."""
    network = Hypernetwork(shape, seed=options.seed).to(feature_MD.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.fit_lr, weight_decay=0.01)
    done = _resume(network, optimizer, state)
    slots = shape.slot_views
    for step in range(done, options.fit_steps):
        rows = torch.randint(len(feature_MD), (options.fit_batch,), generator=_step_generator(options.seed, step))
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * options.fit_lr * (1 + np.cos(np.pi * step / options.fit_steps))
        rows = rows.to(feature_MD.device)
        with torch.enable_grad():
            loss = fit_loss(network(feature_MD[rows]), target_MK[rows], slots, sharpness=SHARPNESS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % EVERY == 0 or step + 1 == options.fit_steps:
            _checkpoint(network, optimizer, state, step + 1)
            on_done("fit", step + 1, options.fit_steps)
    return network


def _step_generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 2_000_003 + 1_000_000_007 + step)


FIT = "fit.safetensors"


def _checkpoint(network: Hypernetwork, optimizer: torch.optim.Optimizer, state: ObjectStore, done: int) -> None:
    arrays = {f"network/{name}": tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        held = optimizer.state[parameter]
        arrays |= {f"{key}/{name}": held[key].detach().cpu().numpy() for key in ("exp_avg", "exp_avg_sq")}
    save_tensors(state, FIT, arrays, {"done": str(done)})


def _resume(network: Hypernetwork, optimizer: torch.optim.Optimizer, state: ObjectStore) -> int:
    """Put network and optimizer where the last checkpoint left them; how many steps that was."""
    if not state.exists(FIT):
        return 0
    arrays, header = load_tensors(state, FIT)
    prefix = "network/"
    device = network.tokens_SD.device
    loaded = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
    network.load_state_dict({n.removeprefix(prefix): t for n, t in loaded.items() if n.startswith(prefix)})
    done = int(header["done"])
    for name, parameter in network.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(done)),
            **{key: loaded[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")},
        }
    return done


def _key(base: str, identity: str, places: Sequence[Place], options: LocatorOptions) -> dict[str, Any]:
    return json.loads(
        json.dumps({"base": base, "images": identity, "places": [str(p) for p in places], "options": asdict(options)})
    )


def _claim(state: ObjectStore, key: dict[str, Any]) -> None:
    """Mark `state` as this training's, or refuse another one's."""
    path = "training.json"
    if state.exists(path):
        held = state.read_json(path)
        if json_digest(held) != json_digest(key):
            odd = [name for name in key if held.get(name) != key[name]]
            raise InputError(
                f"{state.root}: it holds the parts of another locator's training; {', '.join(odd)} differ.",
                remedy="Use the same images and options to resume it, or another folder.",
            )
    state.write_json(path, key)
