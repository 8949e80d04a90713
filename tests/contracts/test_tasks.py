"""Tasks drawn from an image bank: laws, checked on banks whose pixels tell which image it is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy import stats

from robustbench_meta.contracts.tasks import Batch, Splits, TaskBatch, check_disjoint_classes
from robustbench_meta.data.image_bank import ImageBank
from robustbench_meta.errors import DataError


def bank(counts, name="numbered"):
    """A bank whose image i has the two pixels (i // 256, i % 256)."""
    ids = torch.arange(sum(counts))
    images = torch.stack([ids // 256, ids % 256], dim=1).to(torch.uint8).view(-1, 1, 1, 2)
    return ImageBank(name, images, counts, [f"{name}/{i}" for i in range(len(counts))], "print")


def ids(x):
    """Which images these are: [tasks, n]."""
    pixels = (x * 255).round().long().flatten(2)
    return (pixels[..., 0] * 256 + pixels[..., 1]).numpy()


@st.composite
def settings_of_tasks(draw):
    counts = draw(st.lists(st.integers(3, 40), min_size=2, max_size=12))
    way = draw(st.integers(2, len(counts)))
    shot = draw(st.integers(1, min(counts) - 1))
    query = draw(st.integers(1, min(counts) - shot))
    seeds = draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
    return counts, way, shot, query, seeds, draw(st.integers(1, 3))


@settings(deadline=None, max_examples=60)
@given(settings_of_tasks())
def test_every_task_is_well_formed(case):
    counts, way, shot, query, seeds, each = case
    tasks = bank(counts).sample(seeds, way, shot, query, each)
    class_of = np.repeat(np.arange(len(counts)), counts)
    support, asked = ids(tasks.support.x), ids(tasks.query.x)
    assert support.shape == (len(seeds) * each, way * shot)
    assert asked.shape == (len(seeds) * each, way * query)
    for s, q, sy, qy in zip(support, asked, tasks.support.y, tasks.query.y, strict=True):
        assert len({*s, *q}) == len(s) + len(q), "an image occurs twice"
        of_label = {label: {*class_of[s[sy == label]], *class_of[q[qy == label]]} for label in range(way)}
        assert all(len(classes) == 1 for classes in of_label.values()), "a label stands for two classes"
        assert len(set.union(*of_label.values())) == way, "two labels stand for one class"
        assert np.bincount(sy).tolist() == [shot] * way
        assert np.bincount(qy).tolist() == [query] * way


@settings(deadline=None, max_examples=30)
@given(settings_of_tasks(), st.randoms())
def test_a_seed_gives_the_same_tasks_in_any_company(case, random):
    counts, way, shot, query, seeds, each = case
    source = bank(counts)
    together = source.sample(seeds, way, shot, query, each)
    order = list(range(len(seeds)))
    random.shuffle(order)
    again = source.sample([seeds[i] for i in order], way, shot, query, each)
    for place, i in enumerate(order):
        mine = again.part(slice(place * each, (place + 1) * each))
        alone = source.sample([seeds[i]], way, shot, query, each)
        before = together.part(slice(i * each, (i + 1) * each))
        for other in (alone, before):
            assert torch.equal(mine.support.x, other.support.x)
            assert torch.equal(mine.query.x, other.query.x)


def test_pixels_arrive_as_float32_between_0_and_1():
    images = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).repeat(4).view(16, 1, 1, 1)
    tasks = ImageBank("shades", images, [8, 8], ["a", "b"], "").sample([0], 2, 4, 4)
    assert tasks.support.x.dtype == torch.float32
    assert set(tasks.query.x.flatten().tolist()) <= {0.0, 1.0, *(np.float32([1, 128]) / np.float32(255)).tolist()}
    assert tasks.support.y.dtype == torch.int64


def test_seeds_differ():
    source = bank([20] * 30)
    drawn = {ids(source.sample([seed], 5, 1, 5).query.x).tobytes() for seed in range(50)}
    assert len(drawn) == 50


def test_the_place_of_a_query_tells_nothing_of_its_class():
    """χ² at 0.1 %, Bonferroni: each label is as frequent at each place, and at each place after each other label."""
    y = bank([20] * 10).sample(range(300), 3, 1, 4, 20).query.y.numpy()
    assert (np.sort(y, axis=1) == np.repeat(np.arange(3), 4)).all()
    for place in range(12):
        assert stats.chisquare(np.bincount(y[:, place], minlength=3)).pvalue > 1e-3 / 12
    same = (y[:, 1:] == y[:, :-1]).mean()  # of the 11 others, 3 are of the same class
    assert same == pytest.approx(3 / 11, abs=0.01)
    asked = bank([20] * 10).sample(range(300), 3, 1, 4).query
    assert len({tuple(row) for row in asked.y.tolist()}) > 250, "each task has an order of its own"


@pytest.mark.parametrize("sizes", [[20] * 10, [5, 80, 6, 33, 7, 5, 50, 9, 10, 11]], ids=["equal", "unequal"])
def test_classes_labels_and_images_are_drawn_uniformly(sizes):
    """χ² at 0.1 %: which classes, which class gets label 0, and which image of a class is its support image."""
    index, _ = bank(sizes).draw(7, 6000, 3, 1, 2)
    class_of, starts = np.repeat(np.arange(10), sizes), np.cumsum([0, *sizes[:-1]])
    drawn = class_of[index[:, :, 0]]
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=10)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(drawn[:, 0], minlength=10)).pvalue > 1e-3
    for label in (0, 1):
        for place in (0, 1):  # support, first query
            images = index[:, :, place][drawn == label] - starts[label]
            assert stats.chisquare(np.bincount(images, minlength=sizes[label])).pvalue > 1e-3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((4, 1, 1), ["3 classes", "4-way", "--way"]),
        ((2, 3, 3), ["'numbered/1' has 5 images", "3 support + 3 query", "--shot or --query"]),
        ((2, 0, 3), ["shot 0", "at least 1"]),
        ((0, 1, 1), ["way 0"]),
    ],
    ids=["too many ways", "too many images", "no shot", "no way"],
)
def test_impossible_tasks_are_refused(asked, words):
    source = bank([6, 5, 9])
    for refuse in (source.check, lambda *asked: source.sample([0], *asked)):
        with pytest.raises(DataError) as error:
            refuse(*asked)
        assert all(word in str(error.value) for word in words), str(error.value)


