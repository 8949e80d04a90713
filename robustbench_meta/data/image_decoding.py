"""Untrusted image files: their size is checked before they are decoded, and errors name the file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import ExifTags, Image, UnidentifiedImageError

from robustbench_meta.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
MAX_PIXELS = 50_000_000
MAX_BYTES = 256 * 2**20
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""By the number that EXIF has for the orientation."""


def read_image_bytes(path: Path) -> bytes:
    """The content of an image's file.

    Raises:
        DataError: it cannot be read, or is too large to be an image.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path} has {size} bytes; images of at most {MAX_BYTES} are read: replace or remove it")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def longest_side(data: bytes) -> int:
    """The larger of an image's width and height, from the head of its file; 0 where that is damaged."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return max(image.size)
    except Exception:  # as below
        return 0


def read_image(data: bytes, where: str, mode: Literal["L", "RGB"], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file's bytes into 8-bit grey or colour, turned as its EXIF says, on white where transparent.

    Args:
        data: the content of the file.
        where: the file's name, for messages.
        mode: "L" for grey, "RGB" for colour.
        max_pixels: width × height above which it is not decoded.

    Raises:
        DataError: not an image, truncated, too large, or with more than 8 bits a channel.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(f"{where} has {width}×{height} pixels; at most {max_pixels} are read: scale it down")
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{where} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")
            image.load()
            turn = _TURNS.get(_orientation(image))
            turned = image if turn is None else image.transpose(turn)
            if turned.has_transparency_data:
                turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned.convert("RGBA"))
            return turned.convert(mode)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where} claims to be too large to be decoded (more than {MAX_PIXELS:,} pixels): replace or remove it"
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, … on damage
        foreign = isinstance(error, UnidentifiedImageError)
        reason = f"none of {', '.join(FORMATS)}" if foreign else str(error) or type(error).__name__
        raise DataError(f"{where} is not a readable image ({reason}); replace or remove it") from error


def _orientation(image: Image.Image) -> object:
    """The orientation in its EXIF; None where that is damaged, which no viewer minds."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # struct.error, SyntaxError, KeyError, …; the picture itself has been decoded
        return None
