"""Grids: every cell once, and what cannot run is refused before any training."""

from __future__ import annotations

import pytest
import torch

from robustbench_meta.contracts import Setting
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.checkpoints import Trained, checkpoint_bytes, weights_of
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.spec import PluginSpec, RunSpec
from robustbench_meta.options import exact
from tests.helpers.miniature import paint


def grid(registry, **given):
    return build_grid(RunSpec.read(**{"profile": "smoke", "learners": ("maml",), **given}), registry, None)


def told(registry, **given):
    with pytest.raises(BenchError) as caught:
        grid(registry, **given)
    return str(caught.value)


def test_one_folder_is_one_data_set_however_it_is_typed(registry, tmp_path, monkeypatch):
    for name in "abcdefghi":
        for number in range(8):
            paint(tmp_path / "root" / "mine" / name / f"{number}.png", (ord(name), number), (8, 8))
    (tmp_path / "link").symlink_to(tmp_path / "root" / "mine")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "root")
    monkeypatch.setenv("ROBUSTBENCH_META_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def keys(path):
        found = grid(registry, dataset=f"image-folder:path={path},size=8", way=2, query=1)
        assert found.labels["dataset"] == "image-folder:path=mine,size=8"
        return [cell.key for cell in found.cells]

    typed = [
        "mine/",
        "./root/mine",
        "root//mine/.",
        tmp_path / "root" / "mine",
        "link",
        "~/root/mine",
        "elsewhere/mine",
    ]
    for path in typed:
        assert keys(path) == keys("mine"), path


@pytest.mark.parametrize(
    ("once", "twice"),
    [
        ({"attacks": ("fgsm", "pgd")}, {"attacks": ("fgsm", "fgsm:eps=0.1", "pgd", "pgd:steps=20")}),
        ({"learners": ("maml",)}, {"learners": ("maml", "maml:alpha=0.4", "maml:alpha=2/5")}),
        ({"attacks": ("none",)}, {"attacks": ("none", "none:eps=0.2"), "seeds": (0, 0)}),
    ],
)
def test_what_is_typed_in_two_ways_is_one_cell(registry, once, twice):
    expected, found = grid(registry, **once), grid(registry, **twice)
    assert [cell.key for cell in found.cells] == [cell.key for cell in expected.cells]
    assert [each.key for each in found.trainings] == [each.key for each in expected.trainings]
    assert len({cell.key for cell in found.cells}) == len(found.cells)


def test_a_run_without_cells_tells_how_to_get_the_clean_accuracy(registry):
    assert "use --attack none" in told(registry, attacks=("fgsm",), scenarios=("clean/clean",))
    assert len(grid(registry, attacks=("none",), scenarios=("adv/adv",)).cells) == 1


# -- ε ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "eps", "reason"),
    [
        ("onepixel", "0.1", "a whole number, 1 or more"),
        ("onepixel", "1.5", "a whole number, 1 or more"),
        ("onepixel", "0", "a whole number, 1 or more"),
        ("jsma", "1", "2 or more"),
        ("multiattack:attacks=jsma+onepixel", "1", "2 or more"),
        ("fgsm", "8", "did you mean 8/255?"),
    ],
)
def test_an_eps_that_the_attack_cannot_have_is_refused(registry, attack, eps, reason):
    for given in (
        {"attacks": (attack,), "eps": (eps,)},
        {"attacks": (f"{attack}{',' if ':' in attack else ':'}eps={eps}",)},
    ):
        message = told(registry, **given)
        assert f"eps {eps} for attack '{attack}'" in message
        assert reason in message


def test_whole_pixels_are_fine(registry):
    assert [cell.eps for cell in grid(registry, attacks=("onepixel", "jsma"), eps=("3",)).cells] == ["3", "3"]
    assert [cell.eps for cell in grid(registry, attacks=("onepixel", "jsma")).cells] == ["1", "50"]


