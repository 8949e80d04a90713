"""Model cards say what checkpoints, records and published tables say."""

import csv
import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from robustbench_meta.cli import main
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.checkpoints import Trained, checkpoint_bytes, read_file, weights_of
from robustbench_meta.experiment.surrogates import read_named
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.reporting.model_card import card
from robustbench_meta.runtime.digest import digest_of
from tests.helpers.records import answers, clean_record, record, stored

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "results/published/checkpoints").glob("*.safetensors"))


def parts(text):
    """The front matter, read as YAML, and the rest."""
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def table(text, first):
    """The rows of the table whose first column has that head; cells are cut at bars that are not in code."""
    lines = text[text.index(f"| {first} |" if first else "| | |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def rows_of(training):
    """The rows of the published tables with that training."""
    found = []
    for path in (ROOT / "results/published").glob("*.csv"):
        with path.open(encoding="utf-8") as file:
            found += [row for row in csv.DictReader(file) if row["training_hash"] == training]
    return found


def percent(row, name):
    return f"{100 * float(row[f'{name}_accuracy']):.1f}\u00a0±{100 * float(row[f'{name}_ci95']):.1f}"


def test_checkpoints_are_published():
    assert len(PUBLISHED) >= 2


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_card_tells_of_its_checkpoint(path):
    data = path.read_bytes()
    weights, about = weights_of(data)
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    facts = dict(table(text, ""))
    assert facts["SHA-256"] == f"`{hashlib.sha256(data).hexdigest()}`"
    assert facts["parameters"] == f"{sum(weight.numel() for weight in weights.values()):,}"
    assert facts["training"].startswith(f"`{digest_of(about)}`")
    assert f"{len(data):,} bytes" in facts["file"]
    assert f"{about['meta_steps']} meta-steps of {about['tasks_per_step']} tasks, seed {about['seed']}" in text


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_card_has_the_numbers_of_the_published_table(path):
    rows = rows_of(digest_of(weights_of(path.read_bytes())[1]))
    front, text = parts(path.with_suffix(".md").read_text(encoding="utf-8"))
    expected = [
        [
            f"`{row['attack']}`",
            f"{row['support']}/{row['query']}",
            percent(row, "clean"),
            *([percent(row, "robust"), percent(row, "worst_case")] if row["attack"] != "none" else ["–", "–"]),
            row["episodes"],
            " ".join(f"`{flag}`" for flag in row["flags"].split()),
        ]
        for row in rows
    ]
    assert len(expected) >= 3
    assert [[cells[0], *cells[2:]] for cells in table(text, "attack")] == expected
    told = [
        (result["dataset"]["args"]["attack"], result["metrics"][0]["value"])
        for result in front["model-index"][0]["results"]
    ]
    assert told == [(row["attack"], round(100 * float(row["robust_accuracy"]), 2)) for row in rows]
    assert front["license"] == "mit"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_checkpoint_can_be_a_surrogate(path):
    named = read_named(load_registry(local=False), str(path))
    learner = path.stem.split("-", 2)[2]
    assert learner == named.learner.name or learner.startswith(f"{named.learner.name}-"), "aq-r2d2 is aq"
    assert (named.backbone.name, named.way) == ("conv4", 5)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_command_of_a_published_card_attacks_by_way_of_it_in_its_own_setting(path, monkeypatch, capsys):
    (command,) = re.findall(r"^\$ (bench run .* --surrogate .*)$", path.with_suffix(".md").read_text("utf-8"), re.M)
    monkeypatch.chdir(path.parent)
    with pytest.raises(SystemExit) as end:
        main([*shlex.split(command)[1:], "--dry-run", "--json"])
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    about = weights_of(path.read_bytes())[1]
    assert (end.value.code, plan["event"], len(plan["cells"])) == (0, "planned", 1)
    (work,) = plan["work"]
    assert (work["meta_steps"], work["attacked_tasks"]) == (about["meta_steps"], 200)
    assert work["task_gradients"] == about["meta_steps"] * about["tasks_per_step"]


# -- what is made ------------------------------------------------------------------------------------

HOSTILE = 'a`|b"<script>:{{c}}[d](e)'


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of that training, and a folder with records of it and of another."""
    records = [clean_record(answers(0.9), learner=HOSTILE), record(answers(0.5), learner=HOSTILE, attack=HOSTILE)]
    training = {
        **records[0]["spec"]["training"], "dataset": {"name": "d", "options": {"o": HOSTILE}, "code": "v1"},
        "backbone": {"name": "b", "options": {}, "code": "v1"}, "attack": None, "precision": "float32",
        "fingerprint": "f", "validations": 6, "validation_tasks": 64,
    }  # fmt: skip
    for each in records:
        each["spec"]["training"], each["training"] = training, digest_of(training)
        each |= {"history": [{"step": 5.0, "validation_accuracy": 0.75}], "chosen_step": 5}
    store = stored(tmp_path / "results", *records, record(answers(0.1), learner="another"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint_bytes(Trained({"w": torch.zeros(3, 4)}), training))
    return path, store


def test_names_cannot_leave_their_place(trained):
    front, text = parts(card(trained[0], trained[1], HOSTILE))
    assert front["license"] == HOSTILE
    assert HOSTILE in front["tags"]
    results = front["model-index"][0]["results"]
    assert [each["dataset"]["args"]["attack"] for each in results] == ["none", HOSTILE]
    assert [len(cells) for cells in table(text, "attack")] == [8, 8]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "<script>" not in re.sub(r"`[^`]*`", "", prose)
    assert "](e)" not in prose


def test_a_card_tells_of_its_own_training_only(trained):
    text = card(trained[0], trained[1])
    assert "another" not in text.split("## Use")[0].replace("another seed", "")
    assert "license:" not in text
    assert "not told" in dict(table(text, ""))["licence"]
    assert "meta-step 5, the best on validation tasks (75.0 %" in text
    assert "given from Python" not in text


def test_a_card_says_what_no_command_line_can_find(trained):
    path, store = trained
    records = store.records()
    training = {**records[0]["spec"]["training"], "learner": {"name": "l", "options": {}, "code": "session sha256:0"}}
    for each in records[:2]:
        each["spec"]["training"], each["training"] = training, digest_of(training)
    store = stored(path.parent / "again", *records[:2])
    path.write_bytes(checkpoint_bytes(Trained({"w": torch.zeros(3, 4)}), training))
    text = card(path, store)
    assert "The learner was given from Python, as code that is in no plugin file" in text
    assert "bench run" not in text
    path.write_bytes(checkpoint_bytes(Trained({}), training))
    with pytest.raises(BenchError, match=r"holds no weights: .* is a model of your own that evaluate\(\) was given"):
        card(path, store)


def test_a_checkpoint_without_records_has_no_card(trained, tmp_path):
    store = stored(tmp_path / "other", record(answers(0.1)))
    with pytest.raises(BenchError, match=r"other has no record of the training that made .*model\.safetensors"):
        card(trained[0], store)


def test_what_is_no_checkpoint_is_told(trained, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(read_file(trained[0])[:-3])
    with pytest.raises(BenchError, match=r"x\.safetensors is not a checkpoint of robustbench_meta: it is damaged"):
        card(path, trained[1])
