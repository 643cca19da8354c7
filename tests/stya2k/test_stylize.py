"""Frames in a style: strength, masks, chunks, tiles, colours, the lazy clip."""

from fractions import Fraction

import pytest
import torch

from reelbrush import nodes
from reelbrush.nodes.stya2k import library
from reelbrush.nodes.stya2k import stylize as stylize_module
from reelbrush.nodes.stya2k.attention import A2K
from reelbrush.nodes.stya2k.modulated import ModulatedStyA2K
from reelbrush.nodes.stya2k.network import PAPER, StyA2K
from reelbrush.nodes.stya2k.small import ResidualBlock, SmallStyA2K
from reelbrush.nodes.stya2k.style import Model, load_model, make_style, mix_styles
from reelbrush.nodes.stya2k.stylize import LUMA, Options, Stylizer, stylize, stylize_video
from reelbrush.nodes.stya2k.tiles import boxes
from reelbrush.nodes.video.lazy_video import LazyVideo


@pytest.fixture
def modulated(tmp_path):
    """A modulated network whose signals matter."""
    torch.manual_seed(0)
    network = ModulatedStyA2K().train(False).requires_grad_(False)
    torch.nn.init.normal_(network.signal[2].weight, std=0.05)
    return Model(network, tmp_path / "modulated")


@pytest.fixture(params=["small", "modulated", "paper"])
def either(request, model, modulated, paper, frames, tmp_path):
    """A style of each network."""
    loaded = {"small": model, "modulated": modulated}.get(request.param) or Model(paper, tmp_path / "paper")
    return make_style(loaded, frames(1, 60, 44, 1), size=64)


@torch.inference_mode()
def test_strength_is_continuous_at_both_ends(either, frames):
    clip = frames(1, 45, 66)
    outs = [stylize(either, clip, Options(s)) for s in (0, 1e-3, 0.5, 1 - 1e-3, 1)]
    assert outs[0] is clip
    move = (outs[-1] - outs[0]).abs().max()
    assert move > 0.05
    assert (outs[1] - outs[0]).abs().max() < 0.02 * move
    assert (outs[3] - outs[4]).abs().max() < 0.02 * move
    assert (outs[2] - outs[0]).abs().mean() > 1e-3


