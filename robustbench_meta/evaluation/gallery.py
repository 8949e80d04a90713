"""The pictures in a cell's record: clean, adversarial and difference images with what the model says of them."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Kind = Literal["clean", "adversarial", "difference"]
MOST = 5
"""Queries, and support images."""
_LARGEST_SIDE = 2**12
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}
"""By the colour type of a PNG: grey, RGB."""


def _header(text: str) -> tuple[int, int, int]:
    """Channels, height and width that a PNG in base64 says that it has; ValueError if it is none of 8 bits."""
    try:
        data = base64.b64decode(text[:48], validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is no base64 ({error})") from error
    if not (data.startswith(_SIGNATURE) and data[12:16] == b"IHDR" and len(data) > 25 and data[24] == 8):
        raise ValueError("it is no PNG of 8 bits")
    if data[25] not in _CHANNELS:
        raise ValueError(f"it is a PNG of colour type {data[25]}; expected grey (0) or RGB (2)")
    return _CHANNELS[data[25]], int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _is_png(text: str) -> str:
    base64.b64decode(text, validate=True)
    _header(text)
    return text


Png = Annotated[str, Field(max_length=2**21), AfterValidator(_is_png)]
"""A PNG of 8 bits as base64; its header was looked at, not its pixels."""
Share = Annotated[float, Field(ge=0, le=1)]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Answer(_Part):
    """What the model says of one query."""

    predicted: int = Field(ge=0)
    confidence: Share
    """Softmax of the logits, at the predicted class."""
    of_label: Share
    """The same at the true class."""


class ExampleImage(_Part):
    """One query or support image of the episode, before and after the attack.

    Images are 8-bit display copies, rounded to 1/255; distances are of the exact ones.
    """

    role: Literal["query", "support"]
    index: int = Field(ge=0)
    """Among the task's queries, or support images."""
    label: int = Field(ge=0)
    """The true class, of the task's: 0 to way − 1."""
    clean: Png
    adversarial: Png | None
    """The one that was judged, or adapted to; None if the scenario leaves this image as it is."""
    difference: Png | None
    """Adversarial less clean: grey 128 is no change, 1 and 255 are the image's own largest one, `linf` (or 10⁻⁵, if
    that is larger: what rounding left stays grey)."""
    linf: Distance
    """The largest change of a pixel's channel, in units of the pixel range."""
    l2: Distance
    before: Answer | None
    """Without any attack; None for support images."""
    after: Answer | None
    """In the record's scenario; None for support images."""

    @property
    def fooled(self) -> bool | None:
        """Whether the attack has made a right answer a wrong one; None for support images."""
        if self.before is None or self.after is None:
            return None
        return self.before.predicted == self.label != self.after.predicted

    def uri(self, kind: Kind) -> str | None:
        """The image as the `src` of an HTML image; None if there is none."""
        text: str | None = getattr(self, kind)
        return None if text is None else f"data:image/png;base64,{text}"


class ExampleEpisode(_Part):
    """Some pictures of one test episode, the same for all learners, attacks, ε and seeds."""

    episode: int = Field(ge=0)
    shape: list[Annotated[int, Field(ge=1, le=_LARGEST_SIDE)]] = Field(min_length=3, max_length=3)
    """Channels, height, width."""
    pictures: list[ExampleImage] = Field(min_length=1, max_length=2 * MOST)

    @model_validator(mode="after")
    def _of_one_shape(self) -> Self:
        for picture in self.pictures:
            for text in (picture.clean, picture.adversarial, picture.difference):
                if text is not None and _header(text) != tuple(self.shape):
                    raise ValueError(f"a picture of shape {_header(text)}; expected {tuple(self.shape)}")
        return self


def gallery_of(record: Mapping[str, Any]) -> ExampleEpisode | None:
    """The pictures of a record that was read.

    None where nothing was attacked, where examples are no images or too large, and in records of older versions.
    """
    told = record.get("gallery")
    return None if told is None else ExampleEpisode.model_validate(told)


def pixels(png: Png) -> np.ndarray:
    """The 8-bit pixels of a picture's image: [height, width] if grey, else [height, width, 3].

    Raises:
        ValueError: the PNG is damaged.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(png)), formats=["PNG"]) as image:
            return np.array(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture is damaged ({error})") from error


def png(image: np.ndarray) -> Png:
    """An 8-bit image [channels, height, width], of 1 or 3 channels, as base64 of a PNG."""
    told = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(told, "PNG")
    return base64.b64encode(told.getvalue()).decode()
