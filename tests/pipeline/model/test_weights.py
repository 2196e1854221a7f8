"""Weights in and out: official, Hugging Face, open_clip, ours; strict, with the mistake named."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import convert
from pipeline.errors import InputError, RunError
from pipeline.model import start
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.model.formats import to_official, to_ours
from pipeline.model.loading import interpolate_positions
from pipeline.model.tags import cached_weights, fetch_weights
from pipeline.model.weights import load_model, save_model
from pipeline.start import start_model
from tests.pipeline.model import golden, tiny
from tests.ranks import run_ranks


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def from_file(path: Path | str, **changes: Any) -> CLIPViP:
    values = {"name": "tiny", "architecture": tiny.architecture(), "pretrained": str(path)} | changes
    return CLIPViP.from_config(ModelConfig.model_validate(values))


def test_an_export_depends_on_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(json.dumps(tiny.architecture()))
    config = ModelConfig(name=str(tmp_path / "toy.json"), image_size_px=16, checkpoint_activations=True)
    model = CLIPViP.from_config(config)
    save_model(tmp_path / "export", model.state_dict(), config)
    (tmp_path / "toy.json").unlink()
    loaded = load_model(tmp_path / "export")
    assert same(model.state_dict(), loaded.state_dict())
    assert loaded.image_size_px == 16
    assert loaded.config.checkpoint_activations
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["model.json", "model.safetensors"]


def test_a_run_folder_is_read_through_latest(tmp_path: Path) -> None:
    model = tiny.model(torch.float32)
    save_model(tmp_path / "checkpoints" / "step_00000010", model.state_dict(), model.config)
    (tmp_path / "latest").write_text("checkpoints/step_00000010\n")
    for path in (
        tmp_path,
        tmp_path / "checkpoints/step_00000010",
        tmp_path / "checkpoints/step_00000010/model.safetensors",
    ):
        assert same(load_model(path).state_dict(), model.state_dict())


def test_the_official_form_comes_in_and_goes_out_unchanged(tmp_path: Path) -> None:
    convert.write(golden.model(), tmp_path / "new folder" / "out.pt", "official")
    ours = torch.load(tmp_path / "new folder" / "out.pt", weights_only=True)
    assert same(ours, torch.load(golden.CHECKPOINT, weights_only=True))


@pytest.mark.heavy
def test_one_proxy_goes_through_every_form_and_back(tmp_path: Path) -> None:
    """M = 1: no added proxies, an empty tensor in the official form, which any form may bring back."""
    model = tiny.model(torch.float32, num_proxies=1)
    (tmp_path / "toy.json").write_text(json.dumps(tiny.architecture()))
    for form in convert.TARGETS:
        first = tmp_path / f"{form}.pt"
        convert.write(model, first, form)
        named = ["--name", str(tmp_path / "toy.json")] if form == "official" else []
        for other in convert.TARGETS:
            second = tmp_path / f"{form}_{other}.pt"
            assert convert.main([str(first), str(second), "--to", other, *named]) == 0
            loaded = from_file(second, num_proxies=1)
            assert same(loaded.state_dict(), model.state_dict())
            if other == "official":
                assert torch.load(second, weights_only=True).keys() == to_official(model.state_dict()).keys()
    video = torch.rand(2, 3, 3, 24, 24)
    assert torch.equal(loaded.eval()(video=video).video_BD, model.eval()(video=video).video_BD)


@pytest.mark.parametrize("world", ["official", "official without prefix", "ours"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_empty_tensor_of_added_proxies_is_none(tmp_path: Path, world: str, suffix: str) -> None:
    model = tiny.model(torch.float32, num_proxies=1)
    state = to_official(model.state_dict())
    if world == "official without prefix":
        state = {name.removeprefix("clipmodel."): value for name, value in state.items()}
    elif world == "ours":
        state = model.state_dict() | {"visual.added_proxies": torch.empty(0, 32)}
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    assert same(from_file(file, num_proxies=1).state_dict(), model.state_dict())
    with pytest.raises(InputError, match=r"missing visual\.added_proxies"):
        from_file(file, num_proxies=2)
    if world == "ours":  # an export that keeps it
        save_model(tmp_path / "export", state, model.config)
        assert same(load_model(tmp_path / "export").state_dict(), model.state_dict())


@pytest.mark.heavy
@pytest.mark.parametrize(("vision_inner", "text_inner"), [(120, 72), (88, 64), (352, 256), (100, 33)])
def test_an_mlp_of_any_inner_size_comes_in_and_goes_out(tmp_path: Path, vision_inner: int, text_inner: int) -> None:
    """88 times 120 / 88 is 119.99: no ratio gives every inner size."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"num_hidden_layers": 1, "hidden_act": "quick_gelu", "projection_dim": 16}
    vision = tower | {"hidden_size": 88, "intermediate_size": vision_inner, "num_attention_heads": 2}
    text = tower | {"hidden_size": 64, "intermediate_size": text_inner, "num_attention_heads": 2, "vocab_size": 99}
    text |= {"eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=vision | {"image_size": 24, "patch_size": 8}, projection_dim=16)
    theirs = CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    frames = torch.randn(2, 3, 24, 24)
    images = theirs.visual_projection(theirs.vision_model(frames).pooler_output)
    torch.testing.assert_close(
        ours(middle=frames).frame_BD, torch.nn.functional.normalize(images, dim=-1), rtol=0, atol=1e-5
    )
    save_model(tmp_path / "export", ours.state_dict(), ours.config)
    convert.write(load_model(tmp_path / "export"), tmp_path / "back", "huggingface")
    again = CLIPModel.from_pretrained(tmp_path / "back")
    assert again.config.vision_config.intermediate_size == vision_inner
    assert again.config.text_config.intermediate_size == text_inner
    assert same(again.state_dict(), theirs.state_dict())
    random = CLIPViP.from_config(ModelConfig(name="own", architecture=ours.architecture.model_dump(), num_proxies=2))
    assert random.visual.transformer.resblocks[0].mlp.c_fc.weight.shape == (vision_inner, 88)
    assert random.text.transformer.resblocks[0].mlp.c_fc.weight.shape == (text_inner, 64)


def test_exports_that_know_a_ratio_only_still_load(tmp_path: Path) -> None:
    """As they were written before `mlp_width`."""
    shape = tiny.architecture()
    shape["vision_cfg"]["mlp_ratio"] = 2.6  # of 32: 83
    model = tiny.model(torch.float32, architecture=shape)
    assert model.visual.transformer.resblocks[0].mlp.c_fc.weight.shape == (83, 32)
    save_model(tmp_path, model.state_dict(), model.config)
    content = json.loads((tmp_path / "model.json").read_text())
    for tower in ("vision_cfg", "text_cfg"):
        assert content["architecture"][tower].pop("mlp_width") is None
    (tmp_path / "model.json").write_text(json.dumps(content))
    assert same(load_model(tmp_path).state_dict(), model.state_dict())


def test_one_proxy_in_the_official_form_is_an_empty_tensor_or_none(tmp_path: Path) -> None:
    model = tiny.model(torch.float32, num_proxies=1)
    convert.write(model, tmp_path / "out.pt", "official")
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert state["clipmodel.vision_model.embeddings.added_cls"].shape == (0, 32)
    assert same(from_file(tmp_path / "out.pt", num_proxies=1).state_dict(), model.state_dict())
    del state["clipmodel.vision_model.embeddings.added_cls"]
    torch.save(state, tmp_path / "without.pt")
    assert same(from_file(tmp_path / "without.pt", num_proxies=1).state_dict(), model.state_dict())


@pytest.mark.slow
def test_released_models_are_recognised_by_their_shapes(tmp_path: Path) -> None:
    model = CLIPViP.unfilled(ModelConfig(name="ViT-B-32-quickgelu", num_proxies=3, num_temporal=7))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    convert.write(model, tmp_path / "released.pt", "official")
    loaded = load_model(tmp_path / "released.pt")
    assert loaded.config.name == "ViT-B-32-quickgelu"
    assert same(loaded.state_dict(), model.state_dict())


@pytest.mark.heavy
def test_hugging_face_reads_what_we_write_and_we_read_it_back(tmp_path: Path) -> None:
    from transformers import CLIPModel

    model = tiny.model(torch.float32)
    torch.nn.init.zeros_(model.visual.temporal_embedding)
    convert.write(model, tmp_path / "hf", "huggingface")
    theirs, report = CLIPModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ids, frames = tiny.texts([5, 9]), torch.randn(2, 3, 24, 24)
    texts = theirs.eval().text_model(ids).pooler_output @ theirs.text_projection.weight.T
    torch.testing.assert_close(
        model(subtitle=ids).subtitle_BD, torch.nn.functional.normalize(texts, dim=-1), rtol=0, atol=1e-5
    )
    back = load_model(tmp_path / "hf")
    assert same(back.state_dict(), model.state_dict())
    # A folder that transformers wrote itself is a plain CLIP: the mean-pooling baseline, or a start for CLIP-ViP.
    theirs.save_pretrained(tmp_path / "plain")
    plain = load_model(tmp_path / "plain")
    images = theirs.visual_projection(theirs.vision_model(frames).pooler_output)
    torch.testing.assert_close(
        plain(middle=frames).frame_BD, torch.nn.functional.normalize(images, dim=-1), rtol=0, atol=1e-5
    )
    assert from_file(tmp_path / "plain").visual.added_proxies is not None


def other_than_released(**changes: Any) -> CLIPViP:
    """A tiny model with pixel statistics of its own, and `changes` of its config."""
    own = {"pixel_mean": [0.5, 0.4, 0.3], "pixel_std": [0.2, 0.3, 0.25]}
    return tiny.model(torch.float32, **({"architecture": tiny.architecture() | own} | changes))


@pytest.mark.heavy
def test_pixel_statistics_go_through_hugging_face(tmp_path: Path) -> None:
    """A pre-trained tag brings its own; read with OpenAI's, every feature would be another."""
    from transformers import CLIPImageProcessor

    model = other_than_released()
    convert.write(model, tmp_path / "hf", "huggingface")
    back = load_model(tmp_path / "hf")
    pixels = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    assert torch.equal(back(middle=pixels).frame_BD, model(middle=pixels).frame_BD)
    wide = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)
    theirs = CLIPImageProcessor.from_pretrained(tmp_path / "hf")(wide, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs[0], (wide / 255 - model.pixel_mean) / model.pixel_std, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "pixel statistics of its own"),
        ({"attention": "full", "architecture": tiny.architecture()}, "attention: full"),
        ({"architecture": tiny.architecture(quick_gelu=False)}, "GELU"),
    ],
)
def test_what_the_official_form_cannot_say_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"cannot say that the model has {message}; use --to safetensors"):
        convert.write(other_than_released(**changes), tmp_path / "out.pt", "official")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"cut", r"cannot read weights from .*model\.safetensors"),
        ("clip_vip.safetensors", b"cut", r"cannot read weights from .*clip_vip\.safetensors"),
        ("config.json", b'{"model_type": "clip", "vision_config": {"hidden_size": "x"}}', r"config\.json describes no"),
        ("config.json", b'{"model_type": "clip", "text_config": {"num_attention_heads": 0}}', "describes no CLIP"),
        ("preprocessor_config.json", b'{"image_mean": [0.5]}', "describes no CLIP.*pixel_mean"),
    ],
)
def test_a_broken_file_of_a_hugging_face_folder_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    convert.write(tiny.model(torch.float32), tmp_path / "hf", "huggingface")
    (tmp_path / "hf" / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "hf")


