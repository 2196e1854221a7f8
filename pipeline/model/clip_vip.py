"""CLIP-ViP: video, subtitle, middle frame and caption to four unit vectors in one space.

model = CLIPViP.from_config(ModelConfig(name="ViT-B-32-quickgelu", pretrained="openai"))
features = model(video=video_BTCHW, subtitle=ids_BL, middle=frame_BCHW, caption=ids_BL)
loss, terms = contrastive_loss(*features, has_subtitle_B, has_caption_B, config)
"""

from collections.abc import Callable
from typing import NamedTuple, Self

from torch import Tensor, nn

from pipeline.model.config import ModelConfig

Tokenize = Callable[[list[str]], Tensor]


class Features(NamedTuple):
    """Unit vectors [B, D] in float32 (float64 for a float64 model); None where the input was not given."""

    video_BD: Tensor | None
    subtitle_BD: Tensor | None
    frame_BD: Tensor | None
    caption_BD: Tensor | None
    logit_scale: Tensor
    """exp of the parameter, [], with gradient."""


class CLIPViP(nn.Module):
    """The two towers and the logit scale."""

    config: ModelConfig
    logit_scale: nn.Parameter
    """In log space, [1]: DeepSpeed 0.19 cannot broadcast a 0-d parameter (it views it as bytes); clamped by
    the optimizer; files of other systems hold it as []."""

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """Build the towers and start them: from `config.pretrained`, or at random."""
        raise NotImplementedError

    @property
    def image_size_px(self) -> int:
        """Side of the frames."""
        raise NotImplementedError

    def tokenizer(self, context_length: int) -> Tokenize:
        """A picklable callable: texts to int64 [n, context_length], padded with 0, EOS kept on truncation."""
        raise NotImplementedError

    def forward(
        self,
        video: Tensor | None = None,
        subtitle: Tensor | None = None,
        middle: Tensor | None = None,
        caption: Tensor | None = None,
    ) -> Features:
        """Features of what is given: video [B, T, 3, H, W], middle [B, 3, H, W], subtitle and caption int64 [B, L].

        uint8 pixels are normalised here; float pixels count as normalised.
        """
        raise NotImplementedError
