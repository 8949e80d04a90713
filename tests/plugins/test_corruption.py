"""Natural corruptions against closed forms, SciPy, Pillow and loops; and their table against numbers made by hand."""

import colorsys
import io
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import ndimage, stats

from robustbench_meta.contracts import Random, Setting
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.experiment.attack_grid import all_threats, resolve_plugin, split_eps
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.plugins.attacks.corruption import KINDS, Corruption, Draws, plasma, streaked, zoomed
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.reporting.terminal.tables import all_tables
from robustbench_meta.results.corruptions import kind_tables
from robustbench_meta.results.leaderboard import read, write
from robustbench_meta.results.tables import boards
from tests.helpers.command_line import bench
from tests.helpers.records import answers, clean_record, record, stored

SEVERITIES = (1, 2, 3, 4, 5)
SEEDS = (11, 12, 13)


def images(*shape, tasks=3, each=4, dtype=torch.float64):
    """Smooth random images [tasks, each, *shape]."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(tasks * each, shape[0], 6, 6, generator=draw, dtype=dtype)
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear").reshape(tasks, each, *shape)


def corrupt(kind, x, severity, seeds=SEEDS):
    threat = ThreatModel("severity", float(severity))
    return Corruption(kind=kind).perturb(None, x, x[..., 0, 0, 0], threat, Random(seeds))


def draws(kind, x, seeds=SEEDS):
    """The draws that the kind makes: tests use them in computations of their own."""
    return Draws(Random(seeds), x, kind)


def each_channel(kind, severity, expected, shape=(3, 32, 32)):
    """Hold a corruption without draws against a function of one channel."""
    x = images(*shape)
    found = corrupt(kind, x, severity)
    for image, channel in itertools.product(range(2), range(shape[0])):
        wanted = np.clip(expected(x[1, image, channel].numpy()), 0, 1)
        np.testing.assert_allclose(found[1, image, channel], wanted, atol=1e-6)


# -- laws of all kinds -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "all"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 33)], ids=str)
def test_images_stay_images_and_depend_on_their_own_task_alone(kind, shape):
    x = images(*shape, dtype=torch.float32)
    for severity in (1, 5):
        found = corrupt(kind, x, severity)
        assert found.shape == x.shape
        assert found.dtype == x.dtype
        assert found.isfinite().all()
        assert found.min() >= 0
        assert found.max() <= 1
        assert torch.equal(found, corrupt(kind, x, severity))
        assert torch.equal(found[1:2], corrupt(kind, x[1:2], severity, SEEDS[1:2]))
        assert not torch.equal(found, x) or (kind, shape[1]) == ("zoom-blur", 8)  # which 6 % do not enlarge


@pytest.mark.parametrize("kind", KINDS)
def test_black_and_white_images_stay_in_range(kind):
    x = (images(1, 28, 28, dtype=torch.float32) > 0.5).float()
    for flat in (x, torch.zeros_like(x), torch.ones_like(x)):
        found = corrupt(kind, flat, 5)
        assert found.isfinite().all()
        assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"elastic", "glass-blur", "pixelate"}])
def test_severity_does_not_lessen_the_change(kind):
    """But for three kinds, whose published constants are not in order of the change in pixels."""
    x = images(3, 32, 32, each=16)
    distances = [float((corrupt(kind, x, severity) - x).square().mean()) for severity in SEVERITIES]
    assert all(low <= 1.01 * high for low, high in itertools.pairwise(distances)), distances
    assert distances[0] < distances[-1]


def test_all_gives_each_image_what_one_kind_makes_of_it():
    x = images(3, 32, 32, each=40)
    found = corrupt("all", x, 3)
    same = torch.stack([(corrupt(kind, x, 3) == found).flatten(2).all(-1) for kind in KINDS])
    assert (same.sum(0) == 1).all()
    counts = same.sum((1, 2))
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_kinds_are_the_options_and_the_constants_those_of_five_severities():
    assert {"all", *KINDS} == set(Corruption.model_fields["kind"].annotation.__args__)
    assert all(len(constants) == 5 for _, constants in KINDS.values())


@pytest.mark.parametrize(
    ("shape", "fine"), [((1, 28, 28), True), ((3, 84, 84), True), ((50,), False), ((2, 28, 28), False),
                        ((3, 7, 9), False)],
)  # fmt: skip
def test_only_images_are_corrupted(shape, fine):
    reason = Corruption().obstacle(Setting(shape, 5, 1, 3, "cross_entropy", False))
    assert (reason is None) == fine


# -- noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "deviation"), list(zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.1), strict=True)))
def test_gaussian_noise_is_normal(severity, deviation):
    x = torch.full((1, 50, 1, 32, 32), 0.5, dtype=torch.float64)
    noise = (corrupt("gaussian-noise", x, severity, (5,)) - x).flatten().numpy()
    assert stats.kstest(noise, "norm", (0, deviation)).pvalue > 1e-3


@pytest.mark.parametrize(("severity", "photons"), list(zip(SEVERITIES, (500, 250, 100, 75, 50), strict=True)))
def test_shot_noise_is_poisson(severity, photons):
    x = torch.full((1, 50, 1, 32, 32), 0.4, dtype=torch.float64)
    counts = (corrupt("shot-noise", x, severity, (5,)) * photons).round().flatten().numpy()
    law = stats.poisson(0.4 * photons)
    edges = [-1, *law.ppf(np.arange(0.1, 1, 0.1)), math.inf]
    expected = np.diff(law.cdf(edges)) * counts.size
    observed = np.histogram(counts, [edge + 0.5 for edge in edges])[0]
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("severity", "share"), list(zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True)))
def test_impulse_noise_sets_half_of_its_share_to_black_and_half_to_white(severity, share):
    x = torch.full((1, 50, 1, 32, 32), 0.5, dtype=torch.float64)
    found = corrupt("impulse-noise", x, severity, (5,))
    for value in (0.0, 1.0):
        hit = int((found == value).sum())
        assert stats.binomtest(hit, found.numel(), share / 2).pvalue > 1e-3
    assert ((found == 0.5) | (found == 0) | (found == 1)).all()


# -- blurs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("severity", "constants"),
    list(zip(SEVERITIES, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), strict=True)),
)
def test_defocus_blur_is_scipy_s_convolution_with_the_antialiased_disk(severity, constants):
    radius, sigma = constants
    grid = np.mgrid[-8:9, -8:9]
    disk = (np.square(grid).sum(0) <= radius**2).astype(float)
    bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    bell /= bell.sum()
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(bell, bell), mode="constant")
    each_channel("defocus-blur", severity, lambda image: ndimage.convolve(image, kernel, mode="mirror"))


@pytest.mark.parametrize(
    ("severity", "sigma", "times"), [(1, 0.05, 1), (2, 0.25, 1), (3, 0.4, 1), (4, 0.25, 2), (5, 0.4, 2)]
)
def test_glass_blur_is_the_loop_that_the_published_code_runs(severity, sigma, times):
    """Whose swap of two views only copies: later pixels are still as they were."""
    x = images(3, 32, 32, tasks=1, each=2)
    quarters = draws("glass-blur", x, (11,))
    moves = [(4 * quarters.uniform(32, 32)).long().numpy() for _ in range(times)]
    found = corrupt("glass-blur", x, severity, (11,))
    for index in range(2):
        image = ndimage.gaussian_filter(x[0, index].numpy(), (0, sigma, sigma), mode="nearest")
        for move in moves:
            for row, column in itertools.product(range(31, 1, -1), repeat=2):
                down, right = divmod(move[index, row, column], 2)
                image[:, row, column] = image[:, row - down, column - right]
        image = ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest")
        np.testing.assert_allclose(found[0, index], image, atol=1e-6)


def test_motion_blur_runs_along_its_angle_from_each_pixel_on():
    """One white pixel leaves a streak of ImageMagick's half Gaussian, nearest pixels of the line, against the angle."""
    x = torch.zeros(3, 1, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    weights /= weights.sum()
    for image, degrees in zip(streaked(x, 6, 2.0, torch.tensor([0.0, 45.0, -90.0])), (0, 45, -90), strict=True):
        wanted = np.zeros((41, 41))
        for step, weight in enumerate(weights):
            down = math.ceil(step * math.sin(math.radians(degrees)) - 0.5)
            right = math.ceil(step * math.cos(math.radians(degrees)) - 0.5)
            wanted[20 - down, 20 - right] += weight
        np.testing.assert_allclose(image[0], wanted, atol=1e-9)


def test_motion_blur_keeps_what_is_flat_and_turns_by_45_degrees_at_most():
    x = images(3, 32, 32, each=50)
    assert torch.allclose(corrupt("motion-blur", torch.full_like(x, 0.3), 5), torch.tensor(0.3, dtype=x.dtype))
    angles = 90 * draws("motion-blur", x).uniform() - 45
    assert torch.allclose(corrupt("motion-blur", x, 2), streaked(x.flatten(0, 1), 6, 1.5, angles).reshape(x.shape))
    assert stats.kstest(angles.numpy(), "uniform", (-45, 90)).pvalue > 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [28, 32])
