"""The small corpus and configs of the cluster tests, and a bench that starts launchers and watches runs.

bench = Bench(cluster, folder)
job = bench.pretrain("requeue", nodes=2)
bench.await_step("requeue", 30)
bench.await_end(job, "requeue")
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from slurm import FINISHED, Cluster, is_held, wait_until

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 60
SAVE_EVERY = 12

MODEL = {
    "architecture": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "num_temporal": 2,
}


def make_corpus(folder: Path) -> Path:
    """Generate raw videos with texts, and write the configs of all drills beside them."""
    sample = folder / "sample"
    run_python("preprocess.sample", f"folder={sample}", "num_train_clips=160", "num_heldout_clips=16", "processes=2")
    for name, texts in configs(folder).items():
        (folder / name).write_text(yaml.safe_dump(texts))
    return sample


def configs(folder: Path) -> dict[str, Any]:
    """All config files, by name."""
    sample, heldout = folder / "sample", folder / "shards" / "heldout"
    found: dict[str, Any] = {
        "site.yaml": {
            "time": "30",
            "runs_dir": str(folder / "runs"),
            "gpus_per_node": 0,
            "signal_lead_s": 20,
            "interface": "lo",
            "env": {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            "preflight": {"min_free_gb": 0.1, "meet_timeout_s": 240.0},
        },
        "pretrain.yaml": {
            "name": "drill",
            "runs_dir": str(folder / "runs"),
            "steps": NUM_STEPS,
            "data": {
                "sources": [{"shards": str(folder / "shards" / "train")}],
                "num_frames": 2,
                "num_text_tokens": 32,
                "num_workers": 0,
            },
            "batch": {"global_batch_size": 16},
            "model": MODEL,
            "loss": {"name": "vsc_fc"},
            "optim": {"lr": 1e-3},
            "engine": {"precision": "fp32", "device": "cpu", "collective_timeout_s": 120.0},
            "checkpoint": {"every_steps": SAVE_EVERY},
            "log": {"every_steps": 1},
        },
        "evaluate.yaml": {
            "sets": {
                "heldout": {
                    "shards": str(heldout),
                    "queries": str(sample / "queries.jsonl"),
                    "num_frames": 2,
                    "num_text_tokens": 32,
                }
            },
            "output": str(folder / "reports"),
        },
    }
    for name in ("train", "heldout"):
        found[f"shards_{name}.yaml"] = {
            "output": str(folder / "shards" / name),
            "metadata": {"layout": "hdvila", "files": [str(sample / "metadata" / name / "*.jsonl")]},
            "videos": {"templates": [str(sample / "videos" / "{video_id}.{ext}")]},
            "texts": {"subtitles": [str(sample / "subtitles.jsonl")], "captions": [str(sample / "captions_db")]},
            "clips": {"fps": 3, "size_px": 32, "quality": 2},
            "shards": {"clips_per_shard": 20 if name == "train" else 8},
        }
    return found


def run_python(module: str, *words: str) -> str:
    """Run one of our modules here; its output."""
    done = subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Bench:
    """Starts launchers against a cluster and reads what they leave in run folders."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self._questions = cluster.folder / "questions"

    def file(self, name: str) -> str:
        """Path of a config of the drills."""
        return str(self.folder / name)

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / name

    def run_module(self, module: str, *words: str) -> str:
        return run_python(module, *words)

    def launch(self, launcher: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a launcher as a user does, from a directory that is not the checkout."""
        self._questions.unlink(missing_ok=True)
        return subprocess.run(
            [sys.executable, str(ROOT / "launch" / launcher), "--site", self.file("site.yaml"), *words],
            env=self.cluster.env | listen(self.cluster.folder / "ears", self._questions),
            cwd=self.folder,
            text=True,
            capture_output=True,
            timeout=900,
        )

    def questions(self) -> list[tuple[float, str]]:
        """(time, command) of everything that the last launcher asked SLURM."""
        lines = self._questions.read_text().splitlines() if self._questions.exists() else []
        return [(float(line.split()[0]), line.split(" ", 1)[1]) for line in lines]

    def queue(self, launcher: str, *words: str) -> list[str]:
        """Run a launcher that must succeed; the ids of the jobs and arrays that it queued."""
        done = self.launch(launcher, *words)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return re.findall(r"^queued (?:job|array) (\d+)", done.stdout, re.MULTILINE)

    def launch_status(self, name: str) -> str:
        """What status.py says about a run; nothing may reach stderr."""
        command = [sys.executable, str(ROOT / "launch" / "status.py"), str(self.run_folder(name))]
        done = subprocess.run(command, env=self.cluster.env, text=True, capture_output=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def pretrain(self, name: str, *words: str, nodes: int = 2) -> str:
        """Queue a training run; returns the job id."""
        config = ["--config", self.file("pretrain.yaml"), "--nodes", str(nodes), "--name", name]
        return self.queue("slurm_pretrain.py", *config, *words)[0]

    def await_step(self, name: str, step: int) -> None:
        """Wait until a run has logged `step`."""
        wait_until(lambda: self.last_step(name) >= step, 400, f"{name} reaches step {step}", interval_s=0.02)

    def hold_in_save(self, name: str, job: str) -> str:
        """Stop rank 0 in the middle of the next save, seen by its half-written folder; returns that folder's name."""
        pid = self.cluster.find_rank(job)
        folder = self.run_folder(name) / "checkpoints"
        while True:
            wait_until(lambda: any(folder.glob(".staging-*")), 400, f"{name} saves", interval_s=0.001)
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: is_held(pid), 10, f"rank 0 of {name} stands still", interval_s=0.001)
            held = [path.name for path in folder.glob(".staging-*")]
            if held:
                return held[0]
            os.kill(pid, signal.SIGCONT)  # the save was over before we were there

    def last_step(self, name: str) -> int:
        rows = self.rows(name)
        return rows[-1]["step"] if rows else 0

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of the run's metrics file."""
        path = self.run_folder(name) / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def losses(self, name: str) -> dict[int, float]:
        """{step: loss}; fails when a step is missing or there twice."""
        rows = self.rows(name)
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "steps missing or doubled"
        return {row["step"]: row["train/loss"] for row in rows}

    def events(self, name: str, job: str) -> list[dict[str, Any]]:
        path = self.run_folder(name) / "jobs" / "events" / f"{job}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def endings(self, name: str, job: str) -> list[dict[str, Any]]:
        """What the guard decided, each time the job ended."""
        return [row for row in self.events(name, job) if row["event"] == "ended"]

    def checkpoints(self, name: str) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        return sorted(path.parent.name for path in self.run_folder(name).glob("checkpoints/step_*/COMPLETE.json"))

    def await_end(self, job: str, name: str) -> None:
        """Wait until the job has left the cluster; it must have completed."""
        wait_until(lambda: self.cluster.state(job) in FINISHED, 600, f"job {job} ends", interval_s=1.0)
        assert self.cluster.state(job) == "COMPLETED", self.explain(job, name)

    def explain(self, job: str, name: str) -> str:
        """What is known about a job that did not do what it should."""
        logs = sorted((self.run_folder(name) / "jobs").glob(f"{job}_*log.out"))
        tails = [f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:]) for log in logs]
        return "\n".join([str(self.cluster.job(job)), *map(str, self.events(name, job)), *tails])

    def check_resumed(self, name: str, job: str, reference: dict[int, float]) -> None:
        """The run was disturbed, came back in the same job, and has the losses of the undisturbed run, bitwise."""
        starts = [row for row in self.events(name, job) if row["event"] == "started"]
        assert len(starts) == 2, f"started {len(starts)} times for one fault: {self.explain(job, name)}"
        assert self.losses(name) == reference, "losses differ from the undisturbed run"
        assert (self.run_folder(name) / "COMPLETE").exists()


def listen(folder: Path, log: Path) -> dict[str, str]:
    """An environment in which what a launcher asks SLURM is written to `log`, and then asked."""
    folder.mkdir(exist_ok=True)
    for name in ("squeue", "sinfo", "scontrol", "sacct"):
        real = shutil.which(name)
        note = f'[ -n "$SLURM_JOB_ID" ] || echo "$EPOCHREALTIME {name} $*" >> {log}'
        (folder / name).write_text(f'#!/bin/bash\n{note}\nexec {real} "$@"\n')
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def draw(name: str, low: int, high: int) -> int:
    """A step at which a fault strikes: random, but the same in every run of the tests."""
    return random.Random(name).randint(low, high)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every shard and sidecar of a set."""
    files = sorted([*folder.glob("shards/*.tar"), *folder.glob("shards/*.parquet"), folder / "manifest.parquet"])
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
