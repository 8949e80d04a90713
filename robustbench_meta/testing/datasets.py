"""The contract of data sets."""

from __future__ import annotations

from functools import cached_property

import torch

from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Splits, TaskBatch, TaskSource, check_disjoint_classes
from robustbench_meta.errors import BenchError, DataError
from robustbench_meta.options import parse_choice
from robustbench_meta.runtime.seeds import seed_all
from robustbench_meta.testing.contract import DECLARES, Broken, Contract, clause, expect

_LOADS = "loads three splits"
_REPEATS = "draws the same tasks from the same seeds, and other ones from others"
_SHAPES = "gives images in [0, 1] and labels below the way, in the shapes of the contract"


class DatasetContract(Contract):
    """Of a data set: three splits that share no class, from which seeds draw tasks."""

    kind = "dataset"
    plugin: Dataset

    @cached_property
    def splits(self) -> Splits:
        """Loaded once."""
        return self.plugin.load(self.data_root)

    @cached_property
    def way(self) -> int:
        """The way of the tasks to draw."""
        return self.plugin.way or min(5, *(len(source.classes) for source in self.splits))

    def draw(self, source: TaskSource, *seeds: int, each: int = 1) -> TaskBatch:
        """Tasks of one support and one query image a class."""
        return source.sample(seeds, self.way, 1, 1, each)

    @clause("names a backbone that there is", after=(DECLARES,))
    def says(self) -> None:
        """The answer of `backbone`."""
        choice = parse_choice(self.plugin.backbone)
        try:
            self.registry.make("backbone", choice.name, dict(choice.options))
        except BenchError as error:
            raise Broken(str(error), "name the backbone as one would type it") from error

    @clause(_LOADS)
    def loads(self) -> None:
        """Train, validation and test, of one shape."""
        splits = self.splits
        fits = isinstance(splits, Splits) and all(isinstance(source, TaskSource) for source in splits)
        expect(fits, f"load returned {type(splits).__name__}", "return Splits(train, validation, test) of TaskSource")
        shapes = {source.shape for source in splits}
        expect(len(shapes) == 1, f"the splits have examples of several shapes: {shapes}", "bring them to one size")

    @clause("its splits share no class", after=(_LOADS,))
    def disjoint(self) -> None:
        """By name."""
        try:
            check_disjoint_classes(self.splits)
        except DataError as error:
            raise Broken(str(error), "give each class to one split") from error

    @clause(_SHAPES, after=(_LOADS,))
    def shapes(self) -> None:
        """Images [tasks, way·each, *shape] in float32, labels [tasks, way·each]."""
        for source in self.splits:
            tasks = source.sample([0, 1], self.way, 2, 1, 2)
            for what, (x, y), each in (("support", tasks.support, 2), ("query", tasks.query, 1)):
                where, expected = f"{source.name}: {what}", (4, self.way * each)
                shapes = tuple(x.shape), tuple(y.shape)
                expect(
                    shapes == ((*expected, *source.shape), expected), f"{where} has the shapes {shapes}",
                    f"give x {(*expected, *source.shape)} and y {expected} for 2 seeds of 2 tasks",
                )  # fmt: skip
                types = x.dtype, y.dtype
                expect(types == (torch.float32, torch.int64), f"{where} is of {types}", "give x float32 and y int64")
                low, high = float(x.min()), float(x.max())
                expect(low >= 0 and high <= 1, f"{where} images lie in [{low:.3g}, {high:.3g}]", "scale them to [0, 1]")
                labels = int(y.min()), int(y.max())
                expect(labels[0] >= 0 and labels[1] < self.way, f"{where} labels lie in {labels}", "0 … way − 1")

    @clause(_REPEATS, after=(_SHAPES,))
    def repeats(self) -> None:
        """Whatever the global generators are at, and whichever seeds come along."""
        for source in self.splits:
            found = []
            for seed in (0, 1):
                seed_all(seed)
                found.append(self.draw(source, 7, 8))
            remedy = "draw from a generator that is made of the seed: np.random.Generator(np.random.Philox(seed))"
            expect(_same(*found), f"{source.name}: seed 7 gave two different tasks", remedy)
            expect(
                _same(self.draw(source, 8), found[0].part(slice(1, 2))), f"{source.name}: seed 8 alone differs", remedy
            )
            distinct = {self.draw(source, seed).query.x.sum().item() for seed in range(6)}
            expect(len(distinct) > 1, f"{source.name}: six seeds gave one and the same task", remedy)

    @clause("gives queries in an order that does not tell their class", after=(_REPEATS,))
    def shuffles(self) -> None:
        """Labels of 30 tasks: a source that sorts gives the same row every time."""
        for source in self.splits:
            labels = self.draw(source, *range(10), each=3).query.y
            expect(
                self.way == 1 or not torch.equal(labels, labels[:1].expand_as(labels)),
                f"{source.name}: the queries of all of 30 tasks have the labels {labels[0].tolist()}",
                "shuffle each task's queries, by its seed: a learner could read the labels from their places",
            )  # fmt: skip

    @clause("refuses tasks that it cannot give, with DataError", after=(_LOADS,))
    def refuses(self) -> None:
        """Too many classes, or none; and nothing that it can give."""
        for source in self.splits:
            for way, shot, query in ((10**7, 1, 1), (0, 1, 1), (self.way, 0, 1), (self.way, 1, 0)):
                asked = f"{source.name}: check(way={way}, shot={shot}, query={query})"
                try:
                    source.check(way, shot, query)
                except DataError:
                    continue
                except Exception as error:
                    raise Broken(f"{asked} raised {type(error).__name__}: {error}", "raise DataError") from error
                raise Broken(f"{asked} refused nothing", "raise DataError with what there is and what to do")
            source.check(self.way, 1, 1)

    @clause("has a fingerprint that only other data change", after=(_REPEATS,))
    def fingerprints(self) -> None:
        """Loading again gives the same data under the same fingerprint."""
        for source, again in zip(self.splits, self.plugin.load(self.data_root), strict=True):
            mark = source.fingerprint
            expect(isinstance(mark, str) and bool(mark), f"{source.name}: fingerprint is {mark!r}", "a text, not empty")
            expect(
                again.fingerprint == mark,
                f"{source.name}: loaded twice, the fingerprint was {mark}, then {again.fingerprint}",
                "make it of the data, or of all that decides them",
            )  # fmt: skip
            expect(
                _same(self.draw(source, 3), self.draw(again, 3)),
                f"{source.name}: loaded twice, the data differ",
                "make loading repeatable",
            )
        marks = {source.fingerprint for source in self.splits}
        expect(len(marks) == 3, "two splits have one fingerprint", "they are other data: tell them apart")

    @clause("is the same on another device", after=(_REPEATS,))
    def moves(self) -> None:
        """As far as a CPU can tell."""
        for source in self.splits:
            moved = source.to(torch.device("cpu"))
            same = _same(self.draw(source, 5), self.draw(moved, 5)) and moved.fingerprint == source.fingerprint
            expect(same, f"{source.name}.to(cpu) gives other tasks", "let `to` move the data and nothing else")


def _same(found: TaskBatch, expected: TaskBatch) -> bool:
    pairs = [(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