def test_a_whole_class_can_be_used_up():
    tasks = bank([6, 6]).sample([3], 2, 2, 4)
    assert sorted([*ids(tasks.support.x)[0], *ids(tasks.query.x)[0]]) == list(range(12))


@pytest.mark.parametrize(
    ("images", "counts", "classes"),
    [
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [2, 2], ["a", "b"]),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [1, 2], ["a"]),
        (torch.zeros(3, 1, 2, 2), [1, 2], ["a", "b"]),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [3, 0], ["a", "b"]),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), [], []),
    ],
    ids=["counts", "names", "floats", "empty class", "no class"],
)
def test_a_bank_whose_parts_do_not_fit_is_refused(images, counts, classes):
    with pytest.raises((DataError, TypeCheckError)):  # the latter where annotations of shapes are checked
        ImageBank("odd", images, counts, classes, "")


def test_a_task_batch_slices_by_tasks():
    tasks = bank([9] * 4).sample(range(5), 3, 1, 2)
    part = tasks.part(slice(1, 3))
    assert isinstance(part, TaskBatch)
    assert isinstance(part.query, Batch)
    assert part.tasks == 2
    assert torch.equal(part.query.x, tasks.query.x[1:3])
    support, query = part
    assert torch.equal(support.y, tasks.support.y[1:3])
    assert query.x.shape == (2, 6, 1, 1, 2)


def test_splits_that_share_a_class_are_refused():
    check_disjoint_classes(Splits(bank([2], "a"), bank([2], "b"), bank([2], "c")))
    thief = ImageBank("d", bank([2]).images, [2], ["a/0"], "")
    with pytest.raises(DataError, match="class 'a/0' is both in a and in d"):
        check_disjoint_classes(Splits(bank([2], "a"), bank([2], "b"), thief))
