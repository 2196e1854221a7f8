"""Generated captions: exact decoding, and a captioner whose captions come back out of the tars."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import InputError
from preprocess.caption import (
    CaptionerConfig,
    clip_seed,
    first_words,
    most_workers,
    open_captioner,
    worker_device,
)
from preprocess.caption_batches import CaptionBatches, Outcome
from preprocess.config import PreprocessConfig
from preprocess.generate import Rules, beam_search, nucleus
from preprocess.pack import read_facts
from preprocess.published import published_shards
from preprocess.records import Clip, Failure, Media
from preprocess.run import run
from preprocess.texts import ClipTexts

CPU = torch.device("cpu")
START, END, VOCABULARY = 5, 6, 7


def table_step(tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Logits that are a fixed random function of the whole text so far and the image."""
    rows = []
    for text, number in zip(tokens.tolist(), image.tolist(), strict=True):
        seed = hash((number, *text)) % 2**31
        rows.append(torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2)
    return torch.stack(rows)


def best_of_all(image: int, rules: Rules) -> list[int]:
    """Every text there is, scored by its mean log-probability."""
    scores: dict[tuple[int, ...], float] = {}
    for length in range(rules.min_tokens, rules.max_tokens + 1):
        for text in itertools.product(range(START), repeat=length):
            total, sofar = 0.0, [START]
            for token in (*text, END):
                logits = table_step(torch.tensor([sofar]), torch.tensor([image]))[0]
                logits[START] = -torch.inf
                if len(sofar) - 1 < rules.min_tokens:
                    logits[END] = -torch.inf
                if len(sofar) - 1 == rules.max_tokens:
                    logits[:END] = -torch.inf
                total += float(logits.log_softmax(-1)[token])
                sofar.append(token)
            scores[text] = total / (length + 1)
    return list(max(scores, key=lambda text: scores[text]))


def test_wide_beam_search_finds_the_best_text() -> None:
    rules = Rules(START, END, max_tokens=3, min_tokens=1)
    found = beam_search(table_step, 4, rules, num_beams=150, device=CPU)
    assert found == [best_of_all(image, rules) for image in range(4)]


def test_nucleus_depends_on_the_clip_only() -> None:
    rules = Rules(START, END, max_tokens=6)
    seeds = [clip_seed(1, f"v.{number}.mp4") for number in range(5)]

    def step(tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return table_step(tokens, torch.zeros_like(image))

    settings: dict[str, Any] = {"top_p": 0.9, "temperature": 1.0, "device": CPU}
    together = nucleus(step, rules, seeds=seeds, **settings)
    alone = [nucleus(step, rules, seeds=[seed], **settings)[0] for seed in seeds]
    assert together == alone and len({tuple(text) for text in together}) > 1
    greedy = nucleus(step, rules, seeds=seeds, **{**settings, "top_p": 1e-6})
    assert len({tuple(text) for text in greedy}) == 1
    assert all(START not in text and END not in text and len(text) <= 6 for text in together)


def test_first_words() -> None:
    assert first_words(" a  red\nstar on grass ", 3) == "a red star"
    assert first_words(" \n", 3) is None


def test_workers_share_all_gpus() -> None:
    assert [worker_device("auto", number, 3) for number in range(5)] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
        "cuda:0",
        "cuda:1",
    ]
    assert worker_device("auto", 5, 0) == worker_device("cpu", 5, 8) == "cpu"
    assert worker_device("cuda", 9, 8) == worker_device("cuda:1", 9, 8) == "cuda:1"
    for device, num_gpus in (("cuda", 0), ("cuda:9", 8), ("cuda:1", 1)):
        with pytest.raises(InputError, match=f"{num_gpus} GPUs"):
            worker_device(device, 0, num_gpus)
    with pytest.raises(ValidationError):
        CaptionerConfig(device="gpu")


@pytest.mark.parametrize(
    ("device", "num_workers", "num_gpus", "started"),
    [("auto", 96, 8, 32), ("auto", 96, 0, 96), ("cpu", 96, 8, 96), ("cuda:1", 96, 8, 4), ("auto", 3, 8, 3)],
)
def test_no_more_workers_than_the_gpus_hold(device: str, num_workers: int, num_gpus: int, started: int) -> None:
    assert most_workers(CaptionerConfig(device=device), num_workers, num_gpus) == started


def media(clip_id: str, data: bytes) -> Outcome:
    return Outcome("v", Media(Clip(clip_id, 0, 1), data, 5.0, 5, 32, 32), ClipTexts(None, None, None))


def test_batches_keep_order_and_fail_what_stays_without(
    painted: Callable[..., Path], finished_set: dict[str, Any]
) -> None:
    import tarfile

    shard = Path(finished_set["output"]) / f"{published_shards(Path(finished_set['output']))[0]}.tar"
    with tarfile.open(shard) as tar:
        data = next(tar.extractfile(member).read() for member in tar if member.name.endswith("mp4"))  # type: ignore[union-attr]
    sizes: list[int] = []

    def captioner(images: Any, clip_ids: Any) -> list[str | None]:
        sizes.append(len(images))
        assert all(image.shape == (32, 32, 3) for image in images)
        return [None if clip_id == "c3" else f"about {clip_id}" for clip_id in clip_ids]

    batches = CaptionBatches(captioner, CaptionerConfig(kind="open_clip", batch_size=3), "caption")
    outcomes = [media(f"c{number}", data) for number in range(8)]
    outcomes[1] = Outcome("v", Failure("c1", "v", "time_limit", ""), ClipTexts(None, None, None))  # type: ignore[arg-type]
    outcomes[2] = Outcome("v", outcomes[2].result, ClipTexts(None, "published", "db"))
    outcomes[6] = media("c6", b"no video")
    done = [ready for outcome in outcomes for ready in batches.add(outcome)] + list(batches.finish())
    ids = [out.result.clip_id if isinstance(out.result, Failure) else out.result.clip.clip_id for out in done]
    assert ids == [f"c{number}" for number in range(8)]
    captions = [out.texts.caption for out in done]
    assert captions == ["about c0", None, "published", None, "about c4", "about c5", None, "about c7"]
    failed = [out.result.reason for out in done if isinstance(out.result, Failure)]
    assert failed == ["time_limit", "caption_failed", "caption_failed"]
    assert sizes == [3, 2] and done[0].caption_frame == 2


