"""Which linear layers of the blocks a method changes: found by name, or refused."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from privshard.core.errors import InputError
from privshard.models.vit import ViTView


def target_layers(view: ViTView, targets: Sequence[str], *, key: str = "method.targets") -> dict[str, nn.Linear]:
    """Full name -> linear layer, for every block and every name inside a block that `targets` lists, in the order of
    blocks. InputError, showing what there is, for no or repeated targets and for names that are no linear layer.

    >>> import timm
    >>> from privshard.models.vit import view_vit
    >>> view = view_vit(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3))
    >>> list(target_layers(view, ["attn.proj"]))
    ['blocks.0.attn.proj', 'blocks.1.attn.proj']
    """
    known = [name for name, part in view.blocks[0].parts().items() if isinstance(part, nn.Linear)]
    wrong = [name for name in targets if name not in known or list(targets).count(name) > 1]
    if wrong or not targets:
        raise InputError(
            f"{key}: expected some of {', '.join(known)}, each once, got {', '.join(targets) or 'none'}.",
            remedy="These are the linear layers of a block of this base.",
        )
    return {
        f"{block.name}.{name}": part
        for block in view.blocks
        for name, part in block.parts().items()
        if name in targets and isinstance(part, nn.Linear)
    }
