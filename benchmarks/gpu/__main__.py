"""Measure the cases one after the other: `python3 -m benchmarks.gpu`; see the package's docstring.

The machine's GPU, or `--device cpu --tiny` as a rehearsal whose numbers mean nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import APART, CASES, Case, tiny
from benchmarks.gpu.engine import dense_case, engine_case, losses_case
from benchmarks.gpu.measure import machine, memory_gib, start_fresh
from benchmarks.gpu.parts import encode_case, loss_case, reference_case
from benchmarks.gpu.shards import write_shards
from benchmarks.gpu.tables import plot_losses, render
from benchmarks.gpu.training import train_case

NUM_CLIPS = 768
SIMPLE = {
    "engine": engine_case,
    "losses": losses_case,
    "dense": dense_case,
    "loss": loss_case,
    "encode": encode_case,
    "reference": reference_case,
}


def main(argv: list[str]) -> int:
    """Exit code 0 when every case that was begun gave numbers, 1 otherwise, 2 for a wrong command line."""
    options = _options(argv)
    if options.render is not None:
        results = json.loads(options.render.read_text())
        print(render(results), end="")
        if options.plot is not None:
            plot_losses(results, options.plot)
        return 0
    if options.list:
        print("\n".join(f"{case.name}  about {case.estimate_s:.0f} s" for case in (*CASES, *APART)))
        return 0
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: this machine has no CUDA device; a rehearsal: --device cpu --tiny", file=sys.stderr)
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory(prefix="bench_gpu_") as scratch:
        results = measure_all(_chosen(options), device, options, Path(scratch))
    print(render(results), end="")
    return 1 if any("error" in record for record in results["cases"].values()) else 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench_gpu.json"), help="the results file")
    parser.add_argument("--limit-s", type=float, default=350.0, help="what does not fit is left out")
    parser.add_argument("--only", action="append", metavar="NAME", help="this case; may be repeated")
    parser.add_argument("--shards", type=Path, help="a shard set to train from; without it one is written")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model: a rehearsal")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--render", type=Path, metavar="RESULTS", help="print a results file as tables, no measurement")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="with --render: the losses of losses_fast and _eager")
    options = parser.parse_args(argv)
    if unknown := set(options.only or ()) - {case.name for case in (*CASES, *APART)}:
        parser.error(f"--only: no case is called {', '.join(sorted(unknown))}; --list names them")
    return options


def _chosen(options: argparse.Namespace) -> list[Case]:
    cases = [case for case in (*CASES, *APART) if case.name in options.only] if options.only else list(CASES)
    return [tiny(case) for case in cases] if options.tiny else cases


def measure_all(cases: list[Case], device: torch.device, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run what fits into the time; the results file is written anew after every case."""
    began = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(device), "cases": {}, "left_out": {}}
    for case in cases:
        left_s = options.limit_s - (time.perf_counter() - began)
        if case.least_gib > memory_gib(device):
            results["left_out"][case.name] = f"needs {case.least_gib:.0f} GiB"
        elif case.estimate_s > left_s and device.type == "cuda":
            results["left_out"][case.name] = f"takes about {case.estimate_s:.0f} s, {left_s:.0f} s were left"
        else:
            results["cases"][case.name] = _record(case, device, options, scratch)
            print(
                f"[{time.perf_counter() - began:.0f} s] {case.name}: {_short(results['cases'][case.name])}", flush=True
            )
        _write(options.out, results)
    return results


def _record(case: Case, device: torch.device, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """What a case gave; an error is a result too, and the next case goes on."""
    start_fresh(device)
    began = time.perf_counter()
    try:
        if case.kind == "train":
            found = train_case(case, device, _shards(options, scratch), scratch)
        else:
            found = SIMPLE[case.kind](case, device)
    except Exception as error:  # out of memory, no compiler, ...: whatever it is, the other cases are worth having
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return asdict(case) | found | {"wall_s": time.perf_counter() - began}


def _shards(options: argparse.Namespace, scratch: Path) -> Path:
    if options.shards is not None:
        return Path(options.shards).resolve()
    folder = scratch / "shards"
    if not folder.exists():
        write_shards(folder, num_clips=32 if options.tiny else NUM_CLIPS, size_px=32 if options.tiny else 224)
    return folder


def _short(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"failed: {record['error']}"
    rate = f", {record['clips_per_s']:.0f} clips/s" if "clips_per_s" in record else ""
    return (f"{record['step_s'] * 1e3:.1f} ms{rate}" if "step_s" in record else "done") + f" ({record['wall_s']:.0f} s)"


def _write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(results, indent=1))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