def test_a_clip_that_waits_for_a_caption_does_not_hold_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a hundred clips needs a caption: the others do not wait for a batch that never fills."""
    monkeypatch.setattr("preprocess.caption_batches.MAX_WAITING_BYTES", 1000)
    batches = CaptionBatches(lambda images, ids: [None] * len(ids), CaptionerConfig(kind="open_clip"), "none")
    first = media("c0", b"no video, 100 bytes" + bytes(81))
    rest = [replace(media(f"c{number}", bytes(100)), texts=ClipTexts(None, "a", "db")) for number in range(1, 100)]
    waiting, most = 0, 0
    for outcome in [first, *rest]:
        waiting += 1 - len(list(batches.add(outcome)))
        most = max(most, waiting)
    assert (most, waiting, len(list(batches.finish()))) == (9, 0, 0)


CAPTIONS = [
    "a red sky over the sea",
    "two dogs",
    "a small green frog on a leaf",
    "nothing but snow",
    "an old man reads a newspaper",
    "yellow taxi in the rain",
    "the moon above a dark lake",
    "a child with a balloon",
]


def pattern(number: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (2, 2, 3), dtype=np.uint8).repeat(height // 2, 0).repeat(width // 2, 1)


def train_small_coca(folder: Path) -> tuple[Path, Path]:
    """A CoCa of a few layers that knows eight pictures by heart; (architecture, weights)."""
    import open_clip

    text = {"context_length": 14, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    architecture = {
        "embed_dim": 32,
        "vision_cfg": {**vision, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "attn_pooler_heads": 2},
        "custom_text": True,
    }
    config = folder / "coca_small_test.json"
    config.write_text(json.dumps(architecture))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("coca_small_test")
    # open_clip leaves it as the memory was, not seldom NaN.
    torch.nn.init.normal_(model.text_decoder.text_projection, std=32**-0.5)
    from PIL import Image

    images = torch.stack([transform(Image.fromarray(pattern(number, 32, 32))) for number in range(8)])
    # One token less than the context: the class token of the text tower takes a place.
    tokens = open_clip.get_tokenizer("coca_small_test")(CAPTIONS)[:, :13]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    loss = torch.tensor(torch.inf)
    for _ in range(400):
        if loss.item() < 0.02:
            break
        answer = model(images, tokens)
        loss = torch.nn.functional.cross_entropy(
            answer["logits"].flatten(0, 1), answer["labels"].flatten(), ignore_index=0
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    weights = folder / "coca_small_test.pt"
    torch.save(model.state_dict(), weights)
    return config, weights


@pytest.mark.heavy
def test_eight_captions_come_back_out_of_the_tars(
    painted: Callable[..., Path], hdvila: Callable[..., Path], tmp_path: Path
) -> None:
    config, weights = train_small_coca(tmp_path)
    videos = {}
    for number in range(8):
        painted(
            tmp_path / "videos" / f"v{number}.mp4",
            num_frames=25,
            size=(64, 64),
            # 4 delivered frames, of source frames 0, 5, 10, 15: only number int(4 / 2) shows what was learned.
            draw=lambda frame, width, height, number=number: pattern(
                number if 8 <= frame <= 12 else 100, height, width
            ),
        )
        videos[f"v{number}"] = [(f"v{number}.7.mp4", 0.0, 0.8)]
    hdvila(tmp_path / "hdvila_part0.jsonl", videos)
    values = {
        "output": str(tmp_path / "shards"),
        "workers": 1,
        "metadata": {"files": [str(tmp_path / "hdvila_part0.jsonl")]},
        "videos": {"templates": [str(tmp_path / "videos/{video_id}.mp4")]},
        "texts": {"require": "caption"},
        "captioner": {"kind": "open_clip", "model": str(config), "pretrained": str(weights), "batch_size": 3},
        "clips": {"fps": 5, "size_px": 32},
    }
    run(PreprocessConfig.model_validate(values))
    captions = {}
    for shard in published_shards(tmp_path / "shards"):
        import tarfile

        versions = read_facts(tmp_path / "shards" / f"{shard}.parquet")["versions"]
        assert versions["torch"] == version("torch") and versions["device"] == "cpu"
        assert {"open_clip_torch", "caption_threads", "ffmpeg", "pyav", "machine", "threads"} <= set(versions)
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar") as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    facts = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    captions[facts["video_id"]] = facts["caption"]
                    assert facts["caption_frame"] == int(facts["num_frames"] / 2)
                    assert facts["caption_source"].startswith(
                        "open_clip:coca_small_test.json/coca_small_test.pt beam 6"
                    )
    assert captions == {f"v{number}": text for number, text in enumerate(CAPTIONS)}


def test_wrong_models_are_wrong_input(tmp_path: Path) -> None:
    from pipeline.errors import InputError

    for values in ({"model": "coca_ViT-Nothing"}, {"model": str(tmp_path / "no.json")}):
        with pytest.raises(InputError, match="captioner"):
            open_captioner(CaptionerConfig.model_validate({"kind": "open_clip", **values}), 0)
    assert open_captioner(CaptionerConfig(), 0) is None
