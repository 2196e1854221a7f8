"""The text tower: CLIP's causal transformer, computed only as far as the longest text reaches.

Shapes: B texts, L tokens, W width, D joint dimension.

    ids [B, L] -> trim_texts -> ids [B, L'] -> TextTower -> [B, D]

The feature is read at the first EOS. Attention is causal, so tokens behind it cannot change it.
"""

from functools import partial

import torch
from torch import Tensor, nn

from pipeline.model.architecture import Architecture, TextArchitecture
from pipeline.model.config import ModelConfig
from pipeline.model.layers import BlockShape, Transformer, full_attention


def end_positions(ids_BL: Tensor, text: TextArchitecture) -> Tensor:
    """Position of the first EOS of each text: the first maximum (CLIP's vocabulary ends with EOS), or `eos_id`."""
    scores_BL = (ids_BL == text.eos_id).int() if text.pool_type == "eos" else ids_BL
    return scores_BL.argmax(dim=1)


def trim_texts(ids_BL: Tensor, text: TextArchitecture) -> Tensor:
    """[B, L] to [B, L'], without the columns behind the longest text. For ids on the host: it reads them."""
    if not len(ids_BL):
        return ids_BL
    return ids_BL[:, : int(end_positions(ids_BL, text).max()) + 1]


TEXT_LENGTHS = (16, 24, 32, 48, 64, 72)


def text_length(num_tokens: int, context_length: int) -> int:
    """The least of a few lengths that holds `num_tokens`: one of TEXT_LENGTHS, or the whole context.

    >>> [text_length(n, 77) for n in (1, 16, 17, 70, 73)]
    [16, 16, 24, 72, 77]
    """
    return next((length for length in TEXT_LENGTHS if num_tokens <= length < context_length), context_length)


class TextTower(nn.Module):
    """open_clip's text transformer on texts of any length up to its context."""

    def __init__(self, config: ModelConfig, architecture: Architecture) -> None:
        super().__init__()
        text = architecture.text_cfg
        self.architecture = text
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.transformer = Transformer(
            text.layers,
            BlockShape(
                width=text.width,
                heads=text.heads,
                inner_width=text.inner_width,
                quick_gelu=architecture.quick_gelu,
                layer_scale=text.ls_init_value,
            ),
            checkpoint_activations=config.checkpoint_activations,
        )
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, architecture.embed_dim))

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Token ids [B, L] to features [B, D], not yet of unit length."""
        num_texts, num_tokens = ids_BL.shape
        x_BLW = self.token_embedding(ids_BL) + self.positional_embedding[:num_tokens]
        x_BLW = self.transformer(x_BLW, partial(full_attention, causal=True))
        ends_B = end_positions(ids_BL, self.architecture)
        ends_BW = x_BLW[torch.arange(num_texts, device=ids_BL.device), ends_B]
        features_BD: Tensor = self.ln_final(ends_BW) @ self.text_projection
        return features_BD.to(self.positional_embedding.dtype)
