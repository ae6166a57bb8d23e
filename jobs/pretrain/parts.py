"""Parts: ellipses, boxes, flowers and polygons with gradients or stripes, in front of one another.

Letters: B scenes, S parts, H height, W width, K colour channels.
"""

import math

import torch
from torch import Generator, Tensor

from jobs.pretrain.variates import Scene, chance, log_uniform, normal, uniform

NUM_LEAVES = 24
NUM_OBJECT_PARTS = 6


def sample_parts(generator: Generator, num: int, num_parts: int, spread: float, size: tuple[float, float]) -> Scene:
    """Parts around the centre of the canvas; the later cover the earlier."""
    shape_BS = (num, num_parts)
    size_BS1 = log_uniform(generator, (*shape_BS, 1), *size)
    paint_BSK = uniform(generator, (*shape_BS, 3))
    kin_B11 = uniform(generator, (num, 1, 1))  # parts of one scene share some of their colour
    return {
        "centre": uniform(generator, (*shape_BS, 2), -spread, spread),
        "size": size_BS1 * log_uniform(generator, (*shape_BS, 2), 0.6, 1.6),
        "angle": uniform(generator, shape_BS, -math.pi, math.pi),
        "power": log_uniform(generator, shape_BS, 1.0, 6.0),
        "corners": torch.randint(3, 8, shape_BS, generator=generator, device=generator.device).float(),
        "petal": uniform(generator, shape_BS, 0.1, 0.4) * chance(generator, shape_BS, 0.4),
        "polygon": chance(generator, shape_BS, 0.35),
        "paint": torch.lerp(paint_BSK, paint_BSK[:, :1].expand_as(paint_BSK), 0.8 * kin_B11),
        "second_paint": uniform(generator, (*shape_BS, 3)),
        "frequency": log_uniform(generator, shape_BS, 0.6, 14.0),
        "phase": uniform(generator, shape_BS, -math.pi, math.pi),
        "contrast": log_uniform(generator, shape_BS, 0.5, 8.0),
    }


def sample_leaves(generator: Generator, num: int) -> Scene:
    """Dead leaves: many parts that occlude one another, the first of them the ground."""
    scene = sample_parts(generator, num, NUM_LEAVES, spread=1.1, size=(0.12, 0.7))
    scene["size"][:, 0] = 6.0
    return scene


def sample_object(generator: Generator, num: int) -> Scene:
    """A thing in the middle of the canvas made of a few parts, half of the time alike on its left and right."""
    scene = sample_parts(generator, num, NUM_OBJECT_PARTS, spread=0.5, size=(0.15, 0.55))
    mirrored_B = chance(generator, (num,), 0.5)
    for part in range(2, NUM_OBJECT_PARTS, 2):
        for name, value in scene.items():
            twin = value[:, part - 1]
            if name == "centre":
                twin = torch.stack([-twin[:, 0], twin[:, 1]], dim=1)
            if name == "angle":
                twin = math.pi - twin
            value[:, part] = torch.where(mirrored_B.reshape(num, *(1 for _ in twin.shape[1:])), twin, value[:, part])
    return scene


def jitter_parts(generator: Generator, scene: Scene) -> Scene:
    """Another pose of the parts and another light."""
    shape_BS = scene["angle"].shape
    return scene | {
        "centre": scene["centre"] + normal(generator, scene["centre"].shape, 0.03),
        "size": scene["size"] * normal(generator, scene["size"].shape, 0.06).exp(),
        "angle": scene["angle"] + normal(generator, shape_BS, 0.08),
        "light": normal(generator, (shape_BS[0], 1, 2), 0.3),
    }


def settle_parts(scene: Scene) -> Scene:
    """The scene itself, lit evenly."""
    return scene | {"light": torch.zeros_like(scene["centre"][:, :1])}


def render_parts(scene: Scene, grid_BHW2: Tensor) -> tuple[Tensor, Tensor]:
    """Parts over one another: a part is seen as far as it covers and nothing in front of it does."""
    column = {name: value[:, :, None, None] for name, value in scene.items()}
    x_BSHW = grid_BHW2[:, None, ..., 0] - column["centre"][..., 0]
    y_BSHW = grid_BHW2[:, None, ..., 1] - column["centre"][..., 1]
    cos, sin = column["angle"].cos(), column["angle"].sin()
    u_BSHW = (x_BSHW * cos + y_BSHW * sin) / column["size"][..., 0]
    v_BSHW = (y_BSHW * cos - x_BSHW * sin) / column["size"][..., 1]
    bearing_BSHW = torch.atan2(v_BSHW, u_BSHW)
    wedge = 2 * math.pi / column["corners"]
    polygon_BSHW = torch.hypot(u_BSHW, v_BSHW) * (bearing_BSHW.remainder(wedge) - wedge / 2).cos() / (wedge / 2).cos()
    power = column["power"]
    rounded_BSHW = (u_BSHW.abs().clamp_min(1e-4) ** power + v_BSHW.abs().clamp_min(1e-4) ** power) ** (1 / power)
    rounded_BSHW = rounded_BSHW / (1 + column["petal"] * (column["corners"] * bearing_BSHW).cos())
    level_BSHW = torch.where(column["polygon"], polygon_BSHW, rounded_BSHW)
    cover_BSHW = ((1 - level_BSHW) * column["size"].amin(dim=-1) / 0.03).sigmoid()
    clear_BSHW = (1 - cover_BSHW).flip(1).cumprod(dim=1).flip(1)  # of this part and of all in front of it
    seen_BSHW = cover_BSHW * torch.cat([clear_BSHW[:, 1:], torch.ones_like(clear_BSHW[:, :1])], dim=1)
    stripe_BSHW = (column["contrast"] * (column["frequency"] * u_BSHW + column["phase"]).sin()).sigmoid()
    slope_BSHW = (u_BSHW * column["light"][..., 0] + v_BSHW * column["light"][..., 1]).clamp(-1, 1)
    lit_BSHW = seen_BSHW * (1 + 0.7 * slope_BSHW)
    image_BKHW = torch.einsum("bshw,bsk->bkhw", lit_BSHW * (1 - stripe_BSHW), scene["paint"])
    image_BKHW = image_BKHW + torch.einsum("bshw,bsk->bkhw", lit_BSHW * stripe_BSHW, scene["second_paint"])
    matte_BHW = 1 - clear_BSHW[:, 0]
    return (image_BKHW / matte_BHW[:, None].clamp_min(1e-3)).clamp(0, 1), matte_BHW
