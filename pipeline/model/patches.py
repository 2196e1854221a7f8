"""Patches of frames as one matrix product, with the normalisation of the pixels folded into the matrix.

Shapes: B clips, T frames, C channels, p side of a patch, P patches a frame, K = p·p·C values of a patch, W width.

    embed = PatchEmbedding(width=768, patch_px=32)
    patches_BTPW = embed(video_BTCHW, mean_C11, std_C11)

The weight has the name and the shape of CLIP's convolution, [W, C, p, p], whose kernels do not overlap. The pixels are
rearranged while they are bytes, in the order in which they lie in a decoded frame, channels last: a quarter of the
memory of floats. Shifted by 128 a byte is exact in bfloat16, where a normalised pixel would be rounded.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIDDLE = 128
"""Subtracted from bytes, so that what is multiplied is centred."""


class PatchEmbedding(nn.Conv2d):
    """CLIP's patch convolution; called with frames of any number."""

    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__(3, width, kernel_size=patch_px, stride=patch_px, bias=False)

    def forward(self, video_BTCHW: Tensor, mean_C11: Tensor, std_C11: Tensor) -> Tensor:  # type: ignore[override]
        """[B, T, C, H, W], uint8 or normalised floats, to [B, T, P, W]; P runs over rows, then columns."""
        rows_BTPK = patch_rows(video_BTCHW, self.kernel_size[0])
        weight_WppC = self.weight.permute(0, 2, 3, 1)
        if video_BTCHW.dtype != torch.uint8:
            return F.linear(rows_BTPK, weight_WppC.flatten(1))
        mean_C, std_C = mean_C11.flatten(), std_C11.flatten()
        # (x / 255 - mean) / std = (x - 128) / (255 std) + (128 / 255 - mean) / std
        scaled_WK = (weight_WppC / (255 * std_C)).flatten(1)
        shift_W = (weight_WppC * ((MIDDLE / 255 - mean_C) / std_C)).sum((1, 2, 3))
        return F.linear(rows_BTPK.to(_compute_dtype(self.weight)) - MIDDLE, scaled_WK, shift_W)


def patch_rows(video_BTCHW: Tensor, patch_px: int) -> Tensor:
    """[B, T, C, H, W] to [B, T, P, p·p·C], the channels of a pixel side by side."""
    columns = torch.unflatten(video_BTCHW, 4, (-1, patch_px))
    blocks_BTChpwp = torch.unflatten(columns, 3, (-1, patch_px))
    return blocks_BTChpwp.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(2, 3)


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """What a matrix product is computed in: autocast's choice, or the weight's own."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype == torch.float32:
        return torch.get_autocast_dtype(kind)
    return weight.dtype
