"""Features of videos and texts, over all ranks, without a padded or repeated item.

N items are cut into batches by their number alone, and each batch is encoded on one rank: features have the same bits
for any number of ranks. Every rank makes the same number of forward calls, because ZeRO-3 gathers weights in each of
them; a rank that runs out of batches encodes a blank item and drops the result.

    videos_ND = encode_batches(lambda video: encode(video=video).video_BD, batches, ...)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange, reduce
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.data.batch import without_padding
from pipeline.dist import gather_values, is_initialized, share_of, world_size
from pipeline.model.clip_vip import Features

Encode = Callable[..., Features]
"""The model or the engine, in evaluation mode: called with `video=` or `caption=`."""


class Tokenize(Protocol):
    """`Tokenizer` of the model: of some number of tokens."""

    def __call__(self, texts: list[str]) -> Tensor:
        """int64 [n, tokens], padded with 0, the end token kept where a text is cut."""
        ...

    def whole(self, text: str) -> Tensor:
        """int64 [L]: one text uncut, from the start token to the end token."""
        ...


def span_of_rank(num_items: int, batch_size: int) -> tuple[int, int]:
    """The contiguous items [start, stop) that this rank encodes: whole batches of the global cut."""
    batches = share_of(range(-(-num_items // batch_size)))
    if len(batches) == 0:
        return 0, 0
    return batches[0] * batch_size, min((batches[-1] + 1) * batch_size, num_items)


@torch.no_grad()
def encode_batches(
    forward: Callable[[Tensor], Tensor | None], batches: Iterable[Tensor], blank: Tensor, num_batches: int
) -> Tensor:
    """Features [N, D], float32 on the CPU, of all ranks' `batches` in rank order. Collective."""
    features = [_forward(forward, batch) for batch in batches]
    for _ in range(-(-num_batches // world_size()) - len(features)):
        features.append(_forward(forward, blank)[:0])
    return gather_rows(torch.cat(features), device=blank.device)


def encode_texts(encode: Encode, windows: list[Tensor], *, batch_size: int, device: torch.device | str) -> Tensor:
    """Features [N, D] of texts. `windows`: per text its token ids [windows, L]; several windows are averaged."""
    owner = torch.repeat_interleave(torch.arange(len(windows)), torch.tensor([len(rows) for rows in windows]))
    ids_WL = torch.cat(windows)
    start, stop = span_of_rank(len(ids_WL), batch_size)
    features_WD = encode_batches(
        lambda ids: encode(caption=ids).caption_BD,
        (without_padding(rows).to(device) for rows in torch.split(ids_WL[start:stop], batch_size) if len(rows)),
        blank=ids_WL[:1].to(device),
        num_batches=-(-len(ids_WL) // batch_size),
    )
    if len(features_WD) == len(windows):
        return features_WD
    summed_ND = torch.zeros(len(windows), features_WD.shape[1]).index_add_(0, owner, features_WD)
    return normalize(summed_ND, dim=-1)


def encode_parts(encode: Encode, video_BTCHW: Tensor, num_parts: int) -> Tensor | None:
    """Features [B, D] of videos that were read as `num_parts` consecutive clips: the normalised mean of the parts."""
    if num_parts == 1:
        return encode(video=video_BTCHW).video_BD
    parts = rearrange(video_BTCHW, "b (part t) c h w -> (b part) t c h w", part=num_parts)
    features = encode(video=parts).video_BD
    if features is None:
        return None
    return normalize(reduce(features.float(), "(b part) d -> b d", "mean", part=num_parts), dim=-1)


def gather_rows(local: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """All ranks' rows [n_rank, D] in rank order, on the CPU of every rank. Padding exists in transit only."""
    if not is_initialized():
        return local
    counts = gather_values(len(local))
    padded = torch.zeros(max(counts), *local.shape[1:], dtype=local.dtype, device=device)
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count].cpu() for part, count in zip(parts, counts, strict=True)])


def tokenize_texts(
    tokenizer: Callable[[int], Tokenize], texts: list[str], num_tokens: int, *, window: bool
) -> list[Tensor]:
    """Token ids of each text: one row of `num_tokens`, or as many windows as the text needs.

    A window is the start token, the next piece of the text, and the end token.
    """
    tokenize = tokenizer(num_tokens)
    rows = tokenize(texts)
    windows = list(torch.split(rows, 1))
    if not window:
        return windows
    # A full last place means that the text may have been cut: its own length decides.
    full = [number for number, row in enumerate(rows) if row[-1] != 0]
    for number in full:
        windows[number] = _windows(tokenize.whole(texts[number]), num_tokens)
    return windows


def _windows(ids_L: Tensor, num_tokens: int) -> Tensor:
    """[L] with start and end token to [windows, num_tokens]."""
    start_token, content, end_token = ids_L[:1], ids_L[1:-1], ids_L[-1:]
    rows = []
    for piece in torch.split(content, num_tokens - 2):
        row = torch.zeros(num_tokens, dtype=ids_L.dtype)
        row[: len(piece) + 2] = torch.cat([start_token, piece, end_token])
        rows.append(row)
    return torch.stack(rows)


def _forward(forward: Callable[[Tensor], Tensor | None], batch: Tensor) -> Tensor:
    features = forward(batch)
    assert features is not None, "the encoder returned no feature for the input it was given"
    return features.float().cpu()


def rows_of_ranks(columns: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Concatenate each of some equally long arrays over the ranks, in rank order."""
    gathered = gather_values(columns)
    return [np.concatenate(parts) for parts in zip(*gathered, strict=True)]


def only_good(batches: Iterator[tuple[list[str], Tensor, Tensor]], bad: list[str]) -> Iterator[Tensor]:
    """The videos of a reader's batches; the ids of unreadable ones are added to `bad`, their rows are kept."""
    for clip_ids, video, ok in batches:
        bad += [clip_id for clip_id, good in zip(clip_ids, ok.tolist(), strict=True) if not good]
        yield video
