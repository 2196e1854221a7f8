"""A plan against what was measured, each point with itself left out; lengths, memory, traffic, units and options."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.config import load_config
from pipeline.errors import InputError
from pipeline.flops import GPUS, ClipWork
from pipeline.model.config import ModelConfig
from pipeline.plan import Options, make_plan, state_bytes_per_parameter
from pipeline.plan import main as plan_main
from pipeline.planning.activations import kept_memory
from pipeline.planning.communication import Links, gradient_traffic_bytes
from pipeline.planning.memory import resident_bytes
from pipeline.planning.published_sets import published_set
from pipeline.planning.speeds import Point, Speeds, Wanted, estimate, read_speeds
from pipeline.train_config import TrainConfig
from tests.pipeline.tiny import write_config

SPEEDS = read_speeds()
NUMBERED = list(enumerate(SPEEDS.points))
PRETRAIN = {"ViT-B-32-quickgelu": ["configs/pretrain/b32.yaml"]}
PRETRAIN["ViT-B-16-quickgelu"] = [*PRETRAIN["ViT-B-32-quickgelu"], "configs/pretrain/b16.yaml"]


def named(point: Point) -> str:
    model = point.model.removesuffix("-quickgelu")
    return f"{point.gpu}-{model}-{point.clips_per_gpu}-zero{point.zero_stage}-{point.mode}-{point.source}"


def wanted(point: Point, **changes) -> Wanted:
    values = {
        "gpu": point.gpu,
        "card": GPUS[point.gpu],
        "model": ModelConfig(name=point.model),
        "work": ClipWork.of(ModelConfig(name=point.model), num_frames=12, num_text_tokens=70, loss_name="vsc_fc"),
        "precision": point.precision,
        "tf32": True,
        "zero_stage": point.zero_stage,
        "mode": point.mode,
    }
    return Wanted(**(values | changes))


def without(number: int) -> Speeds:
    points = SPEEDS.points
    return SPEEDS.model_copy(update={"points": points[:number] + points[number + 1 :]})


def only_of_its_mode(point: Point) -> bool:
    return sum(other.mode == point.mode for other in SPEEDS.points) == 1


@pytest.mark.parametrize(("number", "point"), NUMBERED, ids=[named(point) for _, point in NUMBERED])
def test_each_measured_step_is_predicted_with_itself_left_out(number: int, point: Point) -> None:
    if only_of_its_mode(point):
        with pytest.raises(InputError, match=f"no step in mode {point.mode} was measured"):
            estimate(wanted(point), point.clips_per_gpu, without(number))
        return
    found = estimate(wanted(point), point.clips_per_gpu, without(number))
    assert found.seconds == pytest.approx(point.seconds, rel=0.15)
    others = [p for n, p in NUMBERED if n != number and p.model == point.model and p.mode == point.mode]
    if not any(p.zero_stage == point.zero_stage for p in others):
        assert not found.is_measured and found.basis.startswith("assumed (")


@pytest.mark.parametrize("point", SPEEDS.points, ids=named)
def test_each_measured_step_is_told_as_it_was_measured(point: Point) -> None:
    found = estimate(wanted(point), point.clips_per_gpu, SPEEDS)
    assert found.seconds == pytest.approx(point.seconds, rel=0.02)
    assert found.is_measured and str(point.date) in found.basis and point.gpu in found.basis


@pytest.mark.parametrize("point", [p for p in SPEEDS.points if p.peak_gib], ids=named)
def test_memory_is_within_5_percent_of_what_was_seen(point: Point) -> None:
    with torch.device("meta"):
        config = load_config(TrainConfig, PRETRAIN[point.model], [f"batch.global_batch_size={point.clips_per_gpu}"])
    plan = make_plan(config, gpu=point.gpu, num_gpus=1, options=Options(gpu=point.gpu, num_gpus=1, mode=point.mode))
    assert plan.peak_gb(point.zero_stage or 0) == pytest.approx(point.peak_gib * 2**30 / 1e9, rel=0.05)
    assert plan.kept.is_measured


def test_a_step_grows_with_clips_and_is_bound_by_the_host_when_they_are_few() -> None:
    point = SPEEDS.points[0]
    times = [estimate(wanted(point), clips, SPEEDS).seconds for clips in (1, 8, 32, 64, 128, 256, 512)]
    assert times == sorted(times)
    assert times[1] == pytest.approx(times[0], rel=0.01), "eager, 8 clips cost what one costs"
    assert times[-1] == pytest.approx(2 * times[-2], rel=0.1)


@pytest.mark.parametrize(
    ("changes", "said", "ratio"),
    [
        ({"gpu": "h100", "card": GPUS["h100"]}, "h100 from h200 by the ratio of datasheet peaks", 1.0),
        ({"gpu": "a100", "card": GPUS["a100"]}, "a100 from h200 by the ratio of datasheet peaks", 989 / 312),
        ({"precision": "fp16"}, "fp16 as bf16", 1.0),
        ({"precision": "fp32"}, "tf32 from bf16", 2.0),
        ({"zero_stage": 2}, "ZeRO 2 from ZeRO", 1.0),
        (
            {"model": ModelConfig(name="ViT-L-14-quickgelu")},
            "from ViT-B-32-quickgelu by operations",
            None,
        ),
    ],
)
def test_what_was_not_measured_is_called_assumed(changes, said: str, ratio: float | None) -> None:
    point = next(p for p in SPEEDS.points if p.clips_per_gpu == 256 and p.mode == "eager")
    if "model" in changes:
        changes |= {"work": ClipWork.of(changes["model"], num_frames=12, num_text_tokens=70, loss_name="vsc_fc")}
    measured, found = (estimate(w, 1024, SPEEDS) for w in (wanted(point), wanted(point, **changes)))
    assert not found.is_measured and said in found.basis
    if ratio is not None:  # at many clips the GPU's part is all
        assert found.seconds / measured.seconds == pytest.approx(ratio, rel=0.05)
    else:
        assert found.seconds > 4 * measured.seconds


def test_other_frames_are_scaled_by_operations() -> None:
    point = SPEEDS.points[0]
    work = ClipWork.of(ModelConfig(name=point.model), num_frames=32, num_text_tokens=70, loss_name="vsc_fc")
    found = estimate(wanted(point, work=work), 512, SPEEDS)
    assert "other frames, texts or loss by operations" in found.basis
    assert found.seconds / estimate(wanted(point), 512, SPEEDS).seconds == pytest.approx(32 / 12, rel=0.1)


def test_further_measured_steps_come_from_a_file(tmp_path: Path) -> None:
    """As the bench writes them: JSON, the driver's name of the card. One number of clips moves the whole curve."""
    point = SPEEDS.points[0].model_dump(mode="json") | {"gpu": "NVIDIA H100 80GB HBM3", "clips_per_s": 70.0}
    (tmp_path / "bench.json").write_text(json.dumps({"points": [point]}))
    speeds = read_speeds(tmp_path / "bench.json")
    h100 = wanted(SPEEDS.points[0], gpu="h100", card=GPUS["h100"])
    found = estimate(h100, 32, speeds)
    assert found.is_measured and found.seconds == pytest.approx(32 / 70)
    more = estimate(h100, 128, speeds)
    assert not more.is_measured and "assumed (for 128 clips), measured at 32 clips (h100" in more.basis
    assert more.seconds == pytest.approx(2 * estimate(wanted(SPEEDS.points[0]), 128, SPEEDS).seconds, rel=0.01)
    (tmp_path / "bad.yaml").write_text("points: [{gpu: h100}]")
    with pytest.raises(InputError, match=r"bad\.yaml is no file of measured steps"):
        read_speeds(tmp_path / "bad.yaml")
    with pytest.raises(InputError, match=r"cannot read .*absent"):
        read_speeds(tmp_path / "absent")


