"""The contract of data sets."""

from __future__ import annotations

from functools import cached_property

import torch

from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Splits, TaskBatch, TaskSource, check_disjoint_classes
from robustbench_meta.errors import BenchError, DataError
from robustbench_meta.options import parse_choice
from robustbench_meta.runtime.seeds import seed_all
from robustbench_meta.testing.contract import Broken, Contract, clause, expect


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

    @clause(after=(Contract.declares,))
    def says(self) -> None:
        """Names a backbone that there is"""
        choice = parse_choice(self.plugin.backbone)
        try:
            self.registry.make("backbone", choice.name, dict(choice.options))
        except BenchError as error:
            raise Broken(str(error), "name the backbone as one would type it") from error

    @clause()
    def loads(self) -> None:
        """Loads three splits"""
        splits = self.splits
        fits = isinstance(splits, Splits) and all(isinstance(source, TaskSource) for source in splits)
        expect(fits, f"load returned {type(splits).__name__}", "return Splits(train, validation, test) of TaskSource")
        shapes = {source.shape for source in splits}
        expect(len(shapes) == 1, f"the splits have examples of several shapes: {shapes}", "bring them to one size")

    @clause(after=(loads,))
    def disjoint(self) -> None:
        """Its splits share no class"""
        try:
            check_disjoint_classes(self.splits)
        except DataError as error:
            raise Broken(str(error), "give each class to one split") from error

    @clause(after=(loads,))
    def shapes(self) -> None:
        """Gives images in [0, 1] and labels below the way, in the shapes of the contract"""
        for source in self.splits:
            tasks = source.sample([0, 1], self.way, 2, 1, 2)
            for what, (x, y), each in (("support", tasks.support, 2), ("query", tasks.query, 1)):
                where, expected = f"{source.name}: {what}", (4, self.way * each)
                shapes, types = (tuple(x.shape), tuple(y.shape)), (x.dtype, y.dtype)
                remedy = f"give x {(*expected, *source.shape)} and y {expected} for 2 seeds of 2 tasks"
                expect(shapes == ((*expected, *source.shape), expected), f"{where} has the shapes {shapes}", remedy)
                expect(types == (torch.float32, torch.int64), f"{where} is of {types}", "give x float32 and y int64")
                low, high = float(x.min()), float(x.max())
                expect(low >= 0 and high <= 1, f"{where} images lie in [{low:.3g}, {high:.3g}]", "scale them to [0, 1]")
                labels = int(y.min()), int(y.max())
                expect(labels[0] >= 0 and labels[1] < self.way, f"{where} labels lie in {labels}", "0 … way − 1")

    @clause(after=(shapes,))
    def repeats(self) -> None:
        """Draws the same tasks from the same seeds, and other ones from others"""
        remedy = "draw from a generator that is made of the seed: np.random.Generator(np.random.Philox(seed))"
        for source in self.splits:
            drawn = []
            for seed in (0, 1):
                seed_all(seed)
                drawn.append(self.draw(source, 7, 8))
            alone = self.draw(source, 8)
            expect(_same(*drawn), f"{source.name}: seed 7 gave two different tasks", remedy)
            expect(_same(alone, drawn[0].part(slice(1, 2))), f"{source.name}: seed 8 alone differs", remedy)
            distinct = {self.draw(source, seed).query.x.sum().item() for seed in range(6)}
            expect(len(distinct) > 1, f"{source.name}: six seeds gave one and the same task", remedy)

    @clause(after=(repeats,))
    def shuffles(self) -> None:
        """Gives queries in an order that does not tell their class"""
        for source in self.splits:
            labels = self.draw(source, *range(10), each=3).query.y
            expect(
                self.way == 1 or not torch.equal(labels, labels[:1].expand_as(labels)),
                f"{source.name}: the queries of all of 30 tasks have the labels {labels[0].tolist()}",
                "shuffle each task's queries, by its seed: a learner could read the labels from their places",
            )

    @clause(after=(loads,))
    def refuses(self) -> None:
        """Refuses tasks that it cannot give, with DataError"""
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

    @clause(after=(repeats,))
    def fingerprints(self) -> None:
        """Has a fingerprint that only other data change"""
        for source, again in zip(self.splits, self.plugin.load(self.data_root), strict=True):
            mark, twice = source.fingerprint, f"{source.name}: loaded twice, the"
            expect(isinstance(mark, str) and bool(mark), f"{source.name}: fingerprint is {mark!r}", "a text, not empty")
            remedy = "make it of the data, or of all that decides them"
            expect(again.fingerprint == mark, f"{twice} fingerprint was {mark}, then {again.fingerprint}", remedy)
            same = _same(self.draw(source, 3), self.draw(again, 3))
            expect(same, f"{twice} data differ", "make loading repeatable")
        marks = {source.fingerprint for source in self.splits}
        expect(len(marks) == 3, "two splits have one fingerprint", "they are other data: tell them apart")

    @clause(after=(repeats,))
    def moves(self) -> None:
        """Is the same on another device"""
        for source in self.splits:
            moved = source.to(torch.device("cpu"))  # as far as a CPU can tell
            same = _same(self.draw(source, 5), self.draw(moved, 5)) and moved.fingerprint == source.fingerprint
            expect(same, f"{source.name}.to(cpu) gives other tasks", "let `to` move the data and nothing else")


def _same(found: TaskBatch, expected: TaskBatch) -> bool:
    pairs = [(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