def test_one_eps_is_never_given_to_attacks_of_several_norms(registry):
    message = told(registry, attacks=("none", "pgd", "pgdl2:steps=3"), eps=("0.1", "0.2"))
    assert "pgd (linf), pgdl2:steps=3 (l2)" in message
    assert "--attack pgdl2:steps=3,eps=" in message
    apart = grid(registry, attacks=("none", "pgd", "pgdl2:eps=1.5"), eps=("0.1",))
    assert [cell.eps for cell in apart.cells] == ["0", "0.1", "1.5"]
    assert len(grid(registry, attacks=("none", "pgd", "pgdl2", "onepixel")).cells) == 4, "each has its default"


@pytest.mark.parametrize(
    "learner",
    ["adml:train_eps=8", "aq:train_eps=8", "adml:train_attack=pgd:eps=8", "adml:train_attack=onepixel,train_eps=0.1"],
)
def test_a_training_attacks_eps_is_checked_as_any_other(registry, learner):
    message = told(registry, learners=(learner,), attacks=("none",))
    assert "for training attack '" in message
    assert "did you mean 8/255?" in message or "whole number" in message


@pytest.mark.parametrize(
    "learner", ["adml:train_attack=pgd:steps=2;eps=8/255", "adml:train_attack=pgd:steps=2,train_eps=8/255"]
)
def test_a_training_attack_may_be_given_its_eps_in_two_ways(registry, learner):
    threat = grid(registry, learners=(learner,), attacks=("none",)).trainings[0].attack
    assert (threat.label, threat.eps.text, threat.spec.eps) == ("pgd:steps=2", "8/255", 8 / 255)


def test_but_not_in_both(registry):
    message = told(registry, learners=("adml:train_attack=pgd:eps=0.05,train_eps=8/255",), attacks=("none",))
    assert "two eps for its training attack: 0.05 in 'pgd:eps=0.05', and 8/255" in message


# -- conv4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "options"),
    [
        (16, {"width": 8}),
        (4, {"width": 8}),
        (16, {"width": 6, "groups": 6}),
        (16, {"width": 3, "groups": 3}),
        (16, {"width": 2}),
        (16, {"width": 4, "pool": "max"}),
    ],
)
def test_group_norm_never_normalises_a_single_number(registry, side, options):
    """Else the features are the same for every image, and accuracy is exactly chance."""
    net = registry.make("backbone", "conv4", options)
    assert net.obstacle(Setting((1, side, side), 5, 1, 3, "cross_entropy", False)) is None
    torch.manual_seed(0)
    features = net.build((1, side, side), None)(torch.rand(64, 1, side, side))
    assert features.std(0).max() > 0.01


@pytest.mark.parametrize(("side", "width", "groups"), [(28, 32, 8), (28, 8, 8), (16, 32, 8), (84, 64, 8)])
def test_other_sizes_keep_the_groups_that_were_asked_for(registry, side, width, groups):
    net = registry.make("backbone", "conv4", {"width": width}).build((1, side, side), 5)
    assert {layer.num_groups for layer in net if isinstance(layer, torch.nn.GroupNorm)} == {groups}


def test_a_single_channel_on_a_single_place_is_refused(registry):
    for norm, refused in [("group", True), ("layer", True), ("batch", False), ("none", False)]:
        net = registry.make("backbone", "conv4", {"width": 1, "norm": norm})
        reason = net.obstacle(Setting((1, 16, 16), 5, 1, 3, "cross_entropy", False))
        assert (reason is not None) == refused
        assert net.obstacle(Setting((1, 28, 28), 5, 1, 3, "cross_entropy", False)) is None


# -- labels and identity ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234567, "0.1234567"),
        (0.1234568, "0.1234568"),
        (0.4, "0.4"),
        (2.0, "2"),
        (8 / 255, "8/255"),
        (0.0, "0"),
        (1e-5, "1e-05"),
    ],
)
def test_numbers_in_labels_are_exact(value, text):
    assert exact(value) == text
    assert PluginSpec(name="a", options={"x": value}, code="").label({}) == f"a:x={text}"


def test_a_ratio_of_train_eps_stays_one_in_the_label(registry):
    assert grid(registry, learners=("adml:train_eps=8/255",)).trainings[0].label == "adml:train_eps=8/255"


