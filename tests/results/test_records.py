"""Records as files: what is written is read, and damage is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robustbench_meta.errors import StorageError
from robustbench_meta.results import leaderboard
from robustbench_meta.results.records import SCHEMA, pack, read_record, record_text, unpack
from robustbench_meta.results.store import Store
from tests.helpers.records import record

RECORD = record(np.eye(4, 6, dtype=bool), probed={"black box": 0.25})
TEXT = record_text(RECORD)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where that record's file would be."""
    return tmp_path_factory.mktemp("records") / f"{RECORD['key']}.json"


def refused(path: Path, text: str | bytes) -> str:
    """The message with which a file of that content is refused."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StorageError) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path), "PATH")


def changed(**parts) -> str:
    """The record's text with other parts, under the checksum of the ones before; `...` leaves one out."""
    found = {**json.loads(TEXT), **parts}
    return json.dumps({name: value for name, value in found.items() if value is not ...})


def test_what_is_written_is_read(place):
    place.write_text(TEXT)
    assert read_record(place) == {**RECORD, "schema": SCHEMA}


@given(extra=st.dictionaries(st.text(), st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6,
), max_size=3))  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_whatever_plain_data_a_record_holds_comes_back(extra, place):
    whole = {**RECORD, "versions": {"robustbench_meta": "0", "extra": extra}}
    place.write_text(record_text(whole))
    assert read_record(place) == {**whole, "schema": SCHEMA}


def test_a_record_that_was_read_can_be_written_again(place):
    place.write_text(record_text({**RECORD, "history": [{"step": 1.0, "loss": math.nan}]}))
    again = record_text(read_record(place))
    assert again == place.read_text()


@given(
    correct=st.tuples(st.integers(1, 9), st.integers(1, 20)).flatmap(lambda shape: arrays(bool, shape)),
)
def test_packed_answers_come_back(correct):
    packed = json.loads(json.dumps(pack(correct)))
    assert np.array_equal(unpack(packed), correct)
    assert unpack(packed).dtype == bool


@pytest.mark.parametrize(
    "packed",
    [
        {"shape": [2, 3], "bits": ""},
        {"shape": [2, 3], "bits": "AAA="},
        {"shape": [0, 3], "bits": ""},
        {"shape": [-1, -3], "bits": "AA=="},
        {"shape": [2, 3], "bits": "no base64!"},
        {"shape": [2, 3, 1], "bits": "AA=="},
        {"shape": [2**40, 2**40], "bits": "AA=="},
    ],
)
def test_answers_that_are_no_answers_are_refused(packed):
    with pytest.raises(ValueError, match=r"cannot hold|base64|values to unpack|padding"):
        unpack(packed)


@given(where=st.integers(0, len(TEXT) - 1), what=st.characters(codec="utf-8") | st.sampled_from('0123456789"{}[],: \n'),
       how=st.sampled_from(["replace", "insert", "delete", "flip"]))  # fmt: skip
@settings(deadline=None, max_examples=250)
def test_any_change_of_a_character_is_noticed_or_changes_nothing(where, what, how, place):
    before, old, after = TEXT[:where], TEXT[where], TEXT[where + 1 :]
    new = {"replace": what, "insert": what + old, "delete": "", "flip": chr(ord(old) ^ 1)}[how]
    place.write_text(before + new + after, encoding="utf-8")
    try:
        found = read_record(place)
    except StorageError:
        return
    assert found == {**RECORD, "schema": SCHEMA}


@pytest.mark.parametrize("end", [0, 1, len(TEXT) // 2, len(TEXT) - 1])
def test_a_record_cut_short_is_damaged(end, place):
    assert "is damaged" in refused(place, TEXT[:end])


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe{}", b"\x00" * 4096, "[" * 100_000, '{"a":' * 100_000, "null", "3", '"text"', "[]", "{}",
        '{"schema": ' + "9" * 5000 + "}",
    ],
    ids=["utf-16", "zeros", "deep lists", "deep dicts", "null", "number", "text", "list", "dict", "long number"],
)  # fmt: skip
def test_files_that_are_no_records_are_damaged(text, place):
    assert "is damaged (" in refused(place, text)


def test_a_file_too_large_to_be_a_record_is_not_read(place):
    with place.open("wb") as file:
        file.truncate(2**28 + 1)  # sparse: it takes no room
    assert "is damaged (it has 268,435,457 bytes)" in refused_as_is(place)
    place.unlink()


def refused_as_is(path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        read_record(path)
    return str(caught.value)


@pytest.mark.parametrize("schema", ["3", True, False, None, 3.0, 0, -1, [3], ...])
def test_schemas_that_never_were_are_damage(schema, place):
    assert "is damaged (schema" in refused(place, changed(schema=schema))


@pytest.mark.parametrize("schema", [SCHEMA - 1, 99])
def test_the_record_of_another_version_is_told_from_a_damaged_one(schema, place):
    assert refused(place, changed(schema=schema)) == (
        f"record PATH has schema {schema}, of another version; this one knows 3: use that version, or another --results"
    )


def test_a_record_without_its_checksum_is_damaged(place):
    assert "its checksum does not fit its content" in refused(place, changed(checksum=...))


def test_a_record_under_the_name_of_another_cell_is_refused(tmp_path):
    assert refused(tmp_path / "0123456789abcdef.json", TEXT) == (
        f"record PATH is of another cell than its name says ('{RECORD['key']}')"
    )


@pytest.mark.parametrize("name", sorted(set(RECORD) - {"schema", "key", "spec", "clean", "robust"}))
@pytest.mark.parametrize("value", [[[]], 1.5, {"a": "b"}, None])
def test_a_record_of_wrong_parts_is_refused_or_good_for_a_leaderboard(name, value, tmp_path):
    made = {**RECORD, name: value}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / f"{RECORD['key']}.json").write_text(record_text(made))
    _is_refused_or_counts(tmp_path)


def _is_refused_or_counts(folder: Path) -> None:
    store = Store(folder, write=False)
    frame = leaderboard.build(store)
    assert len(frame) == len(store.records())
    frame.to_csv(folder / "leaderboard.csv")
