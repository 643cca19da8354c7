"""A small diffusion model of our own, so that methods can be seen to work without public weights.

Stable Diffusion 1.5's block layout (the network of tests/diffusion/tiny_unet.py) at width 128, trained to
predict noise with SD's schedule on the latents of an autoencoder of our own (tiny_vae.py): four channels, one
point for 8 x 8 pixels, unit variance (scale factor 1). 19.8 M + 2.4 M parameters.

    python benchmarks/tiny_denoiser.py train --data ../shared/data --out ~/denoiser
    python benchmarks/tiny_denoiser.py sample --weights ~/denoiser --data ../shared/data --out ~/denoiser

Two minutes for the autoencoder and 5.5 for the denoiser are meant for an H100 (--vae-minutes, --minutes);
a CPU runs the same command some hundred times slower. Training writes
`vae.safetensors` (ComfyUI's Load VAE reads it), `denoiser-1.safetensors` ... (parts of one network), sheets
of samples and a log. `load(folder)` gives the network as a MODEL: ComfyUI's own where ComfyUI is loaded, else
the stand-in of the tests; `load_vae(folder)` stands where a graph has a VAE, `encode_text` where it has CLIP
Text Encode.

The text context is [1, 77, 768]: one fixed random vector per word. A text is a bag of words of WORDS: what it
is (photo, painting), a family of paintings, light and colours. "" is the empty text.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
from itertools import pairwise
from pathlib import Path

import tiny_vae
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_training import Clock, Maps, Optimiser, module, psnr, read_pictures
from torch import Tensor, nn
from torch.nn.functional import mse_loss

log = logging.getLogger("tiny_denoiser")
CONFIG = {
    "model_channels": 128,
    "channel_mult": (1, 1, 1, 1),
    "num_res_blocks": (2, 2, 2, 2),
    "transformer_depth": (1, 1, 1, 1, 1, 1, 0, 0),
    "transformer_depth_output": (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0),
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 4,
}
FAMILIES = {  # paintings by the start of their file names
    "sketch": (
        "01cf59",
        "0637ec",
        "0e6d0c",
        "156c11",
        "298ba9",
        "45c75c",
        "4faa01",
        "598c99",
        "628a61",
        "711384",
        "883d8a",
        "b58115",
        "bf0e19",
        "c476e0",
        "d6e6c7",
        "dedfcc",
        "e292ee",
    ),
    "engraving": (
        "16a31b",
        "2624d6",
        "3bd181",
        "262b23",
    ),
    "watercolour": (
        "0f1708",
        "4ee67c",
        "585e1a",
        "753fd2",
        "87a35a",
        "98b641",
        "b9e238",
    ),
    "cubist": (
        "01862e",
        "065403",
        "22d3b7",
        "3b4cb7",
        "49d75c",
        "5ccf05",
        "745f07",
        "8bb383",
        "92c6c1",
        "d653b9",
        "e8e7db",
    ),
    "landscape": (
        "01bbbc",
        "08ae45",
        "408947",
        "4d4cbf",
        "75108f",
        "84182c",
        "c4b917",
        "cf7bd4",
        "dd1d1e",
        "ff5128",
        "bdb4e1",
        "e11af6",
        "330458",
    ),
    "portrait": (
        "370491",
        "3ac09d",
        "4e65ce",
        "4e745a",
        "5307b9",
        "eb4f26",
        "fe9503",
        "3a3711",
    ),
    "fire": ("06ba9c",),
    "wave": (
        "2e3e00",
        "42f5a6",
    ),
    "starry": (
        "8d185b",
        "b3a6b1",
    ),
    "scream": (
        "3ae9b5",
        "bf9a3f",
    ),
    "rain": (
        "3cb23b",
        "b192d3",
    ),
    "mosaic": (
        "4e3bb5",
        "63b4bf",
        "66acff",
        "b267bf",
    ),
    "wood": (
        "1d57f5",
        "438818",
        "6e40d9",
        "cd20fa",
        "df6bbd",
    ),
    "leaves": ("8893f3",),
    "feathers": ("06f859",),
    "stripes": ("55de63",),
}
COLOURS = ("red", "orange", "yellow", "green", "blue")
WORDS = ("photo", "painting", *FAMILIES, "dark", "bright", "grey", *COLOURS)
HUES = torch.tensor([-60.0, 16.0, 44.0, 68.0, 165.0, 290.0])  # degrees between which each colour lies
SIDES = (256, 288, 336, 392, 512)  # pixels of the short side of what the denoiser learns from
PARTS = 3


def tiny(name: str):
    """A module of tests/diffusion."""
    return module("tests/diffusion", name)


# -- texts -----------------------------------------------------------------------------------------


def encode_text(text: str) -> list:
    """CONDITIONING of a text: one fixed random vector per word; the rest of the 77 tokens is padding."""
    return [[torch.stack([_vector(word) for word in _tokens(text)])[None], {}]]


def _tokens(text: str) -> list[str]:
    words = ["<start>", *text.lower().split()][:77]
    return words + ["<pad>"] * (77 - len(words))


def _vector(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return torch.randn(768, generator=torch.Generator().manual_seed(seed))


def described(colours: Tensor) -> Tensor:
    """Which of "dark", "bright", "grey" and COLOURS fit pictures [N, h, w, 3] in 0..1: bool [N, 8]."""
    red, green, blue = colours.float().unbind(-1)
    light = (0.299 * red + 0.587 * green + 0.114 * blue).mean((1, 2))
    chroma = colours.amax(-1).float() - colours.amin(-1).float()
    angle = torch.rad2deg(torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue))
    angle = torch.where(angle < HUES[0].item(), angle + 360, angle)
    edges = HUES.tolist()
    amounts = [(chroma * ((angle >= low) & (angle < high))).mean((1, 2)) for low, high in pairwise(edges)]
    light_words = [light < 0.33, light > 0.62, chroma.mean((1, 2)) < 0.09]
    return torch.stack([*light_words, *(amount > 0.09 for amount in amounts)], dim=1)


class Texts:
    """The contexts of random subsets of the words that fit each picture."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        vocabulary = ("<start>", "<pad>", *WORDS)
        self.vectors = torch.stack([_vector(w) for w in vocabulary]).to(device, dtype)
        self.rest = torch.ones(76 - len(WORDS), dtype=torch.long, device=device)

    def contexts(self, fits: Tensor, g: torch.Generator) -> Tensor:
        """[N, 77, 768] for bool [N, words]; each word stays with 70 %, a third of the texts is empty."""
        chance = torch.rand(fits.shape, generator=g, device=fits.device)
        some = torch.rand(len(fits), 1, generator=g, device=fits.device) > 0.33
        chosen = fits & (chance < 0.7) & some
        number = torch.arange(2, 2 + len(WORDS), device=fits.device)
        words = torch.where(chosen, number, 1)
        start, rest = torch.zeros_like(words[:, :1]), self.rest.expand(len(fits), -1)
        return self.vectors[torch.cat([start, words, rest], dim=1)]