def test_zoom_blur_is_the_mean_of_scipy_s_zooms(severity, side):
    top = (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1]

    def blurred(image):
        found = [image]
        for factor in np.arange(1, top, 0.01):
            inner = math.ceil(side / round(factor, 2))
            start = (side - inner) // 2
            grown = ndimage.zoom(image[start : start + inner, start : start + inner], round(factor, 2), order=1)
            start = (len(grown) - side) // 2
            found.append(grown[start : start + side, start : start + side])
        return np.mean(found, axis=0)

    each_channel("zoom-blur", severity, blurred, (1, side, side))


# -- weather ---------------------------------------------------------------------------------------


def test_plasma_is_the_diamond_square_algorithm():
    noise = 2 * torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    heights, size, step, wibble = np.zeros((8, 8)), 8, 8, 1e4
    while step > 1:
        half = step // 2
        for row, column in itertools.product(range(half, size, step), repeat=2):
            around = [(row + a * half, column + b * half) for a in (-1, 1) for b in (-1, 1)]
            mean = np.mean([heights[r % size, c % size] for r, c in around])
            heights[row, column] = mean + wibble * noise[0, row, column]
        for row, column in itertools.product(range(0, size, half), repeat=2):
            if (row + column) // half % 2:
                around = [(row - half, column), (row + half, column), (row, column - half), (row, column + half)]
                mean = np.mean([heights[r % size, c % size] for r, c in around])
                heights[row, column] = mean + wibble * noise[0, row, column]
        step, wibble = half, wibble / 2.5**2
    heights -= heights.min()
    np.testing.assert_allclose(plasma(noise, 2.5)[0], heights / heights.max(), atol=1e-9)


