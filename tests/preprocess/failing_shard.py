"""Builds one shard again and again while single system calls fail; run under the shim of `failing_calls.c`.

    LD_PRELOAD=... python failing_shard.py CONFIG.yaml CASES.json      # a line of JSON per case

A case is (folder, call, errno, at); the folder `videos` is where the videos lie, `output` where the shard is written.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.config import load_config
from pipeline.errors import PipelineError
from preprocess import faults
from preprocess.config import PreprocessConfig
from preprocess.pack import read_facts
from preprocess.plan import Plan
from preprocess.shard import Tools, build_shard, shard_facts


def build(config: PreprocessConfig, output: Path) -> str:
    """Build the first shard below `output`; what went wrong, or nothing."""
    try:
        tools = Tools.open(config.model_copy(update={"output": output}))
        list(build_shard(Plan.open(output / "plan").shard(0), tools, shard_facts("test")))
    except PipelineError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror}: {error.filename or output}"
    return ""


def result(output: Path) -> list[str]:
    """What was published, as the hashes that training sees; nothing where no sidecar is."""
    if not (output / "shards" / "000000.parquet").exists():
        return []
    failures = (output / "failures" / "000000.parquet").read_bytes()
    return [read_facts(output / "shards" / "000000.parquet")["shard_sha256"], str(hash(failures))]


def run_case(config: PreprocessConfig, folder: str, call: str, number: int, at: int) -> dict[str, Any]:
    """One case, and the same shard without any failure behind it."""
    with tempfile.TemporaryDirectory() as scratch:
        output, marks = Path(scratch) / "set", Path(scratch) / "marks"
        marks.mkdir()
        (output / "plan").mkdir(parents=True)
        for name in ("plan.json", "shards.npy", "videos.jsonl"):
            shutil.copy(config.output / "plan" / name, output / "plan" / name)
        videos = Path(config.videos.templates[0]).parent
        below = videos if folder == "videos" else output / "shards"
        os.environ |= {"FAIL_MARKS": str(marks), "FAIL_BELOW": str(below), "FAIL_ERRNO": str(number)}
        os.environ |= {"FAIL_AT": str(at), "FAIL_CALL": call}
        said = build(config, output)
        os.environ["FAIL_CALL"] = ""
        found = result(output)
        num_calls = len(list(marks.iterdir()))
        after = found or (build(config, output), result(output))[1]
        left = [path.name for path in output.rglob("*.tmp*")]
        return {"said": said, "found": found, "after": after, "left": left, "num_calls": num_calls}


if __name__ == "__main__":
    faults.RETRY_PAUSES_S = (0.001, 0.001, 0.001)
    faults.SECOND_LOOK_PAUSE_S = 0.001
    shared = load_config(PreprocessConfig, [sys.argv[1]])
    for case in json.loads(Path(sys.argv[2]).read_text()):
        print(json.dumps(run_case(shared, *case)), flush=True)
