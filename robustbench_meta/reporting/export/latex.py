"""LaTeX with booktabs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustbench_meta.reporting.export.sheets import Sheet, SheetCell
from robustbench_meta.reporting.terminal.layout import folded, sides, threat

_TEXT = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "[": r"{[}", "]": r"{]}", "*": r"{*}",
    "ε": r"$\varepsilon$", "∞": r"$\infty$", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$",
    "–": r"\textendash{}", "…": r"\dots{}", "α": r"$\alpha$", "β": r"$\beta$",
}  # fmt: skip
"""[ and * behind a line's end would be its arguments."""
_PROSE = {**_TEXT, "'": "'"}
TEXT_WIDTH = 345
"""Of article at 10 pt, in points."""
_PLAIN = frozenset({"clean", "worst case"})
"""Columns that are no names."""
_LIGATURES = re.compile(r"(?<=-)-|(?<=,),|(?<=')'")
"""-- would be a dash, ,, and '' quotation marks; of the others, one letter is never left as it is."""


def escape_latex(text: str, *, prose: bool = False) -> str:
    """Text as LaTeX prints it, whatever is in it; any blank is one space, and control characters are left out.

    In `prose`, ' is an apostrophe; in names it stays upright.
    """
    signs = _PROSE if prose else _TEXT
    plain = (
        " " if letter.isspace() else letter
        for letter in text
        if letter.isspace() or unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    )
    return _LIGATURES.sub(r"{}\g<0>", "".join(signs.get(letter, letter) for letter in plain))


def latex(found: Iterable[Sheet], *, turned: bool = False) -> str:
    """The tables, each a float with a caption; `turned` makes attacks the rows."""
    sheets = list(found)
    blocks = [_table(sheet, number, turned) for number, sheet in enumerate(sheets, start=1)]
    body = "\n".join(blocks)
    head = [
        r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}; with LaTeX before 2020 \usepackage{textcomp}."
    ]
    head += [f"% {line[0].upper()}{line[1:]}." for line in too_wide(sheets, turned=turned)]
    if not body.isascii():
        head.append("% Names hold letters beyond ASCII: compile with lualatex or xelatex, in a font that has them.")
    return "\n".join([*head, "", body])


def too_wide(found: Sequence[Sheet], *, turned: bool) -> list[str]:
    """A line on the tables that do not fit the text of article, and on what would; none if all fit."""
    widths = [_width(sheet, turned) for sheet in found]
    if max(widths, default=0) <= TEXT_WIDTH:
        return []
    widest, other = max(widths), max(_width(sheet, not turned) for sheet in found)
    option = f"{'without' if turned else 'with'} --attacks-as-rows"
    if other <= TEXT_WIDTH:
        mend = f"{option} {other:.0f} pt"
    else:
        mend = (f"{option} {other:.0f} pt; " if other < widest else "") + "--attack and --learner choose fewer"
    if len(widths) == 1:
        return [f"the table is about {widest:.0f} pt wide, the text of article {TEXT_WIDTH} pt: {mend}"]
    count, which = sum(width > TEXT_WIDTH for width in widths), widths.index(widest) + 1
    return [
        f"{count} of {len(widths)} tables {'is' if count == 1 else 'are'} wider than the text of article "
        f"({TEXT_WIDTH} pt), table {which} about {widest:.0f} pt: {mend}"
    ]


def _width(sheet: Sheet, turned: bool) -> float:
    """About how wide a table is, in points, by the widths of Computer Modern's letters."""
    first, columns, rows = sheet.turned() if turned else sheet.upright()
    wide = [max(map(_breadth, [first, *rows]))]
    for place, name in enumerate(columns):
        head = max(map(_breadth, [name] if name in _PLAIN else folded(name, 12).split("\n")))
        wide.append(max([head, *(_number_breadth(row[place]) for row in rows.values())]))
    return sum(wide) + 12 * len(wide)


def _breadth(name: str) -> float:
    """Of a name in a cell."""
    return (4.15 if name in {*_PLAIN, "learner", "attack"} else 4.73) * len(name)


def _number_breadth(cell: SheetCell) -> float:
    """Of a number: a digit is 4.6 pt wide, 5.3 if bold, and 4 behind ±, which is 6.4."""
    digits = (5.3 if cell.bold else 4.63) * (len(cell.mean) - 0.45)
    return digits + (3.1 + 6.4 + 4.0 * (len(cell.spread) - 0.45) if cell.spread else 0)


def _table(sheet: Sheet, number: int, turned: bool) -> str:
    first, columns, rows = sheet.turned() if turned else sheet.upright()
    heads = [_head(name) for name in columns]
    lines = [
        r"\begin{table}",
        r"  \centering\setlength{\belowcaptionskip}{4pt}",
        f"  \\caption{{{_caption(sheet)}}}",
        f"  \\label{{tab:robustness-{number}}}",
        r"  \small",
        f"  \\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"    \toprule",
        f"    {' & '.join([first, *heads])} \\\\",
        r"    \midrule",
        *(f"    {' & '.join([_name(name), *map(_number, row)])} \\\\" for name, row in rows.items()),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _name(name: str) -> str:
    return rf"\texttt{{{escape_latex(name)}}}" if name not in _PLAIN else name


def _head(name: str) -> str:
    lines = folded(name, 12).split("\n")
    told = [line if name in _PLAIN else _name(line) for line in lines]
    stacked = r" \\ ".join(told)
    return told[0] if len(told) == 1 else rf"\shortstack[r]{{{stacked}}}"


def _number(cell: SheetCell) -> str:
    if not cell.mean:
        return r"\textendash{}"
    mean = rf"\textbf{{{cell.mean}}}" if cell.bold else cell.mean
    marks = ("!" if cell.has_flags else "") + ("*" if cell.fewer else "")
    spread = rf" {{\scriptsize$\pm${cell.spread}}}" if cell.spread else ""
    return mean + spread + (rf"\rlap{{\textsuperscript{{{marks}}}}}" if marks else "")


def _caption(sheet: Sheet) -> str:
    """The setting, then what the numbers mean; names are set as such."""
    told = sheet.setting
    precision = "" if told["precision"] == "float32" else f", {told['precision']}"
    norm = "no" if told["norm"] == "none" else told["norm"]
    sentences = [
        f"{_name(told['dataset'])}, {told['way']}-way {told['shot']}-shot; {_name(told['backbone'])} "
        + escape_latex(
            f"({norm} norm, {told['inference']}{precision}), {told['meta_steps']:,} meta-steps;", prose=True
        ),
        "no attack." if told["threat_norm"] == "none" else f"{escape_latex(threat(told))}, {_scene(told)}.",
        *(escape_latex(note, prose=True) for note in sheet.notes),
    ]
    return re.sub(" +", " ", " ".join(sentences))


def _scene(told: Mapping[str, Any]) -> str:
    """What is done to support and query; a surrogate is a name."""
    if told["query"] != "transfer":
        return sides(told)
    return sides({**told, "surrogate": ""}) + _name(told["surrogate"])