@pytest.mark.parametrize(("severity", "thickness"), list(zip(SEVERITIES, (0.2, 0.5, 0.75, 1, 1.5), strict=True)))
def test_fog_dims_the_brightest_to_what_it_was_and_adds_one_cloud_to_all_channels(severity, thickness):
    x = torch.full((1, 6, 3, 28, 28), 0.2, dtype=torch.float64)
    x[..., 0, 0, 0] = 0.8
    cloud = corrupt("fog", x, severity, (5,)) * (0.8 + thickness) / 0.8 - x
    assert torch.allclose(cloud[:, :, 0], cloud[:, :, 1])
    assert cloud.min() >= -1e-12
    assert cloud.max() <= thickness + 1e-12


def test_snow_on_black_is_its_flakes_and_lightens_all():
    x = torch.zeros(1, 20, 3, 32, 32, dtype=torch.float64)
    drawn = draws("snow", x, (5,))
    flakes = zoomed(0.3 + 0.3 * drawn.normal(1, 32, 32), 1.25)
    flakes = streaked(torch.where(flakes < 0.65, 0.0, flakes).clamp(0, 1), 14, 12, 90 * drawn.uniform() - 135)
    both = flakes.numpy() + flakes.numpy()[..., ::-1, ::-1]
    found = corrupt("snow", x, 5, (5,))[0].numpy()
    np.testing.assert_allclose(found, np.clip(both + 0.2 * 0.5, 0, 1).repeat(3, 1), atol=1e-9)
    coloured = images(3, 32, 32)
    assert (corrupt("snow", coloured, 1) >= 0.95 * coloured).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("severity", "more"), list(zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True)))
