"""What is typed: plugins with options, ε, scenarios, profiles. More bad input: end_to_end/bad_inputs/table.md."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.profiles import PROFILES
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.options import (
    SCENARIOS,
    Choice,
    exact,
    parse_choice,
    parse_eps,
    parse_eps_range,
    parse_scenarios,
    plain,
)

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True)
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
values = st.text(
    st.characters(blacklist_categories=["Cs", "Cc", "Z"], blacklist_characters=","), min_size=1, max_size=12
)


@given(names, st.dictionaries(keys, values, max_size=4))
def test_a_choice_reads_back_what_it_prints(name, options):
    choice = Choice(name, options)
    assert parse_choice(str(choice)) == choice


def test_a_value_may_hold_a_plugin_with_options_of_its_own():
    outer = parse_choice("aq:train_attack=pgd:steps=7;alpha=0.02,first_order=true")
    assert outer.options == {"train_attack": "pgd:steps=7;alpha=0.02", "first_order": "true"}
    assert parse_choice(outer.options["train_attack"], ";").options == {"steps": "7", "alpha": "0.02"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pgd:steps=", "'steps='"),
        ("pgd:=3", "'=3'"),
    ],
)
def test_what_is_no_choice(text, told):
    with pytest.raises(BenchError, match=told):
        parse_choice(text)


def test_what_is_not_utf8_is_told_and_no_bug():
    """As Python gives a path of an old disk: café in Latin-1."""
    with pytest.raises(BenchError, match=r"'image-folder:path=caf\?' is not UTF-8.* rename"):
        parse_choice("image-folder:path=caf\udce9")


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_a_ratio_keeps_its_text_and_is_the_fraction(above, below):
    eps = parse_eps(f"{above}/{below}")
    assert eps.text == f"{above}/{below}"
    assert eps.value == pytest.approx(float(Fraction(above, below)), rel=1e-15)


@given(st.decimals(0, 255, places=9))
def test_a_number_reads_back_as_itself(number):
    eps = parse_eps(str(number))
    assert eps.value == float(number)
    assert parse_eps(eps.text).value == pytest.approx(eps.value, abs=1e-12)
    assert "e" not in eps.text.lower()


@given(st.floats(0, 1000))
def test_plain_is_a_decimal_without_exponent_or_idle_zeros(value):
    text = plain(value)
    assert float(text) == pytest.approx(value, abs=1e-12)
    assert "e" not in text
    assert not ("." in text and text.endswith(("0", ".")))


@pytest.mark.parametrize(
    ("typed", "text"), [("1e-2", "0.01"), (" 8 / 255 ", "8/255"), (".5", "0.5"), ("0.10", "0.1"), (0, "0")]
)
def test_the_text_that_tables_show(typed, text):
    assert parse_eps(typed).text == text


@given(st.floats(0, 1000))
def test_exact_tells_every_number_from_every_other(number):
    text = exact(number)
    above, _, below = text.partition("/")
    assert float(above) / float(below or 1) == number


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("-0.1", "negative"), ("-8/255", "negative"), ("8/0", "divides by zero"), ("nan", "not a number"),
        ("inf", "not a number"), ("1e999", "not finite"), ("1/2/3", "not a number"), ("8/", "not a number"),
        ("", "not a number"), ("8/255px", "not a number"), ("0,1", "not a number"), ("٣", "not a number"),
    ],
)  # fmt: skip
def test_what_is_no_eps(typed, told):
    with pytest.raises(BenchError, match=told) as caught:
        parse_eps(typed)
    assert f"'{typed}'" in str(caught.value)


def test_scenarios_are_admls_four_poisoning_transfer_and_certificates_each_once():
    assert parse_scenarios(["all"]) == list(SCENARIOS)
    assert len(SCENARIOS) == 10
    assert parse_scenarios(["adv/adv", "clean/adv", "adv/adv"]) == ["adv/adv", "clean/adv"]
    with pytest.raises(BenchError, match=r"did you mean 'clean/adv'"):
        parse_scenarios(["clean/advv"])


@pytest.mark.parametrize("profile", PROFILES)
def test_a_run_takes_the_profiles_sizes_unless_typed(profile):
    run = RunSpec.read(profile=profile, shot=4)
    assert run.size("meta_steps") == PROFILES[profile].meta_steps
    assert run.size("shot") == 4


def test_the_paper_profile_is_mamls_recipe():
    # Finn et al. 2017, appendix A: 5-way 1-shot Omniglot, 32 tasks, 40,000 meta-steps; conv4 of 64 filters.
    paper = PROFILES["paper"]
    assert (paper.meta_steps, paper.tasks_per_step, paper.episodes, paper.backbone["width"]) == (40_000, 32, 600, "64")
    assert (paper.backbone["norm"], paper.dataset["rotations"]) == ("batch", "true")


def test_repeated_choices_count_once():
    run = RunSpec.read(learners=("maml", "maml", "maml:steps=2"))
    assert [str(choice) for choice in run.choices("learner")] == ["maml", "maml:steps=2"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1", ["0.1"]),
        ("0:0.3:7", ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]),
        ("0:8/255:5", ["0", "2/255", "4/255", "6/255", "8/255"]),
        ("1/255:2/255:3", ["1/255", "1.5/255", "2/255"]),
        ("0.1:8/3:2", ["0.1", "2.666666666667"]),
    ],
)
def test_a_range_of_eps_is_evenly_spaced_and_exact(text, values):
    assert parse_eps_range(text) == values
    assert parse_eps_range(values[-1]) == [values[-1]]


@pytest.mark.parametrize(
    "text", ["0:0.3", "0.3:0:4", "0:0.3:1", "0:0.3:x", "0:0.3:101", ":0.3:4", "0:0.3:7:2", "0:a:3"]
)
def test_a_range_that_cannot_be_tells_what_would(text):
    with pytest.raises(BenchError, match="expected"):
        parse_eps_range(text)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(2, 100))
def test_a_range_has_so_many_values_in_ascending_order(low, more, count):
    values = [parse_eps(text).value for text in parse_eps_range(f"{low}/255:{low + more}/255:{count}")]
    assert len(values) == count
    assert values == sorted(set(values))
    assert values[0] == pytest.approx(low / 255)
    assert values[-1] == pytest.approx((low + more) / 255)
