"""`make demo`: the whole chain on the sample corpus, by the commands that a user would type.

    sample corpus -> make shards -> python -m pipeline.train, stopped half-way by a signal and resumed
                  -> python -m pipeline.evaluate -> a picture -> the final table

Every step skips what is complete, so a second call does only what is missing. Usage: `python -m launch.demo`.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.demo_picture import draw_demo
from pipeline.config import read_yaml
from pipeline.errors import InputError, RunError, run_command
from pipeline.metrics_lines import read_lines

PRETRAIN = "configs/tiny/pretrain.yaml"
EVALUATE = "configs/tiny/evaluate.yaml"
POLL_S = 0.5
PATIENCE_S = 120.0
"""A run that was asked to stop saves first; longer than this is a fault."""


def main(argv: list[str]) -> int:
    """Run the chain and print the table."""
    if argv and argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if argv:
        raise InputError(f"the demo takes no arguments, got {' '.join(argv)}; see --help")
    if not Path(PRETRAIN).exists():
        raise InputError(f"{PRETRAIN} is not here; call the demo from the root of the repository")
    began = time.monotonic()
    settings = read_yaml(PRETRAIN)
    run = Path(settings.get("runs_dir", "runs")) / settings["name"]
    _step("raw videos and shards", _make_shards)
    _step("pre-training, with a stop in the middle", lambda: _train(run, settings["steps"]))
    _step("text-video retrieval on held-out videos", lambda: _evaluate(run))
    _step("picture", lambda: _draw(run))
    report = _read_report(run)
    print("\n" + demo_table(report))
    print(f"\nrun folder: {run}    picture: {_picture_path(run)}    this call: {time.monotonic() - began:.0f} s")
    return 0


def demo_table(report: dict[str, Any]) -> str:
    """Both directions beside chance, then the minimal pairs."""
    metrics, chance = report["metrics"], report["chance"]
    count = f"{metrics['num_queries']:.0f}"
    lines = [f"{'retrieval':<22}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'MdR':>8}{'MnR':>8}{'N':>8}"]
    for direction, name in (("t2v", "text to video"), ("v2t", "video to text")):
        for label, values in ((name, metrics), ("  chance", chance)):
            recalls = "".join(f"{100 * values[f'{direction}_r{k}']:>7.1f}%" for k in (1, 5, 10))
            ranks = "".join(f"{values[f'{direction}_{name}']:>8.1f}" for name in ("mdr", "mnr"))
            lines.append(f"{label:<22}{recalls}{ranks}{count if values is metrics else '':>8}")
        times = "".join(f"{metrics[f'{direction}_r{k}'] / chance[f'{direction}_r{k}']:>7.1f}x" for k in (1, 5, 10))
        lines.append(f"{'  times chance':<22}{times}")
    for kind, title in (("motion", "kind of motion"), ("direction", "direction of motion")):
        lines.append(
            f"minimal pairs, {title}: {100 * metrics[f'pairs_{kind}']:.1f}% of {report['num_pairs'][kind]} right "
            "(chance 50%)"
        )
    return "\n".join(lines)


def _step(title: str, work: Any) -> None:
    print(f"\n== {title}", flush=True)
    began = time.monotonic()
    work()
    print(f"   ({time.monotonic() - began:.0f} s)", flush=True)


def _make_shards() -> None:
    # The stamp is old to make: this process already runs in a finished set-up.
    _call(["make", "--no-print-directory", "-o", ".venv/.ready", "shards", f"PY={sys.executable}"])


def _train(run: Path, num_steps: int) -> None:
    """Train to the end; a fresh run is stopped half-way by SIGTERM, as SLURM would, and started again."""
    if (run / "COMPLETE").exists():
        print("   complete, nothing to do")
        return
    command = [sys.executable, "-m", "pipeline.train", PRETRAIN]
    if not (run / "latest").exists():
        stopped_at = _train_until(command, run / "metrics.jsonl", num_steps // 2)
        print(f"   stopped by SIGTERM near step {stopped_at}; the same command resumes", flush=True)
    _call(command)


def _train_until(command: Sequence[str], metrics: Path, step: int) -> int:
    """Run `command` until its metrics reach `step`, then ask it to stop. Returns the step that was seen."""
    print(f"   $ {_shown(command)}", flush=True)
    process, seen = subprocess.Popen(command), 0
    try:
        while process.poll() is None and (seen := _last_step(metrics)) < step:
            time.sleep(POLL_S)
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise RunError(f"the training did not stop within {PATIENCE_S:.0f} s of SIGTERM") from None
    finally:
        if process.poll() is None:
            process.kill()
    if code != 0:
        raise RunError(f"{_shown(command)} failed with exit code {code}; its own message is above")
    return seen


def _last_step(metrics: Path) -> int:
    """The last step of a metrics file that is being written; 0 before the first."""
    return max((row["step"] for row in read_lines(metrics).rows), default=0)


def _evaluate(run: Path) -> None:
    report, finished = _report_path(run), run / "COMPLETE"
    if report.exists() and report.stat().st_mtime >= finished.stat().st_mtime:
        print("   complete, nothing to do")
        return
    _call([sys.executable, "-m", "pipeline.evaluate", str(run), EVALUATE])


def _draw(run: Path) -> None:
    if _picture_path(run).exists() and _picture_path(run).stat().st_mtime >= _report_path(run).stat().st_mtime:
        print("   complete, nothing to do")
        return
    draw_demo(run, Path("data/sample"), _picture_path(run))


def _read_report(run: Path) -> dict[str, Any]:
    path = _report_path(run)
    try:
        report = json.loads(path.read_text())
        demo_table(report)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise RunError(f"{path} is not the report of the demo; delete it, and call the demo again") from None
    return dict(report)


def _report_path(run: Path) -> Path:
    return run / "evaluation" / "sample.json"


def _picture_path(run: Path) -> Path:
    return run / "demo.png"


def _call(command: Sequence[str]) -> None:
    print(f"   $ {_shown(command)}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise RunError(f"{_shown(command)} failed with exit code {code}; its own message is above")


def _shown(command: Sequence[str]) -> str:
    return " ".join("python" if word == sys.executable else word for word in command if "=" not in word)


if __name__ == "__main__":
    run_command(main)
