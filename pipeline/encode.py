"""Videos and texts to vectors: the plain Python way in, and a command that encodes files into a table.

    from pipeline import CLIPViP
    model = CLIPViP.load("runs/b32")                       # a run, checkpoint or exported folder, or an official .pt
    videos = model.encode_videos(["a.mp4", "b.mp4"])       # float32 [2, D], unit norm
    texts = model.encode_texts(["a dog runs left"])        # float32 [1, D], unit norm

    python -m pipeline.encode a.mp4 b.mp4 --model runs/b32 --out features.parquet

The table has a row per video: path, feature (D floats). Batches are published one by one in a folder beside
the output and joined at the end: after an interruption the same command goes on. A file that cannot be read is named
and skipped; the exit code is then 1, and the next call tries it again.
"""

import argparse
import hashlib
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.data.frames import read_video
from pipeline.data.transform import resize
from pipeline.errors import InputError, run_command
from pipeline.feature_table import FeatureTable
from pipeline.model import clip_vip
from pipeline.model.text_tower import trim_texts
from pipeline.model.weights import load_model_as

DEFAULT_FRAMES = 12


class CLIPViP(clip_vip.CLIPViP):
    """A model that reads files and texts itself."""

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> Self:
        """From a run, checkpoint, exported or Hugging Face folder, or an official .pt; on a GPU if there is one."""
        return load_model_as(cls, path).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def num_frames(self) -> int:
        """Frames taken of a video when nothing else is asked: those of the temporal embedding."""
        return self.config.num_temporal or DEFAULT_FRAMES

    @torch.inference_mode()
    def encode_videos(
        self, paths: Sequence[str | Path], *, num_frames: int | None = None, batch_size: int = 8
    ) -> Tensor:
        """Uniform frames of each file, squashed to the model's square: float32 [n, D] on the CPU, unit norm.

        Raises InputError that names the first file which is no video.
        """
        if isinstance(paths, str | Path):
            raise InputError("encode_videos takes a list of files, not one file; write [path]")
        features = [torch.empty(0, self.architecture.embed_dim)]
        for start in range(0, len(paths), batch_size):
            videos = [self.read_frames(path, num_frames) for path in paths[start : start + batch_size]]
            features.append(self.encode_frames(torch.stack(videos)))
        return torch.cat(features)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """float32 [n, D] on the CPU, unit norm; a text beyond the model's context is cut, its EOS kept."""
        if isinstance(texts, str):
            raise InputError("encode_texts takes a list of texts, not one text; write [text]")
        tokenize = self.tokenizer(self.architecture.text_cfg.context_length)
        features = [torch.empty(0, self.architecture.embed_dim)]
        for start in range(0, len(texts), batch_size):
            ids_BL = trim_texts(tokenize(list(texts[start : start + batch_size])), self.architecture.text_cfg)
            features.append(_to_cpu(self(subtitle=ids_BL.to(self.pixel_mean.device)).subtitle_BD))
        return torch.cat(features)

    @torch.inference_mode()
    def encode_frames(self, video_BTCHW: Tensor) -> Tensor:
        """uint8 [B, T, 3, H, W] to float32 [B, D] on the CPU."""
        return _to_cpu(self(video=video_BTCHW.to(self.pixel_mean.device)).video_BD)

    def read_frames(self, path: str | Path, num_frames: int | None = None) -> Tensor:
        """uint8 [T, 3, H, W] of one video file of any length."""
        num_frames = self.num_frames if num_frames is None else num_frames
        if num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {num_frames}")
        squares_THWC = read_video(path, num_frames=num_frames, fit=lambda frame: resize(frame, self.image_size_px))
        return torch.from_numpy(squares_THWC).permute(0, 3, 1, 2)

    def fingerprint(self) -> str:
        """16 hex digits over the weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def _to_cpu(features_BD: Tensor | None) -> Tensor:
    assert features_BD is not None
    return features_BD.float().cpu()


def main(argv: list[str]) -> int:
    """Encode files that the table does not hold yet; 1 when one could not be read."""
    options = _parser().parse_args(argv)
    paths = list(dict.fromkeys(options.videos))
    model = CLIPViP.load(options.model)
    num_frames = options.num_frames or model.num_frames
    table = FeatureTable.open(options.out, facts={"model": model.fingerprint(), "num_frames": str(num_frames)})
    missing = [path for path in paths if path not in table]
    failed = 0
    with tqdm(total=len(paths), initial=len(paths) - len(missing), unit="video", file=sys.stderr) as progress:
        for batch, videos, errors in _read_batches(model, missing, num_frames, options.batch_size, options.workers):
            for error in errors:
                progress.write(f"skipped: {error}", file=sys.stderr)
            if batch:
                table.add(batch, model.encode_frames(torch.stack(videos)).numpy())
            failed += len(errors)
            progress.update(len(batch) + len(errors))
    num_rows = table.close(paths)
    print(f"{options.out}: {num_rows} videos" + (f", {failed} could not be read" if failed else ""))
    return 1 if failed else 0


def _read_batches(
    model: CLIPViP, paths: list[str], num_frames: int, batch_size: int, num_workers: int
) -> Iterator[tuple[list[str], list[Tensor], list[InputError]]]:
    """Batches of (paths, videos, errors); the next batch is decoded while one is encoded."""
    parts = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    waiting: deque[tuple[list[str], list[Future[Tensor]]]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        while parts or waiting:
            while parts and len(waiting) < 2:
                part = parts.pop(0)
                waiting.append((part, [pool.submit(model.read_frames, path, num_frames) for path in part]))
            part, futures = waiting.popleft()
            read, videos, errors = [], [], []
            for path, future in zip(part, futures, strict=True):
                try:
                    videos.append(future.result())
                    read.append(path)
                except InputError as error:
                    errors.append(error)
            yield read, videos, errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.encode", description="Encode videos into a table.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files of any length")
    parser.add_argument("--model", required=True, help="a run, checkpoint or exported folder, or an official .pt")
    parser.add_argument("--out", required=True, type=Path, help="the table to write: features.parquet")
    parser.add_argument("--num-frames", type=_positive, help="frames of each video; default: the model's")
    parser.add_argument("--batch-size", type=_positive, default=8, help="videos encoded together")
    parser.add_argument("--workers", type=_positive, default=2, help="threads that decode")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    run_command(main)
