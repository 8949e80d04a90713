"""Natural corruptions of images, as in CIFAR-10-C: noise, blurs, weather, and what cameras and files do."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Setting, Victim
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.hookspecs import Register
from robustbench_meta.runtime.devices import send
from robustbench_meta.runtime.seeds import seed_from

Kind = Literal[
    "all", "gaussian-noise", "shot-noise", "impulse-noise", "defocus-blur", "glass-blur", "motion-blur", "zoom-blur",
    "snow", "fog", "brightness", "contrast", "elastic", "pixelate", "jpeg",
]  # fmt: skip
_SMALLEST = 8
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


class Draws:
    """What a kind draws for each image [batch, …], from its task's seed and the kind's name alone."""

    def __init__(self, random: Random, x: Tensor, kind: str) -> None:
        self._random = Random([seed_from("corruption", kind, seed) for seed in random.seeds])
        self._number, self._lead = x.new_empty(1), x.shape[:-3]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1)."""
        return self._random.uniform(self._like(shape)).reshape(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return self._random.normal(self._like(shape)).reshape(-1, *shape)

    def poisson(self, rates: Tensor) -> Tensor:
        """Poisson of these rates."""
        seeds = self._random.seeds
        each = zip(rates.cpu().reshape(len(seeds), -1), seeds, strict=True)
        drawn = [torch.poisson(mine, generator=torch.Generator().manual_seed(seed)) for mine, seed in each]
        return send(torch.stack(drawn).reshape(rates.shape), rates.device)

    def _like(self, shape: Sequence[int]) -> Tensor:
        return self._number.expand(*self._lead, *shape)


# -- what several kinds are made of: images [batch, channels, height, width] -----------------------


def along_both(x: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """A linear map of the columns and of the rows, each made from their length."""
    height, width = x.shape[-2:]
    return matrix(height).to(x) @ x @ matrix(width).to(x).T


def gaussian(sigma: float, truncate: float, border: Literal["nearest", "reflect"]) -> Callable[[int], Tensor]:
    """Makes the matrix [size, size] of SciPy's Gaussian filter."""
    radius = int(truncate * sigma + 0.5)

    def matrix(size: int) -> Tensor:
        offsets = torch.arange(-radius, radius + 1)
        weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-3)).double().square())
        places = torch.arange(size)[:, None] + offsets
        if border == "nearest":
            places = places.clamp(0, size - 1)
        else:
            places = places % (2 * size)
            places = torch.minimum(places, 2 * size - 1 - places)
        return torch.zeros(size, size, dtype=torch.double).scatter_add(
            1, places, (weights / weights.sum()).expand(places.shape)
        )

    return matrix


def box(into: int, size: int) -> Tensor:
    """The matrix [into, size] of Pillow's box filter: the mean of the pixels whose centres are in the window."""
    scale = size / into
    reach = 0.5 * max(scale, 1.0)
    centres = (torch.arange(into, dtype=torch.double)[:, None] + 0.5) * scale
    away = torch.arange(size) + 0.5 - centres
    inside = ((away > -reach) & (away <= reach)).double()
    return inside / inside.sum(1, keepdim=True)


