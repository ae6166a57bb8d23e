"""Lengths that a GPU's aligned kernels take: tokens with rows at their end that repeat the last.

Products whose operands or results have rows of N numbers, as attention's scores and Gram matrices do, run in slow
kernels where N isn't a multiple of 8: on an H200 in bf16, Gram matrices of 197 tokens take 6 to 16 times as long as
those of 200.

B batch, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ALIGNED = 8  # numbers of two bytes in the 16 bytes that aligned kernels load at once


def token_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """What the number of tokens of this type is to be a multiple of: 1, that is any, but on a GPU in half precision."""
    return _ALIGNED if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) else 1


def padded_length(num_tokens: int, multiple: int) -> int:
    """The next multiple of `multiple`.

    >>> padded_length(197, 8), padded_length(200, 8), padded_length(197, 1)
    (200, 200, 197)
    """
    return -(-num_tokens // multiple) * multiple


def lengthened(x_BND: Tensor, length: int) -> Tensor:
    """`x_BND` with its last token repeated up to `length` rows.

    A copy and not zeros: as long as no row attends to it, a copy goes through every layer as the token itself does, so
    it is finite where that is. Zeros would be divided by sqrt(eps) in a norm, and by 0 where eps is.
    """
    return torch.cat([x_BND, x_BND[:, -1:].expand(-1, length - x_BND.shape[1], -1)], dim=1)
