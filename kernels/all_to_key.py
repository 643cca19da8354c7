"""All-to-key attention (StyA2K, eqs. 6-13; eq. 17 without parameters), and all-to-all as its ablation.

A feature map is divided into regions of r points. *Distributed* attention computes one key and one value
per region, from all its points weighted by their similarity to the region's mean (eqs. 7-8); every query
attends to these (eq. 9). *Progressive* attention finds for each content region the most similar style
region (argmax, eq. 10), takes that region's keys and values (eq. 11), and each query attends within it
(eq. 12). Neither depends on the distance between two regions.

Shapes: q [N, C, H, W] of the content, k and v [1 or N, C, h, w] of the style, any sizes; results
[N, C, H, W]. What depends only on the style is computed once (`distribute`, `regions_of`) for all frames.

Departures from the paper are properties of the weights, hence fields of `Arithmetic`. The official code
fixes the *size* of a region, the paper the *number* of regions per side; the code divides eq. 8 by n + 1
instead of n; it scales no logits. `overlap` is ours: content regions overlap by a quarter of their side and
are blended linearly, so that neighbours that match different style regions leave no visible edge (each
point is computed 1.8 times; with an overlap of one half it would be 4 times).

Maps that are no multiple of the region are padded: padded keys are masked out, padded queries are dropped,
and in eq. 10 both count as zero. If regions of the two maps differ in size (`count` with maps of different
sizes), eq. 10 compares with the style's regions resized to the content's.

Strategy: eqs. 9 and 12 are one fused `scaled_dot_product_attention` each, in chunks of queries where the
fused kernel would store its logits. Eq. 10 is one matrix product in float32, also under autocast, because
a wrong match is visible flicker. `all_to_key_reference` is the equations as written, for square maps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1 << 26  # logits stored at once where attention is not fused


@dataclass(frozen=True)
class Arithmetic:
    """How a network divides its maps. Give `size` (points per side) or `count` (regions per side)."""

    size: int = 8
    count: int = 0
    heads: int = 8
    extra: int = 1  # eq. 8 divides by n + extra: 0 in the paper, 1 in the official code
    scaled: bool = False  # logits over the square root of the head's width
    overlap: bool = False

    def region(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of a region on a map of this size."""
        if self.count:
            return -(-height // self.count), -(-width // self.count)
        return self.size, self.size

    def scale(self, channels: int) -> float:
        return (self.heads / channels) ** 0.5 if self.scaled else 1.0


@dataclass(frozen=True)
class KeyRegions:
    """Keys and values in regions: k, v [B, heads, regions, points, d]; valid [regions, points] or None."""

    k: Tensor
    v: Tensor
    valid: Tensor | None
    shape: tuple[int, int]
    grid: tuple[int, int]


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, C, H, W] to [B, heads, H*W, d]."""
    b, c, h, w = x.shape
    return x.view(b, heads, c // heads, h * w).transpose(2, 3)


def _step(shape: tuple[int, int], overlap: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """The distance between the starts of two regions, and their overlap."""
    over = (shape[0] // 4, shape[1] // 4) if overlap else (0, 0)
    return (shape[0] - over[0], shape[1] - over[1]), over


def cut(
    x: Tensor, heads: int, shape: tuple[int, int], overlap: bool = False
) -> tuple[Tensor, tuple[int, int]]:
    """A map as regions [B, heads, regions, points, d], padded with zeros, and the grid of the regions."""
    b, c, h, w = x.shape
    (rh, rw), (step, over) = shape, _step(shape, overlap)
    ny, nx = -(-h // step[0]), -(-w // step[1])
    bottom, right = ny * step[0] + over[0] - h, nx * step[1] + over[1] - w
    x = x.reshape(b, heads, c // heads, h, w).permute(0, 1, 3, 4, 2)
    if bottom or right:
        x = functional.pad(x, (0, 0, 0, right, 0, bottom))
    x = x.unfold(2, rh, step[0]).unfold(3, rw, step[1])  # b, heads, ny, nx, d, rh, rw
    return x.permute(0, 1, 2, 3, 5, 6, 4).reshape(b, heads, ny * nx, rh * rw, c // heads), (ny, nx)


def _blend(y: Tensor, dim: int, over: int) -> Tensor:
    """Regions [..., n, ..., r, ...] (dimensions dim and dim + 2) without their overlap, which is blended
    linearly from each region to the next."""
    lead, rest = y.narrow(dim + 2, 0, over), y.narrow(dim + 2, over, y.shape[dim + 2] - 2 * over)
    tail = y.narrow(dim, 0, y.shape[dim] - 1).narrow(dim + 2, y.shape[dim + 2] - over, over)
    before = torch.cat([lead.narrow(dim, 0, 1), tail], dim)
    rise = (torch.arange(over, device=y.device, dtype=y.dtype) + 0.5) / over
    return torch.cat([before.lerp(lead, rise.view(-1, *[1] * (y.ndim - dim - 3))), rest], dim + 2)


def paste(
    y: Tensor, grid: tuple[int, int], shape: tuple[int, int], height: int, width: int, overlap: bool = False
) -> Tensor:
    """Regions back to a map [B, C, height, width]: the inverse of `cut`, overlaps blended."""
    b, heads, _, _, d = y.shape
    (ny, nx), ((rh, rw), over) = grid, _step(shape, overlap)
    y = y.view(b, heads, ny, nx, *shape, d)
    if overlap:
        y = _blend(_blend(y, 2, over[0]), 3, over[1])
    y = y.permute(0, 1, 6, 2, 4, 3, 5).reshape(b, heads * d, ny * rh, nx * rw)
    return y[..., :height, :width]


def regions_of(k: Tensor, v: Tensor, how: Arithmetic) -> KeyRegions:
    """A style's keys and values in regions, made once for all frames."""
    h, w = k.shape[-2:]
    shape = how.region(h, w)
    keys, grid = cut(k, how.heads, shape)
    values, _ = cut(v, how.heads, shape)
    valid = None
    if h % shape[0] or w % shape[1]:
        valid = cut(torch.ones_like(k[:1, :1]), 1, shape)[0][0, 0, :, :, 0] > 0
    return KeyRegions(keys, values, valid, shape, grid)


