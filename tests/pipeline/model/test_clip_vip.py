"""The model: equal to its dense form and to open_clip's, for any T, M and patch size; its settings do what they say."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.losses import LossConfig, contrastive_loss
from pipeline.model.architecture import PIXEL_MEAN, PIXEL_STD
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.model.layers import BlockShape, Transformer
from pipeline.model.patches import PatchEmbedding
from pipeline.model.text_tower import TEXT_LENGTHS, trim_texts
from tests.pipeline.model import dense, golden, tiny

MEAN_POOLING = {"pooling": "mean", "num_proxies": 1, "num_temporal": 0}


def video(num_clips: int, num_frames: int, side_px: int = 24, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(num_clips, num_frames, 3, side_px, side_px, dtype=dtype, generator=draw)


@pytest.mark.parametrize(
    ("num_frames", "num_proxies", "patch_px"),
    [(1, 1, 8), (1, 4, 12), (2, 2, 8), (5, 1, 8), (5, 8, 12), (12, 4, 8), (32, 4, 12), (32, 8, 8)],
)
def test_equals_one_dense_masked_attention(num_frames: int, num_proxies: int, patch_px: int) -> None:
    """Features and every gradient."""
    model = tiny.model(num_proxies=num_proxies, architecture=tiny.architecture(patch_px))
    clips = video(2, num_frames)
    weighting = torch.randn(2, 16, dtype=torch.float64)
    parameters = dict(model.visual.named_parameters())
    ours, plain = model(video=clips).video_BD, dense.video_features(model, clips)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    for name, a, b in zip(
        parameters,
        torch.autograd.grad((ours * weighting).sum(), list(parameters.values())),
        torch.autograd.grad((plain * weighting).sum(), list(parameters.values())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def openclip_twin(model: CLIPViP) -> Any:
    """open_clip's own CLIP class with the weights of `model`."""
    from open_clip.model import CLIP

    twin = CLIP(**{key: tiny.architecture()[key] for key in ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")})
    extras = ("visual.added_proxies", "visual.temporal_embedding")
    state = {name.removeprefix("text."): value for name, value in model.state_dict().items() if name not in extras}
    twin.load_state_dict(state | {"logit_scale": state["logit_scale"].reshape([])})
    return twin.to(model.logit_scale.dtype).eval()


def test_one_frame_and_one_proxy_equal_encode_image() -> None:
    model = tiny.model(torch.float32, num_proxies=1)
    torch.nn.init.zeros_(model.visual.temporal_embedding)
    frames = video(3, 1, dtype=torch.float32)
    expected = openclip_twin(model).encode_image(frames[:, 0], normalize=True)
    torch.testing.assert_close(model(video=frames).video_BD, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(middle=frames[:, 0]).frame_BD, expected, rtol=0, atol=1e-6)


def test_texts_equal_encode_text_of_the_same_texts_padded_to_77() -> None:
    model = tiny.model(torch.float32)
    ids = tiny.texts([3, 9, 31])
    expected = openclip_twin(model).encode_text(ids, normalize=True)
    for given in (ids, ids[:, :31], ids.masked_fill(ids == 0, 511)):  # trimmed; padded with EOS: the first one counts
        torch.testing.assert_close(model(subtitle=given).subtitle_BD, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(model(caption=given).caption_BD, expected, rtol=0, atol=1e-6)


def test_tokens_behind_the_longest_text_are_not_computed() -> None:
    model = tiny.model()
    seen: list[int] = []
    model.text.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    model(subtitle=tiny.texts([3, 9, 31]), caption=tiny.texts([2, 5, 4]))
    assert seen == [31, 5]
    assert trim_texts(tiny.texts([2, 5, 4]), model.architecture.text_cfg).shape == (3, 5)


def test_nothing_in_a_forward_pass_waits_for_the_device() -> None:
    """Tensors without data cannot be read: what a GPU would have to be waited for is an error here."""
    model = tiny.model(torch.float32).to("meta")
    given = {"video": video(2, 3), "subtitle": tiny.texts([3, 9]), "middle": video(2, 1)[:, 0]}
    features = model(**{name: value.to("meta") for name, value in given.items()})
    assert [feature.shape for feature in features[:3]] == [(2, 16)] * 3
    seen: list[int] = []
    model.text.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    model(caption=trim_texts(tiny.texts([2, 5]), model.architecture.text_cfg).to("meta"))
    assert seen == [5]


def test_texts_of_a_few_lengths_go_through_the_tower_in_one_pass() -> None:
    model = tiny.model()
    given = {"subtitle": tiny.texts([3, 9, 31]), "caption": tiny.texts([2, 5, 4])}
    expected = model(**given)
    seen: list[tuple[int, ...]] = []
    model.text.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    model.few_text_lengths = True
    found = model(**given)
    assert seen == [(6, 32)]
    for kind in ("subtitle_BD", "caption_BD"):
        torch.testing.assert_close(getattr(found, kind), getattr(expected, kind), rtol=1e-9, atol=1e-12)
    model.few_text_lengths = False
    model(subtitle=given["caption"], caption=given["caption"])
    assert seen[1:] == [(3, 5), (3, 5)]  # whatever the lengths: under ZeRO 3 all ranks must call it equally often


@pytest.mark.heavy
def test_the_whole_model_compiles_without_graph_breaks() -> None:
    model = tiny.model(torch.float32)
    given = {"video": video(2, 3, dtype=torch.float32), "subtitle": tiny.texts([3, 9])}
    expected = model(**given)
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True, backend="eager")
    found = compiled(**given)
    for ours, eager in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=1e-6)


def test_uint8_pixels_are_normalised_inside() -> None:
    model = tiny.model(torch.float32)
    pixels = torch.randint(0, 256, (2, 3, 3, 24, 24), dtype=torch.uint8)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (model.architecture.pixel_mean, model.architecture.pixel_std)
    )
    expected = model(video=(pixels / 255 - mean) / std).video_BD
    torch.testing.assert_close(model(video=pixels).video_BD, expected)


