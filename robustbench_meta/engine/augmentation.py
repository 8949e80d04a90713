"""Random variations of the images of meta-training, each image by itself, on the device where they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

from robustbench_meta.contracts.learner import Augmentation
from robustbench_meta.errors import BenchError

JITTER = 0.4
"""Brightness, contrast and saturation are multiplied by a factor from 1 − JITTER to 1 + JITTER."""


def augmented(x: Tensor, kind: Augmentation, seed: int) -> Tensor:
    """Images [..., channels, height, width] in [0, 1], varied as MetaOptNet's training images are (Lee et al. 2019).

    crop: a shift by up to an eighth of the side either way (4 of 32 pixels), edges filled with black; flip:
    left for right, every second image; jitter: brightness, contrast and saturation.

    Raises:
        BenchError: x are no images.
    """
    if kind == "none":
        return x
    if x.dim() < 4:
        raise BenchError(f"augment={kind} is for images (channels, height, width), not examples of shape {x.shape[2:]}")
    images = x.flatten(0, -4)
    draw = torch.Generator().manual_seed(seed)
    count, (height, width) = len(images), images.shape[-2:]
    kinds = kind.split("+")
    if "crop" in kinds:
        images = _shifted(images, max(1, round(height / 8)), max(1, round(width / 8)), draw)
    if "flip" in kinds:
        flipped = torch.rand(count, generator=draw).to(x.device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    if "jitter" in kinds:
        factors = 1 + JITTER * (2 * torch.rand(3, count, 1, 1, 1, generator=draw).to(x) - 1)
        images = (images * factors[0]).clamp(0, 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (mean + factors[1] * (images - mean)).clamp(0, 1)
        grey = images.mean(1, keepdim=True)
        images = (grey + factors[2] * (images - grey)).clamp(0, 1)
    return images.view(x.shape)


def _shifted(images: Tensor, down: int, right: int, draw: torch.Generator) -> Tensor:
    """Each image moved by up to so many pixels either way."""
    count, _, height, width = images.shape
    padded = F.pad(images, (right, right, down, down))
    tops = torch.randint(0, 2 * down + 1, (count,), generator=draw).to(images.device)
    lefts = torch.randint(0, 2 * right + 1, (count,), generator=draw).to(images.device)
    rows = tops[:, None] + torch.arange(height, device=images.device)
    columns = lefts[:, None] + torch.arange(width, device=images.device)
    index = torch.arange(count, device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[index, channels, rows[:, None, :, None], columns[:, None, None, :]]
