"""CLIP-ViP's video tower written down densely: one masked attention over all tokens, in eager operations.

The yardstick of the tests and of benchmarks/model_step.py. It shares nothing with the model but the weights.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.model.clip_vip import CLIPViP


def allowed_pairs(num_proxies: int, num_frames: int, num_patches: int) -> Tensor:
    """bool [N, N]: which key (column) a query (row) may see."""
    frame_of = torch.cat([torch.full((num_proxies,), -1), torch.arange(num_frames).repeat_interleave(num_patches)])
    same_frame = frame_of.unsqueeze(1) == frame_of.unsqueeze(0)
    is_proxy = frame_of == -1
    return same_frame | is_proxy.unsqueeze(0) | is_proxy.unsqueeze(1)


def video_features(model: CLIPViP, video_BTCHW: Tensor) -> Tensor:
    """Unit features [B, D] of normalised pixels."""
    weights = dict(model.visual.named_parameters())
    num_clips, num_frames = video_BTCHW.shape[:2]
    width = model.architecture.vision_cfg.width
    patch_px = model.architecture.vision_cfg.patch_size
    columns = F.unfold(video_BTCHW.flatten(0, 1), patch_px, stride=patch_px).transpose(1, 2)
    patches = columns @ weights["conv1.weight"].reshape(width, -1).T + weights["positional_embedding"][1:]
    num_patches = patches.shape[1]
    temporal = F.interpolate(weights["temporal_embedding"].T[None], size=num_frames, mode="linear")[0].T
    patches = patches.view(num_clips, num_frames, num_patches, width) + temporal[None, :, None]
    proxies = [weights["class_embedding"][None]]
    if "added_proxies" in weights:
        proxies.append(weights["added_proxies"])
    proxies_MW = torch.cat(proxies) + weights["positional_embedding"][0]
    tokens = torch.cat([proxies_MW.expand(num_clips, -1, -1), patches.flatten(1, 2)], dim=1)
    x = norm(tokens, weights, "ln_pre")
    allowed = allowed_pairs(len(proxies_MW), num_frames, num_patches).to(x.device)
    for number in range(model.architecture.vision_cfg.layers):
        x = block(x, weights, f"transformer.resblocks.{number}.", allowed, model)
    return F.normalize(norm(x[:, 0], weights, "ln_post") @ weights["proj"], dim=-1)


def block(x: Tensor, weights: dict[str, Tensor], prefix: str, allowed: Tensor, model: CLIPViP) -> Tensor:
    """One residual block: softmax over a masked matrix of all pairs of tokens."""
    head_width = model.architecture.vision_cfg.head_width
    y = norm(x, weights, f"{prefix}ln_1")
    qkv = y @ weights[f"{prefix}attn.in_proj_weight"].T + weights[f"{prefix}attn.in_proj_bias"]
    q, k, v = (part.unflatten(-1, (-1, head_width)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    scores = (q * head_width**-0.5) @ k.transpose(-1, -2)
    scores = scores + torch.zeros_like(allowed, dtype=x.dtype).masked_fill(~allowed, float("-inf"))
    attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    x = x + attended @ weights[f"{prefix}attn.out_proj.weight"].T + weights[f"{prefix}attn.out_proj.bias"]
    y = norm(x, weights, f"{prefix}ln_2") @ weights[f"{prefix}mlp.c_fc.weight"].T + weights[f"{prefix}mlp.c_fc.bias"]
    y = y * torch.sigmoid(1.702 * y)
    return x + y @ weights[f"{prefix}mlp.c_proj.weight"].T + weights[f"{prefix}mlp.c_proj.bias"]


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