def test_results_of_the_bench_are_measured_steps(tmp_path: Path) -> None:
    def case(**values):
        common = {"kind": "engine", "base": "b32", "words": [], "step_s": 0.05, "zero_stage": 0, "peak_gib": 14.0}
        return common | values

    eager = ["engine.compile=false", "engine.capture=false"]
    cases = {
        "b32_32_fast": case(clips=32, clips_per_s=800.0),
        "b32_128_fast": case(clips=128, clips_per_s=1200.0),
        "b32_32_zero1": case(clips=32, clips_per_s=600.0, words=["engine.zero_stage=1"], zero_stage=1),
        "b32_32_eager": case(clips=32, clips_per_s=200.0, words=eager),
        "b32_32_reference": case(kind="reference", clips=32, clips_per_s=784.0),
        "b16_64_fast": {"kind": "engine", "base": "b16", "words": [], "error": "out of memory"},
    }
    train = case(kind="train", clips=256, clips_per_s=1250.0)
    cases["b32_256_train"] = {name: value for name, value in train.items() if name != "zero_stage"}
    machine = {"device": "NVIDIA H100 80GB HBM3", "date": "2027-01-02", "torch": "2.15.0", "python": "3.11"}
    (tmp_path / "bench_gpu.json").write_text(json.dumps({"machine": machine, "cases": cases, "left_out": {}}))
    speeds = read_speeds(tmp_path / "bench_gpu.json")
    new = speeds.points[: -len(SPEEDS.points)]
    assert [(p.clips_per_gpu, p.zero_stage, p.mode, p.source) for p in new] == [
        (32, 0, "fast", "engine"),
        (128, 0, "fast", "engine"),
        (32, 1, "fast", "engine"),
        (32, 0, "eager", "engine"),
        (256, 0, "fast", "pipeline.train"),
    ]
    h100 = wanted(SPEEDS.points[0], gpu="h100", card=GPUS["h100"], zero_stage=0, mode="fast")
    found = estimate(h100, 64, speeds)
    assert found.is_measured and 64 / 1200 < found.seconds < 64 / 800
    (tmp_path / "bad.json").write_text(json.dumps({"cases": {}}))
    with pytest.raises(InputError, match=r"bad\.json is no file of measured steps"):
        read_speeds(tmp_path / "bad.json")