def picked(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at rows and columns [batch, height, width], taken from the edge where they are beyond it."""
    height, width = x.shape[-2:]
    index = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
    return x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1)).reshape(x.shape)


def mesh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pixels [1, height, width]."""
    rows, columns = torch.meshgrid(*(torch.arange(size, device=x.device) for size in x.shape[-2:]), indexing="ij")
    return rows[None], columns[None]


def streaked(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """ImageMagick's motion blur: half a Gaussian, of 2·radius + 1 pixels, along an angle [batch] of each image."""
    rows, columns = mesh(x)
    down, right = (part(degrees.deg2rad())[:, None, None] for part in (torch.sin, torch.cos))
    weights = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    blurred = torch.zeros_like(x)
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        down_by, right_by = ((step * part - 0.5).ceil().long() for part in (down, right))
        blurred += weight * picked(x, rows + down_by, columns + right_by)
    return blurred


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of the images enlarged, bilinearly, to their size."""
    inner = [math.ceil(size / factor) for size in x.shape[-2:]]
    outer = [round(size * factor) for size in inner]
    grown = F.interpolate(_middle(x, inner), outer, mode="bilinear", align_corners=True)
    return _middle(grown, x.shape[-2:])


def _middle(x: Tensor, sizes: Sequence[int]) -> Tensor:
    for axis, size in zip((-2, -1), sizes, strict=True):
        x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
    return x


def plasma(noise: Tensor, decay: float) -> Tensor:
    """Clouds in [0, 1] by the diamond-square algorithm on a torus, from uniform noise on [−1, 1) at each place.

    Both are [batch, size, size], size a power of 2; noise at half the distance counts 1/decay² as much.
    """
    clouds = torch.zeros_like(noise)
    step, height = noise.shape[-1], 1e4
    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        beside = corners + corners.roll(-1, 1)
        square = (beside + beside.roll(-1, 2)) / 4
        clouds[:, half::step, half::step] = square + height * noise[:, half::step, half::step]
        centres, corners = clouds[:, half::step, half::step], clouds[:, ::step, ::step]
        across = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        clouds[:, ::step, half::step] = across / 4 + height * noise[:, ::step, half::step]
        upright = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        clouds[:, half::step, ::step] = upright / 4 + height * noise[:, half::step, ::step]
        step, height = half, height / decay**2
    clouds = clouds - clouds.amin((1, 2), keepdim=True)
    return clouds / clouds.amax((1, 2), keepdim=True)


# -- the kinds: images, their constants at one severity, draws → images, not clipped ---------------


def _gaussian_noise(x: Tensor, deviation: float, draws: Draws) -> Tensor:
    return x + deviation * draws.normal(*x.shape[1:])


def _shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    return draws.poisson(x * photons) / photons


def _impulse_noise(x: Tensor, share: float, draws: Draws) -> Tensor:
    drawn = draws.uniform(*x.shape[1:])
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn < share, 1.0, x))


def _defocus_blur(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    radius, sigma = c
    squares = torch.arange(-2.0, 3.0, dtype=torch.double).square()
    disk = (squares[:, None] + squares <= radius**2).double()
    edge = torch.exp(-0.5 * squares[1:4] / sigma**2)
    kernel = F.conv2d(disk[None, None], torch.outer(edge, edge)[None, None], padding=1)
    kernel = (kernel / kernel.sum()).to(x).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def _glass_blur(x: Tensor, c: tuple[float, int], draws: Draws) -> Tensor:
    sigma, times = c
    x = along_both(x, gaussian(sigma, 4, "nearest"))
    rows, columns = mesh(x)
    inside = (rows > 1) & (columns > 1)
    for _ in range(times):
        quarter = (4 * draws.uniform(*x.shape[-2:])).long() * inside
        x = picked(x, rows - quarter // 2, columns - quarter % 2)
    return along_both(x, gaussian(sigma, 4, "nearest"))


def _motion_blur(x: Tensor, c: tuple[int, float], draws: Draws) -> Tensor:
    return streaked(x, *c, 90 * draws.uniform() - 45)


def _zoom_blur(x: Tensor, factors: int, draws: Draws) -> Tensor:
    return (x + sum(zoomed(x, (100 + place) / 100) for place in range(factors))) / (factors + 1)


def _snow(x: Tensor, c: tuple[float, float, float, float, int, float, float], draws: Draws) -> Tensor:
    mean, deviation, zoom, least, radius, sigma, kept = c
    flakes = zoomed(mean + deviation * draws.normal(1, *x.shape[-2:]), zoom)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    flakes = streaked(flakes, radius, sigma, -135 + 90 * draws.uniform())
    luma = x.new_tensor(_LUMA)[:, None, None] if x.shape[1] == 3 else 1.0
    grey = (luma * x).sum(1, keepdim=True)
    return kept * x + (1 - kept) * torch.maximum(x, 1.5 * grey + 0.5) + flakes + flakes.rot90(2, (2, 3))


def _fog(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    thickness, decay = c
    height, width = x.shape[-2:]
    size = 2 ** math.ceil(math.log2(max(height, width)))
    clouds = plasma(2 * draws.uniform(size, size) - 1, decay)[:, None, :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * clouds) * brightest / (brightest + thickness)


def _brightness(x: Tensor, more: float, draws: Draws) -> Tensor:
    value = x.amax(1, keepdim=True)
    lighter = (value + more).clamp(max=1)
    return torch.where(value > 0, x * (lighter / value.clamp_min(torch.finfo(x.dtype).tiny)), lighter)


def _contrast(x: Tensor, left: float, draws: Draws) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + left * (x - mean)


def _elastic(x: Tensor, c: tuple[float, float, float], draws: Draws) -> Tensor:
    height, width = x.shape[-2:]
    side = min(height, width)
    push, sigma, shift = (share * side for share in c)
    rows, columns = mesh(x)
    pixels = torch.stack([columns, rows], -1).to(x)
    arms = x.new_tensor([[1, 1], [1, -1], [-1, -1]]) * (side // 3)
    corners = arms + x.new_tensor([width // 2, height // 2])
    moved = corners + shift * (2 * draws.uniform(3, 2) - 1)
    affine = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corners.expand_as(moved))
    x = _sampled(x, (F.pad(pixels, (0, 1), value=1.0).flatten(1, 2) @ affine).reshape(-1, height, width, 2), True)
    pushed = along_both(2 * draws.uniform(2, height, width) - 1, gaussian(sigma, 3, "reflect"))
    return _sampled(x, pixels + push * pushed.movedim(1, -1), False)


def _sampled(x: Tensor, places: Tensor, at_centres: bool) -> Tensor:
    """The images at (column, row) [batch, height, width, 2], mirrored at the outer pixels' centres or edges."""
    sizes = x.new_tensor([x.shape[-1], x.shape[-2]])
    scaled = 2 * places / (sizes - 1) - 1 if at_centres else (2 * places + 1) / sizes - 1
    return F.grid_sample(x, scaled, padding_mode="reflection", align_corners=at_centres)


def _pixelate(x: Tensor, share: float, draws: Draws) -> Tensor:
    def matrix(size: int) -> Tensor:
        fewer = int(size * share)
        return box(size, fewer) @ box(fewer, size)

    return along_both(x, matrix)


def _jpeg(x: Tensor, quality: int, draws: Draws) -> Tensor:
    def stored(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).reshape(image.shape)

    pixels = (255 * x.detach()).round().byte().movedim(1, -1).cpu().numpy()
    return send(torch.from_numpy(np.stack([stored(image) for image in pixels])), x.device).movedim(-1, 1).to(x) / 255


KINDS: dict[str, tuple[Callable[[Tensor, Any, Draws], Tensor], tuple[Any, ...]]] = {
    "gaussian-noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot-noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse-noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus-blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass-blur": (_glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion-blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom-blur": (_zoom_blur, (7, 12, 16, 21, 26)),
    "snow": (_snow, (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": (_elastic, (
        (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03),
    )),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
}  # fmt: skip
"""Each kind with its constants at severity 1 to 5: those of CIFAR-10-C.

They are from github.com/hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py. Lengths are in pixels, but for
`elastic`, where they are shares of the side.
"""


class Corruption(Attack):
    """Natural corruptions, one draw: noise, blurs, weather, digital; eps is the severity, 1 to 5."""

    name: ClassVar[str] = "corruption"
    source: ClassVar[str] = "Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261"
    method: ClassVar[Method] = "random"

    kind: Kind = Field("all", description="what happens to the images; all: to each image one of them, drawn at random")

    @property
    def norm(self) -> Norm:
        """No ball, but a severity."""
        return "severity"

    @property
    def loss_only(self) -> bool:
        """It asks for nothing at all."""
        return True

    def default_eps(self) -> int:
        """The middle one."""
        return 3

    def obstacle(self, setting: Setting) -> str | None:
        """It needs images, grey or in colour, that are not tiny."""
        shape = setting.shape
        if len(shape) == 3 and shape[0] in {1, 3} and min(shape[1:]) >= _SMALLEST:
            return None
        return (
            f"corruptions need images of 1 or 3 channels, {_SMALLEST}×{_SMALLEST} or larger; these examples are "
            f"{'×'.join(map(str, shape))}"
        )

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Corrupted images, clipped to the pixel range; under `all`, what the kind drawn would make of each image."""
        flat = x.reshape(-1, *x.shape[-3:])

        def corrupted(kind: str) -> Tensor:
            corrupt, constants = KINDS[kind]
            return corrupt(flat, constants[int(threat.eps) - 1], Draws(random, x, kind))

        if self.kind != "all":
            return threat.clip(corrupted(self.kind)).reshape(x.shape)
        drawn = (len(KINDS) * Draws(random, x, "all").uniform(1, 1, 1)).long()
        found = flat
        for place, kind in enumerate(KINDS):
            found = torch.where(drawn == place, corrupted(kind), found)
        return threat.clip(found).reshape(x.shape)


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `corruption`."""
    register(Corruption)
