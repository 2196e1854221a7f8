"""Fine-tuning in miniature: does it beat zero-shot, and training from scratch? The whole road by the public commands.

    python benchmarks/finetune_miniature.py runs/demo [--seeds 2] [--steps 300] [--folder data/miniature]

Draws videos of the sample corpus's world, writes them as MSR-VTT publishes itself (JSON and two CSV lists), converts
them, evaluates the pre-trained model as it is, fine-tunes it and trains the same model from scratch for the same steps,
and prints text-to-video metrics on videos and sentences that no fine-tuning saw. Training from scratch takes the
optimizer settings of the pre-trained run, which are known to teach this model; fine-tuning takes a smaller rate, chosen
beforehand. Both end after fixed steps: nothing is chosen on the test split.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from preprocess.sample.plan import Clip, SampleConfig, Video
from preprocess.sample.scenes import Scene, draw_scene
from preprocess.sample.texts import write_caption, write_query
from preprocess.sample.video import write_video

CLIP_MS = 2500
TUNED_OPTIM = {"lr": 3e-4, "warmup": 0.05, "weight_decay": 0.2, "clip_norm": 1.0}


def write_miniature(folder: Path, num_train: int, num_test: int) -> None:
    """Videos and MSRVTT_data.json, MSRVTT_train.9k.csv, MSRVTT_JSFUSION_test.csv. No test sentence is trained on."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(12345)
    test: dict[str, Scene] = {}
    while len(test) < num_test:
        scene = draw_scene(rng)
        test.setdefault(write_query(scene), scene)
    train: list[Scene] = []
    while len(train) < num_train:
        scene = draw_scene(rng)
        train += [scene] if write_query(scene) not in test else []
    videos: list[dict[str, Any]] = []
    sentences: list[dict[str, Any]] = []
    for number, scene in enumerate([*train, *test.values()]):
        name, split = f"video{number}", "train" if number < num_train else "test"
        clip = Clip(f"{name}.0.mp4", 0, CLIP_MS, scene, text_seed=0, has_subtitle=False, has_caption=False)
        path = folder / "videos" / f"{name}.mp4"
        if not path.exists():
            write_video(Video(video_id=name, clips=(clip,)), SampleConfig(), path)
        videos.append({"video_id": name, "split": split, "url": "", "start time": 0.0, "end time": CLIP_MS / 1000})
        for caption in captions_of(scene, rng):
            sentences.append({"caption": caption, "video_id": name, "sen_id": len(sentences)})
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    train_names = [row["video_id"] for row in videos[:num_train]]
    (folder / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *train_names]) + "\n")
    rows = [
        (f"ret{number}", f"msr{number}", video["video_id"], sentence)
        for number, (sentence, video) in enumerate(zip(test, videos[num_train:], strict=True))
    ]
    with (folder / "MSRVTT_JSFUSION_test.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("key", "vid_key", "video_id", "sentence"), *rows])


def captions_of(scene: Scene, rng: np.random.Generator) -> list[str]:
    """The clean sentence, two more wordings of it, and one that says nothing of the motion."""
    query = write_query(scene)
    rest = query.removeprefix("The ").removesuffix(".")
    return [query, f"a {rest}", f"here the {rest}", write_caption(scene, rng)]


def write_configs(folder: Path, pretrained: Path, steps: int) -> tuple[dict[str, Path], Path]:
    """(training configs by label, evaluation config) of the miniature; sizes are those of the pre-trained run.

    A training config evaluates after its last step, so that a run needs no second command.
    """
    before = yaml.safe_load((pretrained / "config.yaml").read_text())
    frames, tokens = before["data"]["num_frames"], before["data"]["num_text_tokens"]
    shards = folder / "shards"
    source = {
        "shards": str(shards / "train_9k" / "shards"),
        "texts": str(shards / "train_9k" / "texts.jsonl"),
        "caption_from": "",
    }
    one = {
        "shards": str(shards / "test_1ka" / "shards"),
        "queries": str(shards / "test_1ka" / "queries.jsonl"),
        "num_frames": frames,
        "num_text_tokens": tokens,
    }
    train = {
        "name": "miniature",
        "runs_dir": str(folder / "runs"),
        "steps": steps,
        "data": {"sources": [source], "num_frames": frames, "num_text_tokens": tokens, "num_workers": 0},
        "batch": {"global_batch_size": 64},
        "model": before["model"],
        "loss": {"name": "vs"},
        "engine": {"precision": "fp32", "device": "cpu"},
        "checkpoint": {"every_steps": 0},
        "log": {"every_steps": 50},
        "evaluation": {"sets": [{"name": "miniature", **one}]},
    }
    starts = {
        "fine-tuned": {"init_from": str(pretrained), "optim": TUNED_OPTIM},
        "from scratch": {"optim": before["optim"]},
    }
    trains = {label: folder / f"{label.replace(' ', '_')}.yaml" for label in starts}
    for label, path in trains.items():
        path.write_text(yaml.safe_dump(train | starts[label], sort_keys=False))
    evaluate = folder / "evaluate.yaml"
    evaluate.write_text(yaml.safe_dump({"sets": {"miniature": one}, "device": "cpu"}, sort_keys=False))
    return trains, evaluate


def run(module: str, *words: object) -> None:
    """A public command; its output is shown only when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
    )
    if done.returncode:
        sys.exit(f"{module} failed:\n{done.stdout}")


def last_metrics(run_folder: Path) -> dict[str, float]:
    """The metrics after the last step."""
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().split("\n") if line]
    prefix = "eval/miniature/"
    last = [row for row in rows if f"{prefix}t2v_r1" in row][-1]
    return {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pretrained", type=Path, help="run folder of the pre-trained model")
    parser.add_argument("--folder", type=Path, default=Path("data/miniature"), help="where everything is written")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--steps", type=int, default=300, help="steps of fine-tuning, and of training from scratch")
    parser.add_argument("--train-videos", type=int, default=1200, help="videos to train on")
    parser.add_argument("--test-videos", type=int, default=120, help="videos to search among, at most about 300")
    options = parser.parse_args()
    folder = options.folder
    write_miniature(folder / "raw", options.train_videos, options.test_videos)
    places = [f"annotations={folder / 'raw'}", f"videos={folder / 'raw' / 'videos'}", f"output={folder / 'shards'}"]
    run("preprocess.benchmarks.msrvtt", *places, "size_px=32", "accept_counts=true")
    trains, evaluate = write_configs(folder, options.pretrained, options.steps)

    run("pipeline.evaluate", options.pretrained, evaluate, f"output={folder}")
    results = {"zero-shot": [json.loads((folder / "miniature.json").read_text())["metrics"]]}
    for seed in range(1, options.seeds + 1):
        for label, config in trains.items():
            name = f"{config.stem}_{seed}"
            run("pipeline.train", config, f"name={name}", f"seed={seed}")
            results.setdefault(label, []).append(last_metrics(folder / "runs" / name))
    print(f"{options.test_videos} queries, {options.steps} steps, chance R@1 {100 / options.test_videos:.1f}")
    for label, found in results.items():
        means = {key: statistics.mean(one[key] for one in found) for key in ("t2v_r1", "t2v_r5", "t2v_r10", "t2v_mdr")}
        each = " ".join(f"{100 * one['t2v_r1']:.1f}" for one in found)
        print(
            f"{label:13} R@1 {100 * means['t2v_r1']:.1f} (each: {each})  R@5 {100 * means['t2v_r5']:.1f}  "
            f"R@10 {100 * means['t2v_r10']:.1f}  MdR {means['t2v_mdr']:.1f}"
        )


if __name__ == "__main__":
    main()
