"""Which config a folder of shards belongs to: one per folder, whoever writes to it and whenever.

config_hash = claim_folder(config)            # InputError where the shards in it are of another config
check_claim(output, shard, config_hash)       # before a shard is published
find_mixture({"shards/000000": "..."})        # afterwards, over all shards
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import read_yaml, to_yaml
from pipeline.config_difference import differences, listed, with_defaults
from pipeline.errors import InputError
from preprocess.caption import PLACEMENT
from preprocess.config import RENDERING, PreprocessConfig, content_hash
from preprocess.ffmpeg_binary import ffmpeg_version
from preprocess.pack import read_facts
from preprocess.publish import sole_writer, write_atomically
from preprocess.swap import recover

BYTES_KEYS = ("seed", "ffmpeg_version", "rendering", "clips", "shards", "limits", "texts.require", "captioner")
"""What decides the bytes of a shard; paths and worker counts are free to change."""


def claim_folder(config: PreprocessConfig, limits_may_differ: bool = False) -> str:
    """Write config.yaml into a new folder; returns the config hash of its shards. A folder that holds shards of another
    config is an `InputError`; before the first shard the last one to come has it."""
    recover(config.output)  # a shard that a kill left set aside counts
    path, versions_path = config.output / "config.yaml", config.output / "versions.json"
    resolved = _without_device(yaml.safe_load(to_yaml(config)))
    config_hash = content_hash(config, ffmpeg_version())
    versions = {"ffmpeg_version": ffmpeg_version(), "rendering": RENDERING, "config_hash": config_hash}
    shards = (config.output / "shards").glob("*.parquet")
    if path.exists() and versions_path.exists() and (shard := next(shards, None)) is not None:
        claimed = json.loads(versions_path.read_text())
        before = _without_device(with_defaults(PreprocessConfig, read_yaml(path))) | claimed
        keys = [key for key in BYTES_KEYS if not (limits_may_differ and key == "limits")]
        differing = differences(before, resolved | versions, only=keys)
        if differing:
            older = "" if claimed.get("rendering") == RENDERING else "finish it with the release that began it, "
            raise InputError(
                f"{config.output} belongs to another config, it differs in {listed(differing)}; "
                f"{older}give another output, or remove the folder to start over"
            )
        # The hash stays that of the first shards, also where an option came since with a default that changes nothing.
        return str(claimed.get("config_hash") or _hash_of(shard, config_hash))
    if any((config.output / "shards").glob("*.parquet")):
        raise InputError(f"{config.output} holds shards but no config.yaml; give another output")
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        with sole_writer(config.output, versions_path.name, path.name):
            write_atomically(versions_path, json.dumps(versions).encode())
            write_atomically(path, to_yaml(config).encode())
    except OSError as error:
        raise InputError(f"output: cannot write to {config.output} ({error.strerror}); give another folder") from None
    return config_hash


def check_claim(output: Path, shard: str, config_hash: str) -> None:
    """Last thing before the shard is published: raise where another config has come for the folder meanwhile."""
    try:
        claimed = json.loads((output / "versions.json").read_text()).get("config_hash", config_hash)
    except FileNotFoundError:
        return
    if round_of(shard) == "" and claimed != config_hash:
        raise InputError(
            f"{output} was taken by a run with another config or ffmpeg before {shard} was written; give each its own "
            "output"
        )


def find_mixture(config_hashes: Mapping[str, str]) -> str:
    """What is wrong where the shards of one round (shard -> config hash) were written by more than one config; empty
    where nothing is. A retry may have other limits than the first run."""
    first: dict[str, str] = {}
    for shard, config_hash in sorted(config_hashes.items()):
        other = first.setdefault(round_of(shard), shard)
        if config_hashes[other] != config_hash:
            return (
                f"{other} and {shard} were written by different configs or ffmpeg versions (config_hash "
                f"{config_hashes[other]} and {config_hash} in their sidecars); remove those of one kind and run again"
            )
    return ""


def round_of(shard: str) -> str:
    """`retry_001` of `shards/retry_001_000003`; empty for the first run."""
    return shard.rpartition("/")[2].rpartition("_")[0]


def _hash_of(sidecar: Path, otherwise: str) -> str:
    try:
        return str(read_facts(sidecar)["config_hash"])
    except (OSError, ValueError, KeyError):
        return otherwise  # a damaged one is for the audit to find


def _without_device(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without the captioner's placement, which `content_hash` leaves out too."""
    captioner = {name: value for name, value in resolved.get("captioner", {}).items() if name not in PLACEMENT}
    return {**resolved, "captioner": captioner}