def test_bytes_are_embedded_more_exactly_in_bfloat16_than_normalised_pixels() -> None:
    """Shifted by 128 they are exact; the weight is rounded in both forms. Any order of memory."""
    torch.manual_seed(0)
    embed = PatchEmbedding(64, 8).double()
    torch.nn.init.normal_(embed.weight, std=0.02)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    decoded = torch.randint(0, 256, (2, 3, 24, 24, 3), dtype=torch.uint8)  # channels last, as a decoder writes
    pixels = decoded.permute(0, 1, 4, 2, 3)
    normalised = (pixels.double() / 255 - mean) / std
    exact = torch.nn.functional.conv2d(normalised.flatten(0, 1), embed.weight, stride=8).flatten(2).transpose(1, 2)
    exact = exact.unflatten(0, (2, 3))
    torch.testing.assert_close(embed(pixels, mean.double(), std.double()), exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(embed(normalised, mean, std), exact)
    embed.float()
    with torch.autocast("cpu", torch.bfloat16):
        of_bytes, of_floats = embed(pixels.contiguous(), mean, std), embed(normalised.float(), mean, std)
    assert of_bytes.dtype == torch.bfloat16
    assert (of_bytes - exact).norm() < (of_floats - exact).norm()


def test_mean_pooling_is_the_mean_of_normalised_frames() -> None:
    model = tiny.model(**MEAN_POOLING)
    clips = video(2, 5)
    twin = openclip_twin(model)
    frames = torch.stack([twin.encode_image(clips[:, number], normalize=True) for number in range(5)], dim=1)
    torch.testing.assert_close(model(video=clips).video_BD, F.normalize(frames.mean(1), dim=-1), rtol=1e-9, atol=1e-12)


def test_mean_pooling_trains_with_the_final_loss() -> None:
    model = tiny.model(**MEAN_POOLING)
    features = model(
        video=video(2, 3), subtitle=tiny.texts([3, 4]), middle=video(2, 1)[:, 0], caption=tiny.texts([5, 4])
    )
    everyone = torch.ones(2, dtype=torch.bool)
    contrastive_loss(*features, everyone, everyone, LossConfig(name="vsc_fc"))[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_full_attention_lets_patches_see_other_frames() -> None:
    guided, full = tiny.model(), tiny.model(attention="full")
    clips = video(1, 4)
    assert not torch.allclose(guided(video=clips).video_BD, full(video=clips).video_BD)
    one = clips[:, :1]
    torch.testing.assert_close(guided(video=one).video_BD, full(video=one).video_BD)


def test_checkpointed_activations_change_nothing() -> None:
    clips, ids = video(2, 3), tiny.texts([5, 9])
    results = []
    for checkpointed in (False, True):
        model = tiny.model(checkpoint_activations=checkpointed).train()
        features = model(video=clips, subtitle=ids)
        (features.video_BD * features.subtitle_BD).sum().backward()
        results.append([parameter.grad for name, parameter in model.named_parameters() if name != "logit_scale"])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_patch_dropout_thins_every_frame_in_training_only() -> None:
    model = tiny.model(patch_dropout=0.5)
    clips = video(2, 3)
    seen: list[int] = []
    model.visual.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    model.train()(video=clips)
    model.eval()(video=clips)
    assert seen == [4 + 3 * 4, 4 + 3 * 9]  # 9 patches a frame, of which round(4.5) stay


def test_frozen_towers_stay_frozen_through_train() -> None:
    model = tiny.model(freeze=["visual"], patch_dropout=0.5).train()
    assert not model.visual.training
    assert model.text.training
    features = model(video=video(2, 3), subtitle=tiny.texts([3, 4]))
    (features.video_BD * features.subtitle_BD).sum().backward()
    assert all(parameter.grad is None for parameter in model.visual.parameters())
    assert all(parameter.grad is not None for parameter in model.text.parameters())


def test_starts_of_added_proxies() -> None:
    official = tiny.model(num_proxies=200).visual.added_proxies
    assert official is not None
    assert official.std().item() == pytest.approx(1.0, abs=0.05)
    copied = tiny.model(num_proxies=200, proxy_init="class_token").visual
    assert copied.added_proxies is not None
    noise = copied.added_proxies - copied.class_embedding
    assert noise.std().item() == pytest.approx(0.1 * copied.class_embedding.std().item(), rel=0.05)


def test_a_new_model_starts_as_openclips_and_is_repeatable() -> None:
    one, two = tiny.model(seed=3), tiny.model(seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    from open_clip.model import CLIP

    torch.manual_seed(3)
    twin = CLIP(**{key: tiny.architecture()[key] for key in ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")})
    assert torch.equal(one.visual.conv1.weight, twin.visual.conv1.weight.double())


def test_buffers_are_real_after_the_meta_device_and_nothing_is_left_unset() -> None:
    model = tiny.model()
    names = [name for name, _ in model.named_buffers()]
    assert names == ["pixel_mean", "pixel_std"]  # the causal mask is no buffer: nothing to rebuild
    assert model.pixel_mean.flatten().tolist() == pytest.approx(model.architecture.pixel_mean)
    unfilled = CLIPViP.unfilled(model.config)
    assert all(torch.isnan(parameter).all() for parameter in unfilled.parameters())
    state = model.state_dict()
    state["visual.ln_post.bias"] = torch.full_like(state["visual.ln_post.bias"], torch.nan)
    with pytest.raises(InputError, match=r"visual\.ln_post\.bias hold values that are not finite"):
        unfilled.fill(state, origin="file.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_proxies": 8},
        {"pooling": "mean", "num_proxies": 1, "num_temporal": 0},
        {"attention": "full"},
    ],
)
def test_bfloat16_autocast_stays_close(changes: dict[str, Any]) -> None:
    plain, half = tiny.model(torch.float32, **changes), tiny.model(torch.float32, **changes)
    given = {"video": video(4, 5, dtype=torch.float32), "subtitle": tiny.texts([3, 9, 31, 77])}
    with torch.autocast("cpu", torch.bfloat16):
        features = half(**given)
    for ours, exact in zip(features[:2], plain(**given)[:2], strict=True):
        assert ours.dtype == torch.float32
        assert F.cosine_similarity(ours, exact).min() >= 0.999


def test_bfloat16_autocast_on_every_golden_row() -> None:
    model, given = golden.model(), golden.inputs()
    with torch.autocast("cpu", torch.bfloat16):
        features = model(**given)
        everyone = torch.ones(6, dtype=torch.bool)
        loss, _ = contrastive_loss(*features, everyone, everyone, LossConfig())
    loss.backward()
    assert loss.dtype == features.logit_scale.dtype == torch.float32
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    for name, feature_BD in zip(("video", "subtitle", "frame", "caption"), features[:4], strict=True):
        assert F.cosine_similarity(feature_BD, golden.outputs()[f"{name}_features"]).min() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "backend"),
    [
        ({}, "inductor"),
        ({"attention": "full", "checkpoint_activations": True}, "aot_eager"),  # traced whole, but not compiled to C++
        (MEAN_POOLING, "aot_eager"),
    ],
    ids=["proxies", "full_attention_checkpointed", "mean_pooling"],
)
def test_towers_compile_without_graph_breaks(changes: dict[str, Any], backend: str) -> None:
    """Forward and backward, at two numbers of frames and two lengths of text; a break would be an error."""
    model = tiny.model(torch.float32, **changes)
    compiled = copy.deepcopy(model)
    for tower in (compiled.visual, compiled.text):
        tower.compile(fullgraph=True, backend=backend)
    for num_frames, lengths in ((3, [3, 9]), (5, [7, 4])):
        given = {"video": video(2, num_frames, dtype=torch.float32), "subtitle": tiny.texts(lengths)}
        results = []
        for each in (compiled, model):
            each.zero_grad()
            features = each(**given)
            (features.video_BD * features.subtitle_BD).sum().backward()
            gradients = [parameter.grad for parameter in each.parameters() if parameter.grad is not None]
            results.append([features.video_BD, features.subtitle_BD, *gradients])
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_patch_dropout_compiles_without_graph_breaks() -> None:
    model = tiny.model(torch.float32, patch_dropout=0.5).train()
    model.visual.compile(fullgraph=True, backend="aot_eager")
    assert torch.isfinite(model(video=video(2, 3, dtype=torch.float32)).video_BD).all()


@pytest.mark.slow
def test_bfloat16_gradients_are_finite_at_full_length() -> None:
    """B/16 with 32 frames: 6,276 tokens, one clip."""
    torch.manual_seed(0)
    model = CLIPViP.from_config(ModelConfig(name="ViT-B-16-quickgelu", checkpoint_activations=True))
    with torch.autocast("cpu", torch.bfloat16):
        features = model(video=video(1, 32, side_px=224, dtype=torch.float32), subtitle=tiny.texts([70], end_id=49407))
    assert features.video_BD.dtype == torch.float32
    (features.video_BD * features.subtitle_BD).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if name != "logit_scale"}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"video": torch.zeros(2, 0, 3, 24, 24)}, r"video must be \[B, T, 3, H, W\] with T >= 1.*\[2, 0, 3, 24, 24\]"),
        ({"video": torch.zeros(2, 3, 3, 24, 32)}, r"24 x 24 px for tiny, got \[2, 3, 3, 24, 32\]"),
        ({"middle": torch.zeros(2, 1, 3, 24, 24)}, r"middle must be \[B, 3, H, W\]"),
        (
            {"video": torch.zeros(2, 3, 3, 24, 24, dtype=torch.int64)},
            "must be uint8 or normalised floats, got torch.int64",
        ),
        ({"subtitle": torch.zeros(2, 77)}, "subtitle must be int64"),
        ({"caption": torch.zeros(2, 0, dtype=torch.int64)}, r"caption must be int64 \[B, L\] with L >= 1"),
        ({"caption": tiny.texts([80], context_length=90)}, "80 tokens, but tiny takes 77"),
        ({"video": torch.zeros(2, 3, 3, 24, 24, device="meta")}, "video is on meta, the model on cpu"),
    ],
)
def test_wrong_inputs_are_named(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.model(torch.float32)(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "mean"}, "set num_proxies: 1 and num_temporal: 0"),
        (MEAN_POOLING | {"attention": "full"}, "no effect with pooling: mean"),
        ({"num_temporal": 0}, "num_temporal: 0 needs pooling: mean"),
        ({"num_proxies": 1, "proxy_init": "class_token"}, "no effect with num_proxies: 1"),
    ],
)
def test_settings_without_effect_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(changes)


