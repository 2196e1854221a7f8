"""Names of the same tensors in four worlds. Pure functions on state dicts, linear in the tensors (gradients map too).

ours           visual.transformer.resblocks.0.attn.in_proj_weight    text.token_embedding.weight
open_clip      visual.transformer.resblocks.0.attn.in_proj_weight    token_embedding.weight
Hugging Face   vision_model.encoder.layers.0.self_attn.q_proj.weight text_model.embeddings.token_embedding.weight
official       Hugging Face's names behind `clipmodel.`, and the proxies and the temporal embedding beside them

state = to_ours(torch.load("pretrain_clipvip_base_32.pt", weights_only=True))
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Format = Literal["ours", "open_clip", "hugging_face", "official"]
State = dict[str, Tensor]

OFFICIAL_PREFIX = "clipmodel."
ADDED_PROXIES = "visual.added_proxies"
TEMPORAL_EMBEDDING = "visual.temporal_embedding"
HF_ADDED_PROXIES = "vision_model.embeddings.added_cls"
HF_TEMPORAL_EMBEDDING = "vision_model.embeddings.temporal_embedding"

# Index buffers of older Hugging Face versions: left out on purpose.
HF_BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")

# ours -> (Hugging Face, transposed)
_NAMES = {
    "logit_scale": ("logit_scale", False),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight", False),
    "visual.class_embedding": ("vision_model.embeddings.class_embedding", False),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight", False),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight", False),
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias", False),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight", False),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias", False),
    "visual.proj": ("visual_projection.weight", True),
    "text.token_embedding.weight": ("text_model.embeddings.token_embedding.weight", False),
    "text.positional_embedding": ("text_model.embeddings.position_embedding.weight", False),
    "text.ln_final.weight": ("text_model.final_layer_norm.weight", False),
    "text.ln_final.bias": ("text_model.final_layer_norm.bias", False),
    "text.text_projection": ("text_projection.weight", True),
    ADDED_PROXIES: (HF_ADDED_PROXIES, False),
}
_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "text.transformer.resblocks.": "text_model.encoder.layers.",
}
# open_clip's CLIP class keeps the text tower at its root.
_OPENCLIP_TEXT = ("positional_embedding", "token_embedding.", "transformer.", "ln_final.", "text_projection")


def detect_format(state: Mapping[str, Tensor]) -> Format | None:
    """Which world the names of `state` come from; None for none that we know."""
    if any(name.startswith(OFFICIAL_PREFIX) for name in state) or HF_TEMPORAL_EMBEDDING in state:
        return "official"
    if "vision_model.embeddings.class_embedding" in state:
        return "hugging_face"
    if "visual.conv1.weight" in state:
        return "ours" if "text.token_embedding.weight" in state else "open_clip"
    return None


def to_ours(state: Mapping[str, Tensor]) -> State:
    """Any known format under our names. Names that we do not know stay as they are, for the strict load to report.

    The official form keeps an empty tensor where M = 1 adds no proxies; ours has none.
    """
    state = _renamed(state, detect_format(state))
    return {name: value for name, value in state.items() if name != ADDED_PROXIES or value.numel()}


def _renamed(state: Mapping[str, Tensor], world: Format | None) -> State:
    state = {name: value.reshape(1) if name.endswith("logit_scale") else value for name, value in state.items()}
    if world == "open_clip":
        return {f"text.{name}" if name.startswith(_OPENCLIP_TEXT) else name: value for name, value in state.items()}
    if world in ("hugging_face", "official"):
        return _from_hugging_face({name.removeprefix(OFFICIAL_PREFIX): value for name, value in state.items()})
    return state


def to_hugging_face(state: Mapping[str, Tensor]) -> State:
    """Ours under Hugging Face's names, proxies and temporal embedding included."""
    renamed: State = {}
    for name, value in state.items():
        if name == "logit_scale":
            renamed[name] = value.reshape([])
        elif name == TEMPORAL_EMBEDDING:
            renamed[HF_TEMPORAL_EMBEDDING] = value.unsqueeze(0)
        elif name in _NAMES:
            theirs, transposed = _NAMES[name]
            renamed[theirs] = value.T.contiguous() if transposed else value
        else:
            renamed |= _block_to_hugging_face(name, value)
    return renamed


def to_official(state: Mapping[str, Tensor]) -> State:
    """Ours in the form of the released weights: prefix, one flat dict, index buffers."""
    flat = to_hugging_face(state)
    width = flat["vision_model.embeddings.class_embedding"].shape[0]
    flat.setdefault(HF_ADDED_PROXIES, flat["vision_model.embeddings.class_embedding"].new_empty(0, width))
    for tower in ("text_model", "vision_model"):
        length = len(flat[f"{tower}.embeddings.position_embedding.weight"])
        flat[f"{tower}.embeddings.position_ids"] = torch.arange(length).unsqueeze(0)
    return {f"{OFFICIAL_PREFIX}{name}": value for name, value in flat.items()}


def _block_to_hugging_face(name: str, value: Tensor) -> State:
    for ours, theirs in _TOWERS.items():
        if not name.startswith(ours):
            continue
        number, _, part = name.removeprefix(ours).partition(".")
        if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = part.rpartition("_")[2]
            parts = zip("qkv", value.chunk(3), strict=True)
            return {f"{theirs}{number}.self_attn.{letter}_proj.{kind}": third.clone() for letter, third in parts}
        layer, _, kind = part.rpartition(".")
        if layer in _BLOCK_NAMES:
            return {f"{theirs}{number}.{_BLOCK_NAMES[layer]}.{kind}": value}
    raise KeyError(f"{name} has no name in a Hugging Face CLIPModel")


def _from_hugging_face(state: State) -> State:
    state = {name: value for name, value in state.items() if name not in HF_BUFFERS}
    renamed: State = {}
    for ours, (theirs, transposed) in _NAMES.items():
        if theirs in state:
            value = state.pop(theirs)
            renamed[ours] = value.T.contiguous() if transposed else value
    if HF_TEMPORAL_EMBEDDING in state:
        renamed[TEMPORAL_EMBEDDING] = state.pop(HF_TEMPORAL_EMBEDDING).squeeze(0)
    for ours, theirs in _TOWERS.items():
        renamed |= _blocks_from_hugging_face(state, ours, theirs)
    return renamed | state


def _blocks_from_hugging_face(state: State, ours: str, theirs: str) -> State:
    """Take the blocks of one tower out of `state`."""
    backward = {hf_name: name for name, hf_name in _BLOCK_NAMES.items()}
    renamed: State = {}
    for name in [name for name in state if name.startswith(theirs)]:
        number, _, part = name.removeprefix(theirs).partition(".")
        layer, _, kind = part.rpartition(".")
        if layer in backward:
            renamed[f"{ours}{number}.{backward[layer]}.{kind}"] = state.pop(name)
        elif layer == "self_attn.q_proj":
            names = [f"{theirs}{number}.self_attn.{letter}_proj.{kind}" for letter in "qkv"]
            if all(third in state for third in names):
                renamed[f"{ours}{number}.attn.in_proj_{kind}"] = torch.cat([state.pop(third) for third in names])
    return renamed
