"""The other captioner: an image-to-text model of transformers, saved and loaded as any such model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError
from preprocess.caption import CaptionerConfig, open_captioner

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{number}" for number in range(26))]


SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def small_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP with random weights and 32 words."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("blip")
    tokenizer = write_tokenizer(folder)
    text = {**SIZE, "vocab_size": 32, "encoder_hidden_size": 16, "max_position_embeddings": 64, "bos_token_id": 5}
    text |= {"eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config=text, vision_config={**SIZE, "image_size": 32, "patch_size": 16}, projection_dim=8)
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["beam", "nucleus"])
def test_captions_depend_on_their_clip_only(small_blip: Path, method: str) -> None:
    values = {"kind": "transformers", "model": str(small_blip), "pretrained": "", "max_words": 5, "method": method}
    captioner = open_captioner(CaptionerConfig.model_validate({**values, "num_beams": 2}), seed=3)
    assert captioner is not None
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(3)]
    ids = ["a", "b", "c"]
    together = captioner(images, ids)
    alone = [captioner([image], [clip_id])[0] for image, clip_id in zip(images, ids, strict=True)]
    assert together == alone == captioner(images, ids)
    assert all(text is None or len(text.split()) <= 5 for text in together)


def write_vit_gpt2(folder: Path) -> None:
    """Two models put together: nothing says which processor they have."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, ViTConfig, ViTImageProcessor
    from transformers import VisionEncoderDecoderModel as Both

    write_tokenizer(folder)
    text = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=64, bos_token_id=5, eos_token_id=3)
    text.add_cross_attention = text.is_decoder = True
    eyes = ViTConfig(**SIZE, image_size=32, patch_size=16)
    model = Both(VisionEncoderDecoderConfig.from_encoder_decoder_configs(eyes, text))
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 5, 0, 3
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def write_git(folder: Path) -> None:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    eyes = {**SIZE, "image_size": 32, "patch_size": 16}
    config = GitConfig(
        vision_config=eyes, **SIZE, vocab_size=32, max_position_embeddings=64, bos_token_id=2, eos_token_id=3
    )
    GitForCausalLM(config).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    GitProcessor(CLIPImageProcessor(**crop), write_tokenizer(folder)).save_pretrained(folder)


@pytest.mark.heavy
@pytest.mark.parametrize("write", [write_vit_gpt2, write_git], ids=["vit-gpt2", "git"])
def test_other_models_that_need_no_prompt(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    config = CaptionerConfig(kind="transformers", model=str(tmp_path), pretrained="", max_words=5, num_beams=2)
    captioner = open_captioner(config, seed=3)
    assert captioner is not None
    texts = captioner([np.full((40, 40, 3), grey, np.uint8) for grey in (0, 200)], ["a", "b"])
    assert len(texts) == 2 and all(text is None or len(text.split()) <= 5 for text in texts)


@pytest.mark.heavy
def test_a_model_that_cannot_caption_is_found_before_any_decode(
    small_blip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that wants a mark for the image in a prompt."""
    from transformers import BlipForConditionalGeneration

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Image features and image tokens do not match")

    monkeypatch.setattr(BlipForConditionalGeneration, "generate", refuse)
    with pytest.raises(InputError, match=r"cannot caption a blank image \(ValueError: Image features"):
        open_captioner(CaptionerConfig(kind="transformers", model=str(small_blip), pretrained=""), seed=3)


@pytest.mark.heavy
def test_a_folder_without_a_model_is_wrong_input(tmp_path: Path) -> None:
    config = CaptionerConfig(kind="transformers", model=str(tmp_path), pretrained="")
    with pytest.raises(InputError, match=r"captioner\.model"):
        open_captioner(config, 0)
