"""Auxiliary captions for the middle frames of clips, by an open_clip CoCa or a transformers image-to-text model.

    captioner = open_captioner(config, seed)          # None where config.kind is "none"
    texts = captioner([image, ...], ["clip id", ...])  # uint8 [H, W, 3] RGB -> one text each, or None

The model is loaded as its library loads it (architecture by name or by a file, weights by tag or by a file). What wrote
a caption, with its settings, goes into `caption_source`.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.config import Section
from pipeline.errors import InputError
from preprocess.records import clean_text

PLACEMENT = ("device", "workers_per_gpu")
"""Options that have no say in what is written."""

Captioner = Callable[[Sequence[np.ndarray], Sequence[str]], list[str | None]]
"""(images uint8 [H, W, 3], clip ids) -> texts."""


class CaptionerConfig(Section):
    """Which model writes captions for the middle frames."""

    kind: Literal["none", "open_clip", "transformers"] = "none"
    """none: only published captions; open_clip: a CoCa; transformers: a model that turns an image alone into text."""
    model: str = "coca_ViT-L-14"
    """open_clip: a model name, or the path of a model's JSON; transformers: a hub name or a local folder."""
    pretrained: str = "mscoco_finetuned_laion2b_s13b_b90k"
    """open_clip: a pre-trained tag, or the path of a checkpoint; transformers: a revision or empty."""
    replace: bool = False
    """Also caption clips that have a published caption."""
    method: Literal["beam", "nucleus"] = "beam"
    """beam: the most probable text; nucleus: sampled, seeded by clip."""
    num_beams: int = Field(default=6, ge=1, le=64)
    """Beams of the beam search."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling draws from the most probable tokens that together hold this probability."""
    temperature: float = Field(default=1.0, gt=0)
    """Nucleus sampling divides the logits by this."""
    max_words: int = Field(default=20, ge=1, le=200)
    """Longer captions are cut after this many words."""
    batch_size: int = Field(default=32, ge=1)
    """Images a step; batches cross clips and videos, but not shards."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    """auto: the GPUs of the machine, worker by worker, else the CPU; cuda: GPUs or an error; or cpu, cuda:1."""
    workers_per_gpu: int = Field(default=4, ge=1)
    """Most worker processes that share a GPU, each with a model of its own (CoCa ViT-L: 2.6 GB of weights); they also
    decode, so more of them keep more cores busy."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""

    @property
    def source(self) -> str:
        """What goes into `caption_source` of every caption that this config writes."""
        way = f"beam {self.num_beams}" if self.method == "beam" else f"nucleus {self.top_p:g} t {self.temperature:g}"
        names = [Path(name).name for name in (self.model, self.pretrained) if name]
        return f"{self.kind}:{'/'.join(names)} {way}, at most {self.max_words} words"


def open_captioner(config: CaptionerConfig, seed: int) -> Captioner | None:
    """Load the model, and try it on a blank image: one that cannot caption is an `InputError` before any decode."""
    if config.kind == "none":
        return None
    kind = _OpenClipCaptioner if config.kind == "open_clip" else _TransformersCaptioner
    try:
        captioner = kind(config, seed)
        captioner([np.zeros((32, 32, 3), np.uint8)], ["blank"])
    except InputError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {_first_sentence(error)}"
        raise InputError(
            f"captioner: {config.model} cannot caption a blank image ({said}); "
            "take a model that turns an image alone into text, or fewer workers_per_gpu if its memory is too small"
        ) from None
    return captioner


def worker_device(device: str, worker: int, num_gpus: int) -> str:
    """The device of worker number `worker` on a machine with `num_gpus`.

    >>> [worker_device("auto", number, 2) for number in range(3)], worker_device("auto", 0, 0)
    (['cuda:0', 'cuda:1', 'cuda:0'], 'cpu')
    """
    if device == "cpu" or (device == "auto" and num_gpus == 0):
        return "cpu"
    wanted = int(device.partition(":")[2] or 0)
    if wanted >= num_gpus:
        raise InputError(f"captioner.device is {device}, but {num_gpus} GPUs are visible here; set auto, or cpu")
    return device if ":" in device else f"cuda:{worker % num_gpus}"


def most_workers(config: CaptionerConfig, num_workers: int, num_gpus: int) -> int:
    """`num_workers`, or fewer where they would crowd the GPUs. A device that is not there is an `InputError`."""
    devices = {worker_device(config.device, number, num_gpus) for number in range(num_workers)}
    return num_workers if devices == {"cpu"} else min(num_workers, config.workers_per_gpu * len(devices))


def count_gpus() -> int:
    """How many GPUs this process may use."""
    import torch

    return torch.cuda.device_count()


def place_workers(config: CaptionerConfig, num_workers: int) -> int:
    """How many of `num_workers` start with this captioner; tells stderr where the captions are made."""
    if config.kind == "none":
        return num_workers
    num_gpus = count_gpus()
    number = most_workers(config, num_workers, num_gpus)
    devices = sorted({worker_device(config.device, worker, num_gpus) for worker in range(number)})
    why = ", no GPU is visible" if config.device == "auto" and num_gpus == 0 else ""
    print(f"captions by {config.model}: {number} workers on {', '.join(devices)}{why}", file=sys.stderr, flush=True)
    return number


def captioner_versions(config: CaptionerConfig) -> dict[str, Any]:
    """What a generated caption depends on beside the config: libraries, kind of device, threads of a CPU."""
    if config.kind == "none":
        return {}
    import torch

    device, _ = _device_and_dtype(config)
    on_gpu = device.type == "cuda"
    library = {"open_clip": "open_clip_torch", "transformers": "transformers"}[config.kind]
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        **({} if on_gpu else {"caption_threads": torch.get_num_threads()}),
        **{name: version(name) for name in ("torch", "torchvision", "pillow", library)},
    }