def test_a_prototype_gives_way_to_the_trainer() -> None:
    fast = next(p for p in SPEEDS.points if p.mode == "fast" and p.source == "prototype")
    trainer = fast.model_copy(update={"source": "engine", "clips_per_s": 100.0})
    speeds = SPEEDS.model_copy(update={"points": (*SPEEDS.points, trainer)})
    assert estimate(wanted(fast), fast.clips_per_gpu, speeds).seconds == pytest.approx(trainer.seconds)


@pytest.mark.parametrize(("stage", "ranks", "expected"), [(0, 1, 16.0), (1, 1, 20.0), (2, 4, 8.0), (3, 4, 9.0)])
def test_states_by_stage(stage: int, ranks: int, expected: float) -> None:
    assert state_bytes_per_parameter(stage, ranks) == expected
    assert resident_bytes(stage, ranks, 1, 4) <= expected + resident_bytes(stage, ranks, 0, 4)


def test_an_unmeasured_model_takes_the_mean_memory_of_others() -> None:
    kept = kept_memory(wanted(SPEEDS.points[0], model=ModelConfig(name="ViT-L-14-quickgelu")), SPEEDS)
    assert not kept.is_measured and 0.9 < kept.factor < 1.2


def test_traffic_is_that_of_a_ring() -> None:
    """One GPU says nothing; two reduce a gradient by sending half of it twice."""
    assert gradient_traffic_bytes(1000, num_gpus=1, zero_stage=1, gradient_bytes=4) == 0
    assert gradient_traffic_bytes(1000, num_gpus=2, zero_stage=0, gradient_bytes=4) == 4000
    assert gradient_traffic_bytes(1000, num_gpus=4, zero_stage=1, gradient_bytes=2) == 4500
    assert gradient_traffic_bytes(1000, num_gpus=4, zero_stage=3, gradient_bytes=4) == 9000
    assert (Links().gb_per_s(8), Links().gb_per_s(9)) == (450, 50)


def planned(capsys, *words: str) -> str:
    assert plan_main(list(words)) == 0
    return str(capsys.readouterr().out)


def row(printed: str, name: str) -> str:
    (line,) = re.findall(rf"^  {re.escape(name)}\s\s+(.*)$", printed, re.MULTILINE)
    return str(line)


