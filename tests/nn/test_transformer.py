import json

import diffusers
import pytest
import torch
from gymnasium.spaces import Box
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from marl_tr.errors import UserError
from marl_tr.nn.transformer import TransformerVelocity, build_transformer, known_architectures, new_transformer
from marl_tr.nn.velocity_files import load_velocity_file, save_velocity_file, tensors_sha256, velocity_file_info
from marl_tr.registry import Entry, register
from marl_tr.scenario.velocity import LoraConfig, TransformerVelocityConfig
from marl_tr.trainer.checkpoint import CheckpointError
from marl_tr.vector.contract import GroupSpec

TINY = {
    "WanTransformer3DModel": {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 2,
        "out_channels": 2,
        "text_dim": 8,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 2,
        "rope_max_seq_len": 16,
    },
    "HunyuanVideoTransformer3DModel": {
        "in_channels": 2,
        "out_channels": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 2,
        "patch_size_t": 1,
        "guidance_embeds": True,
        "text_embed_dim": 8,
        "pooled_projection_dim": 10,
        "rope_axes_dim": [4, 4, 4],
    },
    "LTXVideoTransformer3DModel": {
        "in_channels": 8,
        "out_channels": 8,
        "patch_size": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "cross_attention_dim": 24,
        "num_layers": 2,
        "caption_channels": 8,
    },
}
"""Two channels, patches of 2 x 2 pixels of one frame, text of width 8."""

SHAPE = (2, 3, 4, 6)
every_class = pytest.mark.parametrize("name", TINY)


def group(shape=SHAPE, tokens=(3, 8), leaf="tokens") -> GroupSpec:
    return GroupSpec("clips", ("a",), {leaf: Box(-1, 1, tokens)}, {"action": Box(-1, 1, shape)})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(dtype=torch.float32, count=2):
    generator = seeded(5)
    x = torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
    sigma = torch.rand(count, generator=generator, dtype=torch.float64)
    tokens = torch.randn(count, 3, 8, generator=generator, dtype=torch.float64)
    return x.to(dtype), sigma.to(dtype), {"tokens": tokens.to(dtype)}


def tiny(name="WanTransformer3DModel", seed=0, **settings) -> TransformerVelocity:
    config = TransformerVelocityConfig(architecture=name, arguments=TINY[name], **settings)
    return build_transformer(config, group(), seeded(seed))


def call_diffusers(model, x, sigma, tokens):
    """As the pipelines of the three families call them."""
    time = 1000 * sigma
    if isinstance(model, diffusers.WanTransformer3DModel):
        return model(hidden_states=x, timestep=time, encoder_hidden_states=tokens).sample
    mask = torch.ones(tokens.shape[:2])
    if isinstance(model, diffusers.HunyuanVideoTransformer3DModel):
        pooled = torch.zeros(len(x), 10)
        pooled[:, :8] = tokens.sum(1) / tokens.shape[1]
        return model(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            pooled_projections=pooled,
            guidance=torch.tensor([1000.0] * len(x)),
        ).sample
    pipeline = diffusers.LTXPipeline
    _, _, frames, height, width = x.shape
    packed = pipeline._pack_latents(x, 2, 1)
    out = model(
        hidden_states=packed,
        encoder_hidden_states=tokens,
        timestep=time,
        encoder_attention_mask=mask,
        num_frames=frames,
        height=height // 2,
        width=width // 2,
        rope_interpolation_scale=(8 / 25, 32, 32),
    ).sample
    return pipeline._unpack_latents(out, frames, height // 2, width // 2, 2, 1)


def test_all_that_is_known_is_tested():
    assert set(known_architectures()) == set(TINY)


@every_class
def test_a_saved_model_loads_from_its_folder_and_gives_what_diffusers_gives(name, tmp_path):
    model = new_transformer(name, TINY[name], seeded(1))
    model.save_pretrained(tmp_path)
    velocity = build_transformer(TransformerVelocityConfig(pretrained=str(tmp_path)), group(), seeded(2))
    x, sigma, observation = batch()
    with torch.no_grad():
        expected = call_diffusers(getattr(diffusers, name).from_pretrained(tmp_path), x, sigma, observation["tokens"])
        found = velocity(x, sigma, observation)
    assert expected.abs().mean() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_folder_of_a_pipeline_leads_to_its_transformer(tmp_path):
    model = tiny().transformer
    model.save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    velocity = build_transformer(TransformerVelocityConfig(pretrained=str(tmp_path)), group(), seeded())
    assert tensors_sha256(velocity.transformer.state_dict()) == tensors_sha256(model.state_dict())


@every_class
def test_a_file_of_ours_comes_back_whole_with_what_it_says_about_itself(name, tmp_path):
    file = tmp_path / "v.safetensors"
    model = tiny(name).transformer
    digest = save_velocity_file(file, model, about={"seed": 3, "measures": {"distance": 0.25}})
    loaded = load_velocity_file(file)
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    info = velocity_file_info(file)
    assert (info["class"], info["sha256"]) == (name, digest)
    assert info["about"] == {"seed": 3, "measures": {"distance": 0.25}}
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_half_precision_files_are_half_as_long_and_load_as_float32(tmp_path):
    model = tiny().transformer
    save_velocity_file(tmp_path / "full.safetensors", model, about={})
    save_velocity_file(tmp_path / "half.safetensors", model, about={}, half=True)
    loaded = load_velocity_file(tmp_path / "half.safetensors")
    assert velocity_file_info(tmp_path / "half.safetensors")["stored"] == "float16"
    saved = sum(2 * p.numel() for p in model.parameters())
    sizes = [(tmp_path / f"{kind}.safetensors").stat().st_size for kind in ("full", "half")]
    assert abs(sizes[0] - sizes[1] - saved) < 64
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].half().float())


