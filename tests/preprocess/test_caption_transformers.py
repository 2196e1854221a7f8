"""The other captioner: an image-to-text model of transformers, saved and loaded as any such model."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from preprocess.caption import CaptionerConfig, open_captioner

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{number}" for number in range(26))]


@pytest.fixture(scope="module")
def small_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP with random weights and 32 words."""
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 32, "encoder_hidden_size": 16, "max_position_embeddings": 64, "bos_token_id": 5}
    text |= {"eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=8)
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


@pytest.mark.heavy
def test_a_folder_without_a_model_is_wrong_input(tmp_path: Path) -> None:
    config = CaptionerConfig(kind="transformers", model=str(tmp_path), pretrained="")
    with pytest.raises(InputError, match=r"captioner\.model"):
        open_captioner(config, 0)
