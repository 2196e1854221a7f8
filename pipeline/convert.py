"""Weights from any form that we read to one that others read.

    python -m pipeline.convert pretrain_clipvip_base_32.pt exported/ --to safetensors
    python -m pipeline.convert runs/b32 b32_official.pt --to official
    python -m pipeline.convert runs/b32 b32_hf/ --to huggingface
    python -m pipeline.convert open_clip_weights.bin exported/ --to safetensors --name ViT-B-32-quickgelu

IN is a run, checkpoint, exported or Hugging Face CLIPModel folder, an official .pt, or, with --name, an open_clip file
or an official file of another architecture. Nothing is added: a plain CLIP stays one, with mean pooling over frames.
Nothing is overwritten.
"""

import argparse
from pathlib import Path

import torch

from pipeline.errors import InputError, run_command
from pipeline.model import hugging_face
from pipeline.model.architecture import PIXEL_MEAN, PIXEL_STD
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.formats import to_official
from pipeline.model.reading import config_for, read_weights
from pipeline.model.weights import load_model, save_model

TARGETS = ("safetensors", "official", "huggingface")


def main(argv: list[str]) -> int:
    """Convert one model."""
    options = _parser().parse_args(argv)
    source, target = Path(options.source), Path(options.target)
    if target.exists():
        raise InputError(f"{target} exists; choose another name or remove it")
    if options.name is None:
        model = load_model(source)
    else:
        config = config_for(read_weights(source).state, options.name)
        model = CLIPViP.from_config(config.model_copy(update={"pretrained": str(source)}))
    write(model, target, options.to)
    print(f"{target}: {model.config.name} as {options.to}")
    return 0


def write(model: CLIPViP, target: Path, form: str) -> None:
    """Write `model` to `target` in one of TARGETS."""
    state = model.state_dict()
    if form == "safetensors":
        save_model(target, state, model.config)
    elif form == "huggingface":
        hugging_face.write_folder(target, state, model.config, model.architecture)
    else:
        _check_official(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        torch.save(to_official(state), temporary)
        temporary.replace(target)


def _check_official(model: CLIPViP) -> None:
    """The official form holds tensors alone: what it cannot say, its readers take as the released models have it."""
    architecture = model.architecture
    vision, text = architecture.vision_cfg, architecture.text_cfg
    unlike = {
        "GELU": not architecture.quick_gelu,
        "no temporal embedding": model.config.num_temporal == 0,
        "attention: full": model.config.attention == "full",
        "pixel statistics of its own": (architecture.pixel_mean, architecture.pixel_std) != (PIXEL_MEAN, PIXEL_STD),
        "layer scale": vision.ls_init_value is not None or text.ls_init_value is not None,
        "`eos` pooling": text.pool_type != "argmax",
        "a foreign tokenizer": text.hf_tokenizer_name is not None or bool(text.tokenizer_kwargs),
    }
    found = [name for name, is_so in unlike.items() if is_so]
    if found:
        raise InputError(f"the official form cannot say that the model has {', '.join(found)}; use --to safetensors")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.convert", description="Convert the weights of a model.")
    parser.add_argument("source", metavar="IN", help="weights in any form that we read")
    parser.add_argument("target", metavar="OUT", help="a folder, or a .pt file for --to official")
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--name", help="open_clip model name or JSON file, where IN does not tell (open_clip files)")
    return parser


if __name__ == "__main__":
    run_command(main)
