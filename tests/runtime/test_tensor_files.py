"""What is kept of weights, of trainings and of evaluations: bit for bit, or told to be damaged."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.engine.query_counter import QueryCount
from robustbench_meta.engine.training_snapshots import TrainingState, read_state, state_bytes
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.evaluation.model_checks import Observation
from robustbench_meta.evaluation.partial_results import (
    ChunkResult,
    PartialResult,
    ScenarioResult,
    part_bytes,
    read_part,
)
from robustbench_meta.experiment.checkpoints import (
    Trained,
    check_checkpoint,
    checkpoint_bytes,
    read_checkpoint,
    weights_of,
)
from robustbench_meta.runtime import tensor_files
from robustbench_meta.runtime.atomic_files import read_bytes
from robustbench_meta.runtime.digest import digest_of

CPU = torch.device("cpu")
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
]  # fmt: skip
WEIRD = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1.5, 3.0])


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).tolist())


def same(one, other) -> bool:
    """Whether two trees agree in kinds, order, shapes and every bit; tuples count as lists."""
    if isinstance(one, Tensor):
        alike = isinstance(other, Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return alike and bits(one) == bits(other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return isinstance(other, float) and one.hex() == other.hex()
    return type(one) is type(other) and one == other


def in_order(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By name: safetensors keeps no order."""
    return dict(sorted(weights.items()))


def each_field(one, other) -> bool:
    """Whether two dataclasses agree in all fields."""
    return all(same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))


tensors = arrays("float32", array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)).flatmap(
    lambda values: st.sampled_from(DTYPES).map(lambda kind: torch.from_numpy(values.copy()).to(kind))
)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=5) | st.sampled_from(["tensor", "dict"]), inner, max_size=3
    ), max_leaves=8,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@given(tree=trees)
@settings(deadline=None, max_examples=150)
def test_any_tree_of_plain_data_and_tensors_comes_back_bit_for_bit(tree):
    assert same(tree, tensor_files.restore("kind", tensor_files.dump("kind", tree)))


def test_strides_shared_memory_and_gradients_make_no_difference():
    whole = torch.arange(12.0, requires_grad=True)
    tree = [whole, whole[3:6], whole.reshape(3, 4).T, whole[::2], whole[0].expand(4), whole[0].expand(1), whole[5:5]]
    assert same([each.detach() for each in tree], tensor_files.restore("kind", tensor_files.dump("kind", tree)))


def test_bytes_of_another_kind_and_what_is_no_plain_data_are_refused():
    with pytest.raises(StorageError, match="it is a apple, not a pear"):
        tensor_files.restore("pear", tensor_files.dump("apple", {}))
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        tensor_files.dump("kind", {"it": {1}})


ABOUT = {"learner": {"name": "maml"}, "seed": 0}
KEY = digest_of(ABOUT)


def trained() -> Trained:
    weights = {"body.weight": WEIRD.reshape(2, 4), "body.bias": torch.tensor(0.5), "head": torch.empty(0, 3)}
    history = [{"loss": 1.25, "step": 5.0, "validation_accuracy": math.nan}]
    return Trained(weights, 1.5, 5, {"chunk": 2, "own": "loop"}, history, 2**40)