def clip_seed(seed: int, clip_id: str) -> int:
    """The seed of one clip's caption, whatever batch it is in."""
    digest = hashlib.blake2b(f"{seed}:{clip_id}".encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def first_words(text: str, max_words: int) -> str | None:
    """The first words of a caption as one clean line; None for an empty one."""
    return clean_text(" ".join(text.split()[:max_words]))


def _first_sentence(error: Exception) -> str:
    """What an error says, without the list of everything that would have been possible."""
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def _device_and_dtype(config: CaptionerConfig) -> tuple[Any, Any]:
    import torch

    name = worker_device(config.device, 0, count_gpus())
    bf16 = config.precision == "bf16" or (config.precision == "auto" and name.startswith("cuda"))
    return torch.device(name), torch.bfloat16 if bf16 else torch.float32


class _OpenClipCaptioner:
    """CoCa with our own decoding: open_clip's needs parts of transformers that version 5 removed."""

    def __init__(self, config: CaptionerConfig, seed: int) -> None:
        import open_clip

        self._config, self._seed = config, seed
        self._device, self._dtype = _device_and_dtype(config)
        name = config.model
        if name.endswith(".json"):
            if not Path(name).is_file():
                raise InputError(f"captioner.model: there is no file {name}")
            open_clip.add_model_config(name)
            name = Path(name).stem
        try:
            model, _, transform = open_clip.create_model_and_transforms(name, pretrained=config.pretrained or None)
        except (RuntimeError, OSError, ValueError) as error:
            known = [model for model in open_clip.list_models() if model.startswith("coca")]
            raise InputError(
                f"captioner: cannot load {config.model} with {config.pretrained!r} ({_first_sentence(error)}); CoCa "
                f"models: {known}"
            ) from None
        if not hasattr(model, "text_decoder"):
            raise InputError(f"captioner.model: {config.model} has no text decoder; take a CoCa, such as coca_ViT-L-14")
        self._model = model.eval().to(self._device)
        self._transform = transform
        self._tokenizer = open_clip.get_tokenizer(name)

    def __call__(self, images: Sequence[np.ndarray], clip_ids: Sequence[str]) -> list[str | None]:
        import torch

        from preprocess.generate import Rules, beam_search, nucleus

        pixels = torch.stack([self._transform(Image.fromarray(image)) for image in images]).to(self._device)
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        # A word is seldom more than two tokens; the model's own context is the other limit.
        longest = min(2 * self._config.max_words, self._model.context_length - 2)
        rules = Rules(start, end, max_tokens=longest)
        bf16 = self._dtype == torch.bfloat16
        with torch.no_grad(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16):
            latent, embeddings = self._model._encode_image(pixels)

            def step(tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
                answer = self._model(
                    None, tokens, image_latent=latent[image], image_embs=embeddings[image], output_labels=False
                )
                logits: torch.Tensor = answer["logits"][:, -1]
                return logits

            if self._config.method == "beam":
                tokens = beam_search(step, len(images), rules, self._config.num_beams, self._device)
            else:
                seeds = [clip_seed(self._seed, clip_id) for clip_id in clip_ids]
                settings = {"top_p": self._config.top_p, "temperature": self._config.temperature}
                tokens = nucleus(step, rules, seeds=seeds, device=self._device, **settings)
        return [first_words(self._tokenizer.decode(text), self._config.max_words) for text in tokens]


class _TransformersCaptioner:
    """A transformers model that turns an image alone into text (BLIP, GIT, ViT-GPT2, ...), by its own `generate`.

    Those that want a prompt with a mark for the image (LLaVA and its kin) do not.
    """

    def __init__(self, config: CaptionerConfig, seed: int) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

        self._config, self._seed = config, seed
        self._device, self._dtype = _device_and_dtype(config)
        revision = {"revision": config.pretrained} if config.pretrained and not Path(config.model).is_dir() else {}
        try:
            both = AutoProcessor.from_pretrained(config.model, **revision)
            # Models that were put together from two, such as ViT-GPT2, have no processor that knows both sides.
            images, words = hasattr(both, "image_processor"), hasattr(both, "tokenizer")
            self._images = both if images else AutoImageProcessor.from_pretrained(config.model, **revision)
            self._words = both if words else AutoTokenizer.from_pretrained(config.model, **revision)
            model = AutoModelForImageTextToText.from_pretrained(config.model, **revision)
        except (OSError, ValueError) as error:
            raise InputError(f"captioner.model: cannot load {config.model}: {str(error).splitlines()[0]}") from None
        self._model = model.eval().to(self._device, self._dtype)

    def __call__(self, images: Sequence[np.ndarray], clip_ids: Sequence[str]) -> list[str | None]:
        import torch

        if self._config.method == "beam":
            return self._generate(images, {"num_beams": self._config.num_beams, "do_sample": False})
        settings = {"do_sample": True, "top_p": self._config.top_p, "top_k": 0, "temperature": self._config.temperature}
        texts: list[str | None] = []
        for image, clip_id in zip(images, clip_ids, strict=True):
            # `generate` draws from the global generator: one image at a time, or a text would depend on its batch.
            with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
                torch.manual_seed(clip_seed(self._seed, clip_id))
                texts += self._generate([image], settings)
        return texts

    def _generate(self, images: Sequence[np.ndarray], settings: dict[str, Any]) -> list[str | None]:
        import torch

        inputs = self._images(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device, self._dtype)
        with torch.no_grad():
            tokens = self._model.generate(
                pixel_values=pixels, max_new_tokens=2 * self._config.max_words + 2, **settings
            )
        texts = self._words.batch_decode(tokens, skip_special_tokens=True)
        return [first_words(text, self._config.max_words) for text in texts]
