"""Weights that open_clip knows by a tag: whether they are on this machine, and how they get there.

cached_weights("ViT-B-32-quickgelu", "openai")   # their path, or None; asks no network
fetch_weights("ViT-B-32-quickgelu", "openai")    # their path, downloaded where they are not here
"""

import difflib
import os
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, RunError
from pipeline.model.architecture import openclip_name
from pipeline.model.library import import_open_clip


def tag_facts(name: str, tag: str) -> dict[str, Any]:
    """What open_clip says about a tag of a model. InputError names the nearest for an unknown one."""
    import_open_clip()
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    name = openclip_name(name)
    facts: dict[str, Any] = get_pretrained_cfg(name, tag)
    if not facts:
        near = _nearest_tag(name, tag, list_pretrained_tags_by_model(name))
        raise InputError(f"{name} has no pre-trained tag {tag!r}, and no such file exists; {near}")
    return facts


def cached_weights(name: str, tag: str) -> Path | None:
    """Where the weights are on this machine, in the cache of the Hugging Face hub or of open_clip."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    facts = tag_facts(name, tag)
    if not facts.get("hf_hub"):
        file = Path("~/.cache/clip").expanduser() / os.path.basename(facts["url"])  # noqa: PTH119 - of a URL
        return file if file.is_file() else None
    repository, file_name = os.path.split(facts["hf_hub"])
    for wanted in [file_name] if file_name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]:
        found = try_to_load_from_cache(repository, wanted)
        if isinstance(found, str):
            return Path(found)
    return None


def fetch_weights(name: str, tag: str) -> Path:
    """The weights on this machine. RunError where they are not, and cannot be downloaded."""
    cached = cached_weights(name, tag)
    if cached is not None:
        return cached
    from open_clip.pretrained import download_pretrained

    try:
        return Path(download_pretrained(tag_facts(name, tag)))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"open_clip could not fetch {openclip_name(name)} {tag}: {reason}; give a local file as `pretrained`"
        ) from None


def _nearest_tag(name: str, tag: str, tags: list[str]) -> str:
    quick = f"{name}-quickgelu"
    if not tags:
        return f"open_clip has no weights for {name}"
    near = difflib.get_close_matches(tag, tags, n=1, cutoff=0.0)[0]
    return f"the nearest tag is {near!r}" + (f" (see also {quick})" if tag == "openai" else "")