def state() -> TrainingState:
    """After two steps of Adam on a small module."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    judged = QueryMetrics(torch.tensor(3.25, dtype=torch.float64), torch.tensor(1.5), 4)
    weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    return TrainingState(2, weights, optimizer.state_dict(), trained(), judged, Plan(chunk=3, few=2), "cpu")


def chunk() -> ChunkResult:
    return ChunkResult(
        "006e6f746564ff",
        torch.eye(3, dtype=torch.bool),
        {
            "a" * 16: ScenarioResult(
                torch.eye(3, dtype=torch.bool), 0.1, effort=QueryCount(9, 180, 171),
                gallery={"episode": 0, "pictures": [{"clean": torch.eye(4, dtype=torch.uint8)[None], "linf": 0.1}]},
            ),
            "b" * 16: ScenarioResult(None, 0.2, "no effect: é", "too much"),
            "c" * 16: ScenarioResult(None, 0.0, torch.tensor([0.5, math.nan], dtype=torch.float64), None),
        },
        {"probe": ScenarioResult(torch.zeros(3, 0, dtype=torch.bool), 7.0)},
        Observation(9, 1, 2, 1e-7, 0.25),
        {"noise": Observation(9, 4, 2, 1e-6, 0.5)},
        0.3, 4, 0.5,
    )  # fmt: skip


def read_state_(data: bytes) -> dict:
    found = read_state(data, KEY, CPU)
    return {
        **vars(found), "plan": vars(found.plan), "judged": vars(found.judged), "trained": vars(found.trained),
        "optimizer": {**found.optimizer, "state": list(map(list, found.optimizer["state"].items()))},
    }  # fmt: skip


def part() -> PartialResult:
    return PartialResult([chunk(), ChunkResult("")], {"chunk": 3}, "cpu (some)", 2**33)


KINDS = {
    "checkpoint": (
        checkpoint_bytes(trained(), ABOUT),
        lambda data: vars(read_checkpoint(data, trained().weights, KEY)),
    ),
    "state": (state_bytes(state(), KEY), read_state_),
    "part": (part_bytes(part(), KEY, ["a" * 16]), lambda data: asdict(read_part(data, KEY))),
}


def test_a_checkpoint_comes_back_bit_for_bit():
    data = checkpoint_bytes(trained(), ABOUT)
    found = read_checkpoint(data, trained().weights, KEY)
    assert list(found.weights) == list(trained().weights), "the order of the weights that it is for"
    assert each_field(trained(), found)
    weights, about = weights_of(data)
    assert same(in_order(trained().weights), in_order(weights))
    assert about == ABOUT


def test_a_checkpoint_takes_the_dtype_of_the_weights_that_it_is_for():
    like = {name: weight.double() for name, weight in reversed(trained().weights.items())}
    found = read_checkpoint(checkpoint_bytes(trained(), ABOUT), like)
    assert same(like, found.weights)


def test_weights_that_share_memory_are_kept():
    whole = torch.arange(4.0)
    shared = {"one": whole, "same": whole, "view": whole[1:], "other": whole[:2]}
    assert same(in_order(shared), in_order(weights_of(checkpoint_bytes(Trained(shared), ABOUT))[0]))


@pytest.mark.parametrize(
    "like", [{"head": torch.empty(0, 3)}, {**trained().weights, "body.bias": torch.zeros(1)}], ids=["names", "shapes"]
)
def test_a_checkpoint_of_other_weights_is_refused_but_not_as_damaged(like):
    with pytest.raises(BenchError, match="weights of other names or shapes") as caught:
        read_checkpoint(checkpoint_bytes(trained(), ABOUT), like, KEY)
    assert not isinstance(caught.value, StorageError)


def test_an_optimiser_goes_on_from_the_state_that_was_kept_as_if_nothing_had_been():
    kept = read_state(state_bytes(state(), KEY), KEY, CPU)
    ends = []
    for begun in (state(), kept):
        weights = [weight.clone().requires_grad_() for weight in begun.weights.values()]
        optimizer = torch.optim.Adam(weights, lr=9.0)
        optimizer.load_state_dict(begun.optimizer)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.sin(weight.detach())
            optimizer.step()
        ends.append(weights)
    assert same(*ends)
    assert (kept.step, kept.plan) == (2, Plan(chunk=3, few=2))
    assert each_field(kept.trained, trained())
    assert each_field(kept.judged, state().judged)


def test_a_part_comes_back_bit_for_bit_with_its_failures():
    back = read_part(part_bytes(part(), KEY, ["a" * 16]), KEY)
    assert (back.plan, back.device, back.peak_memory) == ({"chunk": 3}, "cpu (some)", 2**33)
    [one, empty] = back.chunks
    assert empty == ChunkResult("")
    assert (one.episodes, one.observation, one.noisy) == (chunk().episodes, chunk().observation, chunk().noisy)
    assert (one.adapt_seconds, one.adapted_tasks, one.check_seconds) == (0.3, 4, 0.5)
    assert same(one.clean, chunk().clean)
    failed = one.cells["b" * 16]
    assert [failed.effect, failed.failure] == ["no effect: é", "too much"]
    for key in ("a" * 16, "c" * 16):
        assert each_field(one.cells[key], chunk().cells[key])
    assert each_field(one.probes["probe"], chunk().probes["probe"])


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), header=st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_change_of_a_byte_is_noticed_or_changes_nothing(kind, share, value, header):
    data, read = KINDS[kind]
    begin = 8 + int.from_bytes(data[:8], "little")
    where = int(share * (begin if header else len(data)))
    changed = data[:where] + bytes([data[where] ^ value]) + data[where + 1 :]
    try:
        found = read(changed)
    except StorageError:
        return
    assert where < begin, "no change of a tensor is unnoticed"
    assert same(read(data), found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_changed_bit_of_the_schema_and_of_the_checksum_is_noticed(kind):
    data, read = KINDS[kind]
    for name in (b'"checksum":"', b'"schema":"', b'"kind":"'):
        if name in data:
            for where in range(data.index(name) + 1, data.index(b'"', data.index(name) + len(name))):
                for bit in range(8):
                    changed = data[:where] + bytes([data[where] ^ 1 << bit]) + data[where + 1 :]
                    with pytest.raises(StorageError):
                        read(changed)


@pytest.mark.parametrize(("kind", "dtype", "other"), [("checkpoint", "F32", "I32"), ("state", "F32", "I32"),
                                                      ("part", "BOOL", "U8")])  # fmt: skip
def test_numbers_of_another_dtype_are_noticed(kind, dtype, other):
    data, read = KINDS[kind]
    changed = data.replace(f'"{dtype}"'.encode(), f'"{other}"'.encode().ljust(len(dtype) + 2))
    assert len(changed) == len(data)
    assert changed != data
    with pytest.raises(StorageError, match="its checksum does not fit its content"):
        read(changed)


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0, 1, exclude_max=True), junk=st.binary(max_size=64))
@settings(deadline=None, max_examples=60)
def test_what_is_cut_short_goes_on_or_is_something_else_is_damaged(kind, share, junk):
    data, read = KINDS[kind]
    other = (junk, len(junk).to_bytes(8, "little") + junk)
    for changed in (data[: int(share * len(data))], data + b"\0", data + data, *other):
        with pytest.raises(StorageError):
            read(changed)


@pytest.mark.parametrize("header", [
    b"[" * 50_000, b'{"__metadata__":' * 20_000, b'{"__metadata__":null}', b'{"__metadata__":["a"]}', b"3", b"null",
    b'{"__metadata__":{},"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}',
])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_headers_made_to_break_a_reader_are_damage(kind, header):
    _, read = KINDS[kind]
    with pytest.raises(StorageError):
        read(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize("tree", [None, 3, "text", [], {}, {"key": KEY}, {"key": KEY, "training": KEY, "portions": 3},
                                  {"training": KEY, "portions": [[0, 1, [None]]]}])  # fmt: skip
@pytest.mark.parametrize(("name", "kind"), [("state", "state of a meta-training"), ("part", "part of an evaluation")])
def test_whole_bytes_of_other_content_are_refused(name, kind, tree):
    with pytest.raises(StorageError):
        KINDS[name][1](tensor_files.dump(kind, tree))


@pytest.mark.parametrize(
    "told",
    [
        {}, {"about": "{}"}, {"about": "[", "training": "{}"}, {"about": "3", "training": "{}"},
        {"about": "{}", "training": '{"weights": 1}'}, {"about": "{}", "training": "[3]"},
        {"about": "{}", "training": '{"unheard": 1}'}, {"about": "{}", "training": "[" * 9999},
    ],
)  # fmt: skip
def test_checkpoints_that_say_nonsense_are_damaged(told):
    with pytest.raises(StorageError):
        read_checkpoint(tensor_files.save_tensors({"w": torch.zeros(1)}, told), {"w": torch.zeros(1)})
    with pytest.raises(StorageError):  # without a checksum
        read_checkpoint(save({"w": torch.zeros(1)}, told), {"w": torch.zeros(1)})


def test_what_belongs_to_another_training_is_refused():
    for check in (
        lambda: check_checkpoint(KINDS["checkpoint"][0], "0" * 16),
        lambda: read_checkpoint(KINDS["checkpoint"][0], trained().weights, "0" * 16),
        lambda: read_state(KINDS["state"][0], "0" * 16, CPU),
        lambda: read_part(KINDS["part"][0], "0" * 16),
    ):
        with pytest.raises(StorageError, match="it is of another training than its name says"):
            check()


def test_a_new_checkpoint_is_a_plain_safetensors_file(tmp_path):
    path = tmp_path / "it.safetensors"
    path.write_bytes(checkpoint_bytes(trained(), ABOUT))
    with safe_open(path, "pt") as file:
        assert same({name: file.get_tensor(name) for name in sorted(file.keys())}, in_order(trained().weights))
        assert json.loads(file.metadata()["about"]) == ABOUT


def test_a_thing_that_cannot_be_read_is_told_from_one_that_is_not_there(tmp_path):
    (tmp_path / "progress" / "a").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot read .*: Is a directory"):
        read_bytes(tmp_path / "progress" / "a")
    assert read_bytes(tmp_path / "progress" / "b") is None
    assert read_bytes(tmp_path / "none" / "b") is None