def test_brightness_is_the_value_of_hsv(severity, more, channels):
    x = images(channels, 8, 8, tasks=1, each=1)
    x[0, 0, :, 0, 0] = 0
    found = corrupt("brightness", x, severity, (1,))[0, 0]
    for row, column in itertools.product(range(8), repeat=2):
        pixel = x[0, 0, :, row, column].expand(3).tolist()
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(1, value + more))
        assert found[:, row, column].tolist() == pytest.approx(wanted[:channels], abs=1e-9)


# -- digital ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "left"), list(zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True)))
def test_contrast_shrinks_the_distance_to_the_mean(severity, left):
    each_channel("contrast", severity, lambda image: image.mean() + left * (image - image.mean()))


@pytest.mark.parametrize(("severity", "share"), list(zip(SEVERITIES, (0.95, 0.9, 0.85, 0.75, 0.65), strict=True)))
@pytest.mark.parametrize("side", [28, 32])
def test_pixelate_is_pillow_s_box_filter(severity, share, side):
    def boxed(image):
        small = Image.fromarray(image.astype(np.float32)).resize((int(side * share),) * 2, Image.Resampling.BOX)
        return np.asarray(small.resize((side, side), Image.Resampling.BOX))

    each_channel("pixelate", severity, boxed, (1, side, side))


@pytest.mark.parametrize(("severity", "quality"), list(zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True)))
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillow_s(severity, quality, channels):
    x = (images(channels, 28, 28, tasks=1, each=2) * 255).round() / 255
    found = corrupt("jpeg", x, severity, (1,))[0, 1]
    pixels = (x[0, 1] * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, format="jpeg", quality=quality)
    stored_ = np.asarray(Image.open(file)).reshape(28, 28, channels)
    np.testing.assert_allclose(found.permute(1, 2, 0), stored_ / 255, atol=1e-9)


@pytest.mark.parametrize(
    ("severity", "push", "sigma", "shift"),
    [(1, 0, 0, 2.56), (2, 1.6, 6.4, 2.24), (3, 2.56, 1.92, 1.92), (4, 3.2, 1.28, 1.6), (5, 3.2, 0.96, 0.96)],
)
def test_elastic_is_scipy_s_affine_map_and_displacement(severity, push, sigma, shift):
    x = images(3, 32, 32)
    drawn = draws("elastic", x)
    moves, fields = (2 * drawn.uniform(*shape) - 1 for shape in ((3, 2), (2, 32, 32)))
    found = corrupt("elastic", x, severity).flatten(0, 1)
    corners = np.array([[26.0, 26], [26, 6], [6, 6]])
    rows, columns = np.mgrid[:32, :32]
    for index in range(3):
        moved = np.c_[corners + shift * moves[index].numpy(), np.ones(3)]
        pixels = np.stack([columns, rows, np.ones((32, 32))]).reshape(3, -1)
        from_column, from_row = (np.linalg.solve(moved, corners).T @ pixels).reshape(2, 32, 32)
        right, down = (push * ndimage.gaussian_filter(field.numpy(), sigma, truncate=3) for field in fields[index])
        for channel in range(3):
            image = ndimage.map_coordinates(
                x.flatten(0, 1)[index, channel].numpy(), [from_row, from_column], order=1, mode="mirror"
            )
            image = ndimage.map_coordinates(image, [rows + down, columns + right], order=1, mode="reflect")
            np.testing.assert_allclose(found[index, channel], image, atol=1e-6)