def test_a_registered_transformer_is_found_by_name(tmp_path):
    model = tiny(seed=8).transformer
    register("models", "tests/tiny_wan", Entry(lambda group: TransformerVelocity(model)))
    velocity = build_transformer(TransformerVelocityConfig(pretrained="tests/tiny_wan"), group(), seeded())
    assert tensors_sha256(velocity.transformer.state_dict()) == tensors_sha256(model.state_dict())


def test_a_registered_model_that_is_no_transformer_is_refused():
    register("models", "tests/identity", Entry(lambda group: torch.nn.Identity()))
    with pytest.raises(UserError, match="kind: residual"):
        build_transformer(TransformerVelocityConfig(pretrained="tests/identity"), group(), seeded())


@every_class
def test_equal_generators_give_equal_weights_and_the_global_one_is_left_alone(name):
    before = torch.random.get_rng_state()
    first, second, other = (tiny(name, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert tensors_sha256(first.state_dict()) == tensors_sha256(second.state_dict())
    assert tensors_sha256(first.state_dict()) != tensors_sha256(other.state_dict())


@every_class
def test_float64_is_kept_throughout(name):
    velocity = tiny(name)
    doubles = {key: p.detach().double() for key, p in velocity.named_parameters()}
    x, sigma, observation = batch(torch.float64)
    single = velocity(*batch())
    double = functional_call(velocity, doubles, (x, sigma, observation))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=2e-4, rtol=2e-3)
    # A change far below float32's resolution of 1e-7 moves the output in proportion.
    direction = torch.randn(x.shape, generator=seeded(4), dtype=torch.float64)
    steps = [
        (functional_call(velocity, doubles, (x + h * direction, sigma, observation)) - double) / h for h in (1e-9, 1e-7)
    ]
    torch.testing.assert_close(steps[0], steps[1], atol=1e-5, rtol=1e-4)


@every_class
@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivatives_agree_with_finite_differences(name, recompute):
    velocity = tiny(name, gradient_checkpointing=recompute)
    parameters = {key: p.detach().double().requires_grad_() for key, p in velocity.named_parameters()}
    inputs = batch(torch.float64)
    generator = seeded(7)
    directions = [
        {key: torch.randn(p.shape, generator=generator, dtype=p.dtype) for key, p in parameters.items()}
        for _ in range(2)
    ]

    def energy(values):
        return functional_call(velocity, values, inputs).square().mean()

    def slope(values):
        gradients = torch.autograd.grad(energy(values), list(values.values()), create_graph=True)
        return sum((g * d).sum() for g, d in zip(gradients, directions[0].values(), strict=True))

    second = torch.autograd.grad(slope(parameters), list(parameters.values()))
    analytic = sum((g * d).sum() for g, d in zip(second, directions[1].values(), strict=True))

    def moved(h):
        return {key: (p + h * directions[1][key]).detach().requires_grad_() for key, p in parameters.items()}

    h = 1e-5
    numeric = (slope(moved(h)) - slope(moved(-h))) / (2 * h)
    torch.testing.assert_close(analytic, numeric, rtol=1e-5, atol=1e-8)


@every_class
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputed_blocks_give_the_same_gradients_at_any_parameters(name, dtype):
    plain, recomputing = tiny(name, dtype=dtype), tiny(name, dtype=dtype, gradient_checkpointing=True)
    parameters = {
        key: (p + 0.05 * torch.randn(p.shape, generator=seeded(i))).detach()
        for i, (key, p) in enumerate(plain.named_parameters())
    }
    x, sigma, observation = batch()
    gradients = []
    for velocity in (plain, recomputing):
        # As a policy of several learners holds it: the module's own parameters are others, and do not learn.
        velocity.requires_grad_(False)
        values = {key: p.clone().requires_grad_() for key, p in parameters.items()}
        functional_call(velocity, values, (x, sigma, observation)).square().mean().backward()
        gradients.append({key: p.grad for key, p in values.items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-7)


@every_class
def test_bfloat16_computes_nearly_the_same_and_answers_in_float32(name):
    exact, rough = tiny(name), tiny(name, dtype="bfloat16")
    inputs = batch()
    expected, found = exact(*inputs), rough(*inputs)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.03 * expected.norm()
    assert all(p.dtype == torch.float32 for p in rough.parameters())


@every_class
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_starts_as_its_base_and_trains_only_its_adapters(name, dtype):
    base, adapted = tiny(name, dtype=dtype), tiny(name, dtype=dtype, lora=LoraConfig(rank=2))
    inputs = batch()
    torch.testing.assert_close(adapted(*inputs), base(*inputs), atol=2e-2 if dtype == "bfloat16" else 1e-6, rtol=1e-5)
    learning = {key: p for key, p in adapted.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora_" in key and p.dtype == torch.float32 for key, p in learning.items())
    adapted(*inputs).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learning.values())
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)


@every_class
@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_over_a_bfloat16_base_can_be_differentiated_twice_in_float64(name, recompute):
    velocity = tiny(name, dtype="bfloat16", lora=LoraConfig(rank=2), gradient_checkpointing=recompute)
    learning = {
        key: (p + 0.1 * torch.randn(p.shape, generator=seeded(i))).detach().double().requires_grad_()
        for i, (key, p) in enumerate(velocity.named_parameters())
        if p.requires_grad
    }
    frozen = {key: p.double() for key, p in velocity.named_parameters() if key not in learning}
    x, sigma, observation = batch(torch.float64)

    def gradient(step, direction):
        moved = {key: p + step * direction[key] for key, p in learning.items()}
        energy = functional_call(velocity, {**frozen, **moved}, (x, sigma, observation)).square().mean()
        return torch.autograd.grad(energy, list(learning.values()), create_graph=True)

    direction = {key: torch.randn(p.shape, generator=seeded(3), dtype=p.dtype) for key, p in learning.items()}
    slope = sum((g * d).sum() for g, d in zip(gradient(0, direction), direction.values(), strict=True))
    analytic = torch.autograd.grad(slope, list(learning.values()))
    above, below = gradient(1e-5, direction), gradient(-1e-5, direction)
    for found, up, down in zip(analytic, above, below, strict=True):
        torch.testing.assert_close(found, (up - down) / 2e-5, rtol=1e-4, atol=1e-8)


def test_the_start_of_adapters_is_reproducible_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (tiny(lora=LoraConfig(rank=2)).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert tensors_sha256(first) == tensors_sha256(second)


class TestBadInput:
    def test_an_unknown_class_is_refused_with_the_known_ones(self):
        with pytest.raises(UserError, match=r"UNet2DModel.*WanTransformer3DModel"):
            build_transformer(TransformerVelocityConfig(architecture="UNet2DModel"), group(), seeded())

    def test_arguments_that_the_class_does_not_take_are_named(self):
        config = TransformerVelocityConfig(arguments={**TINY["WanTransformer3DModel"], "layers": 3})
        with pytest.raises(UserError, match="takes no layers"):
            build_transformer(config, group(), seeded())

    @pytest.mark.parametrize("shape", [(3, 3, 4, 6), (2, 3, 4, 5), (2, 3, 4)])
    def test_actions_that_it_cannot_generate_are_refused(self, shape):
        config = TransformerVelocityConfig(arguments=TINY["WanTransformer3DModel"])
        with pytest.raises(UserError, match="has shape"):
            build_transformer(config, group(shape), seeded())

    def test_text_of_another_width_is_refused(self):
        config = TransformerVelocityConfig(arguments=TINY["WanTransformer3DModel"])
        with pytest.raises(UserError, match=r"reads \[tokens, 8\].*\[3, 9\]"):
            build_transformer(config, group(tokens=(3, 9)), seeded())

    def test_a_condition_that_nobody_observes_is_refused(self):
        config = TransformerVelocityConfig(arguments=TINY["WanTransformer3DModel"])
        with pytest.raises(UserError, match="observes words, and no 'tokens'"):
            build_transformer(config, group(leaf="words"), seeded())

    def test_adapters_that_fit_no_layer_are_refused(self):
        with pytest.raises(UserError, match=r"network\.lora\.targets.*nothing"):
            tiny(lora=LoraConfig(targets=["nothing"]))

    def test_a_checkpoint_of_another_architecture_is_refused(self, tmp_path):
        file = tmp_path / "v.safetensors"
        save_velocity_file(file, tiny("LTXVideoTransformer3DModel").transformer, about={})
        config = TransformerVelocityConfig(pretrained=str(file), architecture="WanTransformer3DModel")
        with pytest.raises(UserError, match=r"holds a LTXVideo.*says WanTransformer3DModel"):
            build_transformer(config, group(), seeded())

    def test_a_checkpoint_of_another_size_is_refused(self, tmp_path):
        file = tmp_path / "v.safetensors"
        save_velocity_file(file, tiny().transformer, about={})
        config = TransformerVelocityConfig(pretrained=str(file), arguments={"num_layers": 4})
        with pytest.raises(UserError, match=r"num_layers 2, and network\.arguments says 4"):
            build_transformer(config, group(), seeded())

    @pytest.mark.parametrize("saved", ["folder", "file"])
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda t: t.pop("proj_out.bias"), "needs tensor proj_out.bias"),
            (lambda t: t.update({"proj_out.bias": torch.zeros(5)}), r"proj_out.bias has shape \[5\].*\[8\]"),
            (lambda t: t.update({"extra": torch.zeros(5)}), r"has no tensor extra \(shape \[5\]\)"),
        ],
    )
    def test_tensors_that_are_not_the_models_are_named_with_both_shapes(self, tmp_path, saved, damage, message):
        model = tiny().transformer
        if saved == "folder":
            model.save_pretrained(tmp_path)
            path, config = tmp_path / "diffusion_pytorch_model.safetensors", str(tmp_path)
            tensors, metadata = load_file(path), {}
        else:
            path = tmp_path / "v.safetensors"
            save_velocity_file(path, model, about={})
            tensors, config = load_file(path), str(path)
            metadata = velocity_file_info(path)
        damage(tensors)
        if saved == "file":
            metadata["sha256"] = tensors_sha256(tensors)
        save_file(tensors, path, metadata={"marl_tr.velocity": json.dumps(metadata), "format": "pt"})
        with pytest.raises(CheckpointError, match=message) as raised:
            build_transformer(TransformerVelocityConfig(pretrained=config), group(), seeded())
        assert str(tmp_path) in str(raised.value)

    def test_tensors_that_were_changed_are_found_out(self, tmp_path):
        path = tmp_path / "v.safetensors"
        save_velocity_file(path, tiny().transformer, about={})
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="SHA-256"):
            load_velocity_file(path)

    def test_a_file_that_is_cut_off_is_named(self, tmp_path):
        path = tmp_path / "v.safetensors"
        save_velocity_file(path, tiny().transformer, about={})
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="cut off"):
            load_velocity_file(path)

    def test_a_safetensors_file_of_somebody_else_is_named(self, tmp_path):
        path = tmp_path / "v.safetensors"
        save_file({"a": torch.zeros(2)}, path)
        with pytest.raises(CheckpointError, match="given by its folder"):
            load_velocity_file(path)

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            build_transformer(TransformerVelocityConfig(pretrained=str(tmp_path / "v.safetensors")), group(), seeded())

    def test_a_folder_without_a_model_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            build_transformer(TransformerVelocityConfig(pretrained=str(tmp_path)), group(), seeded())

    def test_a_folder_of_an_unknown_class_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        with pytest.raises(UserError, match=r"config.json.*UNet2DModel"):
            build_transformer(TransformerVelocityConfig(pretrained=str(tmp_path)), group(), seeded())
