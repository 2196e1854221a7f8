"""Stand-ins for SLURM's commands: small scripts on PATH, for what needs no real cluster."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from launch.scheduler import cluster_facts
from pipeline.data.format import METADATA_KEY

Commands = Callable[..., Path]

TINY_MODEL = {
    "architecture": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "num_temporal": 2,
}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """commands(squeue="echo ...") puts bash scripts first on PATH; returns their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    cluster_facts.cache_clear()

    def put(**scripts: str) -> Path:
        for name, body in scripts.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod((folder / name).stat().st_mode | stat.S_IEXEC)
        return folder

    return put


def cluster(*partitions: str, max_array_size: int = 1001) -> str:
    """A stand-in for scontrol, as it answers `show partition` and `show config` on its standard input."""
    lines = ["scontrol: show partition", *(f"PartitionName={partition}" for partition in partitions)]
    lines += ["scontrol: show config", f"MaxArraySize            = {max_array_size}", "scontrol: "]
    text = "\n".join(lines)
    return f"grep -q 'show partition' || exit 1\ncat <<'END'\n{text}\nEND"


BATCH = "batch AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=01:00:00 State=UP TotalCPUs=16 TotalNodes=8"


@pytest.fixture
def site_file(tmp_path: Path) -> str:
    """A site of CPU nodes."""
    path = tmp_path / "site.yaml"
    path.write_text(
        yaml.safe_dump(
            {"time": "60", "gpus_per_node": 0, "interface": "lo", "signal_lead_s": 30, "preflight": {"min_free_gb": 0}}
            | {"runs_dir": str(tmp_path / "runs")}
            | {"env": {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}}
        )
    )
    return str(path)


@pytest.fixture
def train_file(tmp_path: Path) -> str:
    """A training config whose shards exist, as far as the login node can see."""
    shards = tmp_path / "shards"
    shards.mkdir()
    facts = {"format_version": 1, "manifest_hash": "0" * 16, "num_samples": 64}
    facts |= {"subtitle_from": "json:subtitle", "caption_from": "json:caption"}
    table = pa.table({"shard": ["shards/000000"]}).replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()})
    pq.write_table(table, shards / "manifest.parquet")
    path = tmp_path / "train.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "probe",
                "runs_dir": str(tmp_path / "runs"),
                "steps": 4,
                "data": {"sources": [{"shards": str(shards)}], "num_frames": 2, "num_text_tokens": 16},
                "batch": {"global_batch_size": 16},
                "model": TINY_MODEL,
                "engine": {"precision": "fp32", "device": "cpu"},
            }
        )
    )
    return str(path)