# -- severity in place of ε ------------------------------------------------------------------------


def planned(*attacks, eps=()):
    registry, run = load_registry(None), RunSpec(attacks=attacks, eps=eps)
    made = [resolve_plugin(registry, "attack", split_eps(choice)[0]) for choice in run.choices("attack")]
    dataset = registry.make("dataset", "glyphs", {})
    return [(threat.label, threat.eps.text, threat.sweep) for threat in all_threats(run, dataset, made)]


def test_severities_are_the_attack_s_own_and_independent():
    found = planned("corruption:kind=fog,eps=1:5:5")
    assert found == [("corruption:kind=fog", str(severity), ()) for severity in SEVERITIES]


def test_a_general_eps_is_for_others_alone():
    assert planned("fgsm", "corruption", "corruption:kind=jpeg,eps=5", eps=("0.1", "0.2")) == [
        ("fgsm", "0.1", ()), ("fgsm", "0.2", ()), ("corruption", "3", ()), ("corruption:kind=jpeg", "5", ()),
    ]  # fmt: skip


@pytest.mark.parametrize("eps", ["0", "6", "2.5", "1:5:2.5", "0:5:6"])
def test_what_is_no_severity_is_refused(eps):
    done = bench("run", "--attack", f"corruption:eps={eps}", "--dry-run")
    assert done.code == 2
    assert done.err.count("Error") == 1
    assert "a whole number from 1 to 5" in done.err if eps != "1:5:2.5" else "no range" in done.err


# -- the table -------------------------------------------------------------------------------------


