"""First training stage of the modulated StyA2K network: it learns to paint like MicroAST.

    python lab/stylizer/imitate.py ~/stylizer/run --packed ~/stylizer --teacher ~/MicroAST \
        --perceptual vgg_shift_tolerant.pth --start-from lab/stylizer/start.safetensors

`--teacher` is a checkout of EndyWon/MicroAST (MIT licence) with its weights. Its pictures are the targets; no
code or weight of it becomes part of the network. Run the same command again to continue a stopped run.
"""

import argparse
import importlib
import json
import logging
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from reelbrush.nodes.common.files import replacing
from reelbrush.nodes.common.perceptual import Perceptual, load_perceptual
from reelbrush.nodes.stya2k import checkpoint
from reelbrush.nodes.stya2k.data import Pictures, crop, recolor, step_rng
from reelbrush.nodes.stya2k.losses import MovedFrame, gram_loss, moments_loss, temporal_loss
from reelbrush.nodes.stya2k.modulated import ModulatedStyA2K

log = logging.getLogger("imitate")
LAYERS = ("fine1_2", "fine2_1", "coarse2_2", "coarse3_3")
MOVE = torch.tensor([0.06, 0.06, 0.12])  # limits of the random affine motion


def load_teacher(folder: Path) -> nn.Module:
    """MicroAST with its published weights, as a function of contents and styles."""
    sys.path.insert(0, str(folder))  # its modules import each other by bare names
    net = importlib.import_module("net_microAST")
    parts = {"content_encoder": net.Encoder, "style_encoder": net.Encoder}
    parts |= {"modulator": net.Modulator, "decoder": net.Decoder}
    built = []
    for name, make in parts.items():
        part = make()
        file = folder / "models" / f"{name}_iter_160000.pth.tar"
        part.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        built.append(part)
    return net.TestNet(*built).requires_grad_(False).eval()


def distance(made: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Mean squared distance of feature maps, relative to the target's squares, summed over the layers."""
    return sum(((made[k] - wanted[k]).square().mean() / wanted[k].square().mean()).sqrt() for k in LAYERS)


def losses(
    network: nn.Module,
    teacher: nn.Module,
    judge: Perceptual,
    content: Tensor,
    style: Tensor,
    moved: MovedFrame,
) -> dict[str, Tensor]:
    """The weighted terms of a step; the first content is also stylized as a moved frame."""
    with torch.no_grad():
        target = teacher(content, style).clamp(0, 1)
        wanted, styles = judge(target), judge(style)
    out = network(torch.cat([content, moved.frame]), network.encode_style(torch.cat([style, style[:1]])))
    pictures, made = out[: len(content)], judge(out[: len(content)].clamp(-0.25, 1.25))
    return {
        "pixels": 2 * (pictures - target).abs().mean(),
        "features": 0.3 * distance(made, wanted),
        "moments": 1.5 * moments_loss(made, wanted, LAYERS, bounded=True),
        "gram": 1.5 * gram_loss(made, wanted, LAYERS, bounded=True),
        "style moments": 1 * moments_loss(made, styles, LAYERS, bounded=True),
        "style gram": 1 * gram_loss(made, styles, LAYERS, bounded=True),
        "temporal": 15 * temporal_loss(out[:1], out[-1:], moved),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    for name in ("packed", "teacher", "perceptual"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--start-from", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.run.mkdir(parents=True, exist_ok=True)
    teacher, judge = load_teacher(args.teacher), load_perceptual(args.perceptual)
    contents, styles = (
        Pictures(args.packed / f"{kind}.safetensors", args.run, 256) for kind in ("contents", "styles")
    )
    network = checkpoint.load(args.start_from) if args.start_from else ModulatedStyA2K()
    network.requires_grad_(True)
    average = {k: p.detach().clone() for k, p in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
    step, state = 0, args.run / "state.pt"
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        average, step = saved["average"], saved["step"]
    while step < args.steps:
        rng = step_rng(args.seed, step)
        content, style = (
            torch.stack([crop(p.draw(p.names, rng), args.crop, rng) for _ in range(args.batch)])
            for p in (contents, styles)
        )
        style = torch.stack([recolor(s, rng, 0.1) for s in style])
        theta = torch.eye(2, 3) + (torch.rand(2, 3, generator=rng) - 0.5) * MOVE
        terms = losses(network, teacher, judge, content, style, MovedFrame.affine(content[:1], theta[None]))
        optimizer.param_groups[0]["lr"] = args.learning_rate * min(
            (step + 1) / 50, 1, 2 * (1 - step / args.steps)
        )
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        with torch.no_grad():
            for k, p in network.named_parameters():
                average[k].lerp_(p, 1 - min(0.995, (1 + step) / (10 + step)))
        if step % 20 == 0:
            log.info("step %d: %s", step, " ".join(f"{k} {v.item():.3f}" for k, v in terms.items()))
        if step % 100 == 0 or step == args.steps:
            saved = {"network": network.state_dict(), "average": average, "step": step}
            with replacing(state) as temporary:
                torch.save(saved | {"optimizer": optimizer.state_dict()}, temporary)
            final = ModulatedStyA2K(network.widths)
            final.load_state_dict(average, strict=False)
            about = {"teacher": "MicroAST", "step": step, "arguments": json.dumps(vars(args), default=str)}
            checkpoint.save(final, args.run / "average.safetensors", about=about)


if __name__ == "__main__":
    main()
