"""Figures for papers: what is drawn against what the tables say, and the files."""

import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from PIL import Image

from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.reporting.figures import KINDS
from robustbench_meta.reporting.figures.catalog import FigureData, draw_figures
from robustbench_meta.reporting.figures.heatmaps import ink
from robustbench_meta.reporting.figures.save import save_figure
from robustbench_meta.reporting.figures.style import FigureStyle, Palette
from robustbench_meta.results.curves import curves
from robustbench_meta.results.leaderboard import read
from robustbench_meta.results.pairwise import compare_learners
from robustbench_meta.results.tables import boards
from tests.helpers.colors import contrast as seen
from tests.helpers.command_line import bench, told
from tests.helpers.records import answers, clean_record, record, stored

HOSTILE = ["a$b_c^d{e}\\x", "<b>&amp;|%#~", "$\\frac{1}{0}$", "漢字 😀" + "x" * 150]


def planted(
    root, learners=("maml", "adml"), attacks=("fgsm", "pgd"), eps=(0.1, 0.2), seeds=(0,), supports=("clean", "adv"),
    **more
):  # fmt: skip
    """Learners under attacks at several ε in two scenarios, with histories."""
    records = []
    for place, learner in enumerate(learners):
        for seed in seeds:
            clean = answers(0.9 - 0.1 * place, 30, seed=10 * place + seed)
            mine = [clean_record(clean, learner=learner, seed=seed, **more)]
            for number, attack in enumerate(attacks):
                for value in eps:
                    for support in supports:
                        robust = answers(0.8 - 2 * value - 0.1 * number, 30, seed=100 + 7 * place + number + seed)
                        mine.append(record(robust, clean=clean, learner=learner, attack=attack, eps=value, seed=seed,
                                           support=support, **more))  # fmt: skip
            history = [
                {"step": step, "loss": 1.0, "accuracy": step / 20 + place / 10, "validation_loss": 1.0,
                 "validation_accuracy": step / 25 + place / 10} for step in (5.0, 10.0)
            ]  # fmt: skip
            records += [{**each, "history": history, "chosen_step": 5} for each in mine]
    return stored(root, *records)


def drawn(store, kind, look=None):
    frame, samples = read(store)
    ((_, found),) = draw_figures([kind], FigureData(frame, samples, store.records()), look or FigureStyle())
    return found


SCENES = {"clean/adv": "none", "adv/clean": "none", "adv/adv": "none"}
LONG = "protonet:steps=5,alpha=0.01,backbone=conv4-64-with-a-name-of-its-own"


def staged(root, attacks, scenes=SCENES, learners=("maml", "protonet"), seeds=None):
    """Learners in scenarios, `seeds` of them each (0 alone by default), under the same attacks or those of each."""
    records = {}
    for place, learner in enumerate(learners):
        for number, (scene, surrogate) in enumerate(scenes.items()):
            support, query = scene.split("/")
            for seed in (seeds or {}).get(scene, (0,)):
                clean = answers(0.9 - 0.1 * place, 30, seed=10 * place + seed)
                mine = [clean_record(clean, learner=learner, seed=seed)]
                for at, attack in enumerate(attacks[scene] if isinstance(attacks, dict) else attacks):
                    robust = answers(0.7 - 0.1 * number, 30, seed=100 + 10 * number + at + seed)
                    mine.append(record(robust, clean=clean, learner=learner, attack=attack, seed=seed,
                                       support=support, query=query, surrogate=surrogate))  # fmt: skip
                records.update({each["key"]: each for each in mine})
    return stored(root, *records.values())


