"""First and second moments of feature maps and of colours.

`moments` and `normalize` are what papers call mean/std and instance normalisation (mu, sigma over the
positions of each channel of each picture); `match_moments` is AdaIN (Huang and Belongie, eq. 8):
sigma(ref) * (x - mu(x)) / sigma(x) + mu(ref). `color_map` is the linear optimal-transport map between
two colour clouds (Pitie and Kokaram's Monge-Kantorovich map): it gives a picture the reference's mean
and 3x3 covariance with the least change.

Shapes: x [N, C, H, W]; ref [N or 1, C, h, w] of any size. The variance divides by n - 1, as torch does
and as the official AdaIN, SANet and StyA2K code do; `eps` is added to the variance.
"""

import torch
from torch import Tensor

EPS = 1e-5


def _centred(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    # Two passes of plain arithmetic: torch.var_mean over (2, 3) is several times slower on channels-last
    # maps. Half precision is summed in single: the sum of squares would exceed 65504.
    if x.dtype in (torch.float16, torch.bfloat16):
        return tuple(t.to(x.dtype) for t in _centred(x.float(), eps))
    mean = x.mean((2, 3), keepdim=True)
    rest = x - mean
    var = rest.square().sum((2, 3), keepdim=True) / max(x.shape[-1] * x.shape[-2] - 1, 1)
    return mean, rest, (var + eps).sqrt()


def moments(x: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per picture and channel: two [N, C, 1, 1]."""
    mean, _, std = _centred(x, eps)
    return mean, std


def normalize(x: Tensor, eps: float = EPS) -> Tensor:
    """Instance normalisation: mean 0 and deviation 1 per picture and channel."""
    _, rest, std = _centred(x, eps)
    return rest / std


def match_moments(x: Tensor, ref: Tensor, eps: float = EPS) -> Tensor:
    """AdaIN: x with the reference's mean and deviation per channel."""
    mean, std = moments(ref, eps)
    return normalize(x, eps) * std + mean


def color_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [N, C] and covariance [N, C, C] over the positions of x [N, C, ...]."""
    flat = x.flatten(2)
    mean = flat.mean(-1)
    centred = flat - mean[..., None]
    return mean, centred @ centred.transpose(1, 2) / max(flat.shape[-1] - 1, 1)


def _root(matrix: Tensor, inverse: bool = False) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(0).sqrt()
    return (vectors * (values.reciprocal() if inverse else values)[:, None]) @ vectors.transpose(1, 2)


def color_map(
    x: tuple[Tensor, Tensor], ref: tuple[Tensor, Tensor], gain: float = 4.0
) -> tuple[Tensor, Tensor]:
    """The map from one colour cloud's moments to another's: matrix [N, C, C] and offset [N, C].

    T = A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2. No direction is amplified more than `gain` times: otherwise
    noise in a grey picture would become colour.
    """
    (mean, cov), (ref_mean, ref_cov) = x, ref
    eye = torch.eye(cov.shape[-1], dtype=torch.float64, device=cov.device) * 1e-6
    a, b = cov.double() + eye, ref_cov.double() + eye
    root, unroot = _root(a), _root(a, inverse=True)
    values, vectors = torch.linalg.eigh(unroot @ _root(root @ b @ root) @ unroot)
    matrix = ((vectors * values.clamp(max=gain)[:, None]) @ vectors.transpose(1, 2)).to(mean.dtype)
    return matrix, ref_mean - (matrix @ mean[..., None])[..., 0]