def test_openclip_files_come_in(tmp_path: Path) -> None:
    model = tiny.model(torch.float32, num_proxies=1)
    extras = ("visual.temporal_embedding",)
    flat = {name.removeprefix("text."): value for name, value in model.state_dict().items() if name not in extras}
    flat["logit_scale"] = flat["logit_scale"].reshape([])
    save_file(flat, tmp_path / "open_clip.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in flat.items()}}, tmp_path / "epoch_1.pt")
    for file in ("open_clip.safetensors", "epoch_1.pt"):
        started = from_file(tmp_path / file)
        assert torch.equal(started.visual.proj, model.visual.proj)
        assert not started.visual.temporal_embedding.any()
    with pytest.raises(InputError, match="does not tell its model's number of heads"):
        load_model(tmp_path / "epoch_1.pt")


def test_positions_interpolate_when_the_resolution_changes(tmp_path: Path) -> None:
    model = tiny.model(torch.float32)
    save_model(tmp_path, model.state_dict(), model.config)
    larger = from_file(tmp_path, image_size_px=40)
    assert larger.visual.positional_embedding.shape == (26, 32)
    assert torch.equal(larger.visual.positional_embedding[0], model.visual.positional_embedding[0])
    assert larger(middle=torch.randn(1, 3, 40, 40)).frame_BD.shape == (1, 16)
    smooth = torch.linspace(0, 1, 9).view(9, 1)
    flat = torch.cat([torch.zeros(1, 1), torch.ones(9, 1)])
    torch.testing.assert_close(interpolate_positions(flat, 26), torch.cat([torch.zeros(1, 1), torch.ones(25, 1)]))
    assert interpolate_positions(smooth, 9) is smooth


def mutated(path: Path, change: Any) -> Path:
    state = torch.load(golden.CHECKPOINT, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("clipmodel.visual_projection.weight"), r"missing visual\.proj"),
        (lambda state: state.pop("clipmodel.vision_model.embeddings.added_cls"), r"missing visual\.added_proxies"),
        (lambda state: state.update({"clipmodel.extra": torch.zeros(1)}), "unknown extra"),
        (
            lambda state: state.update({"clipmodel.vision_model.embeddings.temporal_embedding": torch.zeros(1, 8, 64)}),
            r"misshaped visual\.temporal_embedding is \[8, 64\], not \[12, 64\]",
        ),
        (
            lambda state: state.pop("clipmodel.vision_model.encoder.layers.1.self_attn.k_proj.weight"),
            r"missing visual\.transformer\.resblocks\.1\.attn\.in_proj_weight; unknown vision_model",
        ),
    ],
)
def test_loading_is_strict(tmp_path: Path, change: Any, message: str) -> None:
    file = mutated(tmp_path / "changed.pt", change)
    with pytest.raises(InputError, match=message):
        golden.model(pretrained=str(file))