# -- pictures --------------------------------------------------------------------------------------


def load_pictures(data: Path, device: torch.device, limit: int | None) -> list[dict[str, Tensor]]:
    """Photographs and paintings by file name, uint8 on the device."""
    found = [read_pictures(data / name, limit) for name in ("content", "style")]
    return [{k: v.to(device) for k, v in group.items()} for group in found]


def shrunk(image: Tensor, side: int) -> Tensor:
    x = image.permute(2, 0, 1)[None].float()
    scale = side / min(x.shape[2:])
    size = [max(side, round(n * scale)) for n in x.shape[2:]]
    x = nn.functional.interpolate(x, size=size, mode="bicubic", antialias=True)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).byte()


def pixel_maps(groups: list[dict[str, Tensor]], device: torch.device) -> Maps:
    """What the autoencoder learns from: photographs as they are, paintings at three sizes."""
    photos, paintings = (list(group.values()) for group in groups)
    paintings = paintings + [shrunk(p, side) for side in (256, 360) for p in paintings]
    weights = [0.65 / len(photos)] * len(photos) + [0.35 / len(paintings)] * len(paintings)
    return Maps(photos + paintings, weights, device)


@torch.no_grad()
def latent_maps(
    network: nn.Module, groups: list[dict[str, Tensor]], dtype: torch.dtype
) -> tuple[Maps, Tensor]:
    """The latents (and colours) of all pictures, mirrored too, at SIDES; bool [maps, kinds + families]."""
    maps, weights, kinds = [], [], []
    for kind, group in enumerate(groups):
        for number, (name, image) in enumerate(group.items()):
            known = [kind == 0, kind == 1, *(kind == 1 and name.startswith(f) for f in FAMILIES.values())]
            for n, side in enumerate(SIDES):
                shift = (3 * n + number) % 8 if n else 0  # the grid lies elsewhere in each
                both = tiny_vae.encode_at(network, image, side, dtype, shift)
                maps += list(both.half())
                share = (0.35 if kind else 0.65) / len(group)
                weights += [share * (0.5 if side == 256 else 0.125)] * 2
                kinds += [known] * 2
    device = maps[0].device
    return Maps(maps, weights, device), torch.tensor(kinds, device=device)


