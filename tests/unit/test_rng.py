"""A generator put into a saved state goes on exactly as the one that was saved."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import alchemy_agent as agent
from alchemy.errors import ConfigurationError
from alchemy.seeding import preserved
from alchemy.state import rng


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint gives back."""
    read = agent.loads(agent.dumps(state))
    assert read == json.loads(json.dumps(state))
    return dict(read)


def draw_global() -> list[Any]:
    # The gaussian ones leave half of a pair for the next call: that is state, too.
    return [
        random.random(),  # noqa: S311
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.standard_normal()),
        torch.randn(17).tolist(),
        int(torch.randint(100, ())),
        torch.randperm(9).tolist(),
    ]


def scramble() -> None:
    random.seed(77)
    np.random.seed(78)
    torch.manual_seed(79)


@pytest.mark.parametrize("drawn_before", range(4))
def test_the_global_generators_go_on_where_they_were(drawn_before: int) -> None:
    with preserved():
        for _ in range(drawn_before):
            draw_global()
        states = through_json(rng.capture())
        went_on = [draw_global() for _ in range(3)]
        scramble()
        assert [draw_global() for _ in range(3)] != went_on
        rng.restore(states)
        assert [draw_global() for _ in range(3)] == went_on


def test_looking_at_the_states_draws_nothing() -> None:
    with preserved():
        states = rng.capture()
        assert rng.capture() == states
        expected = draw_global()
        rng.restore(states)
        rng.capture()
        assert draw_global() == expected


@pytest.mark.parametrize("left_out", ["python", "numpy", "torch"])
def test_each_library_has_its_part_in_it(left_out: str) -> None:
    with preserved():
        states = rng.capture()
        expected = draw_global()
        scramble()
        elsewhere = rng.capture()
        rng.restore({**states, left_out: elsewhere[left_out]})
        assert draw_global() != expected


def test_a_global_numpy_generator_of_another_kind_goes_on() -> None:
    numpy_random: Any = np.random
    before = numpy_random.get_bit_generator()
    try:
        numpy_random.set_bit_generator(np.random.PCG64(5))
        states = through_json(rng.capture())
        expected = np.random.rand(4).tolist()
        rng.restore(states)
        assert np.random.rand(4).tolist() == expected
    finally:
        numpy_random.set_bit_generator(before)


def test_libraries_that_are_not_loaded_stay_so() -> None:
    program = """
import random, sys
from alchemy.state import rng
states = rng.capture()
drawn = random.random()
rng.restore(states)
assert drawn == random.random()
assert not rng.is_generator(object())
assert list(states) == ["python"], states
assert not {"numpy", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_states_of_a_library_that_is_not_loaded_yet_are_restored_all_the_same() -> None:
    with preserved():
        states = json.dumps(rng.capture())
        expected = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: S311
    program = f"""
import json, sys
from alchemy.state import rng
rng.restore(json.loads({states!r}))
import random, numpy, torch
print(json.dumps([random.random(), float(numpy.random.rand()), float(torch.rand(()))]))
"""
    answer = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE).stdout
    assert json.loads(answer) == expected


def test_states_of_gpus_that_this_machine_lacks_are_dropped() -> None:
    with preserved():
        states = {**rng.capture(), "cuda": ["AAAAAAAAAAAAAAAAAAAAAA=="] * 99}
        expected = draw_global()
        rng.restore(states)
        assert draw_global() == expected


class Counting(random.Random):
    """A generator with a state of its own, which nobody else can save."""

    def getstate(self) -> tuple[Any, ...]:
        return ("mine", super().getstate())


def draw_private(generator: Any) -> list[Any]:
    if isinstance(generator, random.Random):
        return [generator.gauss(0, 1), generator.random()]
    if isinstance(generator, torch.Generator):
        return [torch.rand(3, generator=generator).tolist(), torch.randn(3, generator=generator).tolist()]
    integers = generator.integers if isinstance(generator, np.random.Generator) else generator.randint
    # A 32-bit draw leaves the other half of a 64-bit one for later.
    return [int(integers(100, dtype=np.int32)), generator.standard_normal(), generator.uniform()]


def numpy_generator(name: str, seed: int) -> Any:
    return np.random.Generator(getattr(np.random, name)(seed))


GENERATORS: dict[str, Callable[[int], Any]] = {
    "random.Random": random.Random,
    "RandomState": np.random.RandomState,
    "torch": lambda seed: torch.Generator().manual_seed(seed),
    **{name: partial(numpy_generator, name) for name in ("PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937")},
}


@pytest.mark.parametrize("drawn_before", range(3))
@pytest.mark.parametrize("name", GENERATORS)
def test_a_private_generator_goes_on_where_it_was(name: str, drawn_before: int) -> None:
    generator = GENERATORS[name](3)
    for _ in range(drawn_before):
        draw_private(generator)
    state = rng.capture_generator(generator)
    assert state is not None
    assert rng.is_generator(generator)
    expected = [draw_private(generator) for _ in range(3)]
    other = GENERATORS[name](1234)
    assert [draw_private(other) for _ in range(3)] != expected
    rng.restore_generator(other, through_json(state))
    assert [draw_private(other) for _ in range(3)] == expected


def test_the_children_that_a_numpy_generator_spawns_go_on_too() -> None:
    generator = np.random.default_rng(5)
    generator.spawn(2)
    state = rng.capture_generator(generator)
    assert state is not None
    expected = [draw_private(child) for child in generator.spawn(2)] + [draw_private(generator)]
    other = np.random.default_rng()
    rng.restore_generator(other, through_json(state))
    assert [draw_private(child) for child in other.spawn(2)] + [draw_private(other)] == expected


@pytest.mark.parametrize(
    "value", [random.SystemRandom(), Counting(), None, 3, "rng", random, np.random, torch.zeros(3)]
)
def test_what_has_no_state_that_can_be_saved_is_no_generator(value: object) -> None:
    assert not rng.is_generator(value)
    assert rng.capture_generator(value) is None


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        ("PCG64", "Philox", r"numpy\.random\.Generator \(PCG64\) can't go into a .*\(Philox\)"),
        ("torch", "random.Random", r"torch\.Generator \(cpu\) can't go into a random\.Random"),
        ("MT19937", "RandomState", r"can't go into a numpy\.random\.RandomState \(MT19937\)"),
    ],
)
def test_a_generator_of_another_kind_is_refused_by_name(saved: str, given: str, message: str) -> None:
    state = rng.capture_generator(GENERATORS[saved](1))
    assert state is not None
    with pytest.raises(ConfigurationError, match=message):
        rng.restore_generator(GENERATORS[given](1), state)


def test_the_state_of_a_generator_is_refused_by_what_is_none() -> None:
    state = rng.capture_generator(random.Random(1))  # noqa: S311
    assert state is not None
    with pytest.raises(ConfigurationError, match="can't go into a int"):
        rng.restore_generator(3, state)