def distribute(
    k: Tensor, v: Tensor, how: Arithmetic, alpha: Tensor | float = 1.0, beta: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Eqs. 7-8: one key and one value per region, [B, heads, regions, d]."""
    cells = regions_of(k, v, how)
    n = cells.k.shape[-2]
    weight: Tensor | float = 1.0
    if cells.valid is not None:
        weight = cells.valid.to(k.dtype)
        n = weight.sum(-1)[:, None]
    mean_k, mean_v = cells.k.sum(-2) / n, cells.v.sum(-2) / n  # padded points are zero
    likeness = (cells.k @ mean_k[..., None])[..., 0]
    share = (torch.sigmoid(alpha * likeness + beta) * weight)[..., None, :]
    total = n + how.extra
    return ((share @ cells.k)[..., 0, :] + mean_k) / total, ((share @ cells.v)[..., 0, :] + mean_v) / total


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Fused attention over [..., L, d]. Keys of batch 1 serve a whole batch of queries."""
    if len(k) == 1 and len(q) > 1 and mask is None:
        n, h, length, d = q.shape
        flat = q.transpose(0, 1).reshape(1, h, n * length, d)
        return _attend(flat, k, v, scale)[0].view(h, n, length, -1).transpose(0, 1)
    k, v = (t.expand(len(q), -1, -1, -1) for t in (k, v))
    fused = q.device.type == "cpu" or q.dtype in (torch.float16, torch.bfloat16)
    rows = max(1, CHUNK // max(1, q.shape[0] * q.shape[1] * k.shape[-2]))
    if fused or rows >= q.shape[-2] or torch.is_grad_enabled():
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return torch.cat(
        [
            functional.scaled_dot_product_attention(p, k, v, attn_mask=mask, scale=scale)
            for p in q.split(rows, -2)
        ],
        -2,
    )


def distributed_attention(q: Tensor, key: Tensor, value: Tensor, how: Arithmetic) -> Tensor:
    """Eq. 9: every query attends to the regions' keys."""
    n, c, h, w = q.shape
    out = _attend(_heads(q, how.heads), key, value, how.scale(c))
    return out.transpose(2, 3).reshape(n, -1, h, w)


def all_to_all_attention(q: Tensor, k: Tensor, v: Tensor, how: Arithmetic) -> Tensor:
    """Eq. 5, the ablation: every query attends to every position of the style."""
    n, c, h, w = q.shape
    out = _attend(_heads(q, how.heads), _heads(k, how.heads), _heads(v, how.heads), how.scale(c))
    return out.transpose(2, 3).reshape(n, -1, h, w)


def _resample(k: Tensor, cells: KeyRegions, shape: tuple[int, int]) -> Tensor:
    if cells.shape == shape:
        return k
    b, h, n, _, d = k.shape
    k = k.permute(0, 1, 2, 4, 3).reshape(b * h * n, d, *cells.shape)
    return functional.adaptive_avg_pool2d(k, shape).view(b, h, n, d, -1).transpose(3, 4)


def match_regions(q: Tensor, cells: KeyRegions, shape: tuple[int, int]) -> Tensor:
    """Eq. 10: the style region of each content region of q [B, heads, n, points, d]: [B, heads, n]."""
    with torch.autocast(q.device.type, enabled=False), torch.no_grad():
        keys = _resample(cells.k.float() if cells.k.dtype in _HALF else cells.k, cells, shape).flatten(3)
        points = q.to(keys.dtype).flatten(3)
        return (points @ keys.transpose(2, 3)).argmax(-1)


_HALF = (torch.float16, torch.bfloat16)


def _aligned(grid: tuple[int, int], cells: KeyRegions, device: torch.device) -> Tensor:
    """The style region at the same relative place: progressive attention without its first step."""
    (ny, nx), (my, mx) = grid, cells.grid
    y = torch.arange(ny, device=device) * my // ny
    x = torch.arange(nx, device=device) * mx // nx
    return (y[:, None] * mx + x).flatten()


def progressive_attention(q: Tensor, cells: KeyRegions, how: Arithmetic, *, match: bool = True) -> Tensor:
    """Eqs. 10-12; `match=False` is Table 2's "without step 1"."""
    c, h, w = q.shape[1:]
    shape = how.region(h, w)
    overlap = how.overlap and min(shape) >= 4
    queries, grid = cut(q, how.heads, shape, overlap)
    b, heads, count, points, d = queries.shape
    if match:
        index = match_regions(queries, cells, shape)
    else:
        index = _aligned(grid, cells, q.device).expand(b, heads, -1)
    if len(cells.k) == 1:  # one style for all frames: heads first, then frames
        lanes = index.transpose(0, 1).reshape(heads, b * count)
        queries = queries.transpose(0, 1).reshape(heads, b * count, points, d)
        keys, values = cells.k[0], cells.v[0]
    else:
        lanes = index.reshape(b * heads, count)
        queries = queries.reshape(b * heads, count, points, d)
        keys, values = cells.k.flatten(0, 1), cells.v.flatten(0, 1)
    out = _within(queries, keys, values, cells.valid, lanes, how.scale(c))
    if len(cells.k) == 1:
        out = out.view(heads, b, count, points, -1).transpose(0, 1)
    return paste(out.reshape(b, heads, count, points, -1), grid, shape, h, w, overlap)


def _within(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, index: Tensor, scale: float) -> Tensor:
    """Attention of q [lanes, n, points, d] within the regions `index` [lanes, n] of k, v [lanes, m, r, d]."""
    m = k.shape[1]
    row = (index + torch.arange(len(k), device=k.device)[:, None] * m).flatten()
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    step = row.numel()
    if not torch.is_grad_enabled():
        step = max(1, CHUNK // 4 // max(1, q.shape[2] * k.shape[1]))
    outs = []
    for rows, p in zip(row.split(step), q.flatten(0, 1).split(step), strict=True):
        mask = None if valid is None else valid[rows % m][:, None, None]
        near = (t[rows][:, None] for t in (k, v))
        outs.append(
            functional.scaled_dot_product_attention(p[:, None], *near, attn_mask=mask, scale=scale)[:, 0]
        )
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out.view(*q.shape[:3], -1)


def all_to_key(
    q: Tensor, k: Tensor, v: Tensor, how: Arithmetic, *, q2: Tensor | None = None, match: bool = True
) -> Tensor:
    """Eq. 17's form without parameters: distributed plus progressive attention of the same q, k, v."""
    key, value = distribute(k, v, how)
    out = distributed_attention(q, key, value, how)
    return out + progressive_attention(q if q2 is None else q2, regions_of(k, v, how), how, match=match)


def all_to_key_reference(q: Tensor, k: Tensor, v: Tensor, how: Arithmetic) -> tuple[Tensor, Tensor]:
    """Distributed and progressive attention as the equations write them; square maps, whole regions."""
    r = how.region(*q.shape[-2:])[0]
    b, c, h, w = q.shape

    def blocks(x: Tensor) -> Tensor:  # b, heads, d, regions, points
        y = functional.unfold(x, r, stride=r).view(b, x.shape[1], r * r, -1).transpose(2, 3)
        return y.reshape(b, how.heads, -1, *y.shape[2:])

    def unblock(y: Tensor) -> Tensor:
        y = y.flatten(1, 2).transpose(2, 3)
        return functional.fold(y.reshape(b, -1, y.shape[-1]), (h, w), r, stride=r)

    Q, K, V = blocks(q), blocks(k), blocks(v)
    n, s = r * r, how.scale(c)
    k_m, v_m = K.mean(-1), V.mean(-1)
    weight = torch.einsum("bhdm,bhdmp->bhmp", k_m, K).sigmoid()
    k_hat = (k_m + torch.einsum("bhmp,bhdmp->bhdm", weight, K)) / (n + how.extra)
    v_hat = (v_m + torch.einsum("bhmp,bhdmp->bhdm", weight, V)) / (n + how.extra)
    attn = (s * torch.einsum("bhdnp,bhdm->bhnpm", Q, k_hat)).softmax(-1)
    distributed = torch.einsum("bhnpm,bhdm->bhdnp", attn, v_hat)
    index = torch.einsum("bhdnp,bhdmp->bhnm", Q, K).argmax(-1)[:, :, None, :, None]
    near_k, near_v = (torch.gather(t, 3, index.expand(-1, -1, t.shape[2], -1, n)) for t in (K, V))
    attn = (s * torch.einsum("bhdnp,bhdno->bhnpo", Q, near_k)).softmax(-1)
    progressive = torch.einsum("bhnpo,bhdno->bhdnp", attn, near_v)
    return unblock(distributed), unblock(progressive)
