"""Time and memory of planning and accounting for a simulated HD-VILA-100M: 3.3 M videos, 100 M clips, 100,000 shards.

    python benchmarks/preprocess_plan.py --videos 3333334 --folder /tmp/plan_benchmark     # 25 GB of disk

The metadata is made up in HD-VILA's form, 30 clips a video. The account is made over one small sidecar and failures
file under as many names as there are shards, so that every shard costs what a real one costs to read.
"""

import argparse
import os
import resource
import shutil
import time
from pathlib import Path

from preprocess.audit import audit_set
from preprocess.config import PreprocessConfig
from preprocess.failures import FailureTable
from preprocess.merge import merge
from preprocess.pack import write_sidecar
from preprocess.plan import Plan
from preprocess.planning import make_plan

CLIPS_PER_VIDEO = 30
_MAX_LINKS = 60_000
"""ext4 gives a file at most 65,000 names."""


def write_metadata(folder: Path, num_videos: int, num_parts: int = 11) -> None:
    """hdvila_part0.jsonl ... with spans of 13.4 s."""
    spans = []
    for number in range(CLIPS_PER_VIDEO):
        start, end = number * 13.5, number * 13.5 + 13.4
        spans.append([f"00:{int(t // 60):02d}:{t % 60:06.3f}" for t in (start, end)])
    clips = ", ".join(
        f'{{"clip_id": "@.{number}.mp4", "span": ["{start}", "{end}"]}}' for number, (start, end) in enumerate(spans)
    )
    line = f'{{"video_id": "@", "url": "https://www.youtube.com/watch?v=@", "clip": [{clips}]}}\n'
    for part in range(num_parts):
        with open(folder / f"hdvila_part{part}.jsonl", "w") as stream:
            for number in range(part, num_videos, num_parts):
                stream.write(line.replace("@", f"{number:011x}"))


def write_shards(output: Path, plan: Plan) -> None:
    """One sidecar and one failures file, linked under the name of every shard."""
    for name in ("shards", "failures"):
        (output / name).mkdir(exist_ok=True)
    made: dict[tuple[int, int], Path] = {}
    for number in range(plan.num_shards):
        count, copy, name = plan.num_clips(number), number // _MAX_LINKS, Path(plan.name(number)).name
        if (count, copy) not in made:
            made[count, copy] = output / f"sidecar_{count}_{copy}"
            row = {"offset": 0, "size": 400_000, "media_ext": "mp4", "num_frames": 40, "duration_s": 13.3}
            row |= {"subtitle_chars": 170, "caption_chars": 45}
            rows = [row | {"key": f"{n:011x}+1", "clip_id": f"{n:011x}.1.mp4"} for n in range(count)]
            facts = {"num_samples": count, "num_failures": 0, "shard_bytes": count * 400_000, "shard_sha256": "0" * 64}
            facts["config_hash"] = "made up"
            write_sidecar(made[count, copy], rows, facts)
            with FailureTable(output / f"failures_{count}_{copy}", shard="x"):
                pass
        os.link(made[count, copy], output / "shards" / f"{name}.parquet")
        os.link(output / f"failures_{count}_{copy}", output / "failures" / f"{name}.parquet")


def _cost(started: float, cpu: float) -> str:
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{time.monotonic() - started:.0f} s wall, {time.process_time() - cpu:.0f} s CPU, peak {peak_mb:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=3_333_334)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    write_metadata(options.folder, options.videos)
    values = {"metadata": {"files": [f"{options.folder}/hdvila_part*.jsonl"]}, "videos": {"templates": ["{video_id}"]}}
    config = PreprocessConfig.model_validate({"output": options.folder / "set", **values})
    print(f"{options.videos * CLIPS_PER_VIDEO:,} clips", flush=True)
    started, cpu = time.monotonic(), time.process_time()
    plan = make_plan(config.output, config.metadata, config.shards, config.seed, 1 << 26)
    print(f"plan: {_cost(started, cpu)}, {plan.num_shards:,} shards", flush=True)
    write_shards(config.output, plan)
    started, cpu = time.monotonic(), time.process_time()
    stats = merge(config.output)
    print(f"account: {_cost(started, cpu)}, {stats['num_delivered']:,} delivered of {stats['num_clips']:,}")
    started, cpu = time.monotonic(), time.process_time()
    findings = list(audit_set(config.output))
    print(f"audit over all shards, before it reads one: {_cost(started, cpu)}, {len(findings)} findings")
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
