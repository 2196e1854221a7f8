"""Text-video retrieval on one set: encode, rank in both directions, and state over how many queries.

    questions -> videos [V, D], texts [N, D] -> exact ranks t2v [Q], v2t [V] -> metrics

All ranks take part and get the same answer; `encode` is the model or the engine in evaluation mode.

    metrics = evaluate_retrieval(engine, model.tokenizer, model.image_size_px, config, device=engine.device)
    found = retrieve(...)         # the same with features and ranks, for re-scoring and for the page
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.clips import ClipReader
from pipeline.data.format import unicode_forms
from pipeline.dist import gather_values
from pipeline.errors import RunError
from pipeline.evaluation.counting import pair_scores
from pipeline.evaluation.directions import query_features, rank_both_ways
from pipeline.evaluation.encoding import (
    Encode,
    Tokenize,
    encode_batches,
    encode_parts,
    encode_texts,
    only_good,
    span_of_rank,
    tokenize_texts,
)
from pipeline.evaluation.metrics import recall_metrics
from pipeline.evaluation.protocol import Questions, RetrievalSetConfig, read_questions, without_videos
from pipeline.evaluation.ranking import Ranks

NAMED_MISSING = 5


@dataclass(frozen=True)
class Retrieval:
    """Everything that came out of one set."""

    config: RetrievalSetConfig
    questions: Questions
    """Without the missing videos and their queries."""
    num_asked: int
    """Queries in the file, those of missing videos included."""
    missing: dict[str, str]
    """clip_id -> why its video could not be used."""
    texts_ND: Tensor
    """Features of the distinct texts."""
    videos_VD: Tensor
    """Features of the videos; the first `questions.num_gallery` are the gallery."""
    t2v: Ranks
    v2t: Ranks

    @property
    def queries_QD(self) -> Tensor:
        """Features of the queries."""
        return query_features(self.texts_ND, self.questions)

    @property
    def gallery_GD(self) -> Tensor:
        """Features of the gallery videos."""
        return self.videos_VD[: self.questions.num_gallery]

    def metrics(self) -> dict[str, float]:
        """Flat numbers: t2v_*, v2t_*, pairs_*, num_queries, num_videos."""
        ties = self.config.ties
        return {
            **recall_metrics(self.t2v.by_rule(ties), "t2v"),
            **recall_metrics(self.v2t.by_rule(ties), "v2t"),
            **{f"pairs_{kind}": self._pair_accuracy(kind) for kind in self.questions.pairs},
            "num_queries": float(len(self.questions.query_ids)),
            "num_queries_asked": float(self.num_asked),
            "num_videos": float(self.questions.num_gallery),
        }

    def _pair_accuracy(self, kind: str) -> float:
        """How often a video prefers its text to the distractor; a tie counts half."""
        rows = self.questions.pairs[kind]
        videos = torch.from_numpy(rows.videos)
        right, wrong = (
            pair_scores(self.videos_VD, self.texts_ND, videos, torch.from_numpy(texts))
            for texts in (rows.texts, rows.distractors)
        )
        return float(((right > wrong).double() + 0.5 * (right == wrong).double()).mean())


def evaluate_retrieval(
    encode: Encode,
    tokenizer: Callable[[int], Tokenize],
    image_size_px: int,
    config: RetrievalSetConfig,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The metrics of one set, equal on every rank. `tokenizer(context_length)` gives a tokeniser. Collective."""
    return retrieve(encode, tokenizer, image_size_px, config, device=device).metrics()


