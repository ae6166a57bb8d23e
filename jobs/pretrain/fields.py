"""Fields: waves, lattices, cells and Julia sets, whose colour is a formula of the place.

Letters: B scenes, S waves or seeds, H height, W width, K colour channels.
"""

import math

import torch
from torch import Generator, Tensor

from jobs.pretrain.variates import Scene, chance, log_uniform, normal, uniform

NUM_WAVES = 16
NUM_CELLS = 20
JULIA_STEPS = 14


def jitter_field(generator: Generator, scene: Scene) -> Scene:
    """A field leaves nothing open: its views differ by place and photography."""
    return scene


def opaque(image_BKHW: Tensor) -> tuple[Tensor, Tensor]:
    """Colours clamped to [0, 1], and the matte of a scene that covers everything."""
    return image_BKHW.clamp(0, 1), torch.ones_like(image_BKHW[:, 0])


def palette(scene: Scene, value_BHW: Tensor) -> Tensor:
    """A colour for every value: one cosine a channel, with its own frequency and phase."""
    angle_BKHW = scene["hue_frequency"][..., None] * value_BHW[:, None] + scene["hue_phase"][..., None]
    return 0.5 + 0.5 * (2 * math.pi * angle_BKHW).cos()


def sample_palette(generator: Generator, num: int) -> Scene:
    """Parameters of `palette`; half of the palettes are nearly of one colour."""
    phase_BK1 = uniform(generator, (num, 3, 1))
    dull_B11 = chance(generator, (num, 1, 1), 0.5)
    phase_BK1 = torch.where(dull_B11, phase_BK1[:, :1] + 0.15 * phase_BK1, phase_BK1)
    frequency_B11 = log_uniform(generator, (num, 1, 1), 0.2, 0.8)
    return {"hue_phase": phase_BK1, "hue_frequency": frequency_B11 * log_uniform(generator, (num, 3, 1), 0.8, 1.25)}


def sample_waves(generator: Generator, num: int) -> Scene:
    """Sums of plane waves with a power spectrum: clouds, marble, gratings when the directions agree."""
    shape_BS = (num, NUM_WAVES)
    frequency_BS = log_uniform(generator, shape_BS, 0.3, 4.5)
    fall_B1 = uniform(generator, (num, 1), 0.2, 2.0)
    main_B1 = uniform(generator, (num, 1), 0, math.pi)
    breadth_B1 = uniform(generator, (num, 1), 0.02, math.pi)
    direction_BS = main_B1 + breadth_B1 * uniform(generator, shape_BS, -0.5, 0.5)
    amplitude_BS = frequency_BS**-fall_B1
    return sample_palette(generator, num) | {
        "frequency": 2 * math.pi * frequency_BS,
        "direction": direction_BS,
        "phase": uniform(generator, shape_BS, 0, 2 * math.pi),
        "amplitude": amplitude_BS / amplitude_BS.square().sum(dim=1, keepdim=True).sqrt(),
        "hardness": log_uniform(generator, (num, 1), 0.5, 6.0),
    }


def render_waves(scene: Scene, grid_BHW2: Tensor) -> tuple[Tensor, Tensor]:
    """The palette of the squashed sum of waves."""
    column = {name: scene[name][:, :, None, None] for name in ("frequency", "direction", "phase")}
    along_BSHW = grid_BHW2[:, None, ..., 0] * column["direction"].cos()
    along_BSHW = along_BSHW + grid_BHW2[:, None, ..., 1] * column["direction"].sin()
    wave_BSHW = (column["frequency"] * along_BSHW + column["phase"]).sin()
    value_BHW = torch.einsum("bshw,bs->bhw", wave_BSHW, scene["amplitude"])
    return opaque(palette(scene, (scene["hardness"][..., None] * value_BHW).tanh()))


def sample_lattice(generator: Generator, num: int) -> Scene:
    """Two gratings, added or multiplied, on bent paper: stripes, checkers, dots, weaves."""
    return sample_palette(generator, num) | {
        "frequency": 2 * math.pi * log_uniform(generator, (num, 2), 0.5, 3.5),
        "direction": uniform(generator, (num, 2), 0, math.pi),
        "phase": uniform(generator, (num, 2), 0, 2 * math.pi),
        "product": uniform(generator, (num, 1)),
        "hardness": log_uniform(generator, (num, 1), 1.0, 12.0),
        "bend": normal(generator, (num, 2), 0.12),
    }


def render_lattice(scene: Scene, grid_BHW2: Tensor) -> tuple[Tensor, Tensor]:
    """The palette of the squashed mixture of sum and product."""
    bent_BHW2 = grid_BHW2 + scene["bend"][:, None, None] * (math.pi * grid_BHW2.flip(-1)).sin()
    direction = scene["direction"][:, None, None]
    along_BHW2 = bent_BHW2[..., :1] * direction.cos() + bent_BHW2[..., 1:] * direction.sin()
    grating_BHW2 = (scene["frequency"][:, None, None] * along_BHW2 + scene["phase"][:, None, None]).sin()
    first_BHW, second_BHW = grating_BHW2.unbind(-1)
    value_BHW = torch.lerp((first_BHW + second_BHW) / 2, first_BHW * second_BHW, scene["product"][..., None])
    return opaque(palette(scene, (scene["hardness"][..., None] * value_BHW).tanh()))


