"""The tests' own UNet and MODEL: what the other tests rely on, and that ComfyUI does the same."""

import pytest
import torch

from .tiny import LAYOUTS, comfy_model, conditioning, euler, sample, tiny_model


def inputs(model, rows=2, size=(16, 24)):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 4, *size, generator=g)
    context = conditioning(model, seed=5)[0][0].repeat(rows, 1, 1)
    extra = {"y": torch.randn(rows, 2816, generator=g)} if "adm_in_channels" in LAYOUTS[model.layout] else {}
    return (x, torch.tensor([7.0, 431.0])[:rows]), {"context": context, **extra}


def make(layout):
    model = tiny_model(layout)
    model.layout = layout
    return model


def recorder(seen):
    """Patches of every kind, each of which notes its address and shapes and changes the features a little."""

    def note(kind, extra, *tensors):
        keys = ("block", "block_index", "transformer_index", "activations_shape", "original_shape", "n_heads")
        seen.append((kind, *(extra.get(k) for k in keys), *(tuple(t.shape) for t in tensors)))

    def replace(kind):
        def patch(q, k, v, extra):
            note(kind, extra, q, k, v)
            heads = [t.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2) for t in (q, k, v)]
            out = torch.nn.functional.scaled_dot_product_attention(*heads)
            return 0.9 * out.transpose(1, 2).flatten(2)

        return patch

    def before(n, keys, values, extra):
        note("attn1_patch", extra, n, keys, values)
        return n * 1.1, keys * 0.9, values

    def after(n, extra):
        note("attn2_output_patch", extra, n)
        return n * 1.2

    def block(h, extra):
        note("input_block_patch", extra, h)
        return h * 1.01

    def skip(h, hsp, extra):
        note("output_block_patch", extra, h, hsp)
        return h * 0.99, hsp * 1.01

    patches = {"attn1_patch": [before], "attn2_output_patch": [after], "input_block_patch": [block]}
    patches["output_block_patch"] = [skip]
    address = {("input", 4, 0): replace("in"), ("output", 1): replace("out"), ("output", 5): replace("out")}
    address[("middle", 0)] = replace("mid")
    return {"patches": patches, "patches_replace": {"attn1": address, "attn2": dict(address)}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_are_called_with_their_addresses(layout):
    model, seen = make(layout), []
    args, kwargs = inputs(model)
    plain = model.model.diffusion_model(*args, **kwargs)
    patched = model.model.diffusion_model(*args, **kwargs, transformer_options=recorder(seen))
    assert (patched - plain).abs().mean() > 0.01 * plain.std() and plain.std() > 0.1
    layers = [entry[1:3] for entry in seen if entry[0] == "attn1_patch"]
    assert len(layers) == {"sd15": 16, "sd21": 16, "sdxl": 70, "mini": 4}[layout] == len(set(layers))


@pytest.mark.comfyui
@pytest.mark.parametrize("layout", LAYOUTS)
def test_comfyui_agrees_on_output_patches_and_addresses(layout):
    ours, theirs = make(layout), comfy_model(layout)
    args, kwargs = inputs(ours)
    seen, seen_there = [], []
    with torch.no_grad():
        plain = theirs.model.diffusion_model(*args, **kwargs)
        torch.testing.assert_close(ours.model.diffusion_model(*args, **kwargs), plain, rtol=1e-4, atol=1e-5)
        out = ours.model.diffusion_model(*args, **kwargs, transformer_options=recorder(seen))
        there = theirs.model.diffusion_model(*args, **kwargs, transformer_options=recorder(seen_there))
    torch.testing.assert_close(out, there, rtol=1e-4, atol=1e-5)
    assert seen == seen_there
    assert (out - plain).abs().max() > 0.005  # the patches do something


@pytest.mark.comfyui
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_comfyui_agrees_on_sampling(prediction):
    """Two frames, guidance, a ranged negative, a replacement that reads the options: the same latent."""
    import comfy.samplers

    def swap(seen):
        def patch(q, k, v, extra):
            seen.append(
                (extra["cond_or_uncond"], float(extra["sigmas"][0]), len(extra["sample_sigmas"]), len(q))
            )
            return v.flip(0)

        return patch

    results = []
    for make_model in (tiny_model, comfy_model):
        model, seen = make_model("sd15", prediction=prediction).clone(), []
        model.set_model_attn1_replace(swap(seen), "output", 7, 0)
        sigmas = model.get_model_object("model_sampling").sigmas[[981, 700, 400, 100]]
        sigmas = torch.cat([sigmas, torch.zeros(1)])
        g = torch.Generator().manual_seed(0)
        noise, latent = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g)
        positive = conditioning(model, seed=1)
        negative = [
            [c, {"start_percent": s, "end_percent": e}]
            for (c, _), s, e in zip(
                conditioning(model, seed=2) + conditioning(model, seed=3), (0, 0.5), (0.5, 1), strict=True
            )
        ]
        if make_model is tiny_model:
            out = sample(model, euler, latent, sigmas, positive, negative, cfg=3.0, noise=noise)
        else:
            with torch.inference_mode():
                sampler = comfy.samplers.sampler_object("euler")
                out = comfy.samplers.sample(
                    model,
                    noise,
                    positive,
                    negative,
                    3.0,
                    model.load_device,
                    sampler,
                    sigmas,
                    model_options=model.model_options,
                    latent_image=latent,
                )
        results.append((out, seen))
    (ours, seen), (theirs, seen_there) = results
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-4
    assert [s[:1] + s[2:] for s in seen] == [s[:1] + s[2:] for s in seen_there]


def test_a_run_leaves_nothing_behind():
    model = tiny_model("sd15")
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    patched, calls = model.clone(), []
    layer = "diffusion_model.output_blocks.4.0.out_layers.3.forward"
    original = model.get_model_object(layer)
    patched.add_object_patch(layer, lambda x: calls.append(len(x)) or original(x))
    patched.add_callback_with_key("on_cleanup", "test", lambda _: calls.append("clean"))
    latent, sigmas = torch.zeros(1, 4, 8, 8), torch.tensor([14.0, 1.0, 0.0])

    def fails(denoise, x, sigmas):
        euler(denoise, x, sigmas)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(patched, fails, latent, sigmas, conditioning(model), noise=torch.ones_like(latent))
    assert calls == [1, 1, "clean"]
    sample(model, euler, latent, sigmas, conditioning(model))
    assert calls == [1, 1, "clean"]
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