def test_identity_tells_the_code_and_torch(registry):
    spec = grid(registry).trainings[0].spec
    assert spec.code.startswith("sha256:")
    assert spec.code.endswith(f"torch=={torch.__version__.partition('+')[0]}")
    assert "sha256:" in spec.learner.code
    assert "torchattacks==" in registry.origin("attack", "cw").identity


# -- profiles --------------------------------------------------------------------------------------


def test_a_profile_sets_options_of_the_data_set_that_were_not_typed(registry):
    from robustbench_meta.experiment.attack_grid import resolve_plugin
    from robustbench_meta.options import parse_choice

    def label(kind, text):
        return resolve_plugin(registry, kind, parse_choice(text), "paper")[2]

    assert label("dataset", "omniglot") == "omniglot:rotations=true"
    assert label("dataset", "omniglot:rotations=false") == "omniglot"
    assert label("dataset", "glyphs") == "glyphs"
    assert label("backbone", "conv4") == "conv4:norm=batch"
    assert label("backbone", "conv4:norm=group") == "conv4"
    found = grid(registry, profile="paper", attacks=("none",))
    assert found.setting.transductive


def test_an_eps_that_no_attack_takes_is_told(registry):
    for attacks in (("none",), ("pgd:eps=0.05",)):
        grid = build_grid(RunSpec.read(profile="smoke", attacks=attacks, eps=("0.1",)), registry, None)
        assert "--eps 0.1 is for no attack of this run" in grid.notes
    grid = build_grid(RunSpec.read(profile="smoke", attacks=("fgsm", "pgd:eps=0.05"), eps=("0.1",)), registry, None)
    assert not [note for note in grid.notes if "no attack" in note]


# -- scenarios, surrogates and sweeps --------------------------------------------------------------


def scenarios(found):
    return [(cell.attack, f"{cell.support}/{cell.query}") for cell in found.cells]


def test_what_cannot_poison_or_transfer_is_left_out_with_a_note(registry):
    found = grid(registry, attacks=("fgsm", "square"), scenarios=("all",))
    logits = ["clean/adv", "adv/clean", "adv/adv"]
    names = [*logits, "poisoned/clean", "poisoned/adv", "asp/clean", "swap/clean"]
    assert scenarios(found) == [("fgsm", name) for name in names] + [("square", name) for name in [*logits, names[-1]]]
    notes = " ".join(found.notes)
    assert "square on maml in poisoned/clean is left out: it asks for logits" in notes
    assert "left out: there is no --surrogate" in notes
    assert "use --query 2" in told(registry, attacks=("fgsm",), scenarios=("swap/clean",), query=1)
    assert "nothing to run" in told(registry, attacks=("fgsm",), scenarios=("clean/certified",))
    assert "left out" in told(registry, attacks=("square",), scenarios=("poisoned/clean",))


def test_transfer_needs_a_surrogate_and_a_surrogate_its_scenario(registry):
    assert "add --surrogate maml" in told(registry, attacks=("fgsm",), scenarios=("clean/transfer",))
    assert "add --scenario clean/transfer" in told(registry, attacks=("fgsm",), surrogate="maml")
    assert "did you mean" in told(registry, attacks=("fgsm",), scenarios=("clean/transfer",), surrogate="mamll")


def test_a_surrogate_is_trained_as_the_learner_of_that_name_would_be_and_is_not_its_own(registry):
    found = grid(registry, learners=("maml", "protonet"), attacks=("fgsm",), scenarios=("clean/transfer",),
                 surrogate="maml", seeds=(0, 1))  # fmt: skip
    assert [(cell.learner, cell.seed) for cell in found.cells] == [("protonet", 0), ("protonet", 1)]
    own = {each.spec.seed: each.key for each in found.trainings if each.label == "maml"}
    assert [cell.surrogate.key for cell in found.cells] == [own[0], own[1]]
    assert [cell.scenario.surrogate for cell in found.cells] == [own[0], own[1]]
    given = {"learners": ("protonet",), "attacks": ("fgsm",), "scenarios": ("clean/transfer",)}
    assert found.cells[0].key != grid(registry, surrogate="protonet:meta_lr=1", **given).cells[0].key


