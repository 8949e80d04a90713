"""The report: its numbers are the leaderboard's, names stay text, and it works in a real browser."""

import base64
import csv
import hashlib
import itertools
import re
import shlex
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from robustbench_meta.cli import main
from robustbench_meta.cli.results import read_results
from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.evaluation.gallery import png
from robustbench_meta.reporting.html import gallery, page
from robustbench_meta.reporting.html.provenance import joined
from robustbench_meta.reporting.html.sections import costs
from robustbench_meta.results.leaderboard import build
from tests.helpers import chromium
from tests.helpers.colors import contrast
from tests.helpers.records import answers, clean_record, record, stored

STYLE = (Path(page.__file__).parent / "style.css").read_text(encoding="utf-8")
VOID = {"meta", "img", "br", "wbr", "input", "link"}
HOSTILE = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "שלום{{7*7}}", "x" * 200]


class Element:
    """A part of a page: what it is, what is in it."""

    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children = tag, dict(attributes), parent, []

    def __getitem__(self, name):
        return self.attributes[name]

    def all(self, *tags):
        """The elements below of these kinds, in order."""
        for child in self.children:
            if isinstance(child, Element):
                if child.tag in tags or not tags:
                    yield child
                yield from child.all(*tags)

    def get(self, id):
        (found,) = [each for each in self.all() if each.attributes.get("id") == id]
        return found

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Tree(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.root = self.at = Element("root", [], None)
        self.feed(text)
        assert self.at is self.root, f"{self.at.tag} is not closed"

    def handle_starttag(self, tag, attrs):
        new = Element(tag, attrs, self.at)
        self.at.children.append(new)
        if tag not in VOID:
            self.at = new

    def handle_startendtag(self, tag, attrs):
        self.at.children.append(Element(tag, attrs, self.at))

    def handle_endtag(self, tag):
        assert tag == self.at.tag, f"</{tag}> in <{self.at.tag}>"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


def show(seed, count, changed=True):
    """A gallery as records hold them, of `count` queries."""
    rng = np.random.default_rng(seed)

    def noise():
        return png(rng.integers(0, 256, (1, 6, 6), dtype=np.uint8))

    told = [{"predicted": 0, "confidence": 0.9, "of_label": 0.9}, {"predicted": 1, "confidence": 0.71, "of_label": 0.2}]
    return {"episode": 0, "shape": [1, 6, 6], "pictures": [
        {"role": "query", "index": place, "label": 0, "clean": png(np.full((1, 6, 6), place, dtype=np.uint8)),
         "adversarial": noise(), "difference": noise(), "linf": 0.05, "l2": 0.3, "before": told[0],
         "after": told[changed]} for place in range(count)
    ]}  # fmt: skip


def world(learners=("adml", "maml"), attacks=("fgsm", "pgd")):
    """Records of a sweep in two scenarios, of two seeds, with pictures and learning curves."""
    found = []
    for (at, learner), seed in itertools.product(enumerate(learners), range(2)):
        clean = answers(0.9 - 0.05 * at, 30, 10, seed)
        same = {"learner": learner, "seed": seed, "way": 5, "dataset": "glyphs"}
        found.append(clean_record(clean, **same))
        for attack, eps, support in itertools.product(attacks, (0.1, 0.2), ("clean", "adv")):
            mean = 0.75 - 2 * eps - 0.1 * at - 0.1 * attacks.index(attack)
            made = record(answers(mean, 30, 10, seed), clean=clean, attack=attack, eps=eps, support=support,
                          flags=["few-episodes", *(["not-converged"] if (learner, attack) == ("maml", "pgd") else [])],
                          **same)  # fmt: skip
            made["gallery"] = show(len(found), 2)
            made["cost"] = {"attacked_images": 10, "forward_per_image": 20.0, "gradients_per_image": 20.5}
            found.append(made)
    for each in found:
        each["history"] = [
            {"step": 50.0 * step, "loss": 1.5, "accuracy": 0.2 * step, "validation_loss": 1.4,
             "validation_accuracy": 0.15 * step} for step in (1, 2, 3)
        ]  # fmt: skip
        each["chosen_step"] = 150
    return found


def bench(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code or 0


def report(folder, *records):
    """The page of these records, as text."""
    stored(folder, *records)
    return page.page(*read_results(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("report")
    stored(where, *world())
    assert bench("report", where) == bench("leaderboard", where) == 0
    return where


@pytest.fixture(scope="module")
def whole(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(whole):
    return Tree(whole).root


def boards(tree):
    """The leaderboards: by scenario and threat, by learner, by column, the cells."""
    found = {}
    for section in tree.all("section"):
        if section.attributes.get("class") == "standing":
            head = [cell.text for cell in next(section.all("thead")).all("th")]
            rows = {}
            for row in next(section.all("tbody")).all("tr"):
                cells = dict(zip(head, row.all("td", "th"), strict=True))
                rows[cells["learner"].text] = cells
            found[section["data-scenario"], section["data-threat"]] = rows
    return found


# -- numbers ---------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_csv(folder, tree):
    with (folder / "leaderboard.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["attack"] != "none"]
    shown = boards(tree)
    assert len(shown) == 4
    for row in rows:
        cells = shown[f"{row['support']}/{row['query']}", f"L∞ ε = {row['eps']}"][row["learner"]]
        same = [each for each in rows if all(each[n] == row[n] for n in ("support", "eps", "learner", "attack"))]
        for column, name in [("clean", "clean"), ("robust", row["attack"]), ("worst_case", "worst case")]:
            values = [100 * float(each[f"{column}_accuracy"]) for each in same]
            assert len(values) == 2
            assert float(cells[name]["data-v"]) == pytest.approx(np.mean(values), abs=2e-4)
            assert cells[name].text.startswith(f"{np.mean(values):.1f} ±{abs(values[0] - values[1]) / 2**0.5:.1f}")
        assert cells["rank"].text == row["rank"]


def test_heat_map_and_table_of_scenarios_say_what_the_leaderboards_say(tree):
    shown = boards(tree)
    (heat, _) = [table for table in tree.all("table") if table.attributes.get("class") == "heat"]
    for row in next(heat.all("tbody")).all("tr"):
        learner, *cells = [cell.text for cell in row.all("th", "td")]
        told = [shown["clean/adv", "L∞ ε = 0.1"][learner], shown["adv/adv", "L∞ ε = 0.1"][learner]]
        wanted = [told[0]["clean"], *(cells[name] for cells in told for name in ("fgsm", "pgd", "worst case"))]
        assert [cell.rstrip("!") for cell in cells] == [each.text.split()[0] for each in wanted]


def test_the_verdict_stands_on_top_and_says_who_is_ahead(tree):
    verdict = tree.get("verdict").parent
    lines = [(next(line.all("dt")).text, next(line.all("dd")).text) for line in verdict.all("div")]
    assert len(lines) == 4
    for (sides, threat), cells in boards(tree).items():
        (told,) = [text for head, text in lines if head.startswith(threat) and head.endswith(SIDES[sides])]
        ranks = {name: row["rank"].text for name, row in cells.items()}
        numbers = {name: f"{name} {row['worst case'].text.split()[0]} %" for name, row in cells.items()}
        assert all(number in told for number in numbers.values())
        assert ("cannot be told apart" in told) == (set(ranks.values()) == {"1"})
        assert (f"{numbers['adml']}, ahead of {numbers['maml']}" in told) == (ranks == {"adml": "1", "maml": "2"})
        assert f"{numbers['maml']} (flagged)" in told, "under pgd"
    assert tree.text.index("Verdict") < tree.text.index("Leaderboards")


SIDES = {"clean/adv": "clean support, attacked query", "adv/adv": "attacked support, attacked query"}


def test_all_tables_have_one_order_of_rows_and_begin_with_what_decides_the_rank(tmp_path):
    clean = answers(0.9, 30)
    means = {("maml", 0.1): 0.6, ("adml", 0.1): 0.5, ("maml", 0.2): 0.1, ("adml", 0.2): 0.4}
    made = [record(answers(mean, 30, seed=1), clean=clean, learner=learner, attack=attack, eps=eps)
            for (learner, eps), mean in means.items() for attack in ("fgsm", "pgd")]  # fmt: skip
    found = boards(Tree(report(tmp_path, *made)).root)
    assert len(found) == 2
    for rows in found.values():
        assert list(rows) == ["adml", "maml"], "by the mean over eps"
        assert list(rows["maml"])[:4] == ["rank", "learner", "worst case", "clean"]


def test_no_interval_stands_beside_deviations_between_seeds_in_the_scenarios(tmp_path):
    clean = [answers(0.9, 30, seed=seed) for seed in (0, 1)]
    made = [record(answers(0.5, 30, seed=seed), clean=clean[seed], seed=seed) for seed in (0, 1)]
    made.append(record(answers(0.4, 30), clean=clean[0], support="adv"))
    tree = Tree(report(tmp_path / "several", *made)).root
    told = "error bars: standard deviation between seeds, none where there is one seed."
    assert sum(told in element.text for element in tree.all("desc", "p")) == 2, "in the figure and below it"
    tree = Tree(report(tmp_path / "one", *made[::2])).root
    assert sum("error bars: 95 % intervals over episodes." in each.text for each in tree.all("desc", "p")) == 2


def test_without_attack_each_learner_counts_where_it_rests_on_the_most_seeds(tmp_path):
    clean = [answers(0.9, 30, seed=seed) for seed in range(3)]
    made = [record(answers(0.4, 30), clean=clean[0]), record(answers(0.4, 30), clean=clean[1], learner="aq")]
    made += [record(answers(0.5, 30), clean=clean[seed], seed=seed, support="adv") for seed in range(3)]
    made.append(record(answers(0.3, 30), clean=clean[2], learner="elsewhere", support="adv"))
    tree = Tree(report(tmp_path, *made)).root
    (heat,) = [table for table in tree.all("table") if table.attributes.get("class") == "heat"]
    shown = {next(row.all("th")).text: next(row.all("td")).text for row in next(heat.all("tbody")).all("tr")}
    means = {"maml": np.mean(clean), "aq": clean[1].mean(), "elsewhere": clean[2].mean()}
    assert shown == {name: f"{100 * mean:.1f}" for name, mean in means.items()}
    assert "Without attack: each learner where it rests on the most seeds." in tree.text


def test_curves_lie_where_the_numbers_are(folder, tree):
    with (folder / "curves.csv").open(encoding="utf-8") as file:
        wanted = {"learner": "maml", "attack": "pgd", "support": "clean"}
        rows = [row for row in csv.DictReader(file) if wanted.items() <= row.items()]
    means = [100 * np.mean([float(r["accuracy"]) for r in rows if r["eps"] == eps]) for eps in ("0", "0.1", "0.2")]
    charts = [svg for svg in tree.all("svg") if svg.attributes.get("aria-label") == "Accuracy over ε"]
    (chart,) = [each for each in charts if "clean support" in next(each.all("desc")).text]
    drawn = [each["d"].split() for each in chart.all("path") if each.attributes.get("stroke") == "var(--c1)"]
    heights = [[float(words[at + 2]) for at in range(0, len(words) - 2, 3)] for words in drawn if words.count("L") == 2]
    pgd = [each for each in heights if len(set(each)) > 1][-1]  # of the last panel; the legend's line is level
    scale = {text.text: float(text["y"]) for text in chart.all("text") if text.text in {"0", "100"}}
    points = 100 / (scale["0"] - scale["100"])
    assert [points * (pgd[0] - y) for y in pgd] == pytest.approx([mean - means[0] for mean in means], abs=0.1)


def test_figures_have_the_colours_of_the_page_and_its_letters(tree):
    found = [svg for svg in tree.all("svg") if svg.attributes.get("class") == "drawn"]
    assert len(found) == 5, "two of curves, two of scenarios, one of learning"
    for svg in found:
        told = [value for element in (svg, *svg.all()) for value in element.attributes.values()]
        assert not [value for value in told if re.fullmatch(r"#[0-9a-f]{6}", value)], "a colour that is no variable"
        assert not [each for each in svg.all() if {"style", "font-family"} & each.attributes.keys()]
        assert {"adml", "maml"} <= {text.text for text in svg.all("text")}
        assert not list(svg.all("style", "metadata"))


def test_transductive_and_inductive_learners_are_never_in_one_table(tmp_path):
    other = record(answers(0.4), learner="batch") | {"inference": "transductive", "norm_layer": "batch"}
    tree = Tree(report(tmp_path, record(answers(0.5), learner="plain"), other)).root
    told = [section.text for section in tree.all("section") if section.attributes.get("class") == "standing"]
    assert len(told) == 2
    assert all(("batch" in text) != ("plain" in text) for text in told)
    places = [heading.text for heading in tree.all("h3") if heading.attributes.get("id", "").startswith("place")]
    assert [place.split(", ")[-1] for place in places] == ["inductive", "transductive"]


def test_a_flag_stands_with_its_meaning_below_the_table_that_has_it(tree):
    for section in tree.all("section"):
        if section.attributes.get("class") == "standing":
            (told,) = [item.text for item in section.all("li") if item.text.startswith("not-converged")]
            assert told == f"not-converged maml under pgd: {FLAGS['not-converged']}."
            marks = [link for link in section.all("a") if link.attributes.get("class") == "flagged"]
            assert [mark.text for mark in marks] == ["! flagged: not-converged"]
            assert marks[0].parent is boards(tree)[section["data-scenario"], section["data-threat"]]["maml"]["pgd"]


def test_cost_and_learning_curves_are_told(tree):
    cells = [cell.text for table in tree.all("table") for cell in table.all("td")]
    assert {"20.0", "20.5"} <= set(cells)
    rows = [[cell.text for cell in row.all("th", "td")] for row in tree.all("tr")]
    assert ["adml", "0", "150", "1.500", "60.0", "1.400", "45.0", "kept"] in rows
    assert ["adml", "0", "100", "1.500", "40.0", "1.400", "30.0", ""] in rows


def test_checks_cost_what_they_cost_on_average(tmp_path):
    made = [record(answers(0.5, seed=seed), attack=attack) for seed, attack in enumerate(("fgsm", "pgd"))]
    for each, milliseconds in zip(made, (100.0, 500.0), strict=True):
        each["timings"] = {**each["timings"], "check_ms_per_task": milliseconds}
    (bill,) = costs(build(stored(tmp_path, *made)))
    assert [cell.text for cell in bill.learners.columns["checks, ms a task"]] == ["300"]


# -- what is not there -----------------------------------------------------------------------------


def test_records_without_pictures_history_and_cost_make_a_report(tmp_path):
    tree = Tree(report(tmp_path, record(answers(0.5)))).root
    assert "The records hold no pictures" in tree.text
    assert "No record tells of a meta-training" in tree.text
    assert "Nothing can be compared: no two learners share a setting" in tree.text
    assert "no command can be told" in tree.text
    assert not list(tree.all("img"))


def test_clean_accuracy_alone_makes_a_report(tmp_path):
    tree = Tree(report(tmp_path, clean_record(answers(0.5)))).root
    assert boards(tree)["clean/clean", "no attack"]["maml"]["clean"].text.startswith("50.")
    assert not [section for section in tree.all("h2") if section.attributes.get("id") == "heat"]


def test_what_failed_is_told(tmp_path):
    labels = {"learner": "<i>maml", "attack": "boom", "eps": "8/255", "support": "clean", "query": "adv", "seed": 3}
    stored(tmp_path, record(answers(0.5))).write_failure("f" * 16, {"reason": "<b>no memory</b>", "labels": labels})
    tree = Tree(page.page(*read_results(tmp_path))).root
    assert "1 cell failed" in tree.text
    assert "<b>no memory</b>" in tree.get("failed").parent.text
    rows = [[cell.text for cell in row.all("th", "td")] for row in tree.all("tr")]
    assert ["boom", "8/255", "clean, adv", "<i>maml", "3", "<b>no memory</b>"] in rows


# -- pictures --------------------------------------------------------------------------------------


def test_each_attack_shows_clean_attacked_and_difference_images_with_the_answers(tree):
    walls = [each for each in tree.all("details") if each.attributes.get("class") == "wall"]
    assert len(walls) == 8, "two attacks, ε and scenarios; of the first seed"
    for wall in walls:
        rows = [next(row.all("th")).text.strip() for row in wall.all("tr") if list(row.all("th"))]
        assert [row for row in rows if "query" not in row] == [
            "clean", *("adml seed 0", "attacked", "difference", "answer"),
            *("maml seed 0", "attacked", "difference", "answer"),
        ]  # fmt: skip
        images = [image["src"] for image in wall.all("img")]
        assert len(images) == 2 + 2 * 4, "the clean ones once"
        assert all(base64.b64decode(image.removeprefix("data:image/png;base64,"))[1:4] == b"PNG" for image in images)
        assert "4 of 4 answers turned wrong" in wall.text
        assert "±0.05" in wall.text
        assert "✓ right, class 0 90 %→ then ✗ wrong, class 1 71 %" in wall.text


def test_the_picture_that_is_unfolded_is_of_the_greatest_eps_and_it_is_said(tree):
    walls = [each for each in tree.all("details") if each.attributes.get("class") == "wall"]
    (opened,) = [next(wall.all("summary")).text for wall in walls if "open" in wall.attributes]
    assert opened.startswith("fgsmL∞ ε = 0.2 · clean support, attacked query")
    assert "Unfolded: fgsm at the greatest ε, 0.2;" in tree.text


def test_too_many_pictures_are_left_out_and_it_is_said(tmp_path, monkeypatch):
    stored(tmp_path, *world())
    monkeypatch.setattr(gallery, "ROOM", 8_000)
    tree = Tree(page.page(*read_results(tmp_path))).root
    walls = [each.text for each in tree.all("details") if each.attributes.get("class") == "wall"]
    assert len(walls) == 4
    assert all("ε = 0.2" in wall for wall in walls)
    assert "of several ε the largest is shown (8 of 16 cells are not shown)" in tree.text
    monkeypatch.setattr(gallery, "ROOM", 3_000)
    tree = Tree(page.page(*read_results(tmp_path))).root
    assert "later attacks are left out" in tree.text
    assert 0 < len(list(tree.all("img"))) < 40


# -- commands --------------------------------------------------------------------------------------


def spanned(line):
    """The cells of a command line: the values of repeated options, each with each."""
    words = shlex.split(line)[2:]
    pairs = [(word, words[at + 1]) for at, word in enumerate(words) if word.startswith("--") and word != "--no-checks"]
    axes = [[pair for pair in pairs if pair[0] == name] for name in dict.fromkeys(name for name, _ in pairs)]
    return {frozenset(cell) for cell in itertools.product(*axes)}


def test_commands_are_joined_and_span_exactly_the_cells():
    cells = [
        [
            "bench",
            "run",
            "--profile",
            "quick",
            "--learner",
            learner,
            "--attack",
            attack,
            "--scenario",
            scenario,
            "--seed",
            seed,
        ]
        for learner, attack, scenario, seed in itertools.product(
            ("maml", "adml:x=a b"), ("fgsm", "pgd"), ("clean/adv", "adv/adv"), "012"
        )
        if (learner, seed) != ("maml", "2")
    ]
    lines = joined(cells)
    assert len(lines) == 2
    told = [spanned(line) for line in lines]
    assert set().union(*told) == {cell for words in cells for cell in spanned(shlex.join(words))}
    assert sum(map(len, told)) == len(cells), "no cell twice"


def test_a_sweep_is_one_command():
    cells = [shlex.split(f"bench run --attack pgd {' '.join(f'--eps {e}' for e in eps)} --no-checks")
             for eps in (["0.1"], ["0.1", "0.2"], ["0.1", "0.2", "0.3"], ["0.2"])]  # fmt: skip
    whole = "bench run --attack pgd --eps 0.1 --eps 0.2 --eps 0.3 --no-checks"
    assert joined(cells) == [whole, "bench run --attack pgd --eps 0.2 --no-checks"]


# -- safe, whole, readable -------------------------------------------------------------------------


def test_names_stay_text(tmp_path):
    made = world(learners=HOSTILE[:2], attacks=[f"{name}:steps=2" for name in HOSTILE[2:]])
    for each, name in zip(made, itertools.cycle(HOSTILE)):
        each["labels"] |= {"dataset": HOSTILE[0], "backbone": HOSTILE[1], "training_attack": name}
        each["device"] = name
        each["versions"] = {"robustbench_meta": name}
    tree = Tree(report(tmp_path, *made)).root
    assert len(list(tree.all("script"))) == 1
    for element in tree.all():
        assert not [attribute for attribute in element.attributes if attribute.startswith("on") or attribute == "style"]
        assert element.tag != "img" or element["src"].startswith("data:image/png;base64,")
    shown = boards(tree)["clean/adv", "L∞ ε = 0.1"]
    assert set(shown) == set(HOSTILE[:2])
    assert {f"{name}:steps=2" for name in HOSTILE[2:]} <= set(shown[HOSTILE[0]])
    assert set(HOSTILE) <= {name.text for name in tree.all("bdi")}


def test_names_break_between_words_and_inside_long_ones_alone():
    for text, shown in {
        "L∞ over ε · clean support, attacked query": "L∞ over ε · clean support, attacked query",
        "pgd:steps=2,alpha=1": "pgd:<wbr>steps=2,<wbr>alpha=1",
        "x" * 45 + " y": f"{'x' * 20}<wbr>{'x' * 20}<wbr>xxxxx y",
        "<b>/c": "&lt;b&gt;/<wbr>c",
    }.items():
        assert page.breakable(text) == shown


def test_nothing_is_loaded_and_nothing_else_runs(whole, tree):
    policy = next(
        meta["content"] for meta in tree.all("meta") if "content" in meta.attributes and "http-equiv" in meta.attributes
    )
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    for tag in ("style", "script"):
        (element,) = tree.all(tag)
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert allowed[f"{tag}-src"] == f"'sha256-{digest}'"
        assert not {"src", "href"} & element.attributes.keys()
    assert allowed["default-src"] == "'none'"
    assert allowed["img-src"] == "data:"
    assert not re.findall(r"https?:|url\((?!#)|@import", whole)


def test_the_same_records_give_the_same_page(folder, whole):
    assert page.page(*read_results(folder)) + "\n" == whole


def test_the_page_is_well_built(tree):
    ids = [element["id"] for element in tree.all() if "id" in element.attributes]
    assert not [each for each, count in Counter(ids).items() if count > 1]
    for element in tree.all():
        told = element.attributes
        targets = [told["href"][1:]] if "href" in told else []
        targets += [name for key in ("aria-labelledby", "aria-describedby") for name in told.get(key, "").split()]
        assert set(targets) <= set(ids)
        assert int(told.get("tabindex") or 0) <= 0
        if element.tag == "th":
            assert told["scope"] in {"row", "col", "rowgroup", "colgroup"}
        if element.tag == "table":
            assert next(element.all("caption")).text
        if element.tag == "img":
            assert told["alt"]
        if element.tag == "svg":
            assert told.get("aria-hidden") == "true" or (told["role"] == "img" and list(element.all("desc")))
        if element.tag in {"input", "select"}:
            assert element.parent.tag == "label"
    levels = [int(heading.tag[1]) for heading in tree.all("h1", "h2", "h3", "h4")]
    assert levels.index(1) == 0
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_text_and_lines_are_readable_in_light_and_dark():
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    )
    for colors in (light, dark):
        for ground in ("bg", "panel"):
            for text in ("ink", "soft", "link", "warn", "bad", "good"):
                assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
            for line in (*(f"c{number}" for number in range(7)), "focus", "strong"):
                assert contrast(colors[line], colors[ground]) >= 3, (line, ground)
        assert contrast(colors["ink"], colors["warn-bg"]) >= 4.5
    heat = re.findall(r"\.h\d+\{background:(#\w{6});color:(#\w{3})\}", STYLE)
    assert len(heat) == 21
    assert all(contrast(ground, "#" + 2 * ink[1:]) >= 4.5 for ground, ink in heat)


# -- the command -----------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(folder, tmp_path, capsys):
    out = tmp_path / "new" / "mine.html"
    assert bench("report", folder, "--out", out) == 0
    told = capsys.readouterr().out
    assert re.fullmatch(rf"report: {re.escape(str(out))} \(36 cells, \d+ kB\)\n", told)
    assert out.read_bytes() == (folder / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "the folder nowhere does not exist"),
        (["{0}", "--out", "{0}"], "is a folder; name a file in it"),
        (["{0}", "--out", "report.pdf"], "expected a file that ends in .html, such as report.html"),
        (["{0}", "--out", "{0}/leaderboard.csv/report.html"], "leaderboard.csv/report.html: "),
    ],
)
def test_what_cannot_be_done_is_told_in_one_message(folder, capsys, arguments, message):
    assert bench("report", *(argument.format(folder) for argument in arguments)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# -- in a browser ----------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium is installed")
ROWS = "[...document.querySelectorAll('.standing:not([hidden]) tbody tr:not([hidden]) th')].map((e) => e.textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    try:
        opened = chromium.Browser(tmp_path_factory.mktemp("chromium"))
    except (AssertionError, OSError) as error:
        pytest.skip(f"{chromium.PROGRAM} is installed and does not start: {error}")
    yield opened
    opened.close()


@pytest.fixture
def opened(browser, folder):
    """The report on the screen; whatever a test does to it, nothing may go wrong on the page."""
    browser.open(folder / "report.html")
    yield browser
    assert browser.errors == []


def column(table, name):
    return f"[...document.querySelectorAll('#{table} thead th')].find((e) => e.textContent.includes('{name}'))"


def values(table, place):
    return f"[...document.querySelectorAll('#{table} tbody tr')].map((row) => parseFloat(row.cells[{place}].dataset.v))"


@needs_chromium
def test_it_opens_and_its_policy_lets_nothing_else_run(opened):
    assert opened.run("document.querySelectorAll('.standing').length") == 4
    opened.run(
        "{ const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.head.append(s); }"
    )
    assert opened.run("window.ran") is None
    assert any("Content Security Policy" in str(error) for error in opened.errors)
    opened.errors.clear()


@needs_chromium
def test_a_click_on_a_header_sorts_by_it_and_another_turns_it_round(opened):
    before = opened.run(values("table-1", 3))
    for order, wanted in [("descending", sorted(before, reverse=True)), ("ascending", sorted(before))]:
        opened.click(f"{column('table-1', 'fgsm')}.querySelector('button')")
        assert opened.run(f"{column('table-1', 'fgsm')}.getAttribute('aria-sort')") == order
        assert opened.run(values("table-1", 3)) == wanted
    opened.click(f"{column('table-1', 'learner')}.querySelector('button')")
    assert opened.run(ROWS)[:2] == ["adml", "maml"]


@needs_chromium
def test_it_works_from_the_keyboard(opened):
    opened.press("Tab")
    assert opened.run("document.activeElement.className") == "skip"
    opened.run(f"{column('table-1', 'clean')}.querySelector('button').focus()")
    opened.press("Tab")
    assert opened.run("document.activeElement.closest('th').textContent") == "fgsm"
    assert opened.run("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    opened.press("Enter")
    assert opened.run(f"{column('table-1', 'fgsm')}.getAttribute('aria-sort')") == "descending"
    opened.press(" ")
    assert opened.run(f"{column('table-1', 'fgsm')}.getAttribute('aria-sort')") == "ascending"


@needs_chromium
def test_what_is_typed_and_chosen_filters_the_tables(opened):
    assert opened.run(ROWS) == ["adml", "maml"] * 4
    opened.click("document.querySelector('input[name=learner]')")
    opened.write("MAM")
    assert opened.run(ROWS) == ["maml"] * 4
    for name, value in {"scenario": "adv/adv", "threat": "L∞ ε = 0.2"}.items():
        select = f"document.querySelector('select[name={name}]')"
        opened.run(f"{select}.value = '{value}'")
        opened.run(f"{select}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    assert opened.run(ROWS) == ["maml"]
    assert opened.run("document.querySelector('[role=status]').textContent") == "Shown: 1 of 4 tables, 1 of 8 rows."
    opened.click("document.querySelector('input[name=learner]')")
    opened.write("zzz")
    assert opened.run(ROWS) == []
    assert "Nothing fits" in opened.run("document.querySelector('[role=status]').textContent")
    opened.click("document.querySelector('#filters button')")
    assert opened.run("new Promise((done) => setTimeout(done, 50))") is None
    assert opened.run(ROWS) == ["adml", "maml"] * 4


@needs_chromium
def test_a_phone_scrolls_tables_and_never_the_page(opened, folder, tmp_path):
    where = tmp_path / "report.html"
    where.write_text(report(tmp_path / "results", *world(HOSTILE[2:], ("fgsm", HOSTILE[3]))), encoding="utf-8")
    for path in (where, folder / "report.html"):
        opened.open(path, width=360, height=700)
        opened.run("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        assert opened.run("document.documentElement.scrollWidth") <= 360, path
    heights = "[...document.querySelectorAll('table:not(.pictures) tbody tr')].map((e) => e.offsetHeight)"
    assert max(opened.run(heights)) < 5 * 24, "no cell is squeezed into a column of single words"


@needs_chromium
def test_without_scripts_everything_is_there(opened, folder):
    opened.open(folder / "report.html", scripts=False)
    assert opened.run(ROWS) == ["adml", "maml"] * 4
    assert opened.run("getComputedStyle(document.getElementById('filters')).display") == "none"
    opened.open(folder / "report.html")


@needs_chromium
def test_dark_is_dark(opened, folder):
    grounds = []
    for dark in (False, True):
        opened.open(folder / "report.html", dark=dark)
        grounds.append(opened.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]
