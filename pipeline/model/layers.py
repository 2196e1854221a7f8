"""Transformer blocks with open_clip's parameter names, and the attention patterns of CLIP-ViP.

Shapes: B clips, N tokens, M proxies, T frames, P patches a frame, H heads, E width of a head, W width of the model.

    block = Block(BlockShape(width=768, heads=12, inner_width=3072, quick_gelu=True, layer_scale=None))
    x_BNW = block(x_BNW, partial(proxy_guided_attention, num_proxies=4, num_frames=12))
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.model.compiled import CompiledBlocks

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each [B, N, H, E], to the attended values [B, N, H, E]."""


def full_attention(q_BNHE: Tensor, k_BNHE: Tensor, v_BNHE: Tensor, *, causal: bool = False) -> Tensor:
    """Every token attends to every token; with `causal`, to itself and those before it."""
    out_BHNE = F.scaled_dot_product_attention(
        q_BNHE.transpose(1, 2), k_BNHE.transpose(1, 2), v_BNHE.transpose(1, 2), is_causal=causal
    )
    return out_BHNE.transpose(1, 2)


def proxy_guided_attention(
    q_BNHE: Tensor, k_BNHE: Tensor, v_BNHE: Tensor, *, num_proxies: int, num_frames: int
) -> Tensor:
    """Proxies attend to everything; a patch attends to the patches of its own frame and to all proxies.

    Tokens are M proxies, then T frames of P patches. Two dense calls, without a mask: N = M + T·P keys for M queries,
    and M + P keys for the P queries of each frame.
    """
    if num_frames == 1:  # everything attends to everything: one call, no copies
        return full_attention(q_BNHE, k_BNHE, v_BNHE)
    num_patches = q_BNHE.shape[1] - num_proxies
    sizes = [num_proxies, num_patches]
    q_proxies, q_patches = torch.split(q_BNHE, sizes, dim=1)
    out_proxies = full_attention(q_proxies, k_BNHE, v_BNHE)

    def by_frame(x_BNHE: Tensor) -> Tensor:
        """[B, N, H, E] to [B·T, M + P, H, E]: the proxies in front of every frame."""
        proxies_BMHE, patches_BNHE = torch.split(x_BNHE, sizes, dim=1)
        frames_BTPHE = torch.unflatten(patches_BNHE, 1, (num_frames, -1))
        proxies_BTMHE = proxies_BMHE.unsqueeze(1).expand(-1, num_frames, -1, -1, -1)
        return torch.cat([proxies_BTMHE, frames_BTPHE], dim=2).flatten(0, 1)

    q_frames = torch.unflatten(q_patches, 1, (num_frames, -1)).flatten(0, 1)
    out_frames = full_attention(q_frames, by_frame(k_BNHE), by_frame(v_BNHE))
    out_patches = out_frames.reshape(-1, num_patches, *out_frames.shape[2:])
    return torch.cat([out_proxies, out_patches], dim=1)


class Attention(nn.Module):
    """Multi-head self-attention whose pattern is handed in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BNW: Tensor, attend: Attend) -> Tensor:
        """[B, N, W] to [B, N, W]."""
        qkv = F.linear(x_BNW, self.in_proj_weight, self.in_proj_bias)
        q_BNHE, k_BNHE, v_BNHE = torch.unflatten(qkv, -1, (3, self.heads, -1)).unbind(2)
        out: Tensor = self.out_proj(attend(q_BNHE, k_BNHE, v_BNHE).flatten(2))
        return out


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), for OpenAI's weights; written with SiLU, which keeps one tensor less for backward."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return F.silu(1.702 * x) / 1.702


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * self.gamma


@dataclass(frozen=True)
class BlockShape:
    """What the blocks of a tower have in common."""

    width: int
    heads: int
    inner_width: int
    """Of the MLP."""
    quick_gelu: bool
    layer_scale: float | None
    """Where the factors of the residual branches start; None: there are none."""


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        width, layer_scale = shape.width, shape.layer_scale
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, shape.heads)
        self.ls_1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, shape.inner_width),
                gelu=QuickGELU() if shape.quick_gelu else nn.GELU(),
                c_proj=nn.Linear(shape.inner_width, width),
            )
        )
        self.ls_2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x_BNW: Tensor, attend: Attend) -> Tensor:
        """[B, N, W] to [B, N, W]."""
        x_BNW = x_BNW + self.ls_1(self.attn(self.ln_1(x_BNW), attend))
        mlp_BNW: Tensor = self.ls_2(self.mlp(self.ln_2(x_BNW)))
        return x_BNW + mlp_BNW


class Transformer(nn.Module):
    """A stack of blocks, which in training may run compiled."""

    def __init__(self, layers: int, shape: BlockShape, *, checkpoint_activations: bool) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.resblocks = nn.ModuleList([Block(shape) for _ in range(layers)])
        self._compiled: CompiledBlocks | None = None

    def compile_blocks(self, backend: str, *, must: bool) -> None:
        """Compile each block by itself: one graph serves them all, in a twelfth of the time for the whole tower."""
        self._compiled = CompiledBlocks(list(self.resblocks), backend, must=must)

    def forward(self, x_BNW: Tensor, attend: Attend) -> Tensor:
        """[B, N, W] to [B, N, W]."""
        blocks: Sequence[nn.Module] = list(self.resblocks)
        if self._compiled is not None and self.training:
            blocks = self._compiled.for_input(x_BNW, attend)
        for block in blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_BNW = checkpoint(block, x_BNW, attend, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BNW = block(x_BNW, attend)
        return x_BNW
