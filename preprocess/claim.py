"""Which config a folder of shards belongs to: one per folder, whoever writes to it and whenever.

config_hash = claim_folder(config)            # InputError where the shards in it are of another config
check_claim(output, shard, config_hash)       # before a shard is published
find_mixture({"shards/000000": "..."})        # afterwards, over all shards
"""

import contextlib
import errno
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config import read_yaml, to_yaml
from pipeline.config_difference import differences, listed, with_defaults
from pipeline.errors import DISK_TROUBLE, InputError, MachineFault, RunError
from preprocess.caption import PLACEMENT
from preprocess.config import RENDERING, PreprocessConfig, content_hash
from preprocess.faults import refuse_trouble
from preprocess.ffmpeg_binary import ffmpeg_version
from preprocess.pack import read_facts
from preprocess.plan import Plan
from preprocess.publish import sole_writer, write_atomically
from preprocess.published import published_shards
from preprocess.swap import recover

BYTES_KEYS = ("seed", "ffmpeg_version", "rendering", "clips", "shards", "limits", "texts.require", "captioner")
"""What decides the bytes of a shard; paths and worker counts are free to change."""


RENDERER_KEYS = ("ffmpeg_version", "rendering")
"""Which code drew the pictures: no user sets it, and an upgrade changes it."""


def claim_folder(config: PreprocessConfig, *, for_retry: bool = False) -> str:
    """Write config.yaml into a new folder; returns the config hash of its shards. A folder that holds shards of another
    config is an `InputError`; before the first shard the last one to come has it.

    An upgrade does not close a set: of one in which no shard is missing nothing is drawn any more, and a round of retry
    (`for_retry`) has a config hash of its own, so that its limits may differ too.
    """
    recover(config.output)  # a shard that a kill left set aside counts
    path, versions_path = config.output / "config.yaml", config.output / "versions.json"
    resolved = _without_device(yaml.safe_load(to_yaml(config)))
    config_hash = content_hash(config, ffmpeg_version())
    versions = {"ffmpeg_version": ffmpeg_version(), "rendering": RENDERING, "config_hash": config_hash}
    shards = [name for name in published_shards(config.output) if round_of(name) == ""]
    if shards:
        _mend(config, shards, versions)
        claimed = _read_versions(versions_path)
        before = _without_device(with_defaults(PreprocessConfig, read_yaml(path))) | claimed
        free = ("limits", *RENDERER_KEYS) if for_retry else RENDERER_KEYS if _is_whole(config.output, shards) else ()
        keys = [key for key in BYTES_KEYS if key not in free]
        differing = differences(before, resolved | versions, only=keys)
        if differing and claimed == versions:  # then nothing does, and the file has lost a part
            print(f"{path} is damaged; it is written anew", file=sys.stderr, flush=True)
            with sole_writer(config.output, path.name):
                write_atomically(path, to_yaml(config).encode())
        elif differing:
            # One task of an array with another ffmpeg than those before it: the node is the odd one, not the config.
            is_node = config.tasks.count > 1 and all(item.startswith("ffmpeg_version ") for item in differing)
            older = "" if claimed.get("rendering") == RENDERING else "finish it with the release that began it, "
            raise (MachineFault if is_node else InputError)(
                f"{config.output} belongs to another config, it differs in {listed(differing)}; "
                f"{older}give another output, or remove the folder to start over"
            )
        # The hash stays that of the first shards, also where an option came since with a default that changes nothing.
        return str(claimed.get("config_hash") or _hash_of(config.output, shards[:1]) or config_hash)
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        with sole_writer(config.output, versions_path.name, path.name):
            write_atomically(versions_path, json.dumps(versions).encode())
            write_atomically(path, to_yaml(config).encode())
    except OSError as error:
        if error.errno in DISK_TROUBLE and error.errno != errno.EROFS:
            raise
        raise InputError(f"output: cannot write to {config.output} ({error.strerror}); give another folder") from None
    return config_hash


def _is_whole(output: Path, shards: Sequence[str]) -> bool:
    """Whether every planned shard is published. A plan that is gone or damaged does not say so."""
    try:
        return set(Plan.open(output / "plan").clip_counts()) <= set(shards)
    except InputError:
        return False


def check_claim(output: Path, shard: str, config_hash: str) -> None:
    """Last thing before the shard is published: raise where another config has come for the folder meanwhile."""
    try:
        claimed = _read_versions(output / "versions.json").get("config_hash", config_hash)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        refuse_trouble(error, output / "versions.json")
        raise RunError(f"{output / 'versions.json'} is damaged ({error}); run the same command again") from None
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


def _mend(config: PreprocessConfig, shards: Sequence[str], versions: dict[str, Any]) -> None:
    """Write config.yaml and versions.json again where one of them is gone or damaged. The sidecars of the shards tell
    whether this config wrote them; where it did not, which one did is lost: `InputError`."""
    path, versions_path = config.output / "config.yaml", config.output / "versions.json"
    problem = ""
    for file, read in ((versions_path, _read_versions), (path, _read_config)):
        try:
            read(file)
        except (OSError, ValueError) as error:
            refuse_trouble(error, file)
            problem = f"{file} is damaged or gone ({' '.join(str(error).split())[:200]})"
    if not problem:
        return
    if _hash_of(config.output, shards) != versions["config_hash"]:
        raise InputError(
            f"{problem}, and the shards beside it are of another config or ffmpeg than this one; give the config that "
            "wrote them, bring the file back from a backup, or give another output"
        )
    print(f"{problem}; it is written anew, as the shards are of this config", file=sys.stderr, flush=True)
    with sole_writer(config.output, versions_path.name, path.name):
        write_atomically(versions_path, json.dumps(versions).encode())
        write_atomically(path, to_yaml(config).encode())


def _read_versions(path: Path) -> dict[str, Any]:
    """Raises ValueError for anything that is no versions.json, of any age."""
    claimed = json.loads(path.read_bytes())
    if not isinstance(claimed, dict) or not {"ffmpeg_version", "rendering"} <= set(claimed):
        raise ValueError("it holds no versions")
    return claimed


def _read_config(path: Path) -> dict[str, Any]:
    path.read_bytes()  # `read_yaml` does not tell a file that cannot be read from a wrong one
    saved = read_yaml(path)
    try:
        PreprocessConfig.model_validate(saved)
    except ValidationError as error:
        # A key that this release does not know is one of another release; a value that is none is damage.
        wrong = [item for item in error.errors() if item["type"] != "extra_forbidden"]
        if wrong:
            place = ".".join(str(part) for part in wrong[0]["loc"])
            raise ValueError(f"it holds no config of preprocessing: {place}: {wrong[0]['msg']}") from None
    return saved


def _hash_of(output: Path, shards: Sequence[str]) -> str:
    """The config hash in the first of these sidecars that can be read; empty where none can."""
    for shard in shards:
        with contextlib.suppress(OSError, ValueError, KeyError):  # a damaged one is named where the job ends
            return str(read_facts(output / f"{shard}.parquet")["config_hash"])
    return ""


def _without_device(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without the captioner's placement, which `content_hash` leaves out too."""
    captioner = {name: value for name, value in resolved.get("captioner", {}).items() if name not in PLACEMENT}
    return {**resolved, "captioner": captioner}
