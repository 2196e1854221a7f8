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
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.formats import TEMPORAL_EMBEDDING, to_official
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
    elif not model.architecture.quick_gelu or TEMPORAL_EMBEDDING not in state:
        raise InputError("the official form is for quick-GELU models with a temporal embedding; use --to safetensors")
    else:
        temporary = target.with_name(f".{target.name}.tmp")
        torch.save(to_official(state), temporary)
        temporary.replace(target)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.convert", description="Convert the weights of a model.")
    parser.add_argument("source", metavar="IN", help="weights in any form that we read")
    parser.add_argument("target", metavar="OUT", help="a folder, or a .pt file for --to official")
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--name", help="open_clip model name or JSON file, where IN does not tell (open_clip files)")
    return parser


if __name__ == "__main__":
    run_command(main)
