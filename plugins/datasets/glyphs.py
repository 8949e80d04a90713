"""Embedded data: the characters of the DejaVu fonts that matplotlib ships, some scripts held out."""

from __future__ import annotations

import importlib.util
import math
import platform
import unicodedata
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Splits
from robustbench_meta.data.array_cache import file_digest
from robustbench_meta.data.pictures import Pictures, cached_pictures
from robustbench_meta.errors import DataError
from robustbench_meta.runtime.seeds import seed_from

SIZE = 28
HELD_OUT = {
    "validation": {"GREEK", "LAO"},
    "test": {"CYRILLIC", "GEORGIAN", "ARMENIAN", "HEBREW", "OLD ITALIC", "LISU", "COPTIC"},
}
"""Scripts by split; all other scripts (Latin, Canadian syllabics, Arabic, …) are for training."""
_STYLES = [
    f"DejaVu{family}{style}.ttf"
    for family, slant in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
]
_CATEGORIES = {"letters": {"Lu", "Ll", "Lt", "Lo"}, "all": {"Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No", "Sc", "Sm", "So"}}


class Glyphs(Dataset):
    """Characters of the DejaVu fonts in 12 styles; no download; classes disjoint in script and in shape."""

    name = "glyphs"
    source = "DejaVu fonts, as shipped with matplotlib"
    eps: ClassVar = {"linf": 0.1, "l2": 1.5}

    characters: Literal["letters", "all"] = Field("letters", description="letters, or also digits and symbols")
    images: int = Field(20, ge=2, le=200, description="images of each character")

    def load(self, root: Path | None) -> Splits:
        """Render the characters, or take them from the cache; `root` is not used."""
        pictures = cached_pictures("glyphs", self._key(), lambda: render(self.characters, self.images))
        parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        for place, label in enumerate(pictures.classes.tolist()):
            parts[split_of(label)].append(place)
        return pictures.split("glyphs", parts)

    def _key(self) -> dict[str, object]:
        return {
            **self.model_dump(),
            "code": file_digest(Path(__file__)),
            "pillow": metadata.version("pillow"),
            "freetype": features.version("freetype2"),
            "matplotlib": metadata.version("matplotlib"),
            "unicode": unicodedata.unidata_version,
            "machine": platform.machine(),
        }


def script_of(character: str) -> str:
    """The script of a character, from the Unicode name of what it is a form of (𝔸 is Latin, ℵ is Hebrew)."""
    forms = unicodedata.normalize("NFKC", character)
    plain = next((form for form in forms if unicodedata.category(form) in _CATEGORIES["letters"]), character)
    words = unicodedata.name(plain).split()
    return " ".join(words[: 2 if words[0] == "OLD" else 1])


def split_of(label: str) -> str:
    """The split of the class with this Unicode name."""
    script = script_of(unicodedata.lookup(label))
    return next((split for split, scripts in HELD_OUT.items() if script in scripts), "train")


def font_folder() -> Path:
    """The folder of the fonts in matplotlib, found without importing it."""
    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" if spec and spec.origin else Path()
    missing = [style for style in _STYLES if not (folder / style).is_file()]
    if missing:
        raise DataError(
            f"glyphs: {', '.join(missing)} not found in {folder}: reinstall matplotlib (pip install --force-reinstall)"
        )
    return folder


def render(characters: str, images: int) -> Pictures:
    """Pictures [classes·images, 1, 28, 28], ink bright, of all characters that differ clearly from one another."""
    styles = _styles(characters)
    fonts = [_font(style) for style in _STYLES]
    first = np.zeros((len(styles), 24 * 24), dtype=np.float32)
    kept: dict[int, dict[int, Image.Image]] = {}
    for code in sorted(styles):
        masks = {style: mask for style in styles[code] if (mask := _mask(fonts[style], chr(code))) is not None}
        if len(masks) < 4:
            continue
        look = _look(next(iter(masks.values())))
        if (first[: len(kept)] @ look).max(initial=0) < 0.85:
            first[len(kept)] = look
            kept[code] = masks
    given_up = _seen_in_later_splits(kept)
    return Pictures.stack({
        unicodedata.name(chr(code)): _draw_class(code, list(masks.values()), images)
        for code, masks in kept.items() if code not in given_up
    })  # fmt: skip


