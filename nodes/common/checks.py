"""The checks at the entry of every node (IMAGE, MASK, LATENT, AUDIO): other nodes are not trusted."""

from fractions import Fraction
from functools import cache, wraps
from inspect import getattr_static, signature
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .files import file_error


def checked(node: type) -> type:
    """Wrap the function of a node class, so that its inputs are checked first.

    Tensors have the right form and values, numbers are within their limits, and nothing is missing.
    """
    function = getattr(node, node.FUNCTION)
    parameters = tuple(signature(function).parameters)

    @cache
    def inputs() -> list[tuple[str, str, dict[str, Any], bool]]:
        declared = node.INPUT_TYPES()
        return [
            (name, kinds if isinstance(kinds, str) else "COMBO", *(options or [{}]), group == "required")
            for group in ("required", "optional")
            for name, (kinds, *options) in declared.get(group, {}).items()
        ]

    @wraps(function)
    def call(*arguments: Any, **values: Any) -> Any:
        values |= zip(parameters, arguments, strict=False)
        for name, kinds, options, required in inputs():
            if values.get(name) is not None:
                values[name] = _value(name, kinds, options, values[name])
            elif required and name in values:
                wanted = "choose a value" if kinds == "COMBO" else f"connect a node that gives {kinds}"
                raise ValueError(f"{name} is empty: {wanted}")
        try:
            return function(**values)
        except OSError as error:
            raise file_error(error) from error

    is_static = isinstance(getattr_static(node, node.FUNCTION), staticmethod)
    setattr(node, node.FUNCTION, staticmethod(call) if is_static else call)
    return node


def _value(name: str, kinds: str, options: dict[str, Any], value: Any) -> Any:
    if kinds in ("INT", "FLOAT"):
        _number(name, value, **options)
    for kind in kinds.split(","):
        # An input of several types may have something else than a tensor.
        if kind in _CHECKS and (kind == kinds or isinstance(value, Tensor)):
            value = _CHECKS[kind](name, value)
    return value


def _number(name: str, value: Any, min: float = -inf, max: float = inf, **_: Any) -> None:
    """An INT or FLOAT. The front end keeps what is typed within its limits, but not what is connected."""
    if not isinstance(value, Real) or not min <= value <= max or value in (inf, -inf):
        raise ValueError(f"{name} is {str(value)[:30]}: give a number from {min:g} to {max:g}")


def image(name: str, value: Any) -> Tensor:
    """An IMAGE as float32 [N, H, W, 3 or 4]; one channel becomes three."""
    value = _numbers(name, value, "an IMAGE")
    if value.ndim != 4 or value.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name} has the shape {list(value.shape)}, and an IMAGE is [frames, height, width, 3]: "
            "connect the output of an image node"
        )
    return value.repeat(1, 1, 1, 3) if value.shape[-1] == 1 else value


def mask(name: str, value: Any) -> Tensor:
    """A MASK as float32 [N, H, W]."""
    value = _numbers(name, value, "a MASK")
    if value.ndim == 4 and value.shape[1] == 1:
        return value[:, 0]
    if value.ndim not in (2, 3):
        raise ValueError(
            f"{name} has the shape {list(value.shape)}, and a MASK is [frames, height, width]: "
            "connect the output of a mask node"
        )
    return value[None] if value.ndim == 2 else value


def latent(name: str, value: Any) -> dict[str, Any]:
    """A LATENT whose samples are float32 [N, C, h, w], or with time [N, C, frames, h, w]."""
    if not isinstance(value, dict) or value.get("samples") is None:
        raise ValueError(f"{name} is a {type(value).__name__} without samples: connect VAE Encode")
    samples = _numbers(name, value["samples"], "a LATENT")
    if samples.ndim not in (4, 5):
        raise ValueError(
            f"{name} has the shape {list(samples.shape)}, and a LATENT is [frames, channels, height, width]: "
            "connect VAE Encode"
        )
    return value if samples is value["samples"] else value | {"samples": samples}


def audio(name: str, value: Any) -> dict[str, Any]:
    """An AUDIO: samples [N, channels, n] as float32, and their rate."""
    wanted = "connect a node that gives AUDIO"
    if not isinstance(value, dict) or not isinstance(value.get("waveform"), Tensor):
        raise ValueError(f"{name} is a {type(value).__name__} without a waveform: {wanted}")
    waveform, rate = value["waveform"], value.get("sample_rate")
    if waveform.ndim != 3 or not waveform.shape[0] or not waveform.shape[1]:
        raise ValueError(
            f"{name} has the shape {list(waveform.shape)}, and an AUDIO is [1, channels, samples]: {wanted}"
        )
    if not isinstance(rate, Real) or not 1 <= rate <= _HIGHEST_RATE:
        raise ValueError(f"{name} has the sample rate {str(rate)[:30]}: give one from 1 to {_HIGHEST_RATE}")
    waveform = waveform.to(torch.float32)
    if waveform.numel() and not waveform.abs().amax() <= _LARGEST:
        raise ValueError(
            f"{name} has values that are not numbers (NaN), infinite or above {_LARGEST:g}: "
            "check the node that makes it"
        )
    return value | {"waveform": waveform, "sample_rate": int(rate)}


def frame_rate(name: str, value: Any) -> Fraction:
    """Frames per second."""
    if not isinstance(value, Real) or not _LOWEST_FPS <= value <= _HIGHEST_FPS:
        raise ValueError(f"{name} has {str(value)[:30]} frames per second: give 0.0001 to {_HIGHEST_FPS}")
    return Fraction(value).limit_denominator(100_000)


def text(name: str, value: Any) -> Any:
    """A STRING, which may hold half of a character when it comes from a damaged file."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has characters that are not valid text: type it again") from None
    return value


_LARGEST = 1e6
_HIGHEST_RATE = 10**6  # samples per second
_LOWEST_FPS, _HIGHEST_FPS = 1e-4, 10**6
_CHECKS = {"IMAGE": image, "MASK": mask, "LATENT": latent, "AUDIO": audio, "STRING": text}


def _numbers(name: str, value: Any, what: str) -> Tensor:
    """Float32 values of at least one frame, none of them so large that sums of squares are infinite."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {kind}, not {what}: connect a node that gives {what}")
    if not value.numel():
        raise ValueError(f"{name} has no frames (shape {list(value.shape)}): connect at least one")
    value = value.to(torch.float32)
    low, high = value.aminmax()  # one pass without a copy; NaN goes through
    if not (low >= -_LARGEST and high <= _LARGEST):
        frames = value.reshape(len(value) if value.ndim else 1, -1).abs().amax(1)
        wrong = int((frames <= _LARGEST).logical_not().nonzero()[0])
        raise ValueError(
            f"{name} has values that are not numbers (NaN), infinite or above {_LARGEST:g} in frame {wrong}: "
            "check the node that makes it"
        )
    return value
