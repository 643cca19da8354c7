"""StyA2K: the official network against ours, and the network alone against whole chains."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reelbrush.benchmarks.clips import on_clip, rendered, saved
from reelbrush.nodes import host
from reelbrush.nodes.stya2k import checkpoint, library
from reelbrush.nodes.stya2k.small import SmallStyA2K
from reelbrush.nodes.stya2k.style import Style, StylePart, load_model
from reelbrush.nodes.stya2k.stylize import Options, Stylizer
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.tests.stya2k import official as literal
from reelbrush.tests.stya2k.conftest import picture


def _seeded() -> dict[str, dict[str, Tensor]]:
    """Weights in the official layout, scaled so that the output has a deviation of about 0.2."""
    parts, x = literal.files(), (picture(1, 64, 64), picture(1, 64, 64, seed=1))
    with torch.no_grad():
        scale = 0.2 / literal.stylize(*x, parts).std()
    for kind in ("weight", "bias"):
        parts["decoder"][f"decoder_layer_2.24.{kind}"] *= scale
    return parts


def _paper(parts: dict[str, dict[str, Tensor]]) -> nn.Module:
    weights = {k: v for k, v in parts.items() if k != "vgg"}
    return checkpoint.build(checkpoint.from_official(weights, parts["vgg"]))


class _Official(nn.Module):
    """The networks of a checkout of LearningHx/StyA2K, called as the official model calls them."""

    def __init__(self, checkout: Path, parts: dict[str, dict[str, Tensor]]):
        super().__init__()
        for name in ("models", "models.base_model"):  # the package around networks.py is not imported
            sys.modules.setdefault(name, ModuleType(name))
        file = checkout / "models" / "networks.py"
        spec = importlib.util.spec_from_file_location("models.networks", file)
        networks = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(networks)
        made = {"A2K": networks.A2K(256), "transform": networks.Transform(512)}
        self.parts = nn.ModuleDict({**made, "decoder": networks.Decoder(True)})
        for name, part in self.parts.items():
            part.load_state_dict(parts[name])
        self.vgg = parts["vgg"]

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        c, s = literal.encode(content, self.vgg), literal.encode(style, self.vgg)
        deep = self.parts["transform"](c[1], s[1], c[2], s[2])
        return self.parts["decoder"](deep, self.parts["A2K"](c[0], s[0], "3"))


def _gflop(call: Callable[[], object]) -> float:
    """Operations of a call, with attention as plain products, which torch counts on every device."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def official(checkout: str = "", size: int = 512) -> dict[str, Callable]:
    """Our networks against the official one (checkout=PATH), with the same seeded weights.

    Without a checkout the tests' literal form is the first variant. The official network takes one frame and
    encodes the style each time. Ours encode it once and take two frames per call, as the nodes do on a CPU.
    """

    def prepared(name: str) -> Callable:
        def prepare() -> Callable[[], dict]:
            parts, content, style = _seeded(), picture(2, size, size, 2), picture(1, size, size, 3)
            content = content.contiguous(memory_format=torch.channels_last)
            if name in ("official", "literal"):
                network = _Official(Path(checkout), parts) if name == "official" else None
                call = network or (lambda c, s: literal.stylize(c, s, parts))
                content, draw = content[:1], lambda: call(content[:1], style)
            else:
                torch.manual_seed(0)
                network = _paper(parts) if name == "ours" else SmallStyA2K()
                network = network.train(False).to(memory_format=torch.channels_last)
                code = network.encode_style(style)
                draw = lambda: network(content, code)  # noqa: E731
            values = {"frames": len(content), "GFLOP per frame": _gflop(draw) / len(content)}
            if name == "ours":
                off = network.decode(network.plain(network.encode(content[:1])), (size, size))
                want = literal.stylize(content[:1], style, parts)
                values["largest difference"] = float((draw()[:1] - want).abs().max())
                values["without attention"] = float((off - want).abs().mean())
            return torch.inference_mode()(lambda: values if draw() is not None else {})

        return torch.inference_mode()(prepare)

    return {name: prepared(name) for name in ("official" if checkout else "literal", "ours", "small")}


def chain(
    size: str = "512x288", frames: int = 64, workflow: str = "stya2k_video", network: str = "small"
) -> dict[str, Callable]:
    """The network alone at the chain's batch, against decoding, encoding, and whole chains.

    The slowest of network, decode and encode limits the chain. `workflow` has a stabilizer and two error
    nodes too. network=paper uses the paper's network with random weights.
    """
    return {
        "network": _alone(size, frames, network, "auto", False),
        "decode": on_clip(size, frames, lambda path: _counted(LazyVideo.from_file(path))),
        "decode, encode": on_clip(size, frames, lambda path: saved("copy", path)),
        "decode, network, encode": on_clip(size, frames, lambda path: saved("stylize", path)),
        workflow: on_clip(size, frames, lambda path: rendered(workflow, path)),
    }


def precision(size: str = "512x288", frames: int = 16, network: str = "small") -> dict[str, Callable]:
    """The network alone in each number type, and with torch.compile in float16."""
    kinds = ("float32", "bfloat16", "float16")
    variants = {kind: _alone(size, frames, network, kind, False) for kind in kinds}
    return variants | {"float16, compiled": _alone(size, frames, network, "float16", True)}


def _alone(size: str, frames: int, network: str, precision: str, compiled: bool) -> Callable:
    """A stylizer on frames that are on the device already."""

    def prepare() -> Callable[[], dict]:
        with TemporaryDirectory() as folder:
            path = library.path(library.embedded()[0])
            if network == "paper":
                path = Path(folder) / "paper.safetensors"
                checkpoint.save(_paper(_seeded()), path, half=False)
            model = load_model(path, precision, compiled)
        width, height = map(int, size.split("x"))
        style = Style(model, (StylePart(picture(1, 512, 512, 1).permute(0, 2, 3, 1)),))
        run = Stylizer(style, Options(), (height, width))
        batch = min(run.batch, frames)
        shown = picture(batch, height, width).permute(0, 2, 3, 1).to(run.device, run.dtype)
        about = {"frames": -(-frames // batch) * batch, "frames per call": batch}
        about["GFLOP per frame"] = 0.0 if compiled else _gflop(lambda: run.run(shown[:1]))

        def repeat() -> dict:
            for _ in range(0, frames, batch):
                run.run(shown)
            host.check_interrupt()
            return about

        return torch.inference_mode()(repeat)

    return torch.inference_mode()(prepare)


def _counted(video: LazyVideo) -> dict[str, int]:
    return {"frames": sum(len(chunk) for chunk in video.chunks())}