# -- training --------------------------------------------------------------------------------------


def alphas_cumprod() -> Tensor:
    """SD's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def _start(network: nn.Module) -> None:
    """Every residual branch starts at zero, so that depth costs nothing at first."""
    for name, layer in network.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def _size(step: int, batch: int) -> tuple[int, int]:
    """The side and number of this step's crops: mostly 256 pixels, some of 384 and 512."""
    if step % 8 == 3:
        return 48, max(1, batch * 7 // 16)
    return (64, max(1, batch // 4)) if step % 8 == 7 else (32, batch)


def train_denoiser(
    maps: Maps, kinds: Tensor, out: Path, clock: Clock, batch: int, dtype: torch.dtype, seed: int
) -> nn.Module:
    """Train until the clock is out; the smoothed weights go to `out` every minute."""
    device = maps.values.device
    torch.manual_seed(seed)
    g = torch.Generator(device).manual_seed(seed)
    network = tiny("tiny_unet").TinyUNet(**CONFIG)
    _start(network)
    network = network.to(device, dtype, memory_format=torch.channels_last)
    hidden = lambda name: "_block" in name and not name.startswith("input_blocks.0.")  # noqa: E731
    optimiser = Optimiser(network, hidden, 0.02, 2e-3)
    texts, abar = Texts(device, dtype), alphas_cumprod().to(device)
    sums = torch.zeros(4, 2, device=device)
    torch.backends.cudnn.benchmark = True  # pays where shapes are few: not for latents and sheets
    while clock.spent < 1:
        size, count = _size(optimiser.steps, batch)
        seen, which = maps.crops(count, size, g)
        clean = seen[..., :4].permute(0, 3, 1, 2).float()
        context = texts.contexts(torch.cat([kinds[which], described(seen[..., 4:])], dim=1), g)
        # Stratified timesteps; a weight between noise and picture error, so that no level drowns another.
        place = torch.arange(count, device=device) + torch.rand(count, generator=g, device=device)
        t = (place * (1000 / count)).long().clamp(max=999)
        a = abar[t][:, None, None, None]
        noise = torch.randn(clean.shape, generator=g, device=device)
        noisy = (a.sqrt() * clean + (1 - a).sqrt() * noise).to(dtype, memory_format=torch.channels_last)
        predicted = network(noisy, t.float(), context).float()
        each = mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))
        weight = (1 + abar[t] / (1 - abar[t]) / 4) ** -0.5
        (each * weight).mean().backward()
        optimiser.step(clock.rate(optimiser.steps))
        with torch.no_grad():
            sums.index_add_(0, t // 250, torch.stack([each.detach(), torch.ones_like(each)], dim=1))
        if clock.due("say", 10):
            losses = [total / max(1, n) for total, n in sums.tolist()]
            shown = " ".join(f"{v:.4f}" for v in losses)
            spent = clock.spent * clock.seconds
            log.info("denoiser %3.0f s, step %d: loss by quarter of t %s", spent, optimiser.steps, shown)
            sums.zero_()
            if all(v < 10 for v in losses):
                optimiser.keep()
            else:
                log.warning("the loss is gone: back to the last good weights, at half the rate")
                optimiser.back()
        if clock.due("save", 60):
            save(optimiser.smoothed(), out, optimiser.steps)
    torch.backends.cudnn.benchmark = False
    save(optimiser.smoothed(), out, optimiser.steps)
    network = network.float()
    network.load_state_dict(optimiser.smoothed())
    log.info("denoiser: %d steps", optimiser.steps)
    return network.train(False).requires_grad_(False)


def save(weights: dict[str, Tensor], out: Path, steps: int) -> None:
    """Half precision, in parts of like size; each is replaced in one move and names layout and step."""
    half = {k: v.detach().half().cpu().contiguous() for k, v in weights.items()}
    each = -(-sum(v.numel() for v in half.values()) // PARTS)
    parts, filled = [{} for _ in range(PARTS)], 0
    for key, value in half.items():
        parts[min(filled // each, PARTS - 1)][key] = value
        filled += value.numel()
    about = {"config": json.dumps(CONFIG), "steps": str(steps), "words": " ".join(WORDS)}
    for number, part in enumerate(parts, 1):
        save_file(part, out / "denoiser.part", about)
        (out / "denoiser.part").replace(out / f"denoiser-{number}.safetensors")


def train(given: argparse.Namespace) -> None:
    """Both networks, one after the other, then sheets of what they do."""
    name = given.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    half = device.type == "cuda" if given.precision == "auto" else given.precision == "half"
    dtype = torch.bfloat16 if half else torch.float32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark_limit = True, 4
    torch.manual_seed(given.seed)
    begin = time.monotonic()
    groups = load_pictures(given.data, device, given.limit)
    log.info("%d photographs, %d paintings in %.1f s", *map(len, groups), time.monotonic() - begin)
    vae = tiny_vae.train(
        pixel_maps(groups, device),
        given.data / "squeezenet_v1_0.fp16.safetensors",
        given.out,
        given.vae_minutes,
        given.vae_batch,
        dtype,
        given.seed,
    )
    clock = Clock(given.minutes)
    maps, kinds = latent_maps(vae, groups, dtype)
    tiny_vae.settle(vae, maps.values[:, :4], given.out)
    maps.values[:, :4] /= vae.vae_scale
    log.info(
        "%d latents, %.1f M points, in %.1f s",
        len(kinds),
        len(maps.values) / 1e6,
        clock.spent * 60 * given.minutes,
    )
    _report(maps, kinds, device, given.seed)
    network = train_denoiser(maps, kinds, given.out, clock, given.batch, dtype, given.seed)
    if device.type == "cuda":
        log.info("peak memory %.1f GiB", torch.cuda.max_memory_allocated() / 2**30)
    try:
        sheets(network, vae, groups, given)
    except RuntimeError:
        log.exception("no sheets: draw them with the sample command")
    log.info("all in %.0f s", time.monotonic() - begin)


def _report(maps: Maps, kinds: Tensor, device: torch.device, seed: int) -> None:
    """How often each word fits."""
    g = torch.Generator(device).manual_seed(seed)
    seen, which = maps.crops(1024, 32, g)
    fits = torch.cat([kinds[which], described(seen[..., 4:])], dim=1).float().mean(0).tolist()
    log.info("words: %s", ", ".join(f"{w} {100 * share:.0f}%" for w, share in zip(WORDS, fits, strict=True)))


# -- use -------------------------------------------------------------------------------------------


def read(folder: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Weights in float32, and the layout that the files name; `folder` may be one of its files."""
    folder = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    weights, about = {}, {}
    for number in range(1, PARTS + 1):
        with safe_open(folder / f"denoiser-{number}.safetensors", "pt") as file:
            weights |= {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118 (no mapping)
            about[number] = file.metadata()
    if len({a["steps"] for a in about.values()}) > 1:
        raise ValueError(f"the parts in {folder} are of different moments of the training")
    return weights, json.loads(about[1]["config"])


def load(folder: str | Path):
    """The denoiser as a MODEL: ComfyUI's ModelPatcher where ComfyUI is loaded, else the tests' stand-in."""
    weights, config = read(folder)
    make = tiny("tiny").comfy_model if "folder_paths" in sys.modules else tiny("tiny").tiny_model
    return make(config, weights, scale=1.0)


def load_vae(folder: str | Path) -> tiny_vae.VAE:
    folder = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    return tiny_vae.VAE(folder / "vae.safetensors")


# -- sheets ----------------------------------------------------------------------------------------


@torch.no_grad()
def draw(
    network: nn.Module,
    noise: Tensor,
    texts: list[str],
    steps: int,
    *,
    cfg: float = 1.0,
    latent: Tensor | None = None,
    top: int = 999,
) -> Tensor:
    """DDIM from timestep `top`, one text per row; from noise, or from a latent that is noised so far."""
    abar = alphas_cumprod().to(noise.device)
    levels = torch.linspace(top, 0, max(2, round(steps * top / 999))).round().long().tolist()
    context = torch.cat([encode_text(text)[0][0] for text in texts]).to(noise.device)
    empty = encode_text("")[0][0].to(noise.device).expand_as(context)
    clean = torch.zeros_like(noise) if latent is None else latent
    x = abar[top].sqrt() * clean + (1 - abar[top]).sqrt() * noise
    for t, after in zip(levels, [*levels[1:], None], strict=True):
        eps = network(x, torch.full((len(x),), float(t), device=x.device), context)
        if cfg != 1:
            base = network(x, torch.full((len(x),), float(t), device=x.device), empty)
            eps = base + cfg * (eps - base)
        clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
        x = clean if after is None else abar[after].sqrt() * clean + (1 - abar[after]).sqrt() * eps
    return x


def squares(groups: list[dict[str, Tensor]], count: int, side: int, device: torch.device) -> Tensor:
    """The middles of some photographs, then of as many paintings: [2 * count, 3, side, side]."""
    found = []
    for group in groups:
        names = sorted(group)[:: max(1, len(group) // count)][:count]
        for name in names:
            image = shrunk(group[name].to(device), side)
            top, left = ((n - side) // 2 for n in image.shape[:2])
            found.append(image[top : top + side, left : left + side].permute(2, 0, 1).float() / 255)
    return torch.stack(found)


def _rows(images: Tensor, columns: int) -> Tensor:
    """[N, 3, H, W] -> uint8 [rows * H, columns * W, 3], blue first."""
    images = (images.float().clamp(0, 1) * 255).round().byte().cpu()
    images = torch.cat([images, images[:1].expand(-len(images) % columns, -1, -1, -1) * 0])
    lines = [torch.cat(list(part), dim=2) for part in images.split(columns)]
    return torch.cat(lines, dim=1).permute(1, 2, 0).flip(2).contiguous()


@torch.no_grad()
def sheets(
    network: nn.Module,
    vae: nn.Module,
    groups: list[dict[str, Tensor]],
    given: argparse.Namespace,
) -> None:
    """`vae.jpg`: pictures, and below all what the autoencoder makes of them; `denoised.jpg`: pictures, and
    below them noised to timesteps 800, 500 and 200 and denoised; `samples.jpg`: a row per word, four with
    CFG 1, four with 4; `large.jpg`: photos and paintings twice as large, CFG 2.
    """
    import cv2

    out, steps, side = given.out, given.steps, given.side // 8
    device = next(network.parameters()).device
    g = torch.Generator("cpu").manual_seed(given.seed)
    write = lambda name, image: cv2.imwrite(str(out / name), image.numpy(), [cv2.IMWRITE_JPEG_QUALITY, 92])  # noqa: E731
    shown = squares(groups, 6, 8 * side, device)
    back = torch.cat([vae.decode(vae.encode(part)) for part in shown.split(4)]).clamp(0, 1)
    log.info("vae: PSNR %.2f dB", psnr(shown, back))
    write("vae.jpg", torch.cat([_rows(images, (len(shown) + 1) // 2) for images in (shown, back)]))
    decode = lambda latent: torch.cat([vae.decode(part) for part in latent.split(4)])  # noqa: E731
    latent = torch.cat([vae.encode(part) for part in shown.split(4)])
    noise = torch.randn(latent.shape, generator=g).to(device)
    empty = [""] * len(latent)
    made = [decode(draw(network, noise, empty, steps, latent=latent, top=t)) for t in (800, 500, 200)]
    write("denoised.jpg", _rows(torch.cat([shown, *made]), len(shown)))
    noise = torch.randn(4, 4, side, side, generator=g).to(device)
    lines = []
    for word in WORDS:
        texts = [word] * 4
        lines += [decode(draw(network, noise, texts, steps, cfg=cfg)) for cfg in (1.0, 4.0)]
    write("samples.jpg", _rows(torch.cat(lines), 8))
    noise = torch.randn(4, 4, 2 * side, 2 * side, generator=g).to(device)
    texts = ["photo", "photo green", "painting", "painting blue"]
    write("large.jpg", _rows(decode(draw(network, noise, texts, steps, cfg=2.0)), 2))


def sample(given: argparse.Namespace) -> None:
    weights, config = read(given.weights)
    network = tiny("tiny_unet").TinyUNet(**config)
    network.load_state_dict(weights)
    vae = load_vae(given.weights).first_stage_model
    groups = load_pictures(given.data, torch.device("cpu"), given.limit)
    sheets(network.train(False).requires_grad_(False), vae, groups, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train on the pictures of a data folder")
    training.add_argument("--vae-minutes", type=float, default=2)
    training.add_argument("--minutes", type=float, default=5.5, help="of the denoiser, its latents included")
    training.add_argument("--vae-batch", type=int, default=64, help="crops of 128 pixels in a step")
    training.add_argument("--batch", type=int, default=128, help="crops of 256 pixels in a step")
    training.add_argument("--device", default="auto")
    training.add_argument("--precision", choices=("auto", "half", "full"), default="auto")
    showing = commands.add_parser("sample", help="draw sheets of samples")
    showing.add_argument("--weights", type=Path, required=True)
    for command in (training, showing):
        command.add_argument("--data", type=Path, required=True, help="a folder with content/ and style/")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--limit", type=int, help="so many pictures of each kind")
        command.add_argument("--steps", type=int, default=50, help="of a sample")
        command.add_argument("--side", type=int, default=256, help="pixels of the sheets' pictures")
        command.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(given.out / "log.txt")]
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
    (train if given.command == "train" else sample)(given)


if __name__ == "__main__":
    main()