def test_patch_16_weights_into_a_patch_32_model_name_the_patches_first() -> None:
    architecture = golden.architecture()
    architecture["vision_cfg"]["patch_size"] = 32
    with pytest.raises(
        InputError, match=r"misshaped visual\.conv1\.weight is \[64, 3, 16, 16\], not \[64, 3, 32, 32\]"
    ):
        golden.model(architecture=architecture)


def test_official_weights_into_a_gelu_model_are_an_error() -> None:
    with pytest.raises(
        InputError, match="trained with quick-GELU, but golden is a GELU model; use name: golden-quickgelu"
    ):
        golden.model(architecture=golden.architecture() | {"quick_gelu": False})
    with pytest.raises(InputError, match=r"openai was trained with quick-GELU.*use name: ViT-B-32-quickgelu"):
        CLIPViP.from_config(ModelConfig(name="ViT-B/32", pretrained="openai"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "ViT-B-33"}, "unknown model 'ViT-B-33'; the nearest open_clip name is 'ViT-B-32'"),
        ({"name": "RN50"}, "no plain ViT"),
        ({"name": "ViT-B-16-SigLIP"}, "no plain ViT"),
        ({"name": "ViT-B-32-quickgelu", "pretrained": "opnai"}, "nearest tag is 'openai'"),
        ({"name": "ViT-B-32-quickgelu", "pretrained": "gone/openai.pt"}, "no weights at gone/openai.pt"),
        ({"name": "missing.json"}, r"cannot read missing\.json: No such file"),
        ({"image_size_px": 100}, "100-px frames do not divide into 32-px patches"),
    ],
)
def test_wrong_names_get_the_nearest_valid_one(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CLIPViP.from_config(ModelConfig.model_validate(values))


@pytest.mark.parametrize(
    "name", ["ViT-B-32-quickgelu", "ViT-L-14-336-quickgelu", "ViT-H-14", "ViT-M-16-alt", "ViT-H-14-worldwide"]
)
def test_models_of_openclip_have_its_tensors_and_ours_beside_them(name: str) -> None:
    import open_clip

    with torch.device("meta"):
        model = CLIPViP(ModelConfig(name=name))
        twin = open_clip.model.CLIP(**open_clip.get_model_config(name))
    theirs = {key: value.shape for key, value in to_ours(twin.state_dict()).items()}
    ours = {key: value.shape for key, value in model.state_dict().items()}
    width = model.architecture.vision_cfg.width
    assert theirs.keys() <= ours.keys()
    assert dict(ours.items() - theirs.items()) == {
        "visual.added_proxies": (3, width),
        "visual.temporal_embedding": (12, width),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"a":' * 200_000, "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"patch": 3}', "no model config: patch: Extra"),
    ],
)
def test_a_broken_config_beside_weights_is_named(tmp_path: Path, content: str, message: str) -> None:
    model = tiny.model(torch.float32)
    save_model(tmp_path, model.state_dict(), model.config)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=rf"model\.json.*{message}"):
        load_model(tmp_path)


