"""Figures as files: PDF with TrueType fonts, SVG with text as text, PNG; the same figure gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from robustbench_meta import __version__
from robustbench_meta.errors import BenchError
from robustbench_meta.reporting.figures import FORMATS
from robustbench_meta.reporting.figures.figure import PaperFigure
from robustbench_meta.reporting.figures.style import FigureStyle
from robustbench_meta.runtime.atomic_files import write_atomically


def parse_out(out: Path | None, formats: Sequence[str], folder: Path) -> tuple[Path, list[str], bool]:
    """Where figures go: a folder, or a file's name without its ending; in which formats; and whether it is a file.

    Args:
        out: as typed: a folder, or a file that ends in one of the formats.
        formats: as typed.
        folder: where they go by default.

    Raises:
        BenchError: an unknown format; or a file's ending that is none, or beside other formats.
    """
    for name in formats:
        if name not in FORMATS:
            raise BenchError(f"invalid --format '{name}': expected {', '.join(FORMATS)}")
    if out is None or out.is_dir() or not out.suffix:
        return out or folder, list(dict.fromkeys(formats)) or ["pdf"], False
    ending = out.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise BenchError(f"--out {out}: expected a file that ends in .pdf, .svg or .png, or a folder")
    if set(formats) - {ending}:
        raise BenchError(f"--out {out} is one file: leave --format out, or name a folder")
    return out.with_suffix(""), [ending], True


def names(drawn: Sequence[PaperFigure]) -> list[str]:
    """A name for each: its kind, and what tells it apart from the others of its kind."""
    found: list[str] = []
    for each in drawn:
        others = [other.setting for other in drawn if other.kind == each.kind]
        told = [
            f"{_PREFIX.get(field, '')}{value}{_SUFFIX.get(field, '')}"
            for field, value in each.setting.items()
            if value not in {"none", ""} and any(other.get(field) != value for other in others)
        ]
        name = re.sub(r"[^\w.]+", "-", "-".join([each.kind, *told]), flags=re.ASCII).strip("-.")[:100]
        count = found.count(name)
        found.append(name)
        if count:
            found[-1] = f"{name}-{count + 1}"
    return found


_PREFIX = {"eps": "eps", "meta_steps": "steps", "second": "vs-", "part": "part", "queries": "q", "episodes": "n"}
_SUFFIX = {"way": "w", "shot": "s"}


def save_figure(drawn: PaperFigure, path: Path, look: FigureStyle, command: str, dpi: int = 300) -> None:
    """Write a figure, in the format of the file's ending, with its caption and the command as metadata.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    ending = path.suffix.removeprefix(".")
    texts = [drawn.title, drawn.caption, command, f"robustbench_meta {__version__}", None]
    told = dict(zip(_KEYS[ending], texts, strict=False))
    with look.styled():
        write_atomically(
            path, lambda part: drawn.figure.savefig(part, format=ending, metadata=told, dpi=dpi), kept=False
        )


_KEYS = {
    "pdf": ("Title", "Subject", "Keywords", "Creator", "CreationDate"),
    "svg": ("Title", "Description", "Source", "Creator", "Date"),
    "png": ("Title", "Description", "Comment", "Software"),
}
"""The names in each format of title, caption, command, program, and of the date, which is left out."""
