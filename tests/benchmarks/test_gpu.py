"""The GPU benchmark, rehearsed on the CPU: every kind runs, a run that is cut short leaves what it has."""

import io
import json
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from benchmarks.gpu import shards
from benchmarks.gpu.__main__ import main, measure_all
from benchmarks.gpu.cases import APART, CASES
from benchmarks.gpu.tables import plot_losses, render
from benchmarks.gpu_reference import SHAPES, Model, final_loss, random_batch
from pipeline.losses import LossConfig, contrastive_loss
from tests.pipeline.ranks import start_training
from tests.pipeline.tiny import make_model


def test_cases_come_in_the_order_of_what_matters_most():
    kinds = [(case.base, case.clips, case.kind) for case in CASES]
    assert kinds[:6] == [
        ("b32", 32, "engine"),
        ("b32", 128, "engine"),
        ("b32", 32, "engine"),
        ("b32", 128, "engine"),
        ("b16", 64, "engine"),
        ("b32", 128, "train"),
    ]
    names = [case.name for case in (*CASES, *APART)]
    assert len(set(names)) == len(names)


@pytest.mark.heavy
def test_a_rehearsal_measures_every_kind(tmp_path: Path):
    chosen = ["b32_32_fast", "b32_128_train", "b32_32_reference", "b32_128_dense", "loss_32768", "b32_encode"]
    chosen.append("losses_fast")
    words = [word for name in chosen for word in ("--only", name)]
    options = ["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json")]
    process = start_training([*options, *words], tmp_path / "output.txt", case=main)
    process.join()
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert sorted(results["cases"]) == sorted(chosen) and not results["left_out"]
    for name, record in results["cases"].items():
        assert name == "losses_fast" or record["step_s"] > 0
    for name in ("b32_32_fast", "b32_128_train", "b32_32_reference", "b32_128_dense", "b32_encode"):
        assert results["cases"][name]["clips_per_s"] > 0
    plot_losses(results, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 1000


def test_what_does_not_fit_is_named_and_what_fails_is_a_result(tmp_path: Path, monkeypatch, capsys):
    """The file is there after every case; a case that fails does not end the others."""
    from benchmarks.gpu import __main__ as module

    monkeypatch.setattr(module, "memory_gib", lambda device: 40.0)
    monkeypatch.setattr(module, "machine", lambda device: {"date": "d", "device": "a card"} | dict.fromkeys(
        ("torch", "python", "cpu_cores"), 1))  # fmt: skip
    monkeypatch.setattr(module, "start_fresh", lambda device: None)
    seen: list[list[str]] = []

    def engine(case: Any, device: torch.device) -> dict[str, Any]:
        seen.append(list(json.loads(options.out.read_text())["cases"]) if options.out.exists() else [])
        if case.name == "b32_32_eager":
            raise RuntimeError("out of\nmemory")
        return {"step_s": 0.05, "clips_per_s": 640.0, "first_s": 1.0, "mfu": 0.3, "peak_gib": 11.0}

    for kind in module.SIMPLE:
        monkeypatch.setitem(module.SIMPLE, kind, engine)
    options = module._options(["--out", str(tmp_path / "out.json"), "--limit-s", "39"])
    results = measure_all([case for case in CASES if case.kind == "engine"], torch.device("cuda"), options, tmp_path)
    assert seen == [[], ["b32_32_eager"]]  # when a case begins, the file has those before it
    assert set(results["left_out"]) >= {"b32_128_fast", "b32_32_fast"}
    assert "needs 44 GiB" in results["left_out"]["b32_128_fast"]
    assert "39 s were left" in results["left_out"]["b32_32_fast"]
    assert results["cases"]["b32_32_eager"]["error"] == "RuntimeError: out of memory"
    assert main(["--render", str(options.out)]) == 0
    shown = capsys.readouterr().out
    assert "b32_32_eager: failed, RuntimeError: out of memory" in shown
    assert "Left out: " in shown and "b32_32_zero1" in shown


def test_the_trainer_is_set_beside_reference_and_engine():
    common = {"base": "b32", "clips": 32, "step_s": 0.05, "mfu": None, "peak_gib": None, "first_s": 1.0}
    cases = {
        name: common | {"kind": kind, "clips_per_s": rate}
        for name, kind, rate in (
            ("b32_32_fast", "engine", 800.0),
            ("b32_32_train", "train", 720.0),
            ("b32_32_reference", "reference", 900.0),
        )
    }
    machine = dict.fromkeys(("date", "device", "torch", "python", "cpu_cores"), "x")
    shown = render({"machine": machine, "cases": cases, "left_out": {}})
    assert "| b32_32_train | 720 | 0.80 | 0.90 |" in shown


def test_a_clip_of_the_benchmark_is_a_video():
    draw = shards.np.random.default_rng(0)
    pictures = [shards.picture(draw, 32) for _ in range(4)]
    with av.open(io.BytesIO(shards.motion_jpeg(pictures, 32))) as container:
        frames = list(container.decode(video=0))
    assert [round(frame.time * 3) for frame in frames] == [0, 1, 2, 3]
    assert (frames[0].width, frames[0].height) == (32, 32)


def test_the_reference_computes_what_the_project_computes():
    """The same weights, the same features; the same features, the same loss."""
    ours, shape = make_model(), SHAPES["tiny"]
    model = Model(shape)
    copy_weights(ours.state_dict(), model)
    batch = random_batch(shape, 4, torch.device("cpu"))
    expected = ours(**batch)
    torch.testing.assert_close(model.video(batch["video"]), expected.video_BD, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.video(batch["middle"].unsqueeze(1)), expected.frame_BD, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.text(batch["subtitle"]), expected.subtitle_BD, rtol=0, atol=1e-5)
    everyone = torch.ones(4, dtype=torch.bool)
    loss, _ = contrastive_loss(*expected, everyone, everyone, LossConfig(name="vsc_fc"))
    v, s, f, c, scale = expected
    torch.testing.assert_close(final_loss(v, s, f, c, scale), loss, rtol=1e-5, atol=1e-5)


def copy_weights(state: dict[str, torch.Tensor], model: Model) -> None:
    """Ours into the reference's parameters; its temporal vectors have a dimension more, its patch matrix is flat."""
    plain = {
        "patch": "visual.conv1.weight", "position": "visual.positional_embedding", "project": "visual.proj",
        "temporal": "visual.temporal_embedding", "words.weight": "text.token_embedding.weight",
        "text_position": "text.positional_embedding", "text_project": "text.text_projection",
    }  # fmt: skip
    parts = {
        "norm_1": "ln_1", "norm_2": "ln_2", "qkv": "attn.in_proj_", "out": "attn.out_proj", "wide": "mlp.c_fc",
        "narrow": "mlp.c_proj",
    }  # fmt: skip
    found = {name: state[source] for name, source in plain.items()}
    found["proxies"] = torch.cat([state["visual.class_embedding"][None], state["visual.added_proxies"]])
    for kind in ("weight", "bias"):
        for name, source in (
            ("norm_pre", "visual.ln_pre"),
            ("norm_post", "visual.ln_post"),
            ("text_norm", "text.ln_final"),
        ):
            found[f"{name}.{kind}"] = state[f"{source}.{kind}"]
        for own, tower in (("video_blocks", "visual"), ("text_blocks", "text")):
            for layer in range(2):
                for name, source in parts.items():
                    dot = "" if source.endswith("_") else "."
                    found[f"{own}.{layer}.{name}.{kind}"] = state[
                        f"{tower}.transformer.resblocks.{layer}.{source}{dot}{kind}"
                    ]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.copy_(found[name][: len(parameter)].reshape(parameter.shape))
