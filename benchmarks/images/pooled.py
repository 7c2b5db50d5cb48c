"""Images of a size that fits: averaged over squares of pixels, zeros around them for a network that wants more."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from gebt.data.images import Images, load_images


@lru_cache(maxsize=4)
def images(name: str, part: Any, root: Path | None, pool: int = 1, pad: int = 0) -> Images:
    """A part of a data set, averaged over squares of `pool` pixels, then `pad` zeros on all sides; read once."""
    loaded = load_images(name, part, root)
    if (pool, pad) == (1, 0):
        return loaded
    parts = [F.avg_pool2d(pixels.float(), pool).round().to(torch.uint8) for pixels in loaded.pixels.split(4096)]
    return dataclasses.replace(loaded, pixels=F.pad(torch.cat(parts), [pad] * 4))
