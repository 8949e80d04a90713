"""Takes the pictures of a record: some images of the first test episode, as the attack that was judged left them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.evaluation.episode_evaluator import EpisodeEvaluator
from robustbench_meta.evaluation.gallery import MOST, png
from robustbench_meta.experiment.scenario import Scenario

ROOM = 200_000
"""Values (channels × height × width) of all images of a gallery; of large images there are fewer."""
_GREY = 128
_SMALLEST = 1e-5
"""The largest change that fills a difference image's range is not below this: rounding stays grey."""
Example = dict[str, Any]
"""A gallery, its images still tensors [channels, height, width] of 8 bits."""


def can_be_shown(shape: Sequence[int]) -> bool:
    """Whether examples of that shape are images that a gallery has room for."""
    return len(shape) == 3 and shape[0] in {1, 3} and torch.Size(shape).numel() <= ROOM


def example_of(episode_evaluator: EpisodeEvaluator, scenario: Scenario) -> Example | None:
    """Pictures of the evaluator's first episode under a scenario that was held; None where there is nothing to see.

    Queries are shown whatever is attacked; support images where the scenario attacks them.
    """
    query, support = (_first(batch) for batch in (episode_evaluator.tasks.query, episode_evaluator.tasks.support))
    shape = query.x.shape[1:]
    if not can_be_shown(shape) or (scenario.query is None and scenario.support is None):
        return None
    if scenario.query is not None and scenario.query.attack.certifies:
        return None
    held = episode_evaluator.evaluate(scenario)
    images = (3 if held.query is not None else 1) + (3 if held.support is not None else 0)
    count = max(1, min(MOST, ROOM // (shape.numel() * images)))
    answers = [_answers(logits, query.y) for logits in (episode_evaluator.logits[0], held.logits[0])]
    pictures = [
        {**_picture("query", query, held.query, index), "before": answers[0][index], "after": answers[1][index]}
        for index in _one_a_class(query.y, count)
    ]
    if held.support is not None:
        pictures += [
            {**_picture("support", support, held.support, index), "before": None, "after": None}
            for index in _one_a_class(support.y, count)
        ]
    return {"episode": 0, "shape": list(shape), "pictures": pictures}


def encoded(example: Example) -> dict[str, Any]:
    """The gallery as a record holds it."""

    def plain(value: Any) -> Any:
        return png(value.numpy()) if isinstance(value, Tensor) else value

    pictures = [{name: plain(value) for name, value in picture.items()} for picture in example["pictures"]]
    return {**example, "pictures": pictures}


def _first(batch: Batch) -> Batch:
    return Batch(batch.x[0].cpu(), batch.y[0].cpu())


def _one_a_class(y: Tensor, count: int) -> list[int]:
    """Places of so many examples: the first of each class, then the second of each, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for place, label in enumerate(y.tolist()):
        turns.append((seen.get(label, 0), label, place))
        seen[label] = seen.get(label, 0) + 1
    return [place for _, _, place in sorted(turns)[:count]]


def _picture(role: str, batch: Batch, found: Tensor | None, index: int) -> dict[str, Any]:
    clean = batch.x[index].double()
    told = {
        "role": role, "index": index, "label": int(batch.y[index]), "clean": _bytes(255 * clean), "adversarial": None,
        "difference": None, "linf": 0.0, "l2": 0.0,
    }  # fmt: skip
    if found is None:
        return told
    adversarial = found[0, index].cpu().double()
    change = adversarial - clean
    largest = float(change.abs().max())
    return told | {
        "adversarial": _bytes(255 * adversarial),
        "difference": _bytes(_GREY + (_GREY - 1) * change / max(largest, _SMALLEST)),
        "linf": largest,
        "l2": float(change.square().sum().sqrt()),
    }


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _answers(logits: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """What the model says of each query, from its logits [queries, way]."""
    shares = logits.cpu().double().softmax(-1)
    return [
        {"predicted": predicted, "confidence": float(row[predicted]), "of_label": float(row[label])}
        for row, predicted, label in zip(shares, logits.argmax(-1).tolist(), y.tolist(), strict=True)
    ]