@torch.inference_mode()
def test_chunked_equals_unchunked(either, frames):
    clip = frames(3, 34, 50)
    whole = stylize(either, clip, Options(), chunk=3)
    for chunk in (1, 2, 0):
        torch.testing.assert_close(stylize(either, clip, Options(), chunk), whole, rtol=0, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_tiles_leave_no_seam(style, other, frames, strength):
    clip = frames(1, 100, 420)
    mask = torch.linspace(0, 1, 40).expand(1, 30, 40)
    for look_of in (style, mix_styles(style, other, 1.0, mask)):
        whole = Stylizer(look_of, Options(strength), (100, 420)).run(clip)
        tiled = Stylizer(look_of, Options(strength), (100, 420), tile=128).run(clip)
        assert (tiled - whole).abs().max() < 0.5 / 255


@torch.inference_mode()
def test_tiles_of_the_modulated_network_leave_no_seam(modulated, frames):
    """The second transfer takes its statistics of the whole frame too."""
    one, two = (make_style(modulated, frames(1, 60, 44, seed) ** seed, size=64) for seed in (1, 3))
    clip, mask = frames(1, 100, 620), torch.linspace(0, 1, 40).expand(1, 30, 40)
    for look_of in (one, mix_styles(one, two, 1.0, mask)):
        whole = Stylizer(look_of, Options(), (100, 620)).run(clip)
        tiled = Stylizer(look_of, Options(), (100, 620), tile=96).run(clip)
        assert (tiled - whole).abs().max() < 1e-4


@pytest.mark.slow
@torch.inference_mode()
def test_tiles_of_the_papers_network_leave_no_seam(paper, frames, tmp_path):
    style = make_style(Model(paper, tmp_path / "paper"), frames(1, 64, 64, 1), size=64)
    clip = frames(1, 64, 560)
    whole = Stylizer(style, Options(), (64, 560)).run(clip)
    tiled = Stylizer(style, Options(), (64, 560), tile=128).run(clip)
    assert (tiled - whole).abs().max() < 2 / 255


@torch.inference_mode()
def test_out_of_memory_halves_the_chunk_then_tiles(style, frames, monkeypatch):
    clip, run = frames(4, 150, 480), Stylizer(style, Options(), (150, 480))
    want, sizes, encode = run.run(clip), [], run.network.encode

    def tight(planes):
        sizes.append(tuple(planes.shape))
        if planes[:, 0].numel() > 150 * 400:
            raise torch.OutOfMemoryError("out of memory")
        return encode(planes)

    monkeypatch.setattr(run.network, "encode", tight, raising=False)
    monkeypatch.setattr(run.network, "reach", 64)
    out = run.run(clip)
    assert [s[0] for s in sizes[:3]] == [4, 2, 1]
    assert run.tile == 256
    assert (out - want).abs().mean() < 0.02  # a reach of 64 is too short to be exact


@torch.inference_mode()
def test_tiles_start_on_the_grid_of_the_regions(style, frames, monkeypatch):
    """Many tiles side by side equal the whole frame; off the grid they would match other regions."""
    clip, gaps = frames(1, 32, 1200), []
    whole = Stylizer(style, Options(), (32, 1200)).run(clip)
    for align in (None, 64):
        if align:
            monkeypatch.setattr(style.model.load(), "align", align)
        tiled = Stylizer(style, Options(), (32, 1200), tile=96).run(clip)
        gaps.append(float((tiled - whole).abs().max()))
    assert gaps[0] < 1e-4
    assert gaps[1] > 10 * gaps[0]


@torch.inference_mode()
def test_the_small_network_reaches_no_farther_than_it_says():
    """In double precision, with nothing in it damped as it is at first: a tile cut with `reach` around it is
    what the whole frame has there, one cut with 96 is not."""
    torch.manual_seed(0)
    network = SmallStyA2K((4, 8, 16, 32, 24)).double().train(False)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            module.b.weight.mul_(5)
        if isinstance(module, A2K):
            module.fusion1.weight.mul_(3)
            module.fusion2.weight.mul_(3)
    frame, code = torch.rand(1, 3, 32, 1056).double(), network.encode_style(torch.rand(1, 3, 48, 48).double())
    content = network.encode(frame)
    stats, gaps = network.measure(content), []
    whole = network.decode(network.transfer(content, code, None, stats), content.size)
    for reach in (network.reach, 96):
        box = next(box for box in boxes((32, 1056), 96, reach, network.align) if box.x == 480)
        part = network.encode(box.outer(frame))
        made = network.decode(network.transfer(part, code, None, stats), part.size)
        inner = slice(box.x - box.left, box.x - box.left + box.w)
        gaps.append((made[..., inner] - whole[..., box.x : box.x + box.w]).abs().max())
    assert gaps[0] < 1e-10
    assert gaps[1] > 1e-3


@torch.inference_mode()
def test_what_does_not_fit_at_all_is_said_in_words(style, frames, monkeypatch):
    run = Stylizer(style, Options(), (64, 64))

    def never(planes):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(run.network, "encode", never, raising=False)
    with pytest.raises(RuntimeError, match="even in tiles"):
        run.run(frames(1, 64, 64))


@torch.inference_mode()
def test_other_errors_are_not_taken_for_memory(style, frames, monkeypatch):
    run = Stylizer(style, Options(), (64, 64))
    monkeypatch.setattr(run.network, "encode", lambda planes: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        run.run(frames(1, 64, 64))


@torch.inference_mode()
def test_keep_color_changes_lightness_only(style, frames):
    clip = frames(1, 32, 40) * 0.4 + 0.3
    out, plain = (stylize(style, clip, Options(0.3, keep)) for keep in (True, False))
    luma = torch.tensor(LUMA)
    change = out - clip
    inside = ((out > 0) & (out < 1) & (plain > 0) & (plain < 1)).all(-1)
    assert inside.float().mean() > 0.1
    assert (change.amax(-1) - change.amin(-1))[inside].max() < 1e-5
    torch.testing.assert_close((out @ luma)[inside], (plain @ luma)[inside], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_mask_divides_the_frame(style, other, frames):
    clip = frames(2, 96, 448)
    mask = torch.zeros(1, 24, 112)
    mask[:, :, 56:] = 1
    out = stylize(mix_styles(style, other, 1.0, mask), clip, Options())
    a, b = stylize(style, clip, Options()), stylize(other, clip, Options())
    assert (a - b).abs().mean() > 0.01
    torch.testing.assert_close(out[:, :, :48], a[:, :, :48], rtol=0, atol=1e-4)
    torch.testing.assert_close(out[:, :, -48:], b[:, :, -48:], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_moving_mask_moves(style, other, frames):
    clip = frames(1, 40, 48).repeat(2, 1, 1, 1)
    mask = torch.stack([torch.zeros(5, 6), torch.ones(5, 6)])
    out = stylize(mix_styles(style, other, 1.0, mask), clip, Options(), chunk=1)
    torch.testing.assert_close(out[:1], stylize(style, clip[:1], Options()), rtol=0, atol=1e-5)
    torch.testing.assert_close(out[1:], stylize(other, clip[:1], Options()), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="2 frames"):
        stylize(mix_styles(style, other, 1.0, mask), frames(3, 40, 48), Options())


@torch.inference_mode()
def test_only_the_mask_of_the_frames_at_hand_is_enlarged(style, other, frames, monkeypatch):
    """A moving mask at the clip's size would be gigabytes: memory must not grow with the clip."""
    seen, resize = [], stylize_module.resize_mask
    monkeypatch.setattr(stylize_module, "resize_mask", lambda m, size: seen.append(len(m)) or resize(m, size))
    stylize(mix_styles(style, other, 1.0, torch.rand(5, 4, 4)), frames(5, 40, 48), Options(), chunk=2)
    assert max(seen) == 2


def test_a_trim_behind_a_moving_mask_shows_the_masks_own_frame(style, other, frames):
    clip = frames(4, 32, 48)
    mixed = mix_styles(style, other, 1.0, torch.linspace(0, 1, 4).view(4, 1, 1).expand(4, 4, 4))
    video = stylize_video(mixed, LazyVideo.from_frames(clip, Fraction(12)), Options())
    whole, tail = (torch.cat(list(v.chunks(2))) for v in (video, video.trim(2, 2)))
    assert (whole[2] - whole[1]).abs().mean() > 2 / 255
    assert (tail - whole[2:]).abs().max() <= 1 / 255


def test_a_moving_mask_of_another_length_than_the_clip_is_said(style, other, frames):
    mixed = mix_styles(style, other, 1.0, torch.rand(2, 4, 4))
    with pytest.raises(ValueError, match="2 frames, the clip 3"):
        stylize_video(mixed, LazyVideo.from_frames(frames(3, 32, 48), Fraction(12)), Options())


@torch.inference_mode()
@pytest.mark.parametrize("size", [(9, 70), (17, 40), (3, 3)])
def test_masks_on_frames_smaller_than_a_few_cells(either, frames, size):
    """All white and all black must be the two styles, also where a map has one or two cells."""
    clip, second = frames(1, *size), make_style(either.model, frames(1, 50, 80, 2) ** 3, size=64)
    for value, want in ((0.0, either), (1.0, second)):
        out = stylize(mix_styles(either, second, 1.0, torch.full((1, 5, 5), value)), clip, Options())
        torch.testing.assert_close(out, stylize(want, clip, Options()), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_mask_ends_where_it_ends_on_small_frames(style, other, frames):
    clip, mask = frames(1, 9, 400), torch.zeros(1, 1, 4)
    mask[..., 2:] = 1
    out = stylize(mix_styles(style, other, 1.0, mask), clip, Options())
    torch.testing.assert_close(out[:, :, :16], stylize(style, clip, Options())[:, :, :16], rtol=0, atol=1e-4)
    torch.testing.assert_close(
        out[:, :, -16:], stylize(other, clip, Options())[:, :, -16:], rtol=0, atol=1e-4
    )


@torch.inference_mode()
def test_a_fixed_number_of_regions_is_not_tiled_but_said(frames, tmp_path, monkeypatch):
    network = StyA2K(how=PAPER).requires_grad_(False)
    run = Stylizer(
        make_style(Model(network, tmp_path / "p"), frames(1, 64, 64), size=64), Options(), (96, 96)
    )
    monkeypatch.setattr(
        network, "encode", lambda planes: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    )
    with pytest.raises(RuntimeError, match="fixed number of regions"):
        run.run(frames(1, 96, 96))


@pytest.mark.slow
@torch.inference_mode()
def test_compiling_is_offered_and_changes_nothing(small_file, frames, monkeypatch):
    calls, real = [], torch.compile

    def traced(fn, **options):
        calls.append(fn.__name__)
        return real(fn, backend="eager", **options)  # traced, but by no C compiler

    monkeypatch.setattr(torch, "compile", traced)
    clip, outs = frames(1, 45, 66), []
    for compiled in (False, True):
        model = load_model(small_file, "float32", compiled)
        assert bool(calls) is compiled
        outs.append(stylize(make_style(model, frames(1, 50, 50, 1), size=64), clip, Options()))
    assert calls == ["encode", "decode"]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_where_the_compiler_fails_the_model_runs_without(small_file, frames, monkeypatch, caplog):
    tries = []

    def broken(fn, **options):
        def call(*given):
            tries.append(1)
            raise RuntimeError("no C++ compiler\nand a long trace")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    clip = frames(2, 33, 40)
    plain, failed = (
        stylize(
            make_style(load_model(small_file, "bfloat16", c), frames(1, 50, 50, 1), size=64),
            clip,
            Options(),
            1,
        )
        for c in (False, True)
    )
    assert torch.equal(plain, failed)
    assert len(tries) == 2, "once for each function, not for each frame"
    assert "no C++ compiler): continuing without it" in caplog.text


def test_the_lazy_clip_equals_the_images(style, other, frames):
    clip = frames(3, 32, 48)
    mask = torch.rand(3, 8, 8)
    mixed = mix_styles(style, other, 0.7, mask)
    video = stylize_video(mixed, LazyVideo.from_frames(clip, Fraction(12)), Options(0.8))
    got = torch.cat(list(video.chunks(2)))
    with torch.inference_mode():
        want = stylize(mixed, clip, Options(0.8))
    assert (got - want).abs().max() <= 1 / 255
    assert video.frame_count == 3


def test_a_clip_at_strength_0_is_the_clip(style, frames):
    video = LazyVideo.from_frames(frames(2, 32, 48), Fraction(12))
    assert stylize_video(style, video, Options(0)) is video


def test_a_chain_finds_the_model_that_is_loaded(style):
    assert load_model(style.model.path) is style.model


@torch.inference_mode()
def test_half_precision_is_close(frames):
    clip, pictures = frames(1, 45, 66), frames(1, 60, 44, 1)
    outs = {}
    for precision in ("float32", "bfloat16"):
        model = load_model(library.path("stya2k-small.safetensors"), precision)
        assert next(model.network.parameters()).dtype == getattr(torch, precision)
        outs[precision] = stylize(make_style(model, pictures, size=64), clip, Options())
    assert outs["bfloat16"].dtype == torch.float32
    assert (outs["float32"] - outs["bfloat16"]).abs().mean() < 0.02


def test_an_unknown_precision_is_said(small_file):
    with pytest.raises(ValueError, match="float16"):
        load_model(small_file, "int3")


def test_picture_connected_to_a_style_input_is_encoded_with_the_model_of_the_pack():
    classes = nodes.NODE_CLASS_MAPPINGS
    picture, frames = torch.rand(1, 64, 64, 3), torch.rand(1, 32, 32, 3)
    look = {"strength": 1.0, "keep_color": False, "attention": "all-to-key", "chunk": 0}
    model = classes["ReelBrushLoadStyA2K"]().load(model=library.embedded()[0], precision="auto")[0]
    style = classes["ReelBrushStyA2KStyle"]().encode(model=model, style=picture, weights="", size=512)[0]
    apply = classes["ReelBrushStyA2KApply"]().apply
    assert torch.equal(
        apply(style=picture, images=frames, **look)[0], apply(style=style, images=frames, **look)[0]
    )