def test_the_shipped_recipe_has_a_plan_before_there_are_data(capsys) -> None:
    """The command of the README, on a machine with nothing: three epochs of HD-VILA-100M, and it says so."""
    words = ["--gpus", "32", "--gpu", "h200", "--mode", "eager", "engine.zero_stage=1"]
    printed = planned(capsys, "configs/pretrain/b32.yaml", *words)
    assert "92,000,000 clips of HD-VILA-100M (usable clips): data/shards/hdvila cannot be counted" in printed
    # By hand: 3 x 92 M clips at the measured 140 clips/s a GPU, longer by what traffic adds.
    (hours,) = re.findall(r"([\d,.]+) GPU-hours", printed)
    traffic_s = 151.3e6 * 8 * 31 / 32 / 50e9
    assert float(hours.replace(",", "")) == pytest.approx(
        3 * 92e6 / 140 / 3600 * (1 + traffic_s / 2 / 0.2286), rel=0.02
    )
    assert row(printed, "computing").startswith("229 ms, measured at 32, 128, 256 clips (h200")
    said = row(printed, "communication")
    assert "at 50 GB/s (assumed; between nodes, --network-gb-s), 50% of it hidden (assumed; --overlap)" in said


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ([], "fast"),
        (["engine.capture=false"], "compiled"),
        (["engine.capture=false", "engine.compile=false"], "eager"),
        (["engine.zero_stage=3"], "eager"),
        (["model.checkpoint_activations=true"], "compiled"),
        (["engine.capture=false", "--mode", "fast"], "fast"),
    ],
)
def test_a_step_is_planned_as_the_config_runs_it(capsys, words: list[str], mode: str) -> None:
    printed = planned(capsys, "configs/pretrain/b32.yaml", "--gpus=32", "--gpu=h200", *words)
    assert f", {mode}, 2" in row(printed, "computing")


def test_what_rests_on_a_prototype_says_so(capsys) -> None:
    if any(point.mode == "fast" and point.source != "prototype" for point in SPEEDS.points):
        pytest.skip("the trainer itself was measured")
    printed = planned(capsys, "configs/pretrain/b32.yaml", "--gpus=32", "--gpu=h200", "engine.zero_stage=1")
    assert re.search(r"assumed \(.*from a plain loop\), measured at .* with a prototype\)", row(printed, "computing"))


def test_options_of_links_change_the_traffic(capsys) -> None:
    words = ["configs/pretrain/b32.yaml", "--gpus=32", "--gpu=h200"]
    printed = planned(capsys, *words, "--network-gb-s", "25", "--overlap=0", "gpus-per-node=4")
    assert "at 25 GB/s" in printed and "0% of it hidden" in printed
    inside = planned(capsys, *words, "--gpus-per-node=32", "--node-gb-s=100")
    assert "at 100 GB/s (assumed; inside a node, --node-gb-s)" in inside
    assert row(planned(capsys, *words[:1], "--gpus=1", "--gpu=h200"), "communication") == "none on one GPU"


def test_a_share_of_the_peak_takes_the_place_of_measured_steps(capsys) -> None:
    printed = planned(capsys, "configs/pretrain/b32.yaml", "--gpus=1", "--gpu=h100", "--mfu", "0.45")
    assert "assumed: 45% of the bf16 peak (--mfu)" in printed
    (hours,) = re.findall(r"([\d,.]+) GPU-hours", printed)
    assert float(hours.replace(",", "")) == pytest.approx(3 * 92e6 * 374e9 / (0.45 * 989e12) / 3600, rel=0.01)


@pytest.mark.parametrize(
    ("recipe", "clips", "stored"),
    [
        ("msrvtt_b32", 5 * 180_000, 9_000),
        ("didemo_b32", 20 * 8_394, 8_394),
        ("lsmdc_b16", 10 * 101_000, 101_000),
        ("activitynet_b32", 20 * 10_009, 10_009),
    ],
)
def test_fine_tuning_sets_count_by_their_published_sizes(capsys, recipe: str, clips: int, stored: int) -> None:
    printed = planned(capsys, f"configs/finetune/{recipe}.yaml", "--gpus", "8", "--gpu", "h200")
    found = int(re.findall(r"([\d,]+) \(", row(printed, "clips in the run"))[0].replace(",", ""))
    assert clips * 0.985 <= found <= clips, "whole batches of every epoch"
    assert "cannot be counted yet" in printed and "HD-VILA" not in printed
    storage = float(re.findall(r"([\d.]+) GB of shards", row(printed, "storage"))[0])
    frames = 32 if recipe.startswith("activity") else 12
    assert storage == pytest.approx(stored * 430e3 * frames / 12 / 1e9, rel=0.02)


@pytest.mark.parametrize(
    ("shards", "name"),
    [
        ("data/shards/hdvila", "HD-VILA"),
        ("s3://bucket/HD-VILA_100M/train", "HD-VILA"),
        ("/scratch/MSR-VTT/shards", "MSR-VTT"),
        ("data/benchmarks/activitynet_captions/x", "ActivityNet"),
        ("data/own/set", None),
        ("data/not_lsmdc/set", None),
    ],
)
def test_published_sets_are_known_by_their_folders(shards: str, name: str | None) -> None:
    found = published_set(shards)
    assert found is None if name is None else found is not None and found.name.startswith(name)


