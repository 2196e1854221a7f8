"""CLIP-ViP written down a second time, on a state dict under the official names, to test configurations at random.

Dense and slow on purpose: one masked softmax over all pairs of tokens, texts padded with EOS to the end, one text after
the other where a choice is made, optimizer by hand. It shares no code with the package.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.pipeline.plain_losses import plain_loss

State = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and a batch, as `config` in the golden file names them."""

    patch_px: int
    image_px: int
    frames: int
    temporal: int
    proxies: int
    vision_width: int = 24
    vision_heads: int = 3
    vision_layers: int = 2
    text_width: int = 16
    text_heads: int = 2
    text_layers: int = 2
    vocabulary: int = 97
    context: int = 21
    projection: int = 12
    clips: int = 5

    def architecture(self) -> dict[str, object]:
        """The same as an open_clip model JSON."""
        return {
            "embed_dim": self.projection,
            "quick_gelu": True,
            "vision_cfg": {
                "layers": self.vision_layers,
                "width": self.vision_width,
                "head_width": self.vision_width // self.vision_heads,
                "patch_size": self.patch_px,
                "image_size": self.image_px,
            },
            "text_cfg": {
                "context_length": self.context,
                "vocab_size": self.vocabulary,
                "width": self.text_width,
                "heads": self.text_heads,
                "layers": self.text_layers,
            },
        }


