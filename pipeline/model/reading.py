"""Weights from any file or folder that we know, under our names.

an exported folder or a checkpoint    model.safetensors + model.json
a run folder                          its `latest` names the checkpoint
a Hugging Face CLIPModel folder       config.json + model.safetensors, our extras beside them
a file                                official .pt, open_clip's .pt / .bin / .safetensors

weights = read_weights("pretrain_clipvip_base_32.pt")
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.model import hugging_face
from pipeline.model.architecture import Architecture, read_architecture
from pipeline.model.config import ModelConfig, read_model_config
from pipeline.model.formats import ADDED_PROXIES, TEMPORAL_EMBEDDING, Format, State, detect_format, to_ours
from pipeline.model.library import import_open_clip
from pipeline.model.tensor_files import read_tensors

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
LATEST_FILE = "latest"


@dataclass(frozen=True)
class Weights:
    """Tensors under our names, and what their file says about the model."""

    state: State
    world: Format
    config: ModelConfig | None
    """Self-contained (architecture inlined); None where the file does not tell: number of heads, activation."""
    quick_gelu: bool | None


def read_weights(path: str | Path) -> Weights:
    """Read weights of any known form. InputError says what `path` lacks."""
    path = Path(path)
    if path.is_file() and path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).exists():
        path = path.parent
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise InputError(f"no weights at {path}; give a run, checkpoint or exported folder, or a weights file")
    tensors = read_tensors(path)
    world = detect_format(tensors)
    if world is None:
        some = f"its first tensors are {', '.join(list(tensors)[:3])}" if tensors else "it holds no tensor at all"
        raise InputError(f"{path} holds no CLIP or CLIP-ViP weights; {some}")
    return Weights(to_ours(tensors), world, config=None, quick_gelu=True if world == "official" else None)


def checkpoint_of(folder: Path) -> Path:
    """The folder that `folder`'s `latest` names, or `folder` itself."""
    pointer = folder / LATEST_FILE
    return folder / pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else folder


def identify_official(state: State, path: str | Path) -> ModelConfig | None:
    """The quick-GELU ViT of open_clip with these shapes; no tensor tells the number of heads of another."""
    open_clip = import_open_clip()

    needed = {
        "visual.conv1.weight", "visual.positional_embedding", "visual.proj", "text.token_embedding.weight",
        "text.positional_embedding", TEMPORAL_EMBEDDING,
    }  # fmt: skip
    if needed - state.keys():
        raise InputError(
            f"{path} is not a complete official checkpoint: it lacks {', '.join(sorted(needed - state.keys()))}"
        )
    for name in open_clip.list_models():
        if name.endswith("-quickgelu") and name.startswith("ViT-"):
            config = config_for(state, name)
            try:
                architecture = read_architecture(config)
            except InputError:
                continue
            if _fits(state, architecture):
                return config.model_copy(update={"architecture": architecture.model_dump(mode="json")})
    return None


def config_for(state: State, name: str) -> ModelConfig:
    """The config of model `name` that takes `state` as it is; without a temporal embedding that is a plain CLIP."""
    if TEMPORAL_EMBEDDING not in state:
        return ModelConfig(name=name, num_proxies=1, num_temporal=0, pooling="mean")
    num_proxies = 1 + len(state.get(ADDED_PROXIES, ()))
    return ModelConfig(name=name, num_proxies=num_proxies, num_temporal=len(state[TEMPORAL_EMBEDDING]))


def _read_folder(folder: Path) -> Weights:
    target = checkpoint_of(folder)
    if (target / CONFIG_FILE).is_file():
        if not (target / WEIGHTS_FILE).is_file():
            raise InputError(f"{target} holds {CONFIG_FILE} but no {WEIGHTS_FILE}; was the export interrupted?")
        config = read_model_config(target / CONFIG_FILE)
        return Weights(
            to_ours(read_tensors(target / WEIGHTS_FILE)), "ours", config, read_architecture(config).quick_gelu
        )
    if (folder / "config.json").is_file():
        tensors, config = hugging_face.read_folder(folder)
        return Weights(to_ours(tensors), "hugging_face", config, read_architecture(config).quick_gelu)
    raise InputError(
        f"{target} holds no model: expected {WEIGHTS_FILE} + {CONFIG_FILE}, a run folder with {LATEST_FILE}, "
        "or a Hugging Face CLIPModel folder"
    )


def _fits(state: State, architecture: Architecture) -> bool:
    vision, text = architecture.vision_cfg, architecture.text_cfg
    num_positions = (vision.image_size // vision.patch_size) ** 2 + 1
    return (
        state["visual.conv1.weight"].shape == (vision.width, 3, vision.patch_size, vision.patch_size)
        and state["visual.positional_embedding"].shape == (num_positions, vision.width)
        and state["visual.proj"].shape == (vision.width, architecture.embed_dim)
        and state["text.token_embedding.weight"].shape == (text.vocab_size, text.width)
        and state["text.positional_embedding"].shape == (text.context_length, text.width)
        and _num_blocks(state, "visual") == vision.layers
        and _num_blocks(state, "text") == text.layers
    )


def _num_blocks(state: State, tower: str) -> int:
    return sum(name.startswith(f"{tower}.transformer.resblocks.") and name.endswith(".ln_1.weight") for name in state)
