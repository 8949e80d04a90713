"""Model cards: Markdown with the front matter of Hugging Face, all of it read from a checkpoint and its records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.experiment.checkpoints import read_file, weights_of
from robustbench_meta.registry.discovery import SESSION
from robustbench_meta.reporting.export.markdown import code, escape_markdown
from robustbench_meta.reporting.wording import size_shown
from robustbench_meta.results.leaderboard import build
from robustbench_meta.results.reproduce import command_for, transfer_command
from robustbench_meta.results.store import Store
from robustbench_meta.results.tables import shown
from robustbench_meta.runtime.digest import digest_of

TASK = "few-shot image classification"


class Metric(NamedTuple):
    """One number of the front matter."""

    name: str
    value: float
    """In percent."""
    arguments: dict[str, Any]


def card(path: Path, store: Store, licence: str | None = None) -> str:
    """The model card of a checkpoint.

    Args:
        path: of the checkpoint's file, wherever it lies.
        store: the results folder with records of that training.
        licence: of the weights, as Hugging Face names it; None: nothing is said of it.

    Raises:
        BenchError: the file is no whole checkpoint, or the folder has no record of its training.
    """
    data = read_file(path)
    try:
        weights, about = weights_of(data)
    except StorageError as error:
        raise BenchError(f"{path} is not a checkpoint of robustbench_meta: {error}") from error
    key = digest_of(about)
    records = [record for record in store.records() if record["training"] == key]
    if not records:
        raise BenchError(
            f"{store.root} has no record of the training that made {path} ({key}); name the results folder that it "
            "comes from"
        )
    rows = build(store, {record["key"] for record in records})
    newest = max(records, key=lambda record: str(record["written"]))
    training, labels = newest["spec"]["training"], newest["labels"]
    plugins = {kind: training[kind] for kind in ("learner", "backbone", "dataset")}
    given = [kind for kind, plugin in plugins.items() if plugin["code"].startswith(SESSION)]
    if not weights and "learner" in given:
        raise BenchError(
            f"{path} holds no weights: {labels['learner']} is a model of your own that evaluate() was given, and "
            f"nothing is known here of how it was made. Its numbers for a card of your own: bench export {store.root}"
        )
    commands = dict.fromkeys(filter(None, map(command_for, _ordered(records, rows))))
    template = _environment().from_string(files(__name__).joinpath("card.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        file=path.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data), licence=licence, key=key, task=TASK,
        parameters=sum(weight.numel() for weight in weights.values()), record=newest, training=training, labels=labels,
        plugins=plugins, given=given, rows=list(_rows(rows)),
        metrics=list(_metrics(rows)), flags=_flags(rows), chosen=newest.get("chosen_step"),
        validation=_validation(newest), commands=list(commands), tags=_tags(training),
        transfer=transfer_command(newest, path.name), seconds=round(newest["timings"]["train_seconds"]),
    )  # fmt: skip


def _ordered(records: list[dict[str, Any]], rows: pd.DataFrame) -> list[dict[str, Any]]:
    known = {record["key"]: record for record in records}
    return [known[key] for key in rows["spec_hash"]]


def _rows(frame: pd.DataFrame) -> Any:
    for row in frame.to_dict("records"):
        attacked = row["threat_norm"] != "none"
        yield {
            "attack": row["attack"],
            "threat": _threat(row["threat_norm"], row["eps"]) if attacked else "–",
            "scenario": f"{row['support']}/{row['query']}",
            "clean": _with_interval(row["clean_accuracy"], row["clean_ci95"]),
            "robust": _with_interval(row["robust_accuracy"], row["robust_ci95"]) if attacked else "–",
            "worst": _with_interval(row["worst_case_accuracy"], row["worst_case_ci95"]) if attacked else "–",
            "episodes": f"{row['episodes']:,}",
            "flags": row["flags"].split(),
        }


def _threat(norm: str, eps: str) -> str:
    return size_shown(norm, eps) if norm == "severity" else f"{norm}, {size_shown(norm, eps)}"


def _with_interval(mean: float, ci95: float) -> str:
    return f"{shown(100 * mean)}\u00a0±{shown(100 * ci95)}"


def _metrics(frame: pd.DataFrame) -> Any:
    """The same for the front matter: accuracy under each attack, and without any."""
    for row in frame.to_dict("records"):
        attacked = row["threat_norm"] != "none"
        told = {"attack": row["attack"], "support": row["support"], "query": row["query"], "episodes": row["episodes"]}
        if attacked:
            told |= {"norm": row["threat_norm"], "eps": row["eps"]}
        name = f"accuracy under {row['attack']}" if attacked else "accuracy without attack"
        yield Metric(name, round(100 * row["robust_accuracy"], 2), told | {"ci95": round(100 * row["robust_ci95"], 2)})


def _flags(frame: pd.DataFrame) -> dict[str, str]:
    found = {flag for flags in frame["flags"] for flag in flags.split()}
    return {flag: FLAGS.get(flag, "of a newer version") for flag in sorted(found)}


def _validation(record: Mapping[str, Any]) -> float | None:
    """Accuracy in percent on the validation tasks at the step that was kept; None if there was no validation."""
    steps = {round(each["step"]): each["validation_accuracy"] for each in record.get("history") or ()}
    return 100 * steps[record["chosen_step"]] if record.get("chosen_step") in steps else None


def _tags(training: Mapping[str, Any]) -> list[str]:
    names = [training[kind]["name"] for kind in ("learner", "backbone", "dataset")]
    return ["few-shot-learning", "meta-learning", "adversarial-robustness", *names]


def _quoted(value: Any) -> Markup:
    """As YAML reads it, whatever is in it."""
    return Markup(json.dumps(value, ensure_ascii=False))


def _named(value: Any) -> Markup:
    return Markup(code(str(value).lower() if isinstance(value, bool) or value is None else str(value)))


def _final(value: Any) -> str:
    """Whatever a template prints is text, unless a filter has made it safe."""
    return value if isinstance(value, Markup) else escape_markdown(str(value))


def _environment() -> Environment:
    environment = Environment(undefined=StrictUndefined, finalize=_final, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"yaml": _quoted, "code": _named, "typed": Markup}
    return environment