def sample_cells(generator: Generator, num: int) -> Scene:
    """Voronoi cells around seeds, each in its paint, with walls between them."""
    paint_BSK = uniform(generator, (num, NUM_CELLS, 3))
    kin_B11 = uniform(generator, (num, 1, 1))
    return {
        "seed": uniform(generator, (num, NUM_CELLS, 2), -1.2, 1.2),
        "paint": torch.lerp(paint_BSK, paint_BSK[:, :1].expand_as(paint_BSK), 0.9 * kin_B11),
        "wall_paint": uniform(generator, (num, 3, 1)),
        "wall": uniform(generator, (num, 1), -0.1, 0.15),
        "sharpness": log_uniform(generator, (num, 1), 8.0, 200.0),
        "dome": uniform(generator, (num, 1), -1.5, 1.5),
    }


def render_cells(scene: Scene, grid_BHW2: Tensor) -> tuple[Tensor, Tensor]:
    """Paint of the nearest seed, darker or lighter towards it, and the walls where two seeds are equally near."""
    distance_BSHW = (grid_BHW2[:, None] - scene["seed"][:, :, None, None]).square().sum(dim=-1).sqrt()
    near_BSHW = torch.softmax(-scene["sharpness"][..., None, None] * distance_BSHW.square(), dim=1)
    image_BKHW = torch.einsum("bshw,bsk->bkhw", near_BSHW, scene["paint"])
    first_BHW, second_BHW = distance_BSHW.topk(2, dim=1, largest=False).values.unbind(dim=1)
    image_BKHW = image_BKHW * (1 + scene["dome"][..., None] * (first_BHW - 0.2))[:, None]
    wall_BHW = ((scene["wall"][..., None] - (second_BHW - first_BHW)) / 0.02).sigmoid()
    return opaque(torch.lerp(image_BKHW, scene["wall_paint"][..., None].expand_as(image_BKHW), wall_BHW[:, None]))


def sample_julia(generator: Generator, num: int) -> Scene:
    """Julia sets of z^n + c, with c a little outside of the boundary of the quadratic cardioid or on a ring."""
    angle_B1 = uniform(generator, (num, 1), 0, 2 * math.pi)
    outward_B1 = uniform(generator, (num, 1), 0.95, 1.15)
    cardioid_B2 = outward_B1 * torch.cat(
        [angle_B1.cos() / 2 - (2 * angle_B1).cos() / 4, angle_B1.sin() / 2 - (2 * angle_B1).sin() / 4], dim=1
    )
    ring_B2 = uniform(generator, (num, 1), 0.55, 0.8) * torch.cat([angle_B1.cos(), angle_B1.sin()], dim=1)
    power_B1 = torch.randint(2, 5, (num, 1), generator=generator, device=generator.device).float()
    return sample_palette(generator, num) | {
        "power": power_B1,
        "constant": torch.where(power_B1 == 2, cardioid_B2, ring_B2),
        "trap": normal(generator, (num, 2), 0.5),
        "blend": uniform(generator, (num, 1)),
        "turn": uniform(generator, (num, 1), -math.pi, math.pi),
        "scale": uniform(generator, (num, 1), 0.8, 1.4),
    }


def render_julia(scene: Scene, grid_BHW2: Tensor) -> tuple[Tensor, Tensor]:
    """The palette of how long a point stays and how near its orbit comes to a trap."""
    number = {name: value[..., None] for name, value in scene.items() if value.shape[1:] == (1,)}
    cos, sin = number["turn"].cos() * number["scale"], number["turn"].sin() * number["scale"]
    x_BHW = grid_BHW2[..., 0] * cos - grid_BHW2[..., 1] * sin
    y_BHW = grid_BHW2[..., 0] * sin + grid_BHW2[..., 1] * cos
    c_x, c_y = scene["constant"][:, None, None].unbind(-1)
    trap_x, trap_y = scene["trap"][:, None, None].unbind(-1)
    stay_BHW = torch.zeros_like(x_BHW)
    near_BHW = torch.full_like(x_BHW, 4.0)
    for _ in range(JULIA_STEPS):
        size_BHW = torch.hypot(x_BHW, y_BHW).clamp_max(8.0)
        stay_BHW = stay_BHW + (-0.5 * size_BHW).exp()
        near_BHW = torch.minimum(near_BHW, torch.hypot(x_BHW - trap_x, y_BHW - trap_y))
        angle_BHW = torch.atan2(y_BHW, x_BHW) * number["power"]
        raised_BHW = size_BHW ** number["power"]
        x_BHW, y_BHW = raised_BHW * angle_BHW.cos() + c_x, raised_BHW * angle_BHW.sin() + c_y
    value_BHW = torch.lerp(0.5 * stay_BHW, 3 * near_BHW.sqrt(), number["blend"])
    return opaque(palette(scene, value_BHW))