def test_a_config_with_a_byte_order_mark_and_a_broken_latest(tmp_path: Path) -> None:
    model = tiny.model(torch.float32)
    save_model(tmp_path, model.state_dict(), model.config)
    (tmp_path / "model.json").write_text((tmp_path / "model.json").read_text(), encoding="utf-8-sig")
    assert same(load_model(tmp_path).state_dict(), model.state_dict())
    (tmp_path / "latest").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="holds no model"):
        load_model(tmp_path)


def test_the_command_converts_and_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy.json").write_text(json.dumps(golden.architecture()))
    arguments = [
        str(golden.CHECKPOINT),
        str(tmp_path / "out"),
        "--to",
        "safetensors",
        "--name",
        str(tmp_path / "toy.json"),
    ]
    assert convert.main(arguments) == 0
    assert "as safetensors" in capsys.readouterr().out
    assert same(load_file(tmp_path / "out" / "model.safetensors"), golden.model().state_dict())
    with pytest.raises(InputError, match="exists; choose another name"):
        convert.main(arguments)
    assert convert.main([str(tmp_path / "out"), str(tmp_path / "back.pt"), "--to", "official"]) == 0
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), torch.load(golden.CHECKPOINT, weights_only=True))


@pytest.mark.parametrize(("num_proxies", "num_temporal"), [(8, 5), (1, 3)])
def test_the_command_takes_proxies_and_temporal_vectors_from_the_file(
    tmp_path: Path, num_proxies: int, num_temporal: int
) -> None:
    model = tiny.model(torch.float32, num_proxies=num_proxies, num_temporal=num_temporal)
    (tmp_path / "toy.json").write_text(json.dumps(tiny.architecture()))
    convert.write(model, tmp_path / "released.pt", "official")
    with pytest.raises(InputError, match=r"pipeline\.convert --name"):
        load_model(tmp_path / "released.pt")
    arguments = [str(tmp_path / "released.pt"), str(tmp_path / "out"), "--to", "safetensors"]
    assert convert.main([*arguments, "--name", str(tmp_path / "toy.json")]) == 0
    assert same(load_model(tmp_path / "out").state_dict(), model.state_dict())