def lines(axes):
    """Of a panel: by label, what was drawn as a line."""
    return {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_curves_are_the_means_of_the_curves_with_their_intervals(tmp_path, seeds):
    store = planted(tmp_path, seeds=seeds)
    found = curves(*read(store))
    for figure in drawn(store, "curves"):
        panels = {axes.get_title(): axes for axes in figure.figure.axes}
        assert set(panels) == {"fgsm", "pgd"}
        for attack, axes in panels.items():
            for learner, points in lines(axes).items():
                mine = [curve for curve in found if (curve.learner, curve.attack) == (learner, attack)
                        and curve.told["support"] == figure.setting["support"]]  # fmt: skip
                assert len(mine) == len(seeds)
                numbers = 100 * np.array([[curve.accuracy(place) for place in range(3)] for curve in mine])
                assert points == pytest.approx(np.column_stack([[0, 0.1, 0.2], numbers[:, :, 0].mean(0)]))
                half = numbers[0, :, 1] if len(seeds) == 1 else numbers[:, :, 0].std(0, ddof=1)
                place = sorted(["maml", "adml"]).index(learner)
                band = axes.collections[place].get_paths()[0].vertices
                for x, mean, width in zip((0, 0.1, 0.2), points[:, 1], half, strict=True):
                    assert [y.min() for y in [band[np.isclose(band[:, 0], x), 1]]] == pytest.approx([mean - width])


def test_heat_maps_hold_the_numbers_of_the_tables(tmp_path):
    store = planted(tmp_path)
    tables = {(b.setting["eps"], b.setting["support"]): b for b in boards(read(store)[0])}
    for figure in drawn(store, "heatmap"):
        panels = [axes for axes in figure.figure.axes if axes.get_title(loc="left")]
        assert len(panels) == 2, "a scenario each"
        for axes in panels:
            support = "adv" if axes.get_title(loc="left").startswith("attacked support") else "clean"
            board = tables[figure.setting["eps"], support]
            (mesh,) = [each for each in axes.collections if isinstance(each, QuadMesh)]
            learners = [label.get_text() for label in axes.get_yticklabels()]
            means = np.array([[board.scores[name][column].mean for column in board.columns] for name in learners])
            assert np.asarray(mesh.get_array()) == pytest.approx(means)
            texts = {text.get_text().split("\n")[0].rstrip("!") for text in axes.texts}
            assert texts == {score.text() for row in board.scores.values() for score in row.values()}


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_bars_and_their_errors_are_the_numbers_of_the_tables(tmp_path, seeds):
    store = planted(tmp_path, seeds=seeds)
    tables = {(b.setting["eps"], b.setting["support"]): b for b in boards(read(store)[0])}
    for figure in drawn(store, "scenarios"):
        assert len(figure.figure.axes) == 3
        for axes in figure.figure.axes:
            title, columns = axes.get_title(), [each.get_text().replace("\n", " ") for each in axes.get_xticklabels()]
            board = tables[figure.setting["eps"], "adv" if title.startswith("attacked support") else "clean"]
            assert columns == (["clean"] if title == "no attack" else board.columns[1:])
            bars = [each for each in axes.containers if hasattr(each, "patches")]
            errors = [each for each in axes.containers if not hasattr(each, "patches")]
            for bar, error in zip(bars, errors, strict=True):
                scores = [board.scores[bar.get_label()][column] for column in columns]
                assert [patch.get_height() for patch in bar.patches] == pytest.approx([score.mean for score in scores])
                (segments,) = [each.get_segments() for each in error.lines[2]]
                assert [top[1] - low[1] for low, top in segments] == pytest.approx(
                    [2 * board.spread(score) for score in scores], abs=1e-9
                )


def test_the_tradeoff_is_of_clean_accuracy_and_worst_case(tmp_path):
    store = planted(tmp_path)
    tables = {(b.setting["eps"], b.setting["support"]): b for b in boards(read(store)[0])}
    for figure in drawn(store, "tradeoff"):
        for axes, support in zip(figure.figure.axes, ("clean", "adv"), strict=True):
            scores = tables[figure.setting["eps"], support].scores
            points = {each.get_label(): each.lines[0].get_xydata()[0] for each in axes.containers}
            assert points == {
                name: pytest.approx([row["clean"].mean, row["worst case"].mean]) for name, row in scores.items()
            }


def test_learning_curves_are_the_histories(tmp_path):
    (figure,) = drawn(planted(tmp_path, seeds=(0, 1)), "learning")
    training, validation = figure.figure.axes
    assert lines(training)["maml"] == pytest.approx(np.array([[5, 25], [10, 50]]))
    assert lines(validation)["adml"] == pytest.approx(np.array([[5, 30], [10, 50]]))


def test_comparisons_are_the_differences_with_their_intervals(tmp_path):
    store = planted(tmp_path)
    found = [pair for pair in compare_learners(*read(store)) if pair.setting["eps"] in {"0", "0.1"}]
    (figure,) = [each for each in drawn(store, "compare") if each.setting["eps"] == "0.1"]
    assert len(figure.figure.axes) == len(found) == 3
    by_title = {axes.get_title(loc="left"): axes for axes in figure.figure.axes}
    for pair in found:
        sides = "attacked" if pair.setting["support"] == "adv" else "clean"
        title = "no attack" if pair.setting["threat_norm"] == "none" else f"{sides} support, attacked query"
        for contrast, drawn_ in zip(pair.contrasts.values(), by_title[title].containers, strict=True):
            assert drawn_.lines[0].get_xdata()[0] == pytest.approx(100 * contrast.paired.difference)
            (low, high), = drawn_.lines[2][0].get_segments()  # fmt: skip
            assert (high[0] - low[0]) / 2 == pytest.approx(100 * contrast.paired.ci95)
            assert (drawn_.lines[0].get_markerfacecolor() == "white") == (contrast.ahead == 0)
    every = [contrast for pair in compare_learners(*read(store)) for contrast in pair.contrasts.values()]
    different = {(each.first.episodes.tobytes(), each.second.episodes.tobytes()) for each in every}
    assert f"{len(different)} different comparisons among {len(every)}" in figure.caption


def test_what_is_in_two_tables_is_never_in_one_panel(tmp_path):
    store = planted(tmp_path / "a", attacks=("pgd",), supports=("clean",))
    for each in planted(tmp_path / "b", attacks=("pgd",), supports=("clean",), way=3).records():
        store.write_record(each)
    for kind in KINDS:
        found = drawn(store, kind)
        assert {figure.setting["way"] for figure in found} == {2, 3}
        assert all(f"{figure.setting['way']}-way" in figure.caption for figure in found)


def test_a_caption_tells_doubts_intervals_and_seeds(tmp_path):
    clean, flags = answers(0.9, 30), ["masked-gradients"]
    has_flags = record(answers(0.5, 30), clean=clean, flags=flags)
    store = stored(tmp_path, has_flags, record(answers(0.6, 30), clean=clean, learner="aq"))
    (figure,) = drawn(store, "heatmap")
    assert f"! masked-gradients ({FLAGS['masked-gradients']}): maml under pgd." in figure.caption
    assert "30 test episodes, of one training each; ±: 95 % intervals" in figure.caption
    assert [text.get_text()[:5] for axes in figure.figure.axes for text in axes.texts if "!" in text.get_text()] != []


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("curves", ["All: {few-episodes}.", "Flagged {not-converged}: maml under pgd (ε = 0.2)."]),
        ("scenarios", ["All: {few-episodes}.", "Flagged {not-converged}: maml under pgd."]),
        (
            "compare",
            ["All: {few-episodes}.", "Flagged {not-converged}: maml under pgd (clean support, attacked query)."],
        ),
        ("learning", ["Flagged among the test results of these weights: {few-episodes}: all; {not-converged}: maml."]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_figure_tells_the_flags_of_its_numbers_and_what_they_mean(tmp_path, kind, wanted):
    meanings = {flag: f"{flag} ({FLAGS[flag]})" for flag in ("few-episodes", "not-converged")}
    store = planted(tmp_path, supports=("clean",))
    for each in store.records():
        label = each["labels"]
        has_flags = (label["learner"], label["attack"], label["eps"]) == ("maml", "pgd", "0.2")
        store.write_record({**each, "flags": ["few-episodes", *(["not-converged"] if has_flags else [])]})
    told_ = [figure.caption for figure in drawn(store, kind) if figure.setting.get("eps") != "0.1"]
    assert len(told_) == 1
    for line in wanted:
        assert line.format(**meanings) in told_[0]
    assert told_[0].count(FLAGS["few-episodes"]) == 1


def test_a_flag_of_all_numbers_is_told_once_whatever_the_scenarios(tmp_path):
    store = planted(tmp_path, eps=(0.1,))
    for each in store.records():
        store.write_record({**each, "flags": ["few-episodes"]})
    (figure,) = drawn(store, "heatmap")
    assert figure.caption.count("few-episodes") == 1


def test_numbers_are_as_readable_on_their_cells_as_black_or_white_can_be():
    values = np.linspace(0, 100, 1001)
    grounds = [to_hex(mpl.colormaps["cividis"](value / 100)) for value in values]
    inks = {"black": "#000000", "white": "#ffffff"}
    for value, ground in zip(values, grounds, strict=True):
        contrasts = {name: seen(color, ground) for name, color in inks.items()}
        assert contrasts[ink(value)] == max(contrasts.values()) >= 4.5, value


SEEDS = {"clean/adv": (0, 1)}


@pytest.mark.parametrize("kind", ["scenarios", "tradeoff"])
def test_no_interval_stands_beside_deviations_between_seeds(tmp_path, kind):
    (figure,) = drawn(staged(tmp_path, ["fgsm"], seeds=SEEDS), kind)
    bars = {}
    for axes in figure.figure.axes:
        errors = [each for each in axes.containers if not hasattr(each, "patches")]
        segments = [part for error in errors for each in error.lines[2] for part in each.get_segments()]
        bars[axes.get_title().replace("\n", " ")] = sum(len(part) == 2 and np.isfinite(part).all() for part in segments)
    assert bars == {
        **({"no attack": 2} if kind == "scenarios" else {}),
        "clean support, attacked query": 2 if kind == "scenarios" else 4,  # there of both accuracies
        "attacked support, clean query": 0, "attacked support, attacked query": 0,
    }  # fmt: skip
    assert "Means over 2 seeds (some rest on fewer)" in figure.caption
    assert "standard deviation between seeds, none where there is one seed" in figure.caption


def test_no_interval_stands_beside_deviations_between_seeds_in_a_heat_map(tmp_path):
    (figure,) = drawn(staged(tmp_path, ["fgsm"], seeds=SEEDS), "heatmap")
    for axes in figure.figure.axes[:3]:
        two = axes.get_title(loc="left") == "clean support, attacked query"
        assert {"±" in text.get_text() for text in axes.texts} == {two}
    assert "±: standard deviation between seeds, none where there is one seed" in figure.caption


def test_every_learner_is_drawn_without_attack_by_all_of_its_seeds(tmp_path):
    store = staged(tmp_path, ["fgsm"], seeds={"adv/adv": (0, 1, 2)})
    for each in staged(tmp_path / "other", ["fgsm"], {"adv/clean": "none"}, learners=("aq",)).records():
        store.write_record(each)
    (figure,) = drawn(store, "scenarios")
    bars = [each for each in figure.figure.axes[0].containers if hasattr(each, "patches")]
    means = {bar.get_label(): bar.patches[0].get_height() for bar in bars if bar.patches}
    clean = {"aq": [answers(0.9, 30)], **{
        name: [answers(mean, 30, seed=start + seed) for seed in range(3)]
        for name, mean, start in (("maml", 0.9, 0), ("protonet", 0.8, 10))
    }}  # fmt: skip
    assert means == {name: pytest.approx(100 * np.mean(each)) for name, each in clean.items()}


@pytest.mark.parametrize(
    ("attacks", "told", "titles"),
    [
        ((["fgsm"],) * 3, "and under fgsm (L∞", [""] * 3),
        ((["fgsm", "pgd"],) * 3, "and in the worst case (L∞", [""] * 3),
        ((["fgsm"], ["pgd"], ["fgsm"]), "and under each scenario's only attack (L∞",
         ["(under fgsm)", "(under pgd)", "(under fgsm)"]),
        ((["fgsm", "pgd"], ["fgsm"], ["fgsm"]),
         "and in the worst case, or under the only attack, fgsm, where a scenario has one (L∞",
         ["(worst case)", "(under fgsm)", "(under fgsm)"]),
        ((["fgsm", "pgd"], ["fgsm"], ["cw"]),
         "and in the worst case, or under the only attack where a scenario has one (L∞",
         ["(worst case)", "(under fgsm)", "(under cw)"]),
    ],
    ids=["one", "several", "one each", "one or several", "one each or several"],
)  # fmt: skip
def test_the_tradeoff_says_under_which_attacks_each_panel_is(tmp_path, attacks, told, titles):
    store = staged(tmp_path, dict(zip(SCENES, attacks, strict=True)))
    (figure,) = drawn(store, "tradeoff")
    assert f"Accuracy without attack, {told}" in figure.caption
    assert [axes.get_title().partition("query")[2].strip() for axes in figure.figure.axes] == titles


# -- looks -----------------------------------------------------------------------------------------


def test_a_learner_looks_the_same_whatever_else_is_drawn():
    names = [f"learner {number}" for number in range(40)]
    palette = Palette(names)
    assert palette["learner 3"] == Palette(names)["learner 3"]
    styles = {palette[name][:3] for name in names[:28]}
    assert len(styles) == 28, "28 learners have looks of their own"
    assert palette["new"] == palette["new"]


def test_the_users_matplotlib_is_left_as_it_was(tmp_path):
    with mpl.rc_context({"font.size": 17, "svg.fonttype": "path", "text.parse_math": True}):
        before = dict(mpl.rcParams)
        (figure,) = drawn(planted(tmp_path / "R"), "learning")
        save_figure(figure, tmp_path / "x.svg", FigureStyle(), "bench plot")
        assert dict(mpl.rcParams) == before
        assert b"<text" in (tmp_path / "x.svg").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_names_are_drawn_as_they_are(tmp_path, kind):
    store = planted(
        tmp_path / "R", learners=HOSTILE[:2], attacks=HOSTILE[2:], eps=(0.1, 0.2) if kind == "curves" else (0.1,)
    )
    for number, figure in enumerate(drawn(store, kind, FigureStyle(font="serif", title=True))):
        save_figure(figure, tmp_path / f"{number}.svg", FigureStyle(font="serif"), "bench")
        shown = "".join(ET.fromstring((tmp_path / f"{number}.svg").read_bytes()).itertext())
        assert "a$b_c^d{e}\\x" in shown
        assert "<b>" in shown
        if kind not in {"learning", "tradeoff"}:
            assert "$\\frac{1}{0}$" in shown


@pytest.mark.parametrize("width", [None, 3.25, 6.75])
@pytest.mark.parametrize(
    ("kind", "attacks", "surrogate"),
    [
        ("scenarios", ["fgsm"], ""),
        ("scenarios", ["fgsm", "pgd", "cw"], ""),
        ("scenarios", {"clean/adv": ["fgsm", "pgd"], "adv/clean": ["fgsm"], "adv/adv": ["fgsm"]}, ""),
        ("scenarios", ["pgd:steps=100,step_size=0.02,restarts=5", "x" * 40], LONG),
        ("tradeoff", ["pgd:steps=100,step_size=0.02,restarts=5", "x" * 40], LONG),
        ("heatmap", ["pgd:steps=100,step_size=0.02,restarts=5", "x" * 40], LONG),
        ("compare", ["pgd:steps=100,step_size=0.02,restarts=5", "x" * 40], LONG),
    ],
    ids=["one attack", "several", "some several", "long names", "tradeoff", "heatmap", "compare"],
)
def test_titles_keep_clear_of_one_another_and_of_the_edges(tmp_path, kind, attacks, surrogate, width):
    store = staged(tmp_path, attacks, SCENES | ({"clean/transfer": surrogate} if surrogate else {}))
    look = FigureStyle(width)
    for figure in drawn(store, kind, look):
        panels, canvas = figure.figure.axes, FigureCanvasAgg(figure.figure)
        with look.styled():
            canvas.draw()
        renderer = canvas.get_renderer()
        texts = [title for axes in panels for title in (axes.title, axes._left_title) if title.get_text()]
        assert len(texts) >= 4
        boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
        boxes += [("legend", legend.get_window_extent(renderer)) for legend in figure.figure.legends]
        inside = figure.figure.bbox.padded(1)
        for place, (name, box) in enumerate(boxes):
            assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, name
            assert inside.y0 <= box.y0 <= box.y1 <= inside.y1, name
            for other, beside in boxes[:place]:
                assert not box.overlaps(beside), (name, other)
        assert all(axes.bbox.width > 15 and axes.bbox.height > 15 for axes in panels[:4]), "panels have collapsed"


def test_one_attack_in_admls_scenarios_is_drawn_as_wide_as_its_titles_need(tmp_path):
    (four,) = drawn(staged(tmp_path / "four", ["fgsm"]), "scenarios")
    assert four.figure.get_figwidth() == 6.75
    assert [axes.get_title() for axes in four.figure.axes] == [
        "no attack", "clean support,\nattacked query", "attacked support,\nclean query",
        "attacked support,\nattacked query",
    ]  # fmt: skip
    (two,) = drawn(staged(tmp_path / "two", ["fgsm"], {"clean/adv": "none"}), "scenarios")
    assert two.figure.get_figwidth() == 3.25


@pytest.mark.parametrize("room", [0.3, 0.7, 2.0])
def test_a_fitted_title_holds_all_its_letters_in_lines_that_fit(room):
    look, text = FigureStyle(), "attacked support, query from protonet:steps=5"
    shown = look.fitted(text, room)
    assert all(look.breadth(line) <= room for line in shown.split("\n"))
    told = re.sub(r"\s", "", shown)
    assert told == re.sub(r"\s", "", text) or (told.endswith("…") and shown.count("\n") == 5)


def test_more_rows_of_panels_than_a_page_holds_make_several_figures(tmp_path):
    attacks = [f"attack-{number}" for number in range(7)]
    found = drawn(staged(tmp_path, attacks, learners=[f"l{n}" for n in range(9)]), "scenarios", FigureStyle(3.25))
    assert [figure.setting["part"] for figure in found] == [1, 2]
    shown = [
        (axes.get_title().partition(" …")[0], label.get_text())
        for figure in found for axes in figure.figure.axes for label in axes.get_xticklabels()
    ]  # fmt: skip
    assert len(shown) == len(set(shown)) == 1 + 3 * 8
    assert all(figure.figure.get_figheight() <= 8.5 for figure in found)


# -- files -----------------------------------------------------------------------------------------


def test_files_have_the_width_the_fonts_and_what_they_are_about(tmp_path):
    store = planted(tmp_path / "R")
    (figure, *_) = drawn(store, "curves", FigureStyle(width=3.25))
    for ending in ("pdf", "svg", "png"):
        save_figure(figure, tmp_path / f"x.{ending}", FigureStyle(), "bench plot curves", dpi=100)
    pdf = (tmp_path / "x.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)[1]) == pytest.approx(3.25 * 72)
    assert b"bench plot curves" in pdf
    assert b"CreationDate" not in pdf
    svg = ET.fromstring((tmp_path / "x.svg").read_bytes())
    assert svg.get("width") == "234pt"
    assert svg.find("{http://www.w3.org/2000/svg}title").text == figure.title
    with Image.open(tmp_path / "x.png") as png:
        assert png.width == 325
        assert png.text["Description"] == figure.caption
        assert png.text["Comment"] == "bench plot curves"


def test_the_same_results_give_the_same_bytes_in_every_process(tmp_path):
    planted(tmp_path / "R", attacks=("pgd",), eps=(0.1,))
    arguments = ["plot", "heatmap", str(tmp_path / "R"), "--dpi", "60"]
    arguments += ["--format", "pdf", "--format", "svg", "--format", "png"]
    assert bench(*arguments, "--out", tmp_path / "here").code == 0
    code = f"from robustbench_meta.cli import main; main({[*arguments, '--out', str(tmp_path / 'there')]!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
    files = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(files) == 3
    for name in files:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


# -- command ---------------------------------------------------------------------------------------


def test_bench_plot_draws_all_and_says_where_and_what(tmp_path):
    planted(tmp_path / "R", eps=(0.1,))
    done = bench("plot", tmp_path / "R", "--format", "svg")
    assert done.code == 0, done.err
    assert "left out: curves, which needs an attack at two eps or more" in told(done.err)
    names = {path.name for path in (tmp_path / "R" / "figures").iterdir()}
    assert names == {"heatmap.svg", "scenarios.svg", "tradeoff.svg", "learning.svg", "compare.svg"}
    assert "5 figures in" in done.out
    assert "Accuracy in % by learner and attack (L∞ ε = 0.1)" in told(done.out)


def test_every_file_that_was_written_is_listed(tmp_path):
    planted(tmp_path / "R", eps=(0.1,), supports=("clean",))
    done = bench("plot", "heatmap", "tradeoff", tmp_path / "R", "--format", "png", "--format", "svg", "--dpi", "50")
    assert done.code == 0, done.err
    written = sorted(str(path) for path in (tmp_path / "R" / "figures").iterdir())
    assert len(written) == 4
    assert sorted(re.findall(rf"^{re.escape(str(tmp_path))}\S+\.\w{{3}}\b", done.out, re.MULTILINE)) == written


@pytest.mark.parametrize("kind", ["heatmap", "scenarios", "tradeoff", "compare"])
def test_eps_zero_is_drawn_only_where_it_is_asked_for(tmp_path, kind):
    planted(tmp_path / "R", eps=(0.0, 0.1), supports=("clean",))
    done = bench("plot", kind, tmp_path / "R", "--format", "svg", "--out", tmp_path / "some")
    assert done.code == 0, done.err
    assert "left out: eps 0, where an attack changes nothing; `--eps 0` draws it" in told(done.err)
    assert [path.name for path in (tmp_path / "some").iterdir()] == [f"{kind}.svg"]
    assert "ε = 0.1" in done.out
    if kind == "compare":
        assert "correction for 7 comparisons" in told(done.out), "clean, and three columns at each ε"
    done = bench("plot", kind, tmp_path / "R", "--format", "svg", "--out", tmp_path / "zero", "--eps", "0")
    assert done.code == 0, done.err
    assert "ε = 0)" in told(done.out) or "ε = 0, " in told(done.out)
    assert "left out" not in done.err


def test_what_cannot_be_written_is_told_without_promises(tmp_path):
    planted(tmp_path / "R", eps=(0.1,), supports=("clean",))
    (tmp_path / "file").write_text("")
    commands = [("plot", "heatmap", "x.svg"), ("export", "--format=csv", "x.csv"), ("report", "x.html")]
    for command, *options, name in commands:
        done = bench(command, *options, tmp_path / "R", "--out", tmp_path / "file" / name)
        assert done.code == 2
        assert told(done.err).endswith("or choose another, then rerun the same command"), command


def test_several_figures_of_one_file_are_named_by_what_differs(tmp_path):
    planted(tmp_path / "R")
    done = bench("plot", "heatmap", tmp_path / "R", "--out", tmp_path / "h.svg")
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.glob("*.svg")} == {"h-heatmap-eps0.1.svg", "h-heatmap-eps0.2.svg"}
    done = bench("plot", "heatmap", tmp_path / "R", "--eps", "0.1", "--out", tmp_path / "one.svg", "--width", "8.6cm")
    assert done.code == 0, done.err
    assert float(ET.parse(tmp_path / "one.svg").getroot().get("width")[:-2]) == pytest.approx(8.6 / 2.54 * 72, abs=0.01)


def test_a_choice_of_attacks_makes_the_worst_case_theirs(tmp_path):
    planted(tmp_path / "R", eps=(0.1,))
    store = planted(tmp_path / "other", attacks=("fgsm",), eps=(0.1,))
    want = {b.setting["support"]: b for b in boards(read(store)[0])}
    done = bench("export", tmp_path / "R", "--attack", "fgsm", "--format", "markdown")
    row = next(line for line in done.out.splitlines() if line.startswith("| `maml`"))
    assert row.count("|") == 4, "learner, clean, fgsm: there is no worst case of one attack"
    assert all(board.columns == ["clean", "fgsm"] for board in want.values())


def test_compare_draws_its_pair(tmp_path):
    planted(tmp_path / "R", learners=("maml", "adml", "aq"), eps=(0.1,))
    done = bench("compare", "maml", "aq", tmp_path / "R", "--plot", tmp_path / "c.svg")
    assert done.code == 0, done.err
    assert "maml − aq" in told(done.out)
    assert "aq ahead" in "".join(ET.parse(tmp_path / "c.svg").getroot().itertext())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curve"], "unknown figure 'curve': did you mean 'curves'?"),
        (["curvs", "DIR"], "did you mean 'curves'"),
        (["DIR", "--out", "x.jpg"], "expected a file that ends in .pdf, .svg or .png, or a folder"),
        (["DIR", "--format", "eps"], "invalid --format 'eps': expected pdf, svg, png"),
        (["DIR", "--out", "x.pdf", "--format", "png"], "leave --format out, or name a folder"),
        (["DIR", "--width", "wide"], "invalid --width 'wide': expected single, text, double, or a length"),
        (["DIR", "--width", "0.2cm"], "from 1in to 40in"),
        (["DIR", "--font", "comic"], "unknown --font 'comic'"),
        (["DIR", "--font-size", "99"], "expected 4 to 24 points"),
        (["DIR", "--dpi", "9999"], "expected 50 to 1200"),
        (["DIR", "--learner", "mamml"], "unknown learner 'mamml' in these results: did you mean 'maml'"),
        (["DIR", "--eps", "0.7"], "nothing was attacked at eps 0.7; there is: 0.1"),
        (["curves", "DIR"], "nothing to draw for curves: it needs an attack at two eps or more"),
        (["nowhere/"], "the folder nowhere does not exist"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_told(tmp_path, arguments, message):
    planted(tmp_path / "R", eps=(0.1,))
    done = bench("plot", *[str(tmp_path / "R") if word == "DIR" else word for word in arguments])
    assert done.code == 2
    assert message in told(done.err)


def test_an_error_bar_is_left_out_where_the_table_tells_none(tmp_path):
    clean = answers(0.9, 30)
    store = stored(
        tmp_path, *(record(answers(0.5, 30, seed=seed), clean=clean, seed=seed) for seed in (0, 1)),
        record(answers(0.6, 30), clean=clean, learner="aq"),
    )  # fmt: skip
    (board,) = boards(read(store)[0])
    assert math.isnan(board.spread(board.scores["aq"]["pgd"]))
    assert board.spread(board.scores["maml"]["pgd"]) == board.scores["maml"]["pgd"].spread