def test_the_tokenizer_is_small_and_keeps_the_end_of_long_texts() -> None:
    config = ModelConfig(name="tiny", architecture=tiny.architecture() | {"text_cfg": {"width": 8, "layers": 1}})
    with torch.device("meta"):
        model = CLIPViP(config)
    tokenize = pickle.loads(pickle.dumps(model.tokenizer(6)))
    assert len(pickle.dumps(tokenize)) < 1000
    ids = tokenize(["a dog runs left and left and left", "a dog"])
    assert ids.dtype == torch.int64
    assert ids[0, -1] == 49407
    assert ids[1].tolist() == [49406, 320, 1929, 49407, 0, 0]
    with pytest.raises(InputError, match=r"outside 2\.\.77"):
        model.tokenizer(78)
    with pytest.raises(InputError, match="49408 tokens, but the model only 512"):
        tiny.model().tokenizer(70)


def test_transformer_without_layers_is_the_identity() -> None:
    shape = BlockShape(width=8, heads=2, inner_width=32, quick_gelu=True, layer_scale=None)
    x = torch.randn(1, 3, 8)
    assert Transformer(0, shape, checkpoint_activations=False)(x, lambda q, k, v: q) is x


@pytest.mark.heavy
def test_texts_of_any_length_compile_a_bounded_number_of_variants() -> None:
    """200 batches of random lengths: no more shapes than there are text lengths; the features are the eager ones."""
    model, compiled_graphs = tiny.model(torch.float32).train(), []
    eager = copy.deepcopy(model)

    def counting(graph: Any, inputs: list[Tensor]) -> Any:
        compiled_graphs.append(len(inputs))
        return graph

    model.few_text_lengths = True
    model.text.transformer.compile_blocks(counting, must=True)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    for number in range(200):
        lengths = torch.randint(2, 78, (3,), generator=draw).tolist()
        found = model(subtitle=tiny.texts(lengths)).subtitle_BD
        if number % 40 == 0:
            expected = eager(subtitle=tiny.texts(lengths)).subtitle_BD
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(compiled_graphs) <= len(TEXT_LENGTHS) + 1
    assert model.text.transformer._compiled.num_shapes <= len(TEXT_LENGTHS) + 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_blocks_give_the_features_and_gradients_of_eager_ones(backend: str) -> None:
    compiled = tiny.model(torch.float32).train()
    eager = copy.deepcopy(compiled)
    compiled.compile_blocks(backend, must=True)
    compiled.few_text_lengths = True
    pixels, ids = torch.randint(0, 256, (2, 3, 3, 24, 24), dtype=torch.uint8), tiny.texts([3, 9])
    results = []
    for model in (compiled, eager):
        features = model(video=pixels, subtitle=ids, caption=ids)
        (features.video_BD * features.subtitle_BD + features.caption_BD).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append([features.video_BD, features.subtitle_BD, *gradients])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
