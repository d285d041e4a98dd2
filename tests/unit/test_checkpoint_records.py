"""What is written down about a checkpoint: read back as it was, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alchemy_agent as agent
from alchemy.checkpoint.records import (
    CheckpointRef,
    FileEntry,
    Manifest,
    check_file_name,
    checkpoint_name,
    parse_checkpoint_name,
)
from alchemy.checkpoint.store import write_checkpoint
from alchemy.checkpoint.writing import Part
from tests.support.agentlab import make_attempt, record

GOLDEN = Path(__file__).parents[1] / "data" / "wire" / "v1"
SHA = "a" * 64
REF = CheckpointRef("1-r0", 399, SHA, "step-00000399")
MANIFEST = Manifest(
    run="run-1",
    attempt="2-r0",
    step=499,
    seq=5,
    parent=REF,
    world_size=1,
    ranks=({"model.pt": FileEntry(10, SHA), "loop.json": FileEntry(2, "b" * 64)},),
    kinds={"model": "torch"},
    applied=("0001-a",),
    time=1.5,
)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert Manifest.decode(MANIFEST.encode()) == MANIFEST
    first = replace(MANIFEST, parent=None, applied=(), kinds={})
    assert Manifest.decode(first.encode()) == first


def test_the_size_is_that_of_all_files() -> None:
    assert MANIFEST.size == 12


def test_unknown_fields_are_passed_over() -> None:
    assert Manifest.decode(agent.dumps({**agent.loads(MANIFEST.encode()), "new": [1]})) == MANIFEST


def files(**entries: Any) -> list[dict[str, Any]]:
    return [{name.replace("_", "."): entry for name, entry in entries.items()}]


GOOD = {"size": 1, "sha256": SHA}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, "version 2; this installation reads 1"),
        ({"run": None}, "'run' can't be None"),
        ({"step": -1}, "'step' can't be -1"),
        ({"step": True}, "'step' can't be True"),
        ({"step": 1.0}, "'step' can't be 1.0"),
        ({"seq": "5"}, "'seq' can't be '5'"),
        ({"parent": {}}, "parent: 'name' is missing"),
        ({"parent": {**REF.to_record(), "step": 4}}, "parent: 'name' is 'step-00000399'"),
        ({"parent": {**REF.to_record(), "manifest": "A" * 64}}, "parent: 'manifest' can't be"),
        ({"world_size": 2}, "2 ranks, and files of 1"),
        ({"ranks": [[]]}, "'ranks' can't be"),
        ({"ranks": files(a=GOOD) * 2, "world_size": 2}, "two ranks name the same file"),
        ({"ranks": files(a={"size": 1})}, "a: 'sha256' is missing"),
        ({"ranks": files(a={**GOOD, "size": -1})}, "a: 'size' can't be -1"),
        ({"ranks": files(a={**GOOD, "sha256": SHA[:-1]})}, "a: 'sha256' can't be"),
        ({"ranks": files(a=7)}, "'a' can't be 7"),
        ({"ranks": files(manifest_json=GOOD)}, "'manifest.json' is the protocol's own"),
        ({"ranks": [{"../a": GOOD}]}, "is not the name of a file"),
        ({"kinds": {"a": 1}}, "'a' can't be 1"),
        ({"applied": [1]}, "'applied' can't be"),
        ({"time": "now"}, "'time' can't be 'now'"),
    ],
)
def test_a_manifest_that_can_not_be_is_refused_by_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        Manifest.decode(agent.dumps({**agent.loads(MANIFEST.encode()), **change}))


@pytest.mark.parametrize("field", [name for name in agent.loads(MANIFEST.encode()) if name != "v"])
def test_a_missing_field_is_named(field: str) -> None:
    whole = agent.loads(MANIFEST.encode())
    del whole[field]
    with pytest.raises(ValueError, match=f"'{field}' is missing"):
        Manifest.decode(agent.dumps(whole))


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  which one depends on the noise
        Manifest.decode(data)


def test_a_reference_is_read_as_it_was_written() -> None:
    assert CheckpointRef.from_record(REF.to_record()) == REF
    assert str(REF) == "1-r0/step-00000399"


@given(st.integers(0, 10**12), st.integers(0, 10**6))
def test_a_directory_tells_its_step_and_number(step: int, number: int) -> None:
    assert parse_checkpoint_name(checkpoint_name(step, number)) == (step, number)


@pytest.mark.parametrize(
    "name",
    [
        *("step-1", "step-000000001", "step-00000001.0", "step-00000001.", "step-00000001.01", ""),
        *("step--0000001", "Step-00000001", "step-00000001 ", "superseded-step-00000001"),
    ],
)
def test_no_other_name_is_that_of_a_checkpoint(name: str) -> None:
    assert parse_checkpoint_name(name) is None


def test_there_is_no_checkpoint_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="step -1"):
        checkpoint_name(-1)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/a", "a\0", "a\nb", "manifest.json", "committed.json", "x" * 201],
)
def test_a_file_can_not_be_called(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not the name of a file|the protocol's own|longer than"):
        check_file_name(name)


def test_a_file_may_be_called_after_anything_else() -> None:
    for name in ("model.pt", "größe.npy", "a b", "-rf", "x" * 200):
        check_file_name(name)


def shape(value: Any) -> Any:
    """Return the fields, recursively, without their values; those of files and kinds are the user's."""
    return {key: shape(item) for key, item in value.items()} if isinstance(value, dict) else None


def test_the_golden_manifest_is_read() -> None:
    manifest = Manifest.decode((GOLDEN / "manifest.json").read_bytes())
    assert (manifest.step, manifest.seq, manifest.applied) == (499, 5, ("0007-7f1c",))
    assert manifest.parent is not None
    assert manifest.parent.name == "step-00000399"
    assert manifest.files["loop.json"].size == 2117


@pytest.mark.parametrize("name", ["manifest", "committed"])
def test_what_is_written_has_the_fields_of_the_golden_record(name: str, tmp_path: Path) -> None:
    parts = [Part(file, lambda sink: sink.write(b"x")) for file in ("model.pt", "loop.json")]
    kinds = {"model": "torch", "counter": "json"}
    attempt = make_attempt(tmp_path)
    write_checkpoint(attempt, 499, parts, seq=5, parent=REF, kinds=kinds, applied=["0007-7f1c"])
    written = record(tmp_path / f"jobs/run-1/checkpoints/1-r0/step-00000499/{name}.json")
    golden = record(GOLDEN / f"{name}.json")
    assert shape(written) == shape(golden)
    assert list(written) == list(golden)
    if name == "manifest":
        assert shape(written["ranks"][0]) == shape(golden["ranks"][0])