def test_the_command_adds_nothing_to_a_plain_clip(tmp_path: Path) -> None:
    model = tiny.model(torch.float32, num_proxies=1, num_temporal=0, pooling="mean")
    (tmp_path / "toy.json").write_text(json.dumps(tiny.architecture()))
    save_file(
        {name.removeprefix("text."): value for name, value in model.state_dict().items()}, tmp_path / "clip.safetensors"
    )
    arguments = [str(tmp_path / "clip.safetensors"), str(tmp_path / "out"), "--to", "safetensors"]
    assert convert.main([*arguments, "--name", str(tmp_path / "toy.json")]) == 0
    loaded = load_model(tmp_path / "out")
    assert loaded.config.pooling == "mean"
    assert same(loaded.state_dict(), model.state_dict())


def test_a_tag_brings_its_weights_and_its_pixel_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    twin = open_clip.model.CLIP(**tiny.architecture())
    monkeypatch.setattr(start, "fetch_weights", lambda name, tag: Path(f"{name}/{tag}"))
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: twin)
    # Of the tags of this model, laion2b_s32b_b82k has mean and deviation 0.5 instead of OpenAI's.
    values = {"name": "ViT-L-14", "architecture": tiny.architecture(quick_gelu=False), "num_proxies": 2}
    model = CLIPViP.from_config(ModelConfig.model_validate(values | {"pretrained": "laion2b_s32b_b82k"}))
    assert torch.equal(model.visual.proj, twin.visual.proj)
    assert torch.equal(model.text.token_embedding.weight, twin.token_embedding.weight)
    assert model.pixel_mean.flatten().tolist() == model.pixel_std.flatten().tolist() == [0.5, 0.5, 0.5]


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(facts: dict[str, Any]) -> None:
        raise RuntimeError("no network\nmore lines")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", fail)
    with pytest.raises(
        RunError, match=r"^open_clip could not fetch ViT-B-32-quickgelu openai: no network; give a local"
    ):
        CLIPViP.from_config(ModelConfig(name="ViT-B-32-quickgelu", pretrained="openai"))