def test_a_set_of_unknown_size_needs_its_clips(capsys, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, tmp_path / "none", steps=None, epochs=2))
    with pytest.raises(InputError, match=r"none cannot be counted yet; give the clips of an epoch: clips=N or --clips"):
        plan_main([config])
    for words in (["--clips", "1e3"], ["--clips=1000"], ["clips=1000"]):
        printed = planned(capsys, config, *words)
        assert row(printed, "clips in the run") == "1,992 (166 steps)", "two epochs of 83 whole batches of 12"
        assert row(printed, "storage") == "548 KB of shards at 548 B a clip"
    for ending, expected in (("drop", "2,988 (249 steps)"), ("carry", "3,000 (250 steps)")):
        printed = planned(capsys, config, "clips=1000", "epochs=3", f"data.epoch_end={ending}")
        assert row(printed, "clips in the run") == expected
    printed = planned(capsys, config, "clips=1000", "epochs=null", "steps=3")
    assert row(printed, "clips in the run") == "36 (3 steps)"
    assert "548 KB of shards" in printed
    printed = planned(capsys, config, "epochs=null", "steps=3")
    assert row(printed, "storage") == "not known at 548 B a clip"


@pytest.mark.parametrize("gpus", ["1", "8", "12"])
def test_a_tiny_run_is_told_without_nonsense(capsys, tmp_path: Path, gpus: str) -> None:
    config = str(write_config(tmp_path, tmp_path / "none"))
    printed = planned(capsys, config, "--gpus", gpus, "--gpu=h100")
    assert not re.search(r"\de[-+]\d|\bnan\b|\binf\b|(?<![\d.])0\.0 ", printed)
    assert row(printed, "loader") == "1 core per GPU at under 0.01 ms a clip"
    assert re.fullmatch(r"(less than a second|\d+(\.\d)? seconds), under 0.1 GPU-hours", row(printed, "time"))


def test_another_card_is_given_by_hand(capsys, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, tmp_path / "none"))
    words = [config, "--gpus=2", "--gpu", "mi300x"]
    with pytest.raises(InputError, match=r"'mi300x' is unknown; known are .*h100.*--tflops.*--memory-gb"):
        plan_main(words)
    printed = planned(capsys, *words, "--tflops", "1307", "--memory-gb=192")
    assert "2 x mi300x at 1,307 TFLOP/s (dense bf16 peak), 192 GB" in printed
    assert "mi300x from h200 by the ratio of datasheet peaks" in printed
    assert "of 60 GB per GPU" in planned(capsys, config, "--gpu=h100", "--memory-gb=60")


def test_only_exact_accumulation_encodes_twice(capsys, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, tmp_path / "none"))
    for words, expected in (
        (["batch.micro_batches=2"], True),
        (["batch.micro_batches=2", "batch.accumulation=plain"], False),
    ):
        assert ("times 1.33 with recomputation" in planned(capsys, config, *words)) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "abacus"], "abacus"),
        (["--gpus", "many"], r"--gpus takes a whole number of at least 1, got 'many'"),
        (["--gpus", "0"], "--gpus takes a whole number"),
        (["--gpus", "1.5"], "--gpus takes a whole number"),
        (["--mfu", "2"], r"in \(0, 1\]"),
        (["--overlap", "-1"], r"in \[0, 1\]"),
        (["--tflops", "nan"], "above 0"),
        (["--clips", ""], "--clips takes a whole number"),
        (["--mode", "warp"], "no step in mode warp was measured; known are compiled, eager, fast"),
    ],
)
def test_wrong_options_are_input_errors(tmp_path: Path, words: list[str], message: str) -> None:
    config = write_config(tmp_path, tmp_path / "none")
    with pytest.raises(InputError, match=message):
        plan_main([str(config), *words])


def test_the_data_file_names_hardware_date_and_code_of_every_step() -> None:
    content = yaml.safe_load((Path(__file__).parents[2] / "pipeline/planning/measured_speeds.yaml").read_text())
    for point in content["points"]:
        assert {"gpu", "date", "torch", "model", "clips_per_gpu", "precision", "zero_stage", "mode", "clips_per_s"} <= (
            point.keys()
        )
        assert point["source"] and point["gpu"] in GPUS
