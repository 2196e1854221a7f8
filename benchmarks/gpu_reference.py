"""What a GPU allows: the mathematics of CLIP-ViP in plain torch, as one CUDA graph. Nothing of `pipeline` is imported.

    python3 -m benchmarks.gpu_reference                      # B/32, 32 and 128 clips
    python3 -m benchmarks.gpu_reference b16 64               # model, clips

Shapes: B clips, T frames, L tokens, M proxies, P patches, W width, D joint dimension.

    video [B, T, 3, H, W], middle [B, 3, H, W], subtitle and caption [B, L] -> V-S,C + F-C -> AdamW

bf16 autocast over fp32 parameters, patches as one matrix product, both texts in one pass, every block compiled, then
forward, loss and backward captured as one graph; the optimizer is torch's fused AdamW, without clipping, without a read
from the device, without data. The trainer is measured against this: what it loses is the price of being a trainer.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its clips."""

    patch_px: int = 32
    image_px: int = 224
    width: int = 768
    heads: int = 12
    layers: int = 12
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12
    vocabulary: int = 49408
    joint: int = 512
    frames: int = 12
    tokens: int = 70
    proxies: int = 4

    @property
    def patches(self) -> int:
        """Of one frame."""
        return (self.image_px // self.patch_px) ** 2


SHAPES = {
    "b32": Shape(),
    "b16": Shape(patch_px=16),
    "tiny": Shape(
        patch_px=8, image_px=16, width=32, heads=2, layers=2, text_width=16, text_heads=2, text_layers=2,
        vocabulary=64, joint=16, frames=3, tokens=8, proxies=3,
    ),
}  # fmt: skip
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class Block(nn.Module):
    """Pre-norm attention and MLP. `frames` > 1: patches attend to their frame and the proxies; 0: causal."""

    def __init__(self, width: int, heads: int, frames: int, proxies: int) -> None:
        super().__init__()
        self.heads, self.frames, self.proxies = heads, frames, proxies
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BNW: Tensor, frames: int) -> Tensor:
        """[B, N, W] to [B, N, W]."""
        qkv = torch.unflatten(self.qkv(self.norm_1(x_BNW)), -1, (3, self.heads, -1)).transpose(1, 3)
        x_BNW = x_BNW + self.out(self._attend(*qkv.unbind(2), frames).transpose(1, 2).flatten(2))
        hidden = self.wide(self.norm_2(x_BNW))
        return x_BNW + self.narrow(F.silu(1.702 * hidden) / 1.702)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
        """[B, H, N, E] each."""
        if frames < 2:
            return F.scaled_dot_product_attention(q, k, v, is_causal=frames == 0)
        m = self.proxies
        of_proxies = F.scaled_dot_product_attention(q[:, :, :m], k, v)

        def by_frame(x: Tensor) -> Tensor:
            patches = torch.unflatten(x[:, :, m:], 2, (frames, -1)).transpose(1, 2)
            proxies = x[:, None, :, :m].expand(-1, frames, -1, -1, -1)
            return torch.cat([proxies, patches], 3).flatten(0, 1)

        queries = torch.unflatten(q[:, :, m:], 2, (frames, -1)).transpose(1, 2).flatten(0, 1)
        of_patches = F.scaled_dot_product_attention(queries, by_frame(k), by_frame(v))
        of_patches = torch.unflatten(of_patches, 0, (-1, frames)).transpose(1, 2).flatten(2, 3)
        return torch.cat([of_proxies, of_patches], 2)