def test_several_eps_are_a_sweep_of_attacks_of_many_steps_in_the_scenarios_that_allow_it(registry):
    found = grid(registry, attacks=("fgsm", "pgd"), eps=("0:0.2:3",), scenarios=("clean/adv", "adv/adv"))
    sweeps = {(cell.attack, cell.eps, cell.support): cell.spec.attack.sweep for cell in found.cells}
    assert sweeps["pgd", "0.2", "clean"] == (0.1,)
    assert sweeps["pgd", "0.2", "adv"] == sweeps["pgd", "0.1", "clean"] == sweeps["fgsm", "0.2", "clean"] == ()
    alone = {(cell.eps, cell.support): cell.key for cell in grid(registry, attacks=("pgd",), eps=("0.2",)).cells}
    key = next(cell.key for cell in found.cells if (cell.attack, cell.eps, cell.support) == ("pgd", "0.2", "clean"))
    assert alone["0.2", "clean"] != key


def test_checks_are_part_of_what_identifies_a_row(registry):
    with_, without = (grid(registry, attacks=("fgsm",), checks=checks) for checks in (True, False))
    assert with_.probe_plan is not None
    assert without.probe_plan is None
    assert with_.cells[0].key != without.cells[0].key
    assert with_.cells[0].training.key == without.cells[0].training.key


# -- a checkpoint's file as the surrogate ----------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(registry, tmp_path_factory):
    """Of a smoke-size MAML."""
    from robustbench_meta.jobs.runner import run
    from robustbench_meta.results.store import Store

    folder = tmp_path_factory.mktemp("surrogate")
    run(grid(registry, attacks=("none",), checks=False), registry, Store(folder), torch.device("cpu"))
    return next((folder / "checkpoints").glob("*.safetensors"))


def transfer(registry, file, **given):
    return grid(registry, learners=("protonet",), attacks=("fgsm",), scenarios=("clean/transfer",),
                surrogate=str(file), **given)  # fmt: skip


def test_a_checkpoints_file_is_a_surrogate_whatever_the_backbone_of_the_run(registry, checkpoint):
    found = transfer(registry, checkpoint, backbone="conv4:width=4", seeds=(0, 1))
    assert [cell.surrogate.training.learner.name for cell in found.cells] == ["maml", "maml"]
    assert found.cells[0].surrogate.path == checkpoint
    assert found.cells[0].surrogate.training.backbone.width == 8
    assert len({cell.key for cell in found.cells}) == 2


def of_learner(name, data):
    """The same weights, as if another learner had been trained."""
    weights, about = weights_of(data)
    return checkpoint_bytes(Trained(weights), {**about, "learner": {**about["learner"], "name": name}})


@pytest.mark.parametrize(
    ("spoil", "given", "reason"),
    [
        (lambda data: data, {"way": 3}, "other tasks (it was trained 5-way)"),
        (lambda data: data[:100], {}, "damaged"),
        (lambda data: b"", {}, "damaged"),
        (lambda data: data.replace(b'"maml', b'"naml', 1), {}, "checksum does not fit"),
        (lambda data: of_learner("naml", data), {}, "unknown learner 'naml'"),
    ],
    ids=["another way", "cut off", "empty", "changed", "an unknown learner"],
)
def test_a_file_that_does_not_fit_is_refused_before_any_training(registry, checkpoint, tmp_path, spoil, given, reason):
    file = tmp_path / "x.safetensors"
    file.write_bytes(spoil(checkpoint.read_bytes()))
    with pytest.raises(BenchError) as caught:
        transfer(registry, file, **given)
    assert reason in str(caught.value)


def test_a_surrogates_file_that_is_not_there_is_told(registry, tmp_path):
    with pytest.raises(BenchError, match="cannot be read"):
        transfer(registry, tmp_path / "none.safetensors")
