"""One HTML file with everything in it: no network, no other file, nothing that runs but the page's own script."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from robustbench_meta import __version__
from robustbench_meta.errors import BenchError
from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.evaluation.statistics import LEVEL
from robustbench_meta.reporting.html.embedded_figures import Drawings
from robustbench_meta.reporting.html.gallery import example_section
from robustbench_meta.reporting.html.leaderboard import ComparableTables, places
from robustbench_meta.reporting.html.pairwise import PairwiseSection, pairwise_section
from robustbench_meta.reporting.html.provenance import commands, versions
from robustbench_meta.reporting.html.scenarios import Order, threats
from robustbench_meta.reporting.html.sections import costs, learning_sections, sweeps
from robustbench_meta.reporting.table import corruption_table
from robustbench_meta.reporting.wording import kinds_text, sides, size_axis, threat
from robustbench_meta.results.corruptions import kind_tables
from robustbench_meta.results.curves import curves
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.frames import failures_in
from robustbench_meta.results.pairwise import compare_learners, judged
from robustbench_meta.results.store import Store
from robustbench_meta.results.tables import SETTING, groups, shown
from robustbench_meta.runtime.atomic_files import write_atomically, write_text


def write_report(path: Path, store: Store, frame: pd.DataFrame, samples: Samples) -> None:
    """Write the report of a leaderboard's rows.

    Args:
        path: of the HTML file.
        store: the results folder, of which records are read for pictures, learning curves and commands.
        frame: the leaderboard's rows.
        samples: what each episode gave.

    Raises:
        StorageError: the file cannot be written.
    """
    text = page(store, frame, samples)
    write_atomically(path, lambda part: write_text(part, text), kept=False)


def page(store: Store, frame: pd.DataFrame, samples: Samples) -> str:
    """The HTML of a report; the same records always give the same."""
    keys = set(frame["spec_hash"])
    records = {record["key"]: record for record in store.records() if record["key"] in keys}
    order = Order(frame)
    tables = sorted(groups(frame), key=lambda rows: order({str(name): value for name, value in rows.iloc[0].items()}))
    found = sorted(judged(frame, samples), key=lambda board: order(board.setting))
    drawings = Drawings(sorted(name for board in found for name in board.scores))
    there = places(found)
    style, script = _resource("style.css"), _resource("script.js")
    where = {tuple(place.told[name] for name in SETTING): place.distinguished for place in there}
    return _environment(where).get_template("report.html.jinja").render(
        style=style, script=script, policy=_policy(style, script), version=__version__,
        palette=drawings.palette, places=there, threats=threats(found, drawings),
        sweeps=sorted(
            sweeps(curves(frame, samples), frame, drawings), key=lambda sweep: order({**sweep.setting, "eps": "0"})
        ),
        corruptions=sorted(
            kind_tables(frame, samples), key=lambda kinds: order({**kinds.told, "eps": "0"})
        ),
        pairwise=_pairwise(frame, samples, order), gallery=example_section(tables, records),
        cost_tables=list(costs(frame)),
        learning_curves=list(learning_sections(frame, list(records.values()), drawings)),
        commands=commands(records.values()), versions=versions(records.values()),
        failures=failures_in(store.root).to_dict("records"),
        summary=_summary(frame), flags=_flags(there, frame), several_places=len(there) > 1, level=LEVEL,
    )  # fmt: skip


def _pairwise(frame: pd.DataFrame, samples: Samples, order: Order) -> PairwiseSection | str:
    try:
        return pairwise_section(sorted(compare_learners(frame, samples), key=lambda pair: order(pair.setting)))
    except BenchError as error:
        return str(error)


def _summary(frame: pd.DataFrame) -> dict[str, Any]:
    """What was run, in lists of names."""
    attacked = frame[frame["threat_norm"] != "none"]

    def listed(rows: pd.DataFrame, column: str) -> list[str]:
        return [str(value) for value in dict.fromkeys(rows[column])]

    by_threat: dict[str, list[str]] = {}
    for norm, rows in attacked.groupby("threat_norm", sort=False):
        by_threat[str(norm)] = listed(rows, "eps")
    return {
        "cells": len(frame), "learners": sorted(set(frame["learner"])), "attacks": sorted(set(attacked["attack"])),
        "datasets": listed(frame, "dataset"), "eps": by_threat, "seeds": sorted(set(frame["seed"])),
        "scenarios": list(dict.fromkeys(attacked["support"] + "/" + attacked["query"])),
        "episodes": sorted(set(frame["episodes"])), "devices": listed(frame, "device"),
        "versions": listed(frame, "version"),
    }  # fmt: skip


def _flags(there: list[ComparableTables], frame: pd.DataFrame) -> list[tuple[str, str, int, int]]:
    rows = frame["flags"].fillna("").str.split()
    counts = {flag: int(rows.map(lambda flags, flag=flag: flag in flags).sum()) for flag in FLAGS}
    tables = [{doubt.flag for doubt in table.doubts} for place in there for table in place.tables]
    return [(flag, FLAGS[flag], count, sum(flag in told for told in tables)) for flag, count in counts.items() if count]


def _environment(where: Mapping[tuple[Any, ...], str]) -> Environment:
    """Templates that escape all they are given, and refuse what they are not; `where` names the places."""
    made = Environment(
        loader=PackageLoader("robustbench_meta.reporting.html"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "shown": shown, "breakable": breakable,
        "where": lambda told: where[tuple(told[name] for name in SETTING)],
        "size_axis": size_axis, "threat": threat, "sides": sides, "kinds_text": kinds_text,
        "corruption_table": corruption_table,
    }  # fmt: skip
    made.tests["known"] = lambda value: value is not None and math.isfinite(value)
    return made


def breakable(text: str) -> Markup:
    """A name that may be broken behind `:`, `,`, `;` and `/`, and in words behind so many letters without any."""
    words = (re.findall(r"\s+|[^\s:,;/]{1,20}[:,;/]*|[:,;/]{1,20}", word) for word in re.split(r"(\s+)", text))
    return Markup().join(Markup("<wbr>").join(map(escape, pieces)) for pieces in words)


def _resource(name: str) -> str:
    return (files("robustbench_meta.reporting.html") / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy that allows this style, this script, images within the file, and nothing else."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def size_text(path: Path) -> str:
    """`1.2 MB`."""
    size = path.stat().st_size
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{math.ceil(size / 1e3)} kB"
