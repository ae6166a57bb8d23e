"""Images that a program draws: views of scenes, each scene an identity that its views share.

A scene is a dictionary of parameters. `sample` draws identities, `jitter` redraws what an identity leaves open
(handwriting, ink, light), `render` gives colours in [0, 1] and the matte, which says how far the scene covers what is
behind it. A view is a jittered scene on a grid of coordinates (the pose), before a ground, photographed. Its sketch is
what there was to see at low resolution: of a glyph or an object the settled scene in the middle of the canvas, of other
scenes what the camera was pointed at. Coordinates run over [-1, 1], x to the right, y down.

Letters: B scenes or views, S slots of a scene (arcs, parts, waves, seeds), H height, W width, h w of a sketch,
3 colour channels, 4 sketch channels (matte; red, green, blue where the matte is).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from jobs.pretrain import fields, glyphs, parts
from jobs.pretrain.variates import Scene, chance, log_uniform, normal, uniform

IMAGE_SIZE = 32
SKETCH_SIZE = 8
SCAN_SIZES = (7, 8, 10, 14)  # low resolutions that an image may have been scanned at


@dataclass(frozen=True)
class Kind:
    """A family of scenes, and the range of poses in which its identities stay the same."""

    name: str
    share: int  # of the scenes of a batch
    sample: Callable[[Generator, int], Scene]
    jitter: Callable[[Generator, Scene], Scene]
    render: Callable[[Scene, Tensor], tuple[Tensor, Tensor]]
    zoom: tuple[float, float]  # width of the view over the width of the canvas
    shift: float  # of the centre, in half canvases
    turn: float  # deviation of the rotation, in radians
    shear: float  # deviation
    warp: float  # size of the smooth displacement
    settle: Callable[[Scene], Scene] | None = None  # jitter at its middle; None: sketch the view
    flip: float = 0.5  # probability of being mirrored
    family: int = 1  # scenes that are alike but for one slot
    grey: float = 0.2  # probability of a view without colour
    scan: float = 0.1  # probability of a view scanned at low resolution


KINDS = (
    Kind("glyph", 6, glyphs.sample_glyph, glyphs.jitter_glyph, glyphs.render_glyph,
         zoom=(0.75, 1.2), shift=0.12, turn=0.15, shear=0.2, warp=0.05, settle=glyphs.settle_glyph, flip=0.0, family=2,
         grey=0.5, scan=0.5),
    Kind("object", 4, parts.sample_object, parts.jitter_parts, parts.render_parts,
         zoom=(0.6, 1.3), shift=0.3, turn=0.3, shear=0.1, warp=0.05, settle=parts.settle_parts, flip=0.0,
         family=2),
    Kind("leaves", 3, parts.sample_leaves, parts.jitter_parts, parts.render_parts,
         zoom=(0.4, 1.0), shift=0.0, turn=0.15, shear=0.1, warp=0.03),
    Kind("waves", 1, fields.sample_waves, fields.jitter_field, fields.render_waves,
         zoom=(0.4, 1.0), shift=0.0, turn=0.15, shear=0.1, warp=0.03),
    Kind("lattice", 1, fields.sample_lattice, fields.jitter_field, fields.render_lattice,
         zoom=(0.4, 1.0), shift=0.0, turn=0.15, shear=0.1, warp=0.03),
    Kind("cells", 1, fields.sample_cells, fields.jitter_field, fields.render_cells,
         zoom=(0.4, 1.0), shift=0.0, turn=0.15, shear=0.1, warp=0.03),
    Kind("julia", 1, fields.sample_julia, fields.jitter_field, fields.render_julia,
         zoom=(0.4, 1.0), shift=0.0, turn=0.15, shear=0.1, warp=0.03),
)  # fmt: skip


def share_slots(generator: Generator, scene: Scene, family: int) -> Scene:
    """Make neighbours in a family alike in all slots but the first or the second, so that no glance parts them."""
    num, num_slots = next(iter(scene.values())).shape[:2]
    index_B = torch.arange(num, device=generator.device)
    own_slot_B = torch.randint(2, (num,), generator=generator, device=generator.device)
    own_BS = own_slot_B[:, None] == torch.arange(num_slots, device=generator.device)
    parent_B = index_B - index_B % family
    return {
        name: torch.where(own_BS.reshape(num, num_slots, *(1 for _ in value.shape[2:])), value, value[parent_B])
        for name, value in scene.items()
    }


def sample_scenes(generator: Generator, kind: Kind, num: int) -> Scene:
    """Identities of one kind."""
    scene = kind.sample(generator, num)
    return share_slots(generator, scene, kind.family) if kind.family > 1 else scene


def canvas(num: int, device: torch.device) -> Tensor:
    """The coordinates of every pixel when the view is the canvas, `grid_BHW2`."""
    centre = (torch.arange(IMAGE_SIZE, device=device) + 0.5) * (2 / IMAGE_SIZE) - 1
    y_HW, x_HW = torch.meshgrid(centre, centre, indexing="ij")
    return torch.stack([x_HW, y_HW], dim=-1).expand(num, -1, -1, -1)


def pose(generator: Generator, kind: Kind, num: int) -> Tensor:
    """The canvas coordinates of every pixel, `grid_BHW2`, for random poses within the range of the kind."""
    grid_BHW2 = canvas(num, generator.device)
    zoom_B1 = log_uniform(generator, (num, 1), *kind.zoom)
    room_B1 = (1 - zoom_B1).clamp_min(0) + kind.shift
    angle_B = normal(generator, (num,), kind.turn)
    shear_B = normal(generator, (num,), kind.shear)
    stretch_B2 = zoom_B1 * normal(generator, (num, 2), 0.1).exp()
    mirror_B = 1 - 2 * chance(generator, (num,), kind.flip).float()
    frequency_B112 = uniform(generator, (num, 1, 1, 2), 0.5, 3.0)
    phase_B112 = uniform(generator, (num, 1, 1, 2), -3.2, 3.2)
    grid_BHW2 = grid_BHW2 + kind.warp * (frequency_B112 * grid_BHW2.flip(-1) + phase_B112).sin()
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    matrix_B22 = torch.stack([mirror_B * cos_B, -sin_B + shear_B, mirror_B * sin_B, cos_B], dim=1).reshape(num, 2, 2)
    grid_BHW2 = torch.einsum("bhwi,bji->bhwj", grid_BHW2 * stretch_B2[:, None, None], matrix_B22)
    return grid_BHW2 + (room_B1 * uniform(generator, (num, 2), -1, 1))[:, None, None]


def ground(generator: Generator, kind: Kind, num: int) -> Tensor:
    """What is behind a scene, `image_B3HW`: one tone, or waves; behind a glyph so dark that light ink stands out."""
    tone_B311 = uniform(generator, (num, 3, 1, 1))
    plain_B111 = chance(generator, (num, 1, 1, 1), 0.3)
    waves = next(other for other in KINDS if other.name == "waves")
    picture_B3HW, _ = waves.render(waves.sample(generator, num), pose(generator, waves, num))
    image_B3HW = torch.where(plain_B111, tone_B311, picture_B3HW)
    if kind.name != "glyph":
        return image_B3HW
    return 0.4 * image_B3HW * chance(generator, (num, 1, 1, 1), 0.5)


def scan(generator: Generator, image_B3HW: Tensor) -> Tensor:
    """Images averaged to a low resolution and enlarged again, by one matrix on their rows and their columns."""
    unit_H1H1 = torch.eye(IMAGE_SIZE, device=generator.device)[:, None, :, None]
    matrices = []
    for size in SCAN_SIZES:
        small_H1h1 = functional.adaptive_avg_pool2d(unit_H1H1, (size, 1))
        matrices.append(functional.interpolate(small_H1h1, size=(IMAGE_SIZE, 1), mode="bicubic")[:, 0, :, 0].T)
    choice_B = torch.randint(len(SCAN_SIZES), (len(image_B3HW),), generator=generator, device=generator.device)
    matrix_B1HH = torch.stack(matrices)[choice_B, None]
    return matrix_B1HH @ image_B3HW @ matrix_B1HH.mT


def photograph(generator: Generator, kind: Kind, image_B3HW: Tensor) -> Tensor:
    """Another camera: colour, contrast, blur, a scan at low resolution, noise. Glyphs may come out as negatives."""
    num = len(image_B3HW)

    def some(probability: float) -> Tensor:
        return chance(generator, (num, 1, 1, 1), probability)

    if kind.name == "glyph":
        image_B3HW = torch.where(some(0.5), 1 - image_B3HW, image_B3HW)
    mixing_B33 = torch.eye(3, device=generator.device) + normal(generator, (num, 3, 3), 0.12)
    tinted_B3HW = torch.einsum("bij,bjhw->bihw", mixing_B33, image_B3HW)
    contrast_B111 = normal(generator, (num, 1, 1, 1), 0.25).exp()
    tinted_B3HW = contrast_B111 * (tinted_B3HW - 0.5) + 0.5 + normal(generator, (num, 1, 1, 1), 0.12)
    image_B3HW = torch.where(some(0.8), tinted_B3HW, image_B3HW)
    fade_B111 = torch.maximum(some(kind.grey).float(), uniform(generator, (num, 1, 1, 1), 0, 0.8))
    image_B3HW = torch.lerp(image_B3HW, image_B3HW.mean(dim=1, keepdim=True).expand_as(image_B3HW), fade_B111)
    blurred_B3HW = functional.avg_pool2d(functional.pad(image_B3HW, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    image_B3HW = torch.lerp(image_B3HW, blurred_B3HW, uniform(generator, (num, 1, 1, 1)) * some(0.4))
    scanned_B3HW = scan(generator, image_B3HW)
    image_B3HW = torch.where(some(kind.scan), scanned_B3HW, image_B3HW)
    noise_B111 = uniform(generator, (num, 1, 1, 1), 0, 0.05) * some(0.5)
    return (image_B3HW + noise_B111 * normal(generator, tuple(image_B3HW.shape), 1.0)).clamp(0, 1)


@torch.no_grad()
def draw_views(generator: Generator, kind: Kind, scene: Scene) -> tuple[Tensor, Tensor]:
    """One view of each scene in [0, 1], `image_B3HW`, and its sketch, `sketch_B4hw`."""
    num = len(next(iter(scene.values())))
    colour_B3HW, matte_BHW = kind.render(kind.jitter(generator, scene), pose(generator, kind, num))
    image_B3HW = torch.lerp(ground(generator, kind, num), colour_B3HW, matte_BHW[:, None])
    if kind.settle is not None:
        colour_B3HW, matte_BHW = kind.render(kind.settle(scene), canvas(num, generator.device))
    sketch_B4HW = torch.cat([matte_BHW[:, None], colour_B3HW * matte_BHW[:, None]], dim=1)
    return photograph(generator, kind, image_B3HW), functional.adaptive_avg_pool2d(sketch_B4HW, SKETCH_SIZE)


@dataclass(frozen=True)
class Pairs:
    """Two views of every scene: the first views of all scenes, then their second views in the same order."""

    image_B3HW: Tensor
    sketch_B4hw: Tensor
    kind_B: Tensor  # index into KINDS


def counts(num: int) -> list[int]:
    """How many of about `num` scenes each kind gets: its share, but two at least, to be told from each other."""
    total = sum(kind.share for kind in KINDS)
    return [max(2, num * kind.share // total) for kind in KINDS]


@torch.no_grad()
def draw_pairs(generator: Generator, num: int, *, batches: int = 1) -> list[Pairs]:
    """Batches of about `num` scenes each; drawing several at once costs a GPU little more than drawing one."""
    images, sketches, kinds = [], [], []
    for index, (kind, count) in enumerate(zip(KINDS, counts(num), strict=True)):
        scene = sample_scenes(generator, kind, batches * count)
        twice = {name: torch.cat([value, value]) for name, value in scene.items()}
        image_B3HW, sketch_B4hw = draw_views(generator, kind, twice)
        images.append(image_B3HW.unflatten(0, (2, batches, count)))
        sketches.append(sketch_B4hw.unflatten(0, (2, batches, count)))
        kinds.append(torch.full((2, count), index, device=generator.device))
    image, sketch, kind_B = torch.cat(images, dim=2), torch.cat(sketches, dim=2), torch.cat(kinds, dim=1).flatten()
    return [Pairs(image[:, i].flatten(0, 1), sketch[:, i].flatten(0, 1), kind_B) for i in range(batches)]
