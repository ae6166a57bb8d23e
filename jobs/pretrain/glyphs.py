"""Glyphs: a pen walks along arcs, with corners between them, and sometimes lifts.

Letters: B glyphs, S arcs, P points along the whole walk, H height, W width, K colour channels.
"""

import math

import torch
from torch import Generator, Tensor

from jobs.pretrain.variates import Scene, chance, log_uniform, normal, uniform

NUM_ARCS = 4
POINTS_PER_ARC = 8


def sample_glyph(generator: Generator, num: int) -> Scene:
    """Templates of up to four arcs: how far each turns, how long it is, the corner before it, whether the pen lifts."""
    shape_BS = (num, NUM_ARCS)
    order_S = torch.arange(NUM_ARCS, device=generator.device)
    size_B1 = uniform(generator, (num, 1))
    num_arcs_B1 = 1 + (size_B1 > 0.1).int() + (size_B1 > 0.45).int() + (size_B1 > 0.78).int()
    sign_BS = 1 - 2 * chance(generator, shape_BS, 0.5).float()
    straight_BS = chance(generator, shape_BS, 0.4)
    turn_BS = torch.where(
        straight_BS, uniform(generator, shape_BS, 0.0, 0.4), uniform(generator, shape_BS, 0.6, 2.1 * math.pi)
    )
    corner_BS = uniform(generator, shape_BS, -2.8, 2.8) * chance(generator, shape_BS, 0.6)
    corner_BS[:, 0] = uniform(generator, (num,), -math.pi, math.pi)
    length_BS = uniform(generator, shape_BS, 0.5, 1.5) * (1 + 0.3 * turn_BS)
    return {
        "present": order_S < num_arcs_B1,
        "turn": turn_BS * sign_BS,
        "length": length_BS,
        "corner": corner_BS,
        "lift": chance(generator, shape_BS, 0.35) & (order_S > 0),
        "anchor": uniform(generator, shape_BS),
        "offset": normal(generator, (*shape_BS, 2), 0.15),
    }


def jitter_glyph(generator: Generator, scene: Scene) -> Scene:
    """One handwriting of each template: arcs turn and run a little otherwise, the pen and its ink change."""
    shape_BS = scene["turn"].shape
    num = shape_BS[0]
    tint_BSK = uniform(generator, (num, 1, 3), 0.0, 0.45) * chance(generator, (num, 1, 1), 0.5)
    return scene | {
        "turn": scene["turn"] * (1 + normal(generator, shape_BS, 0.15)) + normal(generator, shape_BS, 0.15),
        "length": scene["length"] * normal(generator, shape_BS, 0.2).exp(),
        "corner": scene["corner"] + normal(generator, shape_BS, 0.2),
        "anchor": (scene["anchor"] + normal(generator, shape_BS, 0.04)).clamp(0, 0.999),
        "offset": scene["offset"] + normal(generator, scene["offset"].shape, 0.04),
        "radius": log_uniform(generator, (num, 1), 0.04, 0.2),
        "softness": log_uniform(generator, (num, 1), 0.012, 0.06),
        "ink": 1 - tint_BSK,
    }


def settle_glyph(scene: Scene) -> Scene:
    """The template itself, in white with a pen of middle width."""
    width_B1 = torch.ones_like(scene["turn"][:, :1])
    white_B13 = width_B1[..., None].expand(-1, -1, 3)
    return scene | {"radius": 0.12 * width_B1, "softness": 0.03 * width_B1, "ink": white_B13}


def glyph_segments(scene: Scene) -> tuple[Tensor, Tensor]:
    """Start and end points of the straight segments of each glyph, scaled to fill three quarters of the canvas."""
    num = len(scene["turn"])
    position_B2 = scene["turn"].new_zeros(num, 2)
    heading_B = scene["turn"].new_zeros(num)
    along_P = (torch.arange(POINTS_PER_ARC, device=heading_B.device) + 0.5) / POINTS_PER_ARC
    length_BS = scene["length"] * scene["present"]
    starts, ends = [], []
    for arc in range(NUM_ARCS):
        heading_B = heading_B + scene["corner"][:, arc]
        if arc:
            drawn_BP2 = torch.cat(ends, dim=1)
            index_B = (scene["anchor"][:, arc] * drawn_BP2.shape[1]).long()
            anchor_B2 = drawn_BP2[torch.arange(num, device=index_B.device), index_B] + scene["offset"][:, arc]
            lift_B1 = (scene["lift"] & scene["present"])[:, arc, None]
            position_B2 = torch.where(lift_B1, anchor_B2, position_B2)
        heading_BP = heading_B[:, None] + scene["turn"][:, arc, None] * along_P
        step_BP2 = torch.stack([heading_BP.cos(), heading_BP.sin()], dim=-1) * (
            length_BS[:, arc, None, None] / POINTS_PER_ARC
        )
        end_BP2 = position_B2[:, None] + step_BP2.cumsum(dim=1)
        starts.append(end_BP2 - step_BP2)
        ends.append(end_BP2)
        position_B2 = end_BP2[:, -1]
        heading_B = heading_B + scene["turn"][:, arc]
    start_BP2, end_BP2 = torch.cat(starts, dim=1), torch.cat(ends, dim=1)
    low_B12 = torch.minimum(start_BP2, end_BP2).amin(dim=1, keepdim=True)
    high_B12 = torch.maximum(start_BP2, end_BP2).amax(dim=1, keepdim=True)
    centre_B12 = (low_B12 + high_B12) / 2
    scale_B11 = 1.5 / (high_B12 - low_B12).amax(dim=-1, keepdim=True)
    return (start_BP2 - centre_B12) * scale_B11, (end_BP2 - centre_B12) * scale_B11


def render_glyph(scene: Scene, grid_BHW2: Tensor) -> tuple[Tensor, Tensor]:
    """Ink of one colour; the matte falls off over `softness` at `radius` from the nearest segment."""
    start_BP2, end_BP2 = glyph_segments(scene)
    run_x, run_y = (end_BP2 - start_BP2)[:, None, None].unbind(-1)
    x_BHWP = grid_BHW2[..., None, 0] - start_BP2[:, None, None, :, 0]
    y_BHWP = grid_BHW2[..., None, 1] - start_BP2[:, None, None, :, 1]
    squared_length = (run_x.square() + run_y.square()).clamp_min(1e-9)
    along_BHWP = ((x_BHWP * run_x + y_BHWP * run_y) / squared_length).clamp(0, 1)
    distance_BHWP = (x_BHWP - along_BHWP * run_x).square() + (y_BHWP - along_BHWP * run_y).square()
    distance_BHW = distance_BHWP.amin(dim=-1).sqrt()
    matte_BHW = ((scene["radius"][..., None] - distance_BHW) / scene["softness"][..., None]).sigmoid()
    return scene["ink"].transpose(1, 2)[..., None].expand(-1, -1, *matte_BHW.shape[1:]), matte_BHW