def test_cached_weights_are_found_without_asking_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda facts: pytest.fail("a download"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cached_weights("ViT-B/32-quickgelu", "openai") is None
    assert cached_weights("ViT-B-32-quickgelu", "metaclip_400m") is None
    repository = tmp_path / "models--timm--vit_base_patch32_clip_224.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    weights = repository / "snapshots" / "abc" / "open_clip_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert fetch_weights("ViT-B/32-quickgelu", "openai") == weights


def _one_fetch_a_node(rank: int, num_ranks: int, folder: Path) -> None:
    """Ranks 0 and 1 on one node, 2 on another; CLIP itself is left out."""
    os.environ["LOCAL_RANK"] = str(rank % 2)
    config = ModelConfig(name="ViT-B-32-quickgelu", pretrained="openai")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.start.fetch_weights", lambda name, tag: (folder / f"fetched_{rank}").touch())
        patch.setattr(CLIPViP, "from_config", lambda config: sorted(path.name for path in folder.glob("fetched_*")))
        assert start_model(config) == ["fetched_0", "fetched_2"]

        def fail(name: str, tag: str) -> None:
            raise RunError(f"no network for rank {rank}")

        patch.setattr("pipeline.start.fetch_weights", fail)
        with pytest.raises(RunError, match="no network for rank 0"):
            start_model(config)


def test_the_first_rank_of_each_node_fetches_for_all(tmp_path: Path) -> None:
    run_ranks(_one_fetch_a_node, 3, tmp_path)
