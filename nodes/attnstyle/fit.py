"""Training for the node: IMAGE in, a text style and a plot out, with progress and previews."""

from torch import Tensor

from .. import host
from . import curriculum, perceptual
from .judge import Judge
from .style import TextStyle
from .train import EpochReport, Settings, train


def fit(
    judge: Judge, images: Tensor, style_text: str, source_text: str, settings: Settings, network: str
) -> tuple[TextStyle, Tensor]:
    """Train on pictures [N, H, W, C]; `network` names the perceptual network."""
    if not callable(getattr(judge, "aim", None)):
        raise ValueError(
            f"judge is a {type(judge).__name__}: connect Style Judge (CLIP), Load Style Judge, or "
            "Style Judge (Diffusion)"
        )
    pictures = images[..., :3].permute(0, 3, 1, 2)
    with host.gradients():
        eye = perceptual.load(network) if settings.weights.content else None
    with host.progress(settings.epochs, f"AttnStyle: {style_text[:40]}", "epochs") as bar:

        def watch(step: EpochReport) -> None:
            bar.step(preview=step.picture.permute(1, 2, 0))

        try:
            result = train(
                judge,
                pictures,
                style_text,
                source_text,
                settings,
                perceptual=eye,
                watch=watch,
                device=host.device(),
            )
        except Exception as error:
            if not host.is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"{len(images)} pictures of {images.shape[2]}x{images.shape[1]} and "
                f"{settings.patches} patches do not fit into memory: give smaller or fewer pictures, "
                "or fewer patches"
            ) from error
    about = {"style_text": style_text, "source_text": source_text, "size": list(pictures.shape[-2:])}
    if settings.others:
        about["other_texts"] = list(settings.others)
    epochs = max(map(len, result.losses.values()))
    title = f"AttnStyle: {style_text[:60]} ({epochs} epochs)"
    return TextStyle.of(result.network, **about), curriculum.plot(result.losses, result.shares, title)
