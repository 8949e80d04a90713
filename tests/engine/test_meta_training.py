"""What meta-training draws besides tasks: varied images, batches of the base classes, and rates by progress."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robustbench_meta.data.image_bank import ImageBank
from robustbench_meta.engine.augmentation import JITTER, augmented
from robustbench_meta.engine.training import training_tasks
from robustbench_meta.errors import BenchError
from robustbench_meta.plugins.learners.baseline import Baseline
from robustbench_meta.plugins.learners.maml import MAML
from robustbench_meta.plugins.learners.protonet import ProtoNet

SETTING = SimpleNamespace(way=5, shot=1, query=3)


def images(side=8):
    return torch.rand(2, 30, 3, side, side, generator=torch.Generator().manual_seed(0))


def shifts(image, most):
    """All copies of an image moved by up to `most` pixels either way, with black behind it."""
    side = image.shape[-1]
    framed = np.zeros((image.shape[0], side + 2 * most, side + 2 * most), np.float32)
    framed[:, most : most + side, most : most + side] = image
    moves = range(2 * most + 1)
    return [framed[:, down : down + side, right : right + side] for down in moves for right in moves]


def test_none_changes_nothing_and_a_seed_repeats():
    x = images()
    assert augmented(x, "none", 3) is x
    assert torch.equal(augmented(x, "crop+flip+jitter", 3), augmented(x, "crop+flip+jitter", 3))
    assert not torch.equal(augmented(x, "crop+flip+jitter", 3), augmented(x, "crop+flip+jitter", 4))


def test_flip_turns_about_half_of_the_images():
    x = images()
    turned = [torch.equal(new, old.flip(-1)) for new, old in zip(
        augmented(x, "flip", 0).flatten(0, 1), x.flatten(0, 1), strict=True)]  # fmt: skip
    same = [torch.equal(new, old) for new, old in zip(
        augmented(x, "flip", 0).flatten(0, 1), x.flatten(0, 1), strict=True)]  # fmt: skip
    assert all(one != other for one, other in zip(turned, same, strict=True))
    assert 15 < sum(turned) < 45


def test_crop_shifts_each_image_by_at_most_an_eighth():
    x = images(16)
    found = set()
    for new, old in zip(augmented(x, "crop", 0).flatten(0, 1).numpy(), x.flatten(0, 1).numpy(), strict=True):
        places = [place for place, moved in enumerate(shifts(old, 2)) if np.array_equal(moved, new)]
        assert len(places) == 1
        found |= set(places)
    assert len(found) > 15, "of 25 shifts"


def test_jitter_multiplies_brightness_within_its_bounds_and_stays_in_range():
    grey = torch.full((1, 200, 3, 4, 4), 0.4)  # without contrast and colour, only brightness shows
    new = augmented(grey, "jitter", 0)
    factors = new.flatten(2).mean(-1) / 0.4
    assert float(new.flatten(2).std(-1).max()) < 1e-6
    assert 1 - JITTER <= float(factors.min()) < 0.7
    assert 1.3 < float(factors.max()) <= 1 + JITTER
    bright = augmented(images(), "jitter", 0)
    assert float(bright.min()) >= 0
    assert float(bright.max()) <= 1


def test_what_is_no_image_is_refused():
    with pytest.raises(BenchError, match=r"augment=flip is for images"):
        augmented(torch.rand(2, 3, 5), "flip", 0)


def bank():
    pixels = np.repeat(np.arange(12, dtype=np.uint8), 10).reshape(-1, 1, 1, 1)  # an image shows its class
    return ImageBank("bank", torch.from_numpy(np.broadcast_to(pixels, (120, 1, 4, 4)).copy()), [10] * 12,
                     [f"class {number}" for number in range(12)], "f")  # fmt: skip


def spec_of(learner, tasks=8):
    return SimpleNamespace(learner=learner, spec=SimpleNamespace(seed=0, tasks_per_step=tasks))


@pytest.mark.parametrize(("whole", "tasks", "parts"), [(False, 8, 8), (False, 7, 5), (True, 8, 1)])
def test_a_batch_of_base_classes_has_all_its_images_in_equal_parts_with_their_labels(whole, tasks, parts):
    batch = training_tasks(bank(), spec_of(Baseline(), tasks), SETTING, 1, 40, whole=whole)
    assert batch.query.y.shape == (parts, 40 // parts)
    assert batch.support.x.shape[:2] == (parts, 0)
    shown = (batch.query.x[..., 0, 0, 0] * 255).round().long()
    assert torch.equal(shown, batch.query.y)
    assert batch.query.y.unique().numel() > 5


def test_tasks_of_meta_training_have_the_shape_of_the_learners_options():
    learner = ProtoNet(train_way=7, train_shot=2)
    tasks = training_tasks(bank(), spec_of(learner), SETTING, 1)
    assert (tasks.support.y.shape, tasks.query.y.shape) == ((8, 14), (8, 21))
    assert tasks.query.y.max() == 6


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0.1]), ("step", [1, 0.1, 0.01]),
     ("cosine", [1, 0.5, 0.5 * (1 + math.cos(0.9 * math.pi))])],
)  # fmt: skip
def test_rates_follow_the_schedule(schedule, expected):
    learner = MAML(schedule=schedule)
    assert [learner.rate_factor(progress) for progress in (0.0, 0.5, 0.9)] == pytest.approx(expected)


def test_the_meta_optimiser_is_nesterovs_with_momentum():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = MAML(optimizer="sgd", meta_lr=0.1, momentum=0.9, weight_decay=0.5).make_optimizer({"w": weight})
    w, v = 1.0, 0.0
    for gradient in (2.0, -1.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        decayed = gradient + 0.5 * w
        v = decayed if v == 0 else 0.9 * v + decayed
        w -= 0.1 * (decayed + 0.9 * v)
    assert float(weight.detach()) == pytest.approx(w, abs=1e-6)