def _seen_in_later_splits(kept: Mapping[int, Mapping[int, Image.Image]]) -> set[int]:
    """Characters that look in some style like one of a later split: of train, validation or test."""
    codes, splits = np.array(list(kept)), ["train", "validation", "test"]
    turns = np.array([splits.index(split_of(unicodedata.name(chr(code)))) for code in kept])
    looks = np.zeros((len(_STYLES), len(codes), 24 * 24), dtype=np.float32)
    for place, masks in enumerate(kept.values()):
        for style, mask in masks.items():
            looks[style, place] = _look(mask)
    alike = np.max([look @ look.T for look in looks], axis=0) >= 0.9
    return set(codes[(alike & (turns[:, None] < turns)).any(1)].tolist())


def _font(style: str, size: int = 40) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_folder() / style), size, layout_engine=ImageFont.Layout.BASIC)


def _styles(characters: str) -> dict[int, list[int]]:
    """The styles that have each character of the wanted categories, if there are at least 4."""
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415  # 0.2 s, and not needed when the pictures are cached

    found: dict[int, list[int]] = {}
    for style, file in enumerate(_STYLES):
        for code in FT2Font(str(font_folder() / file)).get_charmap():
            if unicodedata.category(chr(code)) in _CATEGORIES[characters]:
                found.setdefault(code, []).append(style)
    return {code: styles for code, styles in found.items() if len(styles) >= 4}


def _mask(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """The character as large as the font has it, cut to its ink; None for mere marks, under 14 of 40 pixels."""
    canvas = Image.new("L", (256, 128))
    ImageDraw.Draw(canvas).text((128, 64), character, fill=255, font=font, anchor="mm")
    box = canvas.getbbox()
    return canvas.crop(box) if box and max(box[2] - box[0], box[3] - box[1]) >= 14 else None


def _look(mask: Image.Image) -> np.ndarray:
    """A character's shape as a unit vector [576]: what tells whether two look the same."""
    picture = np.asarray(mask.resize((24, 24), Image.Resampling.BOX), dtype=np.float32).ravel()
    return picture / np.linalg.norm(picture)


def _draw_class(code: int, masks: list[Image.Image], images: int) -> list[np.ndarray]:
    """Images [1, 28, 28]: styles in random order × rotation ±15°, scale, shear and shift, seeded by the character."""
    rng = np.random.Generator(np.random.Philox(seed_from("glyphs", code)))
    order = rng.permutation(len(masks))
    low, high = [-15, 0.85, -0.15, -1.5, -1.5], [15, 1.1, 0.15, 1.5, 1.5]
    warps = rng.uniform(low, high, (images, 5))
    return [_warp(masks[order[i % len(masks)]], *warps[i].tolist()) for i in range(images)]


def _warp(mask: Image.Image, degrees: float, scale: float, shear: float, right: float, down: float) -> np.ndarray:
    """The mask, its longer side 20 pixels × scale, centred + shift; drawn at twice the size and averaged."""
    angle, step = math.radians(degrees), max(mask.size) / (2 * 20 * scale)
    a, b, d, e = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    a, b, d, e = step * (a + shear * d), step * (b + shear * e), step * d, step * e
    x, y = SIZE + 2 * right, SIZE + 2 * down
    matrix = (a, b, mask.width / 2 - a * x - b * y, d, e, mask.height / 2 - d * x - e * y)
    drawn = mask.transform((2 * SIZE, 2 * SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(drawn.reduce(2))[None]


@hookimpl
def register_datasets(register: Callable[[type[Any]], None]) -> None:
    """Bring the embedded data set."""
    register(Glyphs)
