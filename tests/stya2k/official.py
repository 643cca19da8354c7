"""The official StyA2K in the most literal form: its file layout, one square size, no code of the project."""

import torch
from torch.nn import functional

WIDTHS = [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512]
ENCODER = (0, 2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42)
DECODER = ((1, 512, 256), (4, 256, 256), (7, 256, 256), (10, 256, 128), (14, 128, 128), (17, 128, 64))
DECODER += ((21, 64, 64), (24, 64, 3))


def files(scale=1.0, seed=0):
    """Seeded weights as the four official files hold them."""
    g = torch.Generator().manual_seed(seed)

    def conv(cin, cout, size):
        weight = torch.randn(cout, cin, size, size, generator=g) * 0.7 * (2 / (cin * size * size)) ** 0.5
        return {"weight": weight, "bias": torch.randn(cout, generator=g) * 0.02}

    def put(into, name, cin, cout, size):
        for kind, value in conv(cin, cout, size).items():
            into[f"{name}.{kind}"] = value

    def attention(into, prefix, width):
        for name in ("q", "k", "v", "q2", "k2", "v2", "fusion1", "fusion2"):
            put(into, prefix + name, width, width, 1)
        into[f"{prefix}sim_alpha"], into[f"{prefix}sim_beta"] = torch.tensor([1.27]), torch.tensor([0.02])

    parts = {"A2K": {}, "transform": {}, "decoder": {}, "vgg": {}}
    put(parts["vgg"], "0", 3, 3, 1)
    cin = 3
    for index, width in zip(ENCODER[1:], [w for w in WIDTHS if w != "M"], strict=True):
        put(parts["vgg"], str(index), cin, width, 3)
        cin = width
    attention(parts["A2K"], "", 256)
    attention(parts["transform"], "attn_adain_4_1.", 512)
    attention(parts["transform"], "attn_adain_5_1.", 512)
    put(parts["transform"], "merge_conv", 512, 512, 3)
    put(parts["decoder"], "decoder_layer_1.1", 512, 256, 3)
    for index, cin, cout in DECODER:
        put(parts["decoder"], f"decoder_layer_2.{index}", cin, cout, 3)
    parts["decoder"]["decoder_layer_2.24.weight"] *= scale
    return parts


def _conv(x, weights, name):
    weight = weights[f"{name}.weight"]
    if weight.shape[-1] == 3:
        x = functional.pad(x, (1, 1, 1, 1), mode="reflect")
    return functional.conv2d(x, weight, weights[f"{name}.bias"])


def encode(x, vgg):
    """ReLU3_1, 4_1, 5_1."""
    x = _conv(x, vgg, "0")
    names, found = iter(ENCODER[1:]), []
    for i, width in enumerate(WIDTHS):
        if width == "M":
            x = functional.max_pool2d(x, 2)
            continue
        x = _conv(x, vgg, str(next(names))).relu()
        if i and WIDTHS[i - 1] == "M":
            found.append(x)
    return found[1:]


def _norm(x):
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def _blocks(x, side):
    b, c, h, w = x.shape
    x = x.view(b, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(h // side * w // side, 8, c // 8, side * side)  # region, head, channel, point


def _unblocks(y, side, size):
    n = size // side
    return y.reshape(n, n, -1, side, side).permute(2, 0, 3, 1, 4).reshape(1, -1, size, size)


def a2k(c, s, w, prefix, side):
    size = c.shape[-1]
    part = {name: prefix + name for name in ("q", "k", "v", "q2", "k2", "v2", "fusion1", "fusion2")}
    nc, ns = _norm(c), _norm(s)
    q, k, v = (_blocks(_conv(x, w, part[n]), side) for x, n in ((nc, "q"), (ns, "k"), (s, "v")))
    centre_k, centre_v = k.mean(3), v.mean(3)
    share = torch.sigmoid(w[f"{prefix}sim_beta"] + w[f"{prefix}sim_alpha"] * (centre_k[..., None] * k).sum(2))
    k_hat = ((share[:, :, None] * k).sum(3) + centre_k) / (side * side + 1)  # region, head, channel
    v_hat = ((share[:, :, None] * v).sum(3) + centre_v) / (side * side + 1)
    weights = torch.einsum("nhcp,mhc->nhpm", q, k_hat).softmax(-1)
    out = _conv(_unblocks(torch.einsum("nhpm,mhc->nhcp", weights, v_hat), side, size), w, part["fusion1"])
    q, k, v = (_blocks(_conv(x, w, part[n]), side) for x, n in ((nc, "q2"), (ns, "k2"), (s, "v2")))
    best = torch.einsum("nhcp,mhcp->nhm", q, k).argmax(-1)
    heads = torch.arange(8)
    k, v = k[best, heads], v[best, heads]
    weights = torch.einsum("nhcp,nhco->nhpo", q, k).softmax(-1)
    near = torch.einsum("nhpo,nhco->nhcp", weights, v)
    return out + _conv(_unblocks(near, side, size), w, part["fusion2"]) + c


def stylize(content, style, parts):
    """The official forward pass."""
    c, s = encode(content, parts["vgg"]), encode(style, parts["vgg"])
    z3 = a2k(c[0], s[0], parts["A2K"], "", 8)
    z4 = a2k(c[1], s[1], parts["transform"], "attn_adain_4_1.", 8)
    z5 = a2k(c[2], s[2], parts["transform"], "attn_adain_5_1.", 4)
    double = torch.nn.Upsample(scale_factor=2)
    w = parts["decoder"]
    x = _conv(z4 + double(z5), parts["transform"], "merge_conv")
    x = double(_conv(x, w, "decoder_layer_1.1").relu())
    x = torch.cat([x, z3], 1)
    for index, _, cout in DECODER:
        x = _conv(x, w, f"decoder_layer_2.{index}")
        if cout != 3:
            x = x.relu()
        if index in (10, 17):
            x = double(x)
    return x
