"""CLIP-ViP: video, subtitle, middle frame and caption to four unit vectors in one space.

    model = CLIPViP.from_config(ModelConfig(name="ViT-B-32-quickgelu", pretrained="openai"))
    features = model(video=video_BTCHW, subtitle=ids_BL, middle=frame_BCHW, caption=ids_BL)
    loss, terms = contrastive_loss(*features, has_subtitle_B, has_caption_B, config)

Parameters are used only inside the forward of the module that owns them, so that ZeRO-3 can gather them there.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.model.architecture import read_architecture
from pipeline.model.config import ModelConfig
from pipeline.model.formats import ADDED_PROXIES, TEMPORAL_EMBEDDING
from pipeline.model.layers import Transformer
from pipeline.model.loading import load_strictly
from pipeline.model.start import start_state
from pipeline.model.text_tower import TextTower, text_length, trim_texts
from pipeline.model.tokenizer import Tokenizer
from pipeline.model.vision import VideoTower


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

    logit_scale: nn.Parameter
    """In log space, [1]: DeepSpeed 0.19 cannot broadcast a 0-d parameter (it views it as bytes); clamped by
    the optimizer; files of other systems hold it as []."""
    pixel_mean: Tensor
    pixel_std: Tensor
    few_text_lengths = False
    """Whether texts are padded to one of a few lengths: for a forward pass that is compiled or captured by shape."""

    def __init__(self, config: ModelConfig) -> None:
        """Towers with parameters as torch left them; `from_config` and `load_model` build models to use."""
        super().__init__()
        self.architecture = read_architecture(config)
        self.config = config.model_copy(update={"architecture": self.architecture.model_dump(mode="json")})
        self.visual = VideoTower(config, self.architecture)
        self.text = TextTower(config, self.architecture)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self._set_buffers()
        for tower in self._frozen_towers():
            tower.requires_grad_(False)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """Build the towers and start them: from `config.pretrained`, or at random (torch's global generator)."""
        state, architecture = start_state(config)
        model = cls.unfilled(config.model_copy(update={"architecture": architecture.model_dump(mode="json")}))
        # Weights of CLIP know nothing of these; weights of CLIP-ViP must bring them all.
        extras = (ADDED_PROXIES, TEMPORAL_EMBEDDING)
        is_clip = not any(name in state for name in extras)
        model.fill(state, origin=config.pretrained, may_start_new=extras if is_clip else ())
        return model

    @classmethod
    def unfilled(cls, config: ModelConfig) -> Self:
        """A model whose every parameter is NaN, for `fill`: what nobody set cannot pass for a weight."""
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device=torch.get_default_device())
        for parameter in model.parameters():
            nn.init.constant_(parameter, torch.nan)
        model._set_buffers()
        return model

    def fill(self, state: Mapping[str, Tensor], *, origin: str | None, may_start_new: tuple[str, ...] = ()) -> None:
        """Load `state` strictly; of `may_start_new`, what it lacks gets CLIP-ViP's start."""
        missing = load_strictly(self, state, may_be_missing=may_start_new, origin=origin)
        with torch.no_grad():
            if ADDED_PROXIES in missing:
                self._start_proxies()
            if self.visual.temporal_embedding is not None and TEMPORAL_EMBEDDING in missing:
                nn.init.zeros_(self.visual.temporal_embedding)
        unset = [name for name, value in self.named_parameters() if not torch.isfinite(value).all()]
        if unset:
            raise InputError(f"{origin or self.config.name}: {', '.join(unset)} hold values that are not finite")

    @property
    def image_size_px(self) -> int:
        """Side of the frames."""
        return self.visual.image_size_px

    def tokenizer(self, context_length: int) -> Tokenizer:
        """A picklable callable: texts to int64 [n, context_length], padded with 0, EOS kept on truncation."""
        return Tokenizer.for_architecture(self.architecture, context_length)

    def forward(
        self,
        video: Tensor | None = None,
        subtitle: Tensor | None = None,
        middle: Tensor | None = None,
        caption: Tensor | None = None,
    ) -> Features:
        """Features of what is given: video [B, T, 3, H, W], middle [B, 3, H, W], subtitle and caption int64 [B, L].

        uint8 pixels are normalised here; float pixels count as normalised. Ids on the host are computed only as far as
        the longest text reaches; trim those for a GPU before they go there: here it would have to wait for the GPU.
        """
        # Texts last: their backward pass is the first, so that their gradients can travel during that of the frames.
        video_BD = None if video is None else self._encode_video("video", video)
        frame_BD = None if middle is None else self._encode_video("middle", middle)
        texts = {"subtitle": subtitle, "caption": caption}
        given = {name: self._checked_ids(name, ids_BL) for name, ids_BL in texts.items() if ids_BL is not None}
        encoded = self._encode_texts(given)
        return Features(
            video_BD=video_BD,
            subtitle_BD=encoded.get("subtitle"),
            frame_BD=frame_BD,
            caption_BD=encoded.get("caption"),
            logit_scale=self.logit_scale.exp().reshape([]),
        )

    def towers(self) -> dict[str, nn.Module]:
        """The towers that train."""
        return {name: self.get_submodule(name) for name in ("visual", "text") if name not in self.config.freeze}

    def compile_blocks(self, backend: str, *, must: bool) -> None:
        """Have the blocks run compiled in training; what cannot be compiled runs eagerly, unless it `must`."""
        for tower in self.towers().values():
            transformer = tower.get_submodule("transformer")
            assert isinstance(transformer, Transformer)
            transformer.compile_blocks(backend, must=must)

    def why_not_captured(self) -> str | None:
        """Recomputation asks autograd for the graph of a part of the forward pass."""
        return "model.checkpoint_activations recomputes blocks" if self.config.checkpoint_activations else None

    def train(self, mode: bool = True) -> Self:
        """As torch's; frozen towers stay in evaluation mode."""
        super().train(mode)
        for tower in self._frozen_towers():
            tower.eval()
        return self

    def _frozen_towers(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self.config.freeze]

    def _set_buffers(self) -> None:
        """Pixel statistics; not in the state dict, so they are set again after every move through the meta device."""
        for name, values in (("pixel_mean", self.architecture.pixel_mean), ("pixel_std", self.architecture.pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def _start_proxies(self) -> None:
        proxies = self.visual.added_proxies
        assert proxies is not None
        if self.config.proxy_init == "class_token":
            token = self.visual.class_embedding
            proxies.copy_(token + 0.1 * token.std() * torch.randn_like(proxies))
        else:
            nn.init.normal_(proxies, std=1.0)

    def _encode_video(self, name: str, pixels: Tensor) -> Tensor:
        shape = "[B, 3, H, W]" if name == "middle" else "[B, T, 3, H, W]"
        side_px = self.image_size_px
        if pixels.ndim != shape.count(",") + 1 or pixels.shape[-3:] != (3, side_px, side_px) or 0 in pixels.shape[1:]:
            raise InputError(
                f"{name} must be {shape} with T >= 1 and {side_px} x {side_px} px for {self.config.name}, "
                f"got {list(pixels.shape)}"
            )
        self._check_device(name, pixels)
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise InputError(f"{name} must be uint8 or normalised floats, got {pixels.dtype}")
        video_BTCHW = pixels.unsqueeze(1) if name == "middle" else pixels
        return _unit(self.visual(video_BTCHW, self.pixel_mean, self.pixel_std))

    def _checked_ids(self, name: str, ids_BL: Tensor) -> Tensor:
        if ids_BL.ndim != 2 or ids_BL.dtype != torch.int64 or not ids_BL.shape[1]:
            raise InputError(f"{name} must be int64 [B, L] with L >= 1, got {ids_BL.dtype} {list(ids_BL.shape)}")
        self._check_device(name, ids_BL)
        text = self.architecture.text_cfg
        if ids_BL.device.type == "cpu" and not torch.compiler.is_compiling():
            ids_BL = trim_texts(ids_BL, text)
        if ids_BL.shape[1] > text.context_length:
            raise InputError(
                f"{name} has {ids_BL.shape[1]} tokens, but {self.config.name} takes {text.context_length}; "
                f"tokenize with a context length of at most {text.context_length}"
            )
        return ids_BL

    def _encode_texts(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unit features of every text; in one pass where that costs less than it saves.

        A GPU at small batches waits for launches, so that padding is cheaper than a second pass; a CPU computes every
        token that it is given. The choice must not hang on the lengths at hand: under ZeRO 3 all ranks have to call the
        tower equally often.
        """
        if not given:
            return {}
        on_gpu = self.pixel_mean.device.type == "cuda"
        if not (self.few_text_lengths or on_gpu):
            return {name: _unit(self.text(ids_BL)) for name, ids_BL in given.items()}
        length = max(ids_BL.shape[1] for ids_BL in given.values())
        if self.few_text_lengths:
            length = text_length(length, self.architecture.text_cfg.context_length)
        padded = [F.pad(ids_BL, (0, length - ids_BL.shape[1])) for ids_BL in given.values()]
        features = torch.split(_unit(self.text(torch.cat(padded))), [len(ids_BL) for ids_BL in padded])
        return dict(zip(given, features, strict=True))

    def _check_device(self, name: str, value: Tensor) -> None:
        if value.device != self.pixel_mean.device:
            raise InputError(f"{name} is on {value.device}, the model on {self.pixel_mean.device}; move one of them")


def _unit(features_BD: Tensor) -> Tensor:
    """Unit length, computed in float32 at least."""
    wide = features_BD if features_BD.dtype == torch.float64 else features_BD.float()
    return F.normalize(wide, dim=-1)