def retrieve(
    encode: Encode,
    tokenizer: Callable[[int], Tokenize],
    image_size_px: int,
    config: RetrievalSetConfig,
    *,
    device: torch.device | str = "cpu",
) -> Retrieval:
    """Encode and rank one set. Raises RunError when more videos are missing than the set allows. Collective."""
    asked = read_questions(config)
    videos_VD, missing = encode_videos(encode, asked.clip_ids, image_size_px, config, device=device)
    _check_missing(missing, len(asked.clip_ids), config)
    questions = without_videos(asked, missing)
    if not questions.query_ids:
        raise RunError(f"set {config.name}: no query is left, its videos {_named(missing)}; add them to the shards")
    windows = tokenize_texts(tokenizer, asked.texts, config.num_text_tokens, window=config.long_texts == "window")
    texts_ND = encode_texts(encode, windows, batch_size=config.batch_size, device=device)
    if not bool(texts_ND.isfinite().all() and videos_VD.isfinite().all()):
        raise RunError(f"set {config.name}: the model gives features that are not finite; its weights are broken")
    t2v, v2t = rank_both_ways(texts_ND, videos_VD, questions, block_size=config.block_size, device=device)
    return Retrieval(config, questions, len(asked.query_ids), missing, texts_ND, videos_VD, t2v, v2t)


def check_set(config: RetrievalSetConfig) -> None:
    """Raise where `retrieve` would for want of videos: cheap, so that a run fails before it trains, not after."""
    clip_ids = read_questions(config).clip_ids
    names = _names_in_shards(clip_ids, config)
    missing = {clip_id: "not in the shards" for clip_id in clip_ids if clip_id not in names}
    _check_missing(missing, len(clip_ids), config)


def encode_videos(
    encode: Encode,
    clip_ids: list[str],
    image_size_px: int,
    config: RetrievalSetConfig,
    *,
    device: torch.device | str,
) -> tuple[Tensor, dict[str, str]]:
    """Features of the videos that could be read, in the order of `clip_ids`; why the others could not. Collective."""
    num_frames = config.num_frames * config.clips_per_video
    names = _names_in_shards(clip_ids, config)
    missing = {clip_id: "not in the shards" for clip_id in clip_ids if clip_id not in names}
    wanted = [names[clip_id] for clip_id in clip_ids if clip_id in names]
    reader = ClipReader(config.shards, num_frames=num_frames, image_size_px=image_size_px, clip_ids=wanted)
    start, stop = span_of_rank(len(wanted), config.batch_size)
    bad_here: list[str] = []
    batches = reader.batches(start, stop, config.batch_size, config.num_workers) if stop > start else iter(())
    features = encode_batches(
        lambda video: encode_parts(encode, video, config.clips_per_video),
        (video.to(device) for video in only_good(batches, bad_here)),
        blank=torch.zeros(1, num_frames, 3, image_size_px, image_size_px, dtype=torch.uint8, device=device),
        num_batches=-(-len(wanted) // config.batch_size),
    )
    bad = {clip_id for part in gather_values(bad_here) for clip_id in part}
    missing |= {clip_id: "unreadable" for clip_id, name in names.items() if name in bad}
    return features[torch.tensor([clip_id not in bad for clip_id in wanted])], missing


def _names_in_shards(clip_ids: list[str], config: RetrievalSetConfig) -> dict[str, str]:
    """Asked clip id -> clip id in the shard set, of the videos that it holds: the same, or the same name in the other
    Unicode form. Raises RunError when it holds none of them."""
    there = set(ClipReader(config.shards, num_frames=1, image_size_px=1).clip_ids)
    found = {clip_id: next((f for f in unicode_forms(clip_id) if f in there), None) for clip_id in clip_ids}
    names = {clip_id: name for clip_id, name in found.items() if name is not None}
    if not names:
        raise RunError(f"set {config.name}: none of its {len(clip_ids)} videos is in {config.shards}; check both paths")
    return names


def _check_missing(missing: dict[str, str], num_videos: int, config: RetrievalSetConfig) -> None:
    """Raise where more are missing than the set allows, and where all are, whatever it allows."""
    if len(missing) > config.max_missing_fraction * num_videos or len(missing) == num_videos:
        raise RunError(
            f"set {config.name}: {len(missing)} of {num_videos} videos cannot be used, max_missing_fraction is "
            f"{config.max_missing_fraction}: {_named(missing)}; "
            "add them to the shards, or raise max_missing_fraction (the report then states N of N)"
        )


def _named(missing: dict[str, str]) -> str:
    named = ", ".join(f"{clip_id} ({why})" for clip_id, why in list(missing.items())[:NAMED_MISSING])
    return f"{named}{', ...' if len(missing) > NAMED_MISSING else ''}"