def make_state(shape: Shape, draw: torch.Generator) -> State:
    """Random float64 weights of the released form, without prefix and index buffers."""

    def normal(*size: int, std: float = 0.15, mean: float = 0.0) -> Tensor:
        # Values of float32, as in the released files.
        return (mean + std * torch.randn(*size, generator=draw)).double()

    width, patches = shape.vision_width, (shape.image_px // shape.patch_px) ** 2
    vision, text = "vision_model.", "text_model."
    state = {
        "logit_scale": torch.tensor(3.0, dtype=torch.float64),
        f"{vision}embeddings.class_embedding": normal(width),
        f"{vision}embeddings.added_cls": normal(shape.proxies - 1, width, std=1.0),
        f"{vision}embeddings.temporal_embedding": normal(1, shape.temporal, width, std=0.5),
        f"{vision}embeddings.patch_embedding.weight": normal(width, 3, shape.patch_px, shape.patch_px),
        f"{vision}embeddings.position_embedding.weight": normal(patches + 1, width),
        f"{text}embeddings.token_embedding.weight": normal(shape.vocabulary, shape.text_width, std=0.5),
        f"{text}embeddings.position_embedding.weight": normal(shape.context, shape.text_width),
        "visual_projection.weight": normal(shape.projection, width, std=0.4),
        "text_projection.weight": normal(shape.projection, shape.text_width, std=0.4),
    }
    norms = [(f"{vision}pre_layrnorm", width), (f"{vision}post_layernorm", width)]
    norms.append((f"{text}final_layer_norm", shape.text_width))
    for tower, layers, size in (
        (vision, shape.vision_layers, width),
        (text, shape.text_layers, shape.text_width),
    ):
        for number in range(layers):
            layer = f"{tower}encoder.layers.{number}."
            norms += [(f"{layer}layer_norm1", size), (f"{layer}layer_norm2", size)]
            linears = [(f"self_attn.{part}_proj", size, size) for part in ("q", "k", "v", "out")]
            for name, rows, columns in (*linears, ("mlp.fc1", 4 * size, size), ("mlp.fc2", size, 4 * size)):
                state[f"{layer}{name}.weight"] = normal(rows, columns, std=0.25)
                state[f"{layer}{name}.bias"] = normal(rows)
    for name, size in norms:
        state[f"{name}.weight"], state[f"{name}.bias"] = normal(size, mean=1.0), normal(size)
    return state


def make_inputs(shape: Shape, draw: torch.Generator) -> dict[str, Tensor]:
    """Normalised pixels; texts that end in EOS, padded with EOS."""
    end = shape.vocabulary - 1
    texts = torch.full((2, shape.clips, shape.context), end)
    for row in texts.flatten(0, 1):
        length = int(torch.randint(1, shape.context - 1, (1,), generator=draw))
        row[0] = end - 1
        row[1:length] = torch.randint(0, end - 1, (length - 1,), generator=draw)
    video = torch.randn(shape.clips, shape.frames, 3, shape.image_px, shape.image_px, generator=draw).double()
    middle = torch.randn(shape.clips, 3, shape.image_px, shape.image_px, generator=draw).double()
    return {"video": video, "subtitle": texts[0], "middle": middle, "caption": texts[1]}


def features(state: State, shape: Shape, given: dict[str, Tensor]) -> list[Tensor]:
    """Video, subtitle, frame and caption: unit vectors [B, D]."""
    return [
        encode_video(state, shape, given["video"]),
        encode_text(state, shape, given["subtitle"]),
        encode_video(state, shape, given["middle"].unsqueeze(1)),
        encode_text(state, shape, given["caption"]),
    ]


def loss(name: str, state: State, shape: Shape, given: dict[str, Tensor]) -> Tensor:
    everyone = torch.ones(shape.clips, dtype=torch.bool)
    return plain_loss(name, *features(state, shape, given), state["logit_scale"].exp(), everyone, everyone)


def encode_video(state: State, shape: Shape, video: Tensor) -> Tensor:
    prefix = "vision_model.embeddings."
    positions = state[f"{prefix}position_embedding.weight"]
    kernel = state[f"{prefix}patch_embedding.weight"]
    clips, frames = video.shape[:2]
    proxies = torch.cat([state[f"{prefix}class_embedding"][None], state[f"{prefix}added_cls"]]) + positions[0]
    tokens, owner = [proxies.expand(clips, -1, -1)], [-1] * len(proxies)
    for frame in range(frames):
        place = (frame + 0.5) * shape.temporal / frames - 0.5  # linear, corners not aligned
        low = math.floor(place)
        low_vector, high_vector = (
            state[f"{prefix}temporal_embedding"][0, min(max(index, 0), shape.temporal - 1)] for index in (low, low + 1)
        )
        temporal = low_vector + (place - low) * (high_vector - low_vector)
        patches = F.conv2d(video[:, frame], kernel, stride=shape.patch_px).flatten(2).transpose(1, 2)
        tokens.append(patches + positions[1:] + temporal)
        owner += [frame] * patches.shape[1]
    owners = torch.tensor(owner)
    visible = (owners[:, None] == owners[None, :]) | (owners[:, None] == -1) | (owners[None, :] == -1)
    x = norm(state, "vision_model.pre_layrnorm", torch.cat(tokens, dim=1))
    for number in range(shape.vision_layers):
        x = layer(state, f"vision_model.encoder.layers.{number}.", x, shape.vision_heads, visible)
    pooled = norm(state, "vision_model.post_layernorm", x[:, 0])
    return F.normalize(pooled @ state["visual_projection.weight"].T, dim=-1)


def encode_text(state: State, shape: Shape, ids: Tensor) -> Tensor:
    prefix = "text_model.embeddings."
    x = state[f"{prefix}token_embedding.weight"][ids] + state[f"{prefix}position_embedding.weight"]
    visible = torch.ones(shape.context, shape.context, dtype=torch.bool).tril()
    for number in range(shape.text_layers):
        x = layer(state, f"text_model.encoder.layers.{number}.", x, shape.text_heads, visible)
    x = norm(state, "text_model.final_layer_norm", x)
    ends = [row.tolist().index(shape.vocabulary - 1) for row in ids]
    pooled = torch.stack([x[row, end] for row, end in enumerate(ends)])
    return F.normalize(pooled @ state["text_projection.weight"].T, dim=-1)


def layer(state: State, prefix: str, x: Tensor, heads: int, visible: Tensor) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{prefix}{name}.weight"].T + state[f"{prefix}{name}.bias"]

    y = norm(state, f"{prefix}layer_norm1", x)
    q, k, v = (linear(f"self_attn.{part}_proj", y).unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv")
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
    x = x + linear("self_attn.out_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    y = linear("mlp.fc1", norm(state, f"{prefix}layer_norm2", x))
    return x + linear("mlp.fc2", y * torch.sigmoid(1.702 * y))


def norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def train(
    name: str, state: State, shape: Shape, given: dict[str, Tensor], steps: int, lr: float, clip: float, warmup: float
) -> list[dict[str, float]]:
    """The official recipe on one batch, in place: clamp, loss, clipped gradient, old AdamW, decay after the update."""
    weight_decay, (beta1, beta2), eps, num_warmup = 0.05, (0.9, 0.98), 1e-6, int(warmup * steps)
    moments = {key: (torch.zeros_like(value), torch.zeros_like(value)) for key, value in state.items()}
    rows = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            state["logit_scale"].clamp_(0, math.log(200))
        for value in state.values():
            value.grad = None
            value.requires_grad_()
        value = loss(name, state, shape, given)
        value.backward()
        gradients = {key: tensor.grad for key, tensor in state.items() if tensor.grad is not None}
        total = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
        if step < num_warmup:
            rate = lr * step / num_warmup
        else:
            rate = lr * 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / (steps - num_warmup))) or 1e-8
        with torch.no_grad():
            for key, gradient in gradients.items():
                gradient = gradient * min(1.0, clip / (total + 1e-6))
                mean, square = moments[key]
                mean.mul_(beta1).add_((1 - beta1) * gradient)
                square.mul_(beta2).add_((1 - beta2) * gradient**2)
                size = rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
                state[key] -= size * mean / (square.sqrt() + eps)
                if "bias" not in key and key != "logit_scale":
                    state[key] -= rate * weight_decay * state[key]
        scale = min(max(state["logit_scale"].item(), 0.0), math.log(200))
        rows.append({"step": step, "loss": value.item(), "lr": rate, "grad_norm": total, "logit_scale": scale})
    return rows
