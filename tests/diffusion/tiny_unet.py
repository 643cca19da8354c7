"""A small UNet with Stable Diffusion's block layout with ComfyUI's patch protocol.

Parameter names are those of ComfyUI's UNetModel, so that one state dict serves both; a patch is called in the
same places with the same arguments (`test_tiny.py` shows that the two agree).
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    gelu,
    group_norm,
    interpolate,
    layer_norm,
    linear,
    scaled_dot_product_attention,
)

SD15 = {
    "model_channels": 32,
    "channel_mult": (1, 2, 4, 4),
    "num_res_blocks": (2, 2, 2, 2),
    "transformer_depth": (1, 1, 1, 1, 1, 1, 0, 0),
    "transformer_depth_output": (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0),
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
}
SD21 = {**SD15, "context_dim": 1024, "num_heads": -1, "num_head_channels": 16, "linear": True}
SDXL = {
    "model_channels": 32,
    "channel_mult": (1, 2, 4),
    "num_res_blocks": (2, 2, 2),
    "transformer_depth": (0, 0, 2, 2, 10, 10),
    "transformer_depth_output": (0, 0, 0, 2, 2, 2, 10, 10, 10),
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "num_heads": -1,
    "num_head_channels": 16,
    "linear": True,
    "adm_in_channels": 2816,
}
MINI = {  # two levels and four self-attention layers of an SD1.x: for tests of what goes on around a UNet
    **SD15,
    "channel_mult": (1, 1),
    "num_res_blocks": (1, 1),
    "transformer_depth": (1, 0),
    "transformer_depth_output": (1, 1, 0, 0),
}
LAYOUTS = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL, "mini": MINI}


# -- layers whose weights go through `weight_function` on their way in (ComfyUI's weight wrappers) ----


def _through(parameter: Tensor | None, functions: Sequence[Callable]) -> Tensor | None:
    if parameter is None or not functions:
        return parameter
    copied = torch.empty_like(parameter).copy_(parameter)  # a copy at call time, as ComfyUI casts
    return reduce(lambda weight, f: f(weight), functions, copied)


class _Cast:
    weight_function: Sequence[Callable] = ()
    bias_function: Sequence[Callable] = ()

    def cast(self) -> tuple[Tensor, Tensor | None]:
        return _through(self.weight, self.weight_function), _through(self.bias, self.bias_function)


class Linear(_Cast, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, *self.cast())


class Conv2d(_Cast, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.cast())


class GroupNorm(_Cast, nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, *self.cast(), self.eps)


class LayerNorm(_Cast, nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.normalized_shape, *self.cast(), self.eps)


# -- attention -------------------------------------------------------------------------------------


class CrossAttention(nn.Module):
    def __init__(self, width: int, context: int, heads: int, head: int):
        super().__init__()
        self.heads, self.dim_head, self.attn_precision = heads, head, None
        self.to_q = Linear(width, heads * head, bias=False)
        self.to_k = Linear(context, heads * head, bias=False)
        self.to_v = Linear(context, heads * head, bias=False)
        self.to_out = nn.Sequential(Linear(heads * head, width), nn.Dropout(0.0))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        split = [t.unflatten(-1, (self.heads, self.dim_head)).transpose(1, 2) for t in (q, k, v)]
        return scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(0.0), Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int, head: int):
        super().__init__()
        self.n_heads, self.d_head = heads, head
        self.attn1 = CrossAttention(width, width, heads, head)
        self.attn2 = CrossAttention(width, context, heads, head)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None, options: dict) -> Tensor:
        extra = {k: v for k, v in options.items() if k not in ("patches", "patches_replace")}
        extra |= {"n_heads": self.n_heads, "dim_head": self.d_head, "attn_precision": None}
        x = x + self._attention("attn1", self.norm1(x), None, options, extra)
        for patch in options.get("patches", {}).get("middle_patch", ()):
            x = patch(x, extra)
        x = x + self._attention("attn2", self.norm2(x), context, options, extra)
        return x + self.ff(self.norm3(x))

    def _attention(self, name: str, n: Tensor, context: Tensor | None, options: dict, extra: dict) -> Tensor:
        layer: CrossAttention = getattr(self, name)
        keys = values = n if context is None else context
        for patch in options.get("patches", {}).get(f"{name}_patch", ()):
            n, keys, values = patch(n, keys, values, extra)
        q, k, v = layer.to_q(n), layer.to_k(keys), layer.to_v(values)
        replacements = options.get("patches_replace", {}).get(name, {})
        block = options.get("block")
        address = (*block, options.get("block_index", 0)) if block else None
        replace = replacements.get(address, replacements.get(block))
        out = layer.to_out(layer.attend(q, k, v) if replace is None else replace(q, k, v, extra))
        for patch in options.get("patches", {}).get(f"{name}_output_patch", ()):
            out = patch(out, extra)
        return out


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int, head: int, depth: int, use_linear: bool):
        super().__init__()
        self.use_linear = use_linear
        self.norm = GroupNorm(32, width, eps=1e-6)
        make = Linear if use_linear else lambda i, o: Conv2d(i, o, 1)
        self.proj_in = make(width, heads * head)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(heads * head, context, heads, head) for _ in range(depth)
        )
        self.proj_out = make(heads * head, width)

    def forward(self, x: Tensor, context: Tensor | None, options: dict) -> Tensor:
        height, width = x.shape[2:]
        options["activations_shape"] = list(x.shape)
        tokens = lambda t: t.flatten(2).transpose(1, 2)  # noqa: E731
        image = lambda t: t.transpose(1, 2).unflatten(2, (height, width))  # noqa: E731
        n = self.norm(x)
        n = self.proj_in(tokens(n)) if self.use_linear else tokens(self.proj_in(n))
        for index, block in enumerate(self.transformer_blocks):
            options["block_index"] = index
            n = block(n, context, options)
        n = image(self.proj_out(n)) if self.use_linear else self.proj_out(image(n))
        options["transformer_index"] = options.get("transformer_index", 0) + 1
        return x + n


# -- residual blocks and resampling ----------------------------------------------------------------


class ResBlock(nn.Module):
    def __init__(self, before: int, after: int, embedding: int):
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(32, before), nn.SiLU(), Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(embedding, after))
        self.out_layers = nn.Sequential(
            GroupNorm(32, after), nn.SiLU(), nn.Dropout(0.0), Conv2d(after, after, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if before == after else Conv2d(before, after, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.op = Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(interpolate(x, size=size, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None,
        options: dict,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, options)
            elif isinstance(layer, Upsample):
                x = layer(x, size or (2 * x.shape[2], 2 * x.shape[3]))
            else:
                x = layer(x)
        return x


# -- the network -----------------------------------------------------------------------------------


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """cos and sin of t at frequencies from 1 to 1/10000."""
    half = width // 2
    angles = t.float()[:, None] * torch.exp(torch.arange(half, device=t.device) * (-math.log(1e4) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _control(h: Tensor, control: dict | None, where: str) -> Tensor:
    left = (control or {}).get(where)
    added = left.pop() if left else None  # popped: a second pass of the network finds an empty list
    return h if added is None else h + added


class TinyUNet(nn.Module):
    """`TinyUNet(**SD15)`, `TinyUNet(**SDXL)`; keyword names are those of ComfyUI's unet_config."""

    def __init__(
        self,
        *,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: Sequence[int],
        transformer_depth: Sequence[int],
        transformer_depth_output: Sequence[int],
        transformer_depth_middle: int,
        context_dim: int,
        num_heads: int = -1,
        num_head_channels: int = -1,
        linear: bool = False,
        adm_in_channels: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
    ):
        super().__init__()
        self.model_channels, self.num_heads, self.num_head_channels = (
            model_channels,
            num_heads,
            num_head_channels,
        )
        self.adm_in_channels = adm_in_channels
        embedding = 4 * model_channels
        mlp = lambda before: nn.Sequential(Linear(before, embedding), nn.SiLU(), Linear(embedding, embedding))  # noqa: E731
        self.time_embed = mlp(model_channels)
        if adm_in_channels is not None:
            self.label_emb = nn.Sequential(mlp(adm_in_channels))

        def transformer(width: int, depth: int) -> list[nn.Module]:
            heads = width // num_head_channels if num_heads == -1 else num_heads
            make = SpatialTransformer
            return [make(width, context_dim, heads, width // heads, depth, linear)] if depth else []

        depths, widths = iter(transformer_depth), [model_channels]
        blocks = [TimestepEmbedSequential(Conv2d(in_channels, model_channels, 3, padding=1))]
        width = model_channels
        for level, (mult, count) in enumerate(zip(channel_mult, num_res_blocks, strict=True)):
            for _ in range(count):
                before, width = width, mult * model_channels
                res = ResBlock(before, width, embedding)
                blocks.append(TimestepEmbedSequential(res, *transformer(width, next(depths))))
                widths.append(width)
            if level < len(channel_mult) - 1:
                blocks.append(TimestepEmbedSequential(Downsample(width)))
                widths.append(width)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = TimestepEmbedSequential(
            ResBlock(width, width, embedding),
            *transformer(width, transformer_depth_middle),
            ResBlock(width, width, embedding),
        )
        blocks, depths = [], list(transformer_depth_output)  # ComfyUI takes these from the end
        for level, (mult, count) in reversed(list(enumerate(zip(channel_mult, num_res_blocks, strict=True)))):
            for index in range(count + 1):
                res = ResBlock(width + widths.pop(), mult * model_channels, embedding)
                width = mult * model_channels
                up = [Upsample(width)] if level and index == count else []
                blocks.append(TimestepEmbedSequential(res, *transformer(width, depths.pop()), *up))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(GroupNorm(32, width), nn.SiLU(), Conv2d(width, out_channels, 3, padding=1))

    @property
    def dtype(self) -> torch.dtype:
        return self.out[2].weight.dtype

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: dict | None = None,
        transformer_options: dict | None = None,
        **kwargs,
    ) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        wrappers = [f for key in options.get("wrappers", {}).get("diffusion_model", {}).values() for f in key]
        return Executor(self._forward, wrappers, self)(x, timesteps, context, y, control, options, **kwargs)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        y: Tensor | None,
        control: dict | None,
        transformer_options: dict,
        **kwargs,
    ) -> Tensor:
        options = transformer_options
        options["original_shape"], options["transformer_index"] = list(x.shape), 0
        patches = options.get("patches", {})
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        for patch in patches.get("emb_patch", ()):
            emb = patch(emb, self.model_channels, options)
        if self.adm_in_channels is not None:
            emb = emb + self.label_emb(y)
        h, skips = x, []
        for number, block in enumerate(self.input_blocks):
            options["block"] = ("input", number)
            h = _control(block(h, emb, context, options), control, "input")
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, options)
        options["block"] = ("middle", 0)
        h = _control(self.middle_block(h, emb, context, options), control, "middle")
        for number, block in enumerate(self.output_blocks):
            options["block"] = ("output", number)
            skip = _control(skips.pop(), control, "output")
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, options)
            size = tuple(skips[-1].shape[2:]) if skips else None
            h = block(torch.cat([h, skip], dim=1), emb, context, options, size)
        return self.out(h)


class Executor:
    """A function inside its wrappers; a wrapper gets the executor of what it wraps, and calls it."""

    def __init__(self, original: Callable, wrappers: Sequence[Callable], class_obj: object = None):
        self.original, self.wrappers, self.class_obj = original, list(wrappers), class_obj

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](Executor(self.original, self.wrappers[1:], self.class_obj), *args, **kwargs)
