"""Several styles in one picture, and the strength of a style.

A *mix* lists styles, each with its share of any map: a number, or a map of numbers where a mask divides the
frame. A network has `blend`, which makes pictures of a mix at a strength; `stages` and `stage`, which give
the maps whose statistics it takes of a whole frame, for frames that are stylized in tiles.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

Share = Callable[[Tensor], Tensor | float]  # a style's share of the points of a map
Mix = list[tuple[Any, Share]]


def times(x: Tensor, share: Tensor | float) -> Tensor:
    return x if isinstance(share, float) and share == 1 else x * share


def total(maps: Iterable[Tensor]) -> Tensor:
    first, *rest = maps
    return sum(rest, first)


class FeatureBlend:
    """For networks whose features are transferred scale by scale and then decoded, once for all styles.

    Strength s decodes (1 - s) times the content's own features plus s times the stylized ones, and adds
    (1 - s) times what the decoder loses of the content."""

    stages = 1

    def stage(self, number: int, content: Any, mix: Mix, mode: str | None, stats: list) -> tuple[Tensor, ...]:
        return content.maps

    def blend(
        self,
        content: Any,
        planes: Tensor,
        mix: Mix,
        strength: float = 1.0,
        mode: str | None = None,
        stats: list | None = None,
    ) -> Tensor:
        """Pictures [N, 3, H, W], not clamped, of `planes`, which `content` encodes."""
        made = [
            [times(z, share(z)) for z in self.transfer(content, code, mode, stats)] for code, share in mix
        ]
        features = [total(maps) for maps in zip(*made, strict=True)]
        if strength == 1:
            return self.decode(features, content.size)
        plain = self.plain(content)
        mixed = [c.lerp(z, strength) for c, z in zip(plain, features, strict=True)]
        lost = planes - self.decode(plain, content.size)
        return self.decode(mixed, content.size) + (1 - strength) * lost
