"""The video tower: frames and proxies through CLIP's ViT.

Shapes: B clips, T frames, C channels, M proxies, P patches a frame, W width, D joint dimension.

    video [B, T, C, H, W] -> PatchEmbedding -> [B, T, P, W] -> tokens [B, M + T·P, W] -> proxy 0 -> [B, D]

Proxy 0 is CLIP's class token. Every proxy gets CLIP's spatial position 0; a patch gets its spatial position and the
temporal embedding of its frame. A single image is a video with T = 1.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.architecture import Architecture
from pipeline.model.config import ModelConfig
from pipeline.model.layers import BlockShape, Transformer, full_attention, proxy_guided_attention
from pipeline.model.patches import PatchEmbedding


class VideoTower(nn.Module):
    """open_clip's ViT, with proxies, temporal embedding and proxy-guided attention."""

    added_proxies: nn.Parameter | None
    temporal_embedding: nn.Parameter | None

    def __init__(self, config: ModelConfig, architecture: Architecture) -> None:
        super().__init__()
        vision = architecture.vision_cfg
        width, patch_px = vision.width, vision.patch_size
        self.config = config
        self.image_size_px = vision.image_size
        num_positions = (vision.image_size // patch_px) ** 2 + 1
        self.conv1 = PatchEmbedding(width, patch_px)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(num_positions, width))
        num_added, num_temporal = config.num_proxies - 1, config.num_temporal
        self.added_proxies = nn.Parameter(torch.empty(num_added, width)) if num_added else None
        self.temporal_embedding = nn.Parameter(torch.empty(num_temporal, width)) if num_temporal else None
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            vision.layers,
            BlockShape(
                width=width,
                heads=width // vision.head_width,
                inner_width=vision.inner_width,
                quick_gelu=architecture.quick_gelu,
                layer_scale=vision.ls_init_value,
            ),
            checkpoint_activations=config.checkpoint_activations,
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def forward(self, video_BTCHW: Tensor, mean_C11: Tensor, std_C11: Tensor) -> Tensor:
        """Pixels [B, T, 3, H, W], uint8 or normalised, to features [B, D], not yet of unit length.

        uint8 pixels are normalised by the statistics [3, 1, 1], which are of values in [0, 1].
        """
        num_frames = video_BTCHW.shape[1]
        if self.config.pooling == "mean":
            frames_BTCHW = video_BTCHW.flatten(0, 1).unsqueeze(1)
            frames_BTD = F.normalize(self._encode(frames_BTCHW, mean_C11, std_C11), dim=-1)
            return torch.unflatten(frames_BTD, 0, (-1, num_frames)).mean(dim=1)
        return self._encode(video_BTCHW, mean_C11, std_C11)

    def _encode(self, video_BTCHW: Tensor, mean_C11: Tensor, std_C11: Tensor) -> Tensor:
        num_clips, num_frames = video_BTCHW.shape[:2]
        patches_BTPW = self._place_patches(self.conv1(video_BTCHW, mean_C11, std_C11))
        proxies_MW = self.class_embedding.unsqueeze(0)
        if self.added_proxies is not None:
            proxies_MW = torch.cat([proxies_MW, self.added_proxies])
        proxies_MW = proxies_MW + self.positional_embedding[0]
        proxies_BMW = proxies_MW.to(patches_BTPW.dtype).expand(num_clips, -1, -1)
        tokens_BNW = self.ln_pre(torch.cat([proxies_BMW, patches_BTPW.flatten(1, 2)], dim=1))
        if self.config.attention == "full":
            tokens_BNW = self.transformer(tokens_BNW, full_attention)
        else:
            attend = partial(proxy_guided_attention, num_proxies=self.config.num_proxies, num_frames=num_frames)
            tokens_BNW = self.transformer(tokens_BNW, attend)
        features_BD: Tensor = self.ln_post(tokens_BNW[:, 0]) @ self.proj
        return features_BD.to(self.class_embedding.dtype)

    def _place_patches(self, patches_BTPW: Tensor) -> Tensor:
        """Position and frame of every patch; patch dropout."""
        places_PW = self.positional_embedding[1:]
        if self.temporal_embedding is not None:
            temporal_TW = interpolate_temporal(self.temporal_embedding, patches_BTPW.shape[1])
            patches_BTPW = patches_BTPW + (places_PW + temporal_TW.unsqueeze(1))
        else:
            patches_BTPW = patches_BTPW + places_PW
        if self.training and self.config.patch_dropout:
            patches_BTPW = drop_patches(patches_BTPW, self.config.patch_dropout)
        return patches_BTPW


def interpolate_temporal(temporal_TW: Tensor, num_frames: int) -> Tensor:
    """T0 vectors resampled linearly to T, end points not aligned: [T0, W] to [T, W]."""
    if len(temporal_TW) == num_frames:
        return temporal_TW
    resampled_1WT = F.interpolate(temporal_TW.T.unsqueeze(0), size=num_frames, mode="linear", align_corners=False)
    return resampled_1WT[0].T


def drop_patches(patches_BTPW: Tensor, share: float) -> Tensor:
    """Keep a random (1 - share) of each frame's patches, the same number in every frame."""
    num_kept = max(1, round(patches_BTPW.shape[2] * (1 - share)))
    ranks_BTP = torch.rand(patches_BTPW.shape[:3], device=patches_BTPW.device)
    kept_BTK = ranks_BTP.topk(num_kept, dim=2).indices
    return patches_BTPW.gather(2, kept_BTK.unsqueeze(-1).expand(-1, -1, -1, patches_BTPW.shape[3]))