def cells(accuracies, clean, **told):
    """Records of severities 1 and 5 of kinds: {kind: (answers, answers)}."""
    return [
        record(each, clean=clean, attack="corruption" if kind == "all" else f"corruption:kind={kind}", eps=severity,
               norm="severity", method="random", **told)
        for kind, both in accuracies.items() for severity, each in zip((1, 5), both, strict=True)
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    clean = answers(0.9, 30, 10)
    kinds = {"fog": (answers(0.8, 30, 10, 1), answers(0.3, 30, 10, 2)), "jpeg": (clean, answers(0.6, 30, 10, 3)),
             "all": (clean, clean)}  # fmt: skip
    lacking = {"fog": kinds["fog"]}
    records = [*cells(kinds, clean), *cells(lacking, clean, learner="aq"), clean_record(clean)]
    return stored(tmp_path, *records), clean, kinds


def test_the_table_has_means_over_severities_and_over_kinds(folder):
    store, clean, kinds = folder
    (table,) = kind_tables(*read(store))
    assert table.kinds == ("clean", "fog", "jpeg", "all", "mean")
    assert table.severities == ("1", "5")
    episodes = {kind: np.mean([each.mean(1) for each in both], axis=0) for kind, both in kinds.items()}
    episodes |= {"mean": (episodes["fog"] + episodes["jpeg"]) / 2, "clean": clean.mean(1)}
    for kind, values in episodes.items():
        low, high = stats.t.interval(0.95, 29, loc=values.mean(), scale=stats.sem(values))
        assert table.number("maml", kind) == pytest.approx((100 * values.mean(), 50 * (high - low), 1))
    assert math.isnan(table.number("aq", "mean")[0]), "it lacks a kind"
    assert table.number("aq", "fog")[0] == pytest.approx(table.number("maml", "fog")[0])


def test_the_table_is_shown_and_written(folder):
    store, _, _ = folder
    write(store)
    written = pd.read_csv(store.root / "corruptions.csv")
    assert list(written[written["learner"] == "maml"]["kind"]) == ["clean", "fog", "jpeg", "all", "mean"]
    (table,) = kind_tables(*read(store))
    mean = written[(written["learner"] == "maml") & (written["kind"] == "mean")].iloc[0]
    assert 100 * mean["accuracy"] == pytest.approx(table.number("maml", "mean")[0], abs=1e-3)
    for width in (80, 160):
        out = io.StringIO()
        for each in all_tables(*read(store), width):
            Console(file=out, width=width).print(each)
        text = out.getvalue()
        assert "corruption, severity 5 · clean support, attacked query" in text
        assert "ε" not in text
        assert "Accuracy in %, over severities 1, 5; clean: without corruption." in text
        assert max(map(len, text.splitlines())) <= width
    done = bench("report", store.root, "--out", store.root / "report.html")
    assert done.code == 0, done.err
    assert "Natural corruptions" in (store.root / "report.html").read_text()


def test_of_several_seeds_the_spread_is_between_them(tmp_path):
    clean = answers(0.9, 30, 10)
    records = []
    for seed in (0, 1):
        each = {kind: (answers(0.8 - 0.2 * seed, 30, 10), clean) for kind in ("fog", "jpeg")}
        records += cells(each, clean, seed=seed)
    (table,) = kind_tables(*read(stored(tmp_path, *records)))
    means = [50 * (answers(0.8 - 0.2 * seed, 30, 10).mean() + clean.mean()) for seed in (0, 1)]
    assert table.number("maml", "mean") == pytest.approx((np.mean(means), np.std(means, ddof=1), 2))


def test_of_two_versions_of_a_kind_the_newest_counts_and_of_all_none_in_the_mean(tmp_path):
    clean = answers(0.8)
    old = {"fog": 2 * [answers(0.1)], "all": 2 * [answers(0.2)]}
    new = {"fog": 2 * [answers(0.7)], "jpeg": 2 * [answers(0.5)]}
    records = [*cells(old, clean, attack_code="v0", written="2025-01-01T00:00:00Z"), *cells(new, clean)]
    (table,) = kind_tables(*read(stored(tmp_path, *records)))
    assert table.kinds == ("clean", "fog", "jpeg", "all", "mean")
    fog, jpeg = (100 * new[kind][0].mean() for kind in ("fog", "jpeg"))
    assert table.number("maml", "fog")[0] == pytest.approx(fog)
    assert table.number("maml", "mean")[0] == pytest.approx((fog + jpeg) / 2)


def test_a_corruption_has_no_worst_case_but_its_own_and_several_give_no_rank(tmp_path):
    clean, kinds = answers(0.5), {"fog": 2 * [answers(0.6, seed=1)], "jpeg": 2 * [answers(0.7, seed=2)]}
    frame, _ = read(stored(tmp_path, *cells(kinds, clean), *cells(kinds, clean, learner="aq")))
    attacked = frame[frame["threat_norm"] == "severity"]
    assert list(attacked["worst_case_accuracy"]) == list(attacked["robust_accuracy"])
    assert attacked["rank"].isna().all()
    assert all(table.columns[-1] != "worst case" for table in boards(frame))


def test_one_kind_makes_no_table(tmp_path):
    clean = answers(0.9, 30, 10)
    store = stored(tmp_path, *cells({"fog": (clean, clean)}, clean))
    write(store)
    frame, samples = read(store)
    assert kind_tables(frame, samples) == []
    assert list(frame["rank"]) == [1, 1]
    assert not (tmp_path / "corruptions.csv").exists()


def test_rows_of_corruptions_get_no_flags_about_how_attacks_search(folder):
    store, _, _ = folder
    frame, _ = read(store)
    flags = frame[frame["threat_norm"] == "severity"]["flags"]
    assert not flags.str.contains("fgsm-alone|masked-gradients").any()
