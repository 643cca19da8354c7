"""A CLIP for tests: words are numbers, numbers are random vectors; chunks of 77 with start, end, padding."""

import re
import zlib

import torch

START, END = 49406, 49407


class SmallClip:
    """The methods of ComfyUI's CLIP that text nodes call."""

    def __init__(self, width=768, pad=END, key="l"):
        self.width, self.pad, self.key = width, pad, key

    def tokenize(self, text, **_):
        ids = [zlib.crc32(w.encode()) % 40000 + 1 for w in re.findall(r"\w+|[^\w\s]", text.lower())]
        chunks = [ids[i : i + 75] for i in range(0, max(len(ids), 1), 75)]
        filled = [[START, *c, END] + [self.pad] * (75 - len(c)) for c in chunks]
        return {self.key: [[(i, 1.0) for i in c] for c in filled]}

    def encode_from_tokens_scheduled(self, tokens, **_):
        ids = [i for chunk in tokens[self.key] for i, _ in chunk]
        vectors = [torch.randn(self.width, generator=torch.Generator().manual_seed(i)) for i in ids]
        return [[torch.stack(vectors)[None], {}]]