class Model(nn.Module):
    """Both towers and the logit scale, at random weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, wide = shape.width, shape.text_width
        self.patch = nn.Parameter(0.02 * torch.randn(width, 3 * shape.patch_px**2))
        self.proxies = nn.Parameter(0.02 * torch.randn(shape.proxies, width))
        self.position = nn.Parameter(0.02 * torch.randn(shape.patches + 1, width))
        self.temporal = nn.Parameter(0.02 * torch.randn(shape.frames, 1, width))
        self.norm_pre, self.norm_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project = nn.Parameter(0.02 * torch.randn(width, shape.joint))
        blocks = [Block(width, shape.heads, shape.frames, shape.proxies) for _ in range(shape.layers)]
        self.video_blocks = nn.ModuleList(blocks)
        self.words = nn.Embedding(shape.vocabulary, wide)
        self.text_position = nn.Parameter(0.02 * torch.randn(shape.tokens, wide))
        self.text_blocks = nn.ModuleList([Block(wide, shape.text_heads, 0, 0) for _ in range(shape.text_layers)])
        self.text_norm = nn.LayerNorm(wide)
        self.text_project = nn.Parameter(0.02 * torch.randn(wide, shape.joint))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1))

    def video(self, pixels_BTCHW: Tensor) -> Tensor:
        """uint8 [B, T, 3, H, W] to unit vectors [B, D]."""
        shape = self.shape
        x = (pixels_BTCHW / 255 - self.mean) / self.std
        x = torch.unflatten(torch.unflatten(x, -1, (-1, shape.patch_px)), 3, (-1, shape.patch_px))
        patches = F.linear(x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3), self.patch)
        patches = (patches + self.position[1:] + self.temporal[: x.shape[1]]).flatten(1, 2)
        proxies = (self.proxies + self.position[0]).to(patches.dtype).expand(len(x), -1, -1)
        tokens = self.norm_pre(torch.cat([proxies, patches], 1))
        for block in self.video_blocks:
            tokens = block(tokens, x.shape[1])
        return F.normalize((self.norm_post(tokens[:, 0]) @ self.project).float(), dim=-1)

    def text(self, ids_BL: Tensor) -> Tensor:
        """int64 [B, L] to unit vectors [B, D], read at the largest id."""
        x = self.words(ids_BL) + self.text_position[: ids_BL.shape[1]]
        for block in self.text_blocks:
            x = block(x, 0)
        ends = x[torch.arange(len(x), device=x.device), ids_BL.argmax(1)]
        return F.normalize((self.text_norm(ends) @ self.text_project).float(), dim=-1)

    def forward(self, video: Tensor, middle: Tensor, subtitle: Tensor, caption: Tensor) -> Tensor:
        """The loss of one batch."""
        s, c = self.text(torch.cat([subtitle, caption])).chunk(2)
        v, f = self.video(video), self.video(middle.unsqueeze(1))
        with torch.autocast(v.device.type, enabled=False):
            return final_loss(v, s, f, c, self.logit_scale.exp())


def final_loss(v: Tensor, s: Tensor, f: Tensor, c: Tensor, scale: Tensor) -> Tensor:
    """V-S,C + F-C: six cross-entropies, summed; a clip's other text is no negative of its video."""
    own, itself = torch.arange(len(v), device=v.device), torch.eye(len(v), dtype=torch.bool, device=v.device)
    to_s, to_c, of_frames = scale * v @ s.T, scale * v @ c.T, scale * f @ c.T
    total = F.cross_entropy(to_s.T, own) + F.cross_entropy(to_c.T, own)
    total = total + F.cross_entropy(torch.cat([to_s, to_c.masked_fill(itself, -torch.inf)], 1), own)
    total = total + F.cross_entropy(torch.cat([to_c, to_s.masked_fill(itself, -torch.inf)], 1), own)
    return total + F.cross_entropy(of_frames, own) + F.cross_entropy(of_frames.T, own)


def random_batch(shape: Shape, clips: int, device: torch.device) -> dict[str, Tensor]:
    """Pixels and ids of one batch; every text has a largest id at its end."""
    draw = torch.Generator().manual_seed(0)
    size = (clips, shape.frames, 3, shape.image_px, shape.image_px)
    video = torch.randint(0, 256, size, dtype=torch.uint8, generator=draw)
    ids = torch.randint(1, shape.vocabulary - 1, (2, clips, shape.tokens), generator=draw)
    ids[:, :, -1] = shape.vocabulary - 1
    batch = {"video": video, "middle": video[:, 0].clone(), "subtitle": ids[0], "caption": ids[1]}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def measure(base: str, clips: int, device: torch.device, *, steps: int = 12, warm: int = 4) -> dict[str, Any]:
    """Seconds a step (median), peak memory, the loss before and after. On a CPU without compiler and graph."""
    shape, on_gpu = SHAPES[base], device.type == "cuda"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = Model(shape).to(device)
    batch = random_batch(shape, clips, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    if on_gpu:
        torch._dynamo.config.cache_size_limit = 64
        for block in [*model.video_blocks, *model.text_blocks]:
            block.compile(fullgraph=True, dynamic=False)

    def gradient() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=not on_gpu):
            loss: Tensor = model(**batch)
        loss.backward()
        return loss.detach()

    if not on_gpu:  # a rehearsal
        steps, warm = 2, 0
    began = time.perf_counter()
    if on_gpu:
        replay, static_loss = _captured(gradient, optimizer)

        def step() -> Tensor:
            replay()
            optimizer.step()
            return static_loss
    else:

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = gradient()
            optimizer.step()
            return loss

    first_loss = float(step())
    first_s = time.perf_counter() - began
    times_s = []
    for number in range(warm + steps):
        start = time.perf_counter()
        last = step()
        if on_gpu:
            torch.cuda.synchronize()
        if number >= warm:
            times_s.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    losses = [first_loss, float(last)]
    return {"step_s": statistics.median(times_s), "first_s": first_s, "peak_gib": peak, "losses": losses}


def _captured(gradient: Any, optimizer: torch.optim.Optimizer) -> tuple[Any, Tensor]:
    """Forward, loss and backward as one graph: its replay, and where the loss will lie."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            gradient()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = gradient()
    return graph.replay, loss


def main(argv: list[str]) -> int:
    """Print a line per case."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [(argv[0], int(argv[1]))] if argv else [("b32", 32), ("b32", 128)]
    for base, clips in cases:
        found = measure(base, clips, device)
        memory = "" if found["peak_gib"] is None else f", peak {found['peak_gib']:.1f} GiB"
        rate = clips / found["step_s"]
        print(f"{base}, {clips} clips: {found['step_s'] * 1e3:.1f} ms, {rate:.0f} clips/s{memory}, on {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
