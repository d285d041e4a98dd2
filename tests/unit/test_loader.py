"""A loader in a resumed run hands out what it would have handed out in an undisturbed one, bit by bit."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import pickle
import random
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from alchemy.errors import ConfigurationError
from alchemy.seeding import preserved
from alchemy.state import rng
from alchemy.state.loader import Cursor, adopt, is_loader
from alchemy.state.workerseeds import WorkerStart

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # Python 3.12 on forking
]


class Numbers(Dataset[list[float]]):
    """Its own indices, with noise beside them if asked for."""

    def __init__(self, length: int = 10, noise: bool = False) -> None:
        self.length, self.noise = length, noise

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not self.noise:
            return torch.tensor([float(index)])
        return torch.tensor([index, float(torch.rand(())), random.random(), np.random.rand()])  # noqa: S311


class Jittered(Numbers):
    """Noise from generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Any] = [np.random.default_rng(3), {"deep": random.Random(4)}]  # noqa: S311
        self.torch = torch.Generator().manual_seed(5)
        self.old = np.random.RandomState(6)

    def __getitem__(self, index: int) -> Any:
        first, second = self.parts[0].random(), self.parts[1]["deep"].random()
        return torch.tensor(
            [index, first, second, float(torch.rand((), generator=self.torch)), self.old.rand()]
        )


class Seeds(Numbers):
    """The seed that its worker was started with."""

    def __getitem__(self, index: int) -> Any:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        return torch.tensor([index, info.seed])


class Stream(IterableDataset[Any]):
    """Counts, shuffled once at its beginning if asked for, divided among workers."""

    def __init__(self, length: int = 10, shuffle: bool = False, noise: bool = False) -> None:
        self.length, self.shuffle, self.noise = length, shuffle, noise

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        order = torch.randperm(self.length).tolist() if self.shuffle else list(range(self.length))
        for number in order[info.id :: info.num_workers] if info else order:
            yield torch.tensor([number, float(torch.rand(())) if self.noise else 0.0])


class Eager(Sampler[int]):
    """Draws when it is asked for an iterator, from numpy, and not when that is used."""

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(10).tolist())

    def __len__(self) -> int:
        return 10


class Pairs(Sampler[list[int]]):
    """A sampler of batches whose sizes vary."""

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(10))
        random.shuffle(order)
        while order:
            size = 1 + order[0] % 3
            yield order[:size]
            order = order[size:]


class Counting(Sampler[int]):
    """Counts its passes by itself, and shuffles by the count."""

    passes = 0

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        yield from torch.randperm(10, generator=torch.Generator().manual_seed(self.passes)).tolist()

    def __len__(self) -> int:
        return 10


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def reseed_worker(worker: int) -> None:
    """What torch's documentation recommends."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


def start_worker(worker: int) -> None:
    info = torch.utils.data.get_worker_info()
    assert info is not None
    dataset: Any = info.dataset
    dataset.parts = [np.random.default_rng(info.seed), {"deep": random.Random(worker)}]  # noqa: S311


WEIGHTS = [0.1, 0.9, 0.4, 0.7, 3.0, 0.6, 1.0, 1.0, 2.0, 0.2]
Build = Callable[[], "DataLoader[Any]"]

IN_PROCESS: dict[str, Build] = {
    "in order": lambda: DataLoader(Numbers(), batch_size=3),
    "shuffled": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True),
    "shuffled, evenly": lambda: DataLoader(Numbers(9), batch_size=3, shuffle=True),
    "shuffled by a generator": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True, generator=seeded()),
    "shuffled by a generator, evenly": lambda: DataLoader(Numbers(9), 3, shuffle=True, generator=seeded()),
    "the last dropped": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True, drop_last=True),
    "one batch an epoch": lambda: DataLoader(Numbers(), batch_size=10, shuffle=True),
    "not batched": lambda: DataLoader(Numbers(5), batch_size=None, shuffle=True),
    "weighted": lambda: DataLoader(Numbers(), 3, sampler=WeightedRandomSampler(WEIGHTS, 10)),
    "weighted by a generator": lambda: DataLoader(
        Numbers(), 3, sampler=WeightedRandomSampler(WEIGHTS, 10, generator=seeded())
    ),
    "drawn with replacement": lambda: DataLoader(
        Numbers(), 15, sampler=RandomSampler(Numbers(), replacement=True, num_samples=70, generator=seeded())
    ),
    "a subset": lambda: DataLoader(Numbers(), 2, sampler=SubsetRandomSampler([1, 3, 5, 7, 9])),
    "an eager sampler": lambda: DataLoader(Numbers(), 3, sampler=Eager(), generator=seeded()),
    "an eager sampler, not batched": lambda: DataLoader(Numbers(), None, sampler=Eager(), generator=seeded()),
    "a counting sampler": lambda: DataLoader(Numbers(), 3, sampler=Counting()),
    "batches": lambda: DataLoader(Numbers(), batch_sampler=Pairs()),
    "batches of torch's": lambda: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(range(10)), 4, False)
    ),
    "a list of batches": lambda: DataLoader(Numbers(), batch_sampler=[[1, 2], [3], [4, 5, 6]]),
    "noise": lambda: DataLoader(Numbers(noise=True), batch_size=3, shuffle=True),
    "noise of its own": lambda: DataLoader(Jittered(), batch_size=3, shuffle=True),
    "stream": lambda: DataLoader(Stream(), batch_size=3),
    "stream, shuffled": lambda: DataLoader(Stream(shuffle=True), batch_size=3, drop_last=True),
    "stream, not batched": lambda: DataLoader(Stream(5), batch_size=None),
}
WORKERS: dict[str, Build] = {
    "shuffled, workers": lambda: DataLoader(Numbers(noise=True), batch_size=3, shuffle=True, num_workers=2),
    "generator, workers": lambda: DataLoader(
        Jittered(), 3, shuffle=True, num_workers=2, generator=seeded(), worker_init_fn=start_worker
    ),
    "in order, workers": lambda: DataLoader(
        Numbers(noise=True), 3, num_workers=2, worker_init_fn=reseed_worker, prefetch_factor=1
    ),
    "weighted, workers": lambda: DataLoader(
        Numbers(), 3, sampler=WeightedRandomSampler(WEIGHTS, 10), num_workers=2, drop_last=True
    ),
    "with replacement, workers": lambda: DataLoader(
        Numbers(),
        15,
        sampler=RandomSampler(Numbers(), replacement=True, num_samples=70, generator=seeded()),
        num_workers=2,
    ),
    "eager, workers": lambda: DataLoader(Numbers(), 3, sampler=Eager(), num_workers=2),
    "eager, not batched, workers": lambda: DataLoader(Numbers(), None, sampler=Eager(), num_workers=2),
    "batches, workers": lambda: DataLoader(Numbers(noise=True), batch_sampler=Pairs(), num_workers=2),
    "persistent workers": lambda: DataLoader(
        Numbers(noise=True), 3, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "eager, persistent workers": lambda: DataLoader(
        Numbers(noise=True), None, sampler=Eager(), num_workers=2, persistent_workers=True
    ),
    "generator, persistent workers": lambda: DataLoader(
        Numbers(), 3, shuffle=True, num_workers=2, persistent_workers=True, generator=seeded()
    ),
    "seed of a worker": lambda: DataLoader(Seeds(), 3, shuffle=True, num_workers=1),
    "seed of a persistent worker": lambda: DataLoader(
        Seeds(), 3, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "stream, workers": lambda: DataLoader(Stream(shuffle=True, noise=True), batch_size=3, num_workers=2),
}
CASES = {**IN_PROCESS, **WORKERS}


@dataclass
class Trace:
    """What a training saw, and what it could have saved after each step."""

    steps: list[Any]
    saved: list[Any]
    exact: str
    notes: tuple[str, ...] = ()


def draw() -> list[Any]:
    """Draw as a training does: dropout, augmentation."""
    return [torch.rand(2).tolist(), float(torch.randn(())), random.random(), np.random.standard_normal()]  # noqa: S311


def saved_after(step: int, cursor: Cursor) -> Any:
    return json.loads(json.dumps({"step": step, "loader": cursor.capture(), "rng": rng.capture()}))


Batches = Callable[["DataLoader[Any]"], Iterator[Any]]


def again_and_again(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def three_at_once(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        taken = []
        for batch in loader:
            taken.append(batch)
            if len(taken) == 3:
                break
        yield torch.cat(taken)


def all_at_once(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield torch.cat([batch.reshape(-1) for batch in loader])


def peek(loader: DataLoader[Any]) -> Any:
    return next(iter(loader)).tolist()


def look_at_all(loader: DataLoader[Any]) -> Any:
    return [batch.tolist() for batch in loader]


def nothing(loader: DataLoader[Any]) -> None:
    pass


@dataclass
class Training:
    """A training of a number of steps, which begins anew or goes on from what was saved."""

    build: Build
    steps: int = 11
    early: bool = False
    """Whether it calls iter() before its loop begins."""
    batches: Batches = again_and_again
    prelude: Callable[[DataLoader[Any]], Any] = nothing
    """What it does with the loader before its loop."""
    restored: tuple[str, ...] = ("loader", "rng")
    """What a resumed run restores."""
    is_restored_twice: bool = False
    """Whether the loader is also restored as soon as it exists."""

    def run(self, saved: Mapping[str, Any] | None = None) -> Trace:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        loader = self.build()
        cursor = adopt(loader, seed=1234)
        if saved is not None and self.is_restored_twice:
            cursor.restore(saved["loader"])
        self.prelude(loader)
        draw()
        iterator = iter(loader) if self.early else self.batches(loader)
        draw()
        if saved is not None:
            for _ in range(20):  # so that no generator is where it was at any time in the undisturbed run
                draw()
            self._restore(cursor, saved)
        trace = Trace([], [], "", cursor.notes)
        for step in range(0 if saved is None else saved["step"] + 1, self.steps):
            try:
                batch = next(iterator)
            except StopIteration:
                iterator = iter(loader)
                batch = next(iterator)
            trace.steps.append([batch.tolist(), draw()])
            trace.saved.append(saved_after(step, cursor))
        trace.exact = cursor.exact
        return trace

    def _restore(self, cursor: Cursor, saved: Mapping[str, Any]) -> None:
        before = rng.capture()
        if "loader" in self.restored:
            cursor.restore(saved["loader"])
        assert rng.capture() == before
        if "rng" in self.restored:
            rng.restore(saved["rng"])

    def resume_everywhere(self) -> list[bool]:
        """Resume after each step; tell for each whether all went on as if nothing had happened."""
        undisturbed = self.run()
        same = []
        for step, saved in enumerate(undisturbed.saved):
            resumed = self.run(saved)
            is_same = resumed.steps == undisturbed.steps[step + 1 :]
            # Equal states, too: of every generator, and of what the next resumption would begin with.
            same.append(is_same and resumed.saved == undisturbed.saved[step + 1 :])
        return same


@pytest.fixture(autouse=True)
def _generators_put_back() -> Iterator[None]:
    with preserved():
        yield


@pytest.mark.parametrize("early", [False, True], ids=["iter in the loop", "iter before the loop"])
@pytest.mark.parametrize("name", IN_PROCESS)
def test_resumed_after_any_step_a_training_goes_on_as_if_nothing_had_happened(name: str, early: bool) -> None:
    training = Training(CASES[name], early=early)
    assert training.run().exact == ""
    assert training.resume_everywhere() == [True] * 11


@pytest.mark.parametrize("early", [False, True], ids=["iter in the loop", "iter before the loop"])
@pytest.mark.parametrize("name", WORKERS)
def test_resumed_after_any_step_it_goes_on_so_with_workers_too(name: str, early: bool) -> None:
    training = Training(CASES[name], 6, early=early)
    assert training.run().exact == ""
    assert training.resume_everywhere() == [True] * 6


@pytest.mark.parametrize("left_out", ["loader", "rng"])
@pytest.mark.parametrize("name", IN_PROCESS)
def test_left_out_each_state_shows(name: str, left_out: str) -> None:
    restored = ("rng",) if left_out == "loader" else ("loader",)
    same = Training(CASES[name], restored=restored).resume_everywhere()
    assert not any(same[:-1])


@pytest.mark.parametrize("name", ["shuffled, workers", "stream, workers"])
def test_left_out_it_shows_with_workers_too(name: str) -> None:
    assert not any(Training(CASES[name], 4, restored=("rng",)).resume_everywhere()[:-1])


@pytest.mark.parametrize(
    "name", ["shuffled by a generator", "noise", "noise of its own", "batches", "generator, workers"]
)
def test_it_goes_on_so_in_another_process(name: str) -> None:
    undisturbed = Training(CASES[name], 9).run()
    program = {"name": name, "saved": undisturbed.saved[4]}
    answer = subprocess.run(
        [sys.executable, __file__], input=json.dumps(program).encode(), stdout=subprocess.PIPE, check=True
    )
    assert json.loads(answer.stdout) == [undisturbed.steps[5:], undisturbed.saved[5:]]


def in_another_process() -> None:
    asked = json.load(sys.stdin)
    trace = Training(CASES[asked["name"]], 9).run(asked["saved"])
    json.dump([trace.steps, trace.saved], sys.stdout)


@pytest.mark.parametrize("name", [*IN_PROCESS, "eager, workers", "weighted, workers", "stream, workers"])
def test_a_loader_that_is_followed_gives_what_it_would_give_otherwise(name: str) -> None:
    followed = Training(CASES[name], 9).run()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draw()
    plain = again_and_again(CASES[name]())
    draw()
    assert [[next(plain).tolist(), draw()] for _ in range(9)] == followed.steps


@pytest.mark.parametrize("name", ["shuffled", "shuffled by a generator", "noise", "stream, shuffled"])
@pytest.mark.parametrize("prelude", [peek, look_at_all])
@pytest.mark.parametrize("early", [False, True])
def test_what_is_done_with_the_loader_before_the_training_does_no_harm(
    name: str, prelude: Callable[[DataLoader[Any]], Any], early: bool
) -> None:
    seen = []

    def remembered(loader: DataLoader[Any]) -> None:
        seen.append(prelude(loader))

    training = Training(CASES[name], prelude=remembered, early=early)
    assert training.resume_everywhere() == [True] * 11
    assert all(each == seen[0] for each in seen)  # a mean is the same mean in the resumed run


@pytest.mark.parametrize("name", ["shuffled", "shuffled by a generator", "noise", "shuffled, workers"])
@pytest.mark.parametrize("early", [False, True])
def test_it_may_be_restored_twice(name: str, early: bool) -> None:
    training = Training(CASES[name], 6, early=early, is_restored_twice=True)
    assert training.resume_everywhere() == [True] * 6


@pytest.mark.parametrize(
    "name",
    [
        "shuffled",
        "shuffled by a generator",
        "an eager sampler, not batched",
        "stream, shuffled",
        "shuffled, workers",
        "persistent workers",
        "eager, persistent workers",
        "generator, persistent workers",
        "stream, workers",
    ],
)
def test_epochs_that_are_over_leave_nothing_to_go_on_with(name: str) -> None:
    training = Training(CASES[name], 3, batches=all_at_once)
    assert training.run().exact == ""
    assert training.resume_everywhere() == [True] * 3


@pytest.mark.parametrize("name", ["shuffled", "shuffled by a generator", "noise", "shuffled, workers"])
def test_an_iteration_that_was_dropped_is_not_gone_on_with(name: str) -> None:
    training = Training(CASES[name], 8, batches=three_at_once)
    assert training.run().exact == ""
    assert training.resume_everywhere() == [True] * 8


@pytest.mark.parametrize(
    "name", ["shuffled", "shuffled by a generator", "shuffled, workers", "stream, shuffled"]
)
@pytest.mark.parametrize("early", [False, True])
def test_an_iteration_that_has_not_given_anything_yet_goes_on(name: str, early: bool) -> None:
    loader = CASES[name]()
    cursor = adopt(loader, seed=0)
    untouched = iter(loader)
    saved = saved_after(0, cursor)
    expected = [[draw(), next(untouched).tolist()] for _ in range(3)]
    fresh = CASES[name]()
    resumed = adopt(fresh, seed=0)
    iterator: Any = iter(fresh) if early else None
    draw()
    resumed.restore(saved["loader"])
    rng.restore(saved["rng"])
    iterator = iterator if early else iter(fresh)
    assert [[draw(), next(iterator).tolist()] for _ in range(3)] == expected


def test_an_iteration_that_is_kept_but_not_used_is_not_taken_for_the_training_s() -> None:
    kept = []

    def keep(loader: DataLoader[Any]) -> None:
        kept.append(iter(loader))
        next(kept[-1])

    training = Training(CASES["shuffled"], 7, prelude=keep)
    assert training.resume_everywhere() == [True] * 7
    assert "before an earlier one was over" in training.run().exact


def test_of_two_iterations_at_once_the_later_goes_on_and_it_is_said() -> None:
    loader = DataLoader(Numbers(), batch_size=2)
    cursor = adopt(loader, seed=0)
    first = iter(loader)
    assert next(first).tolist() == [[0.0], [1.0]]
    assert cursor.exact == ""
    second = iter(loader)
    next(second), next(second)
    assert "before an earlier one was over" in cursor.exact
    fresh = DataLoader(Numbers(), batch_size=2)
    resumed = adopt(fresh, seed=0)
    resumed.restore(cursor.capture())
    assert next(iter(fresh)).tolist() == [[4.0], [5.0]]
    assert resumed.exact == cursor.exact


def test_a_whole_pass_within_an_iteration_leaves_the_outer_one_to_go_on_with() -> None:
    loader = DataLoader(Numbers(), batch_size=2, shuffle=True)
    cursor = adopt(loader, seed=0)
    outer = iter(loader)
    next(outer)
    look_at_all(loader)
    state = cursor.capture()
    fresh = DataLoader(Numbers(), batch_size=2, shuffle=True)
    adopt(fresh, seed=0).restore(state)
    assert [batch.tolist() for batch in fresh] == [batch.tolist() for batch in outer]


def test_a_batch_that_was_taken_too_early_to_be_taken_back_is_told_of() -> None:
    undisturbed = Training(CASES["shuffled"]).run()
    loader = CASES["shuffled"]()
    cursor = adopt(loader, seed=0)
    iterator = iter(loader)
    next(iterator)
    cursor.restore(undisturbed.saved[0]["loader"])
    assert "taken before the first step" in cursor.exact
    assert next(iterator).tolist() == undisturbed.steps[1][0]


class Feeding:
    """A training that is told when its first step begins, and resumed after any step."""

    def __init__(self, ahead: bool) -> None:
        self.ahead = ahead
        """Whether each batch is taken before its step begins: `zip(loader, ctx.steps())`."""

    def run(self, saved: Any = None, steps: int = 5) -> tuple[list[Any], list[Any], list[str]]:
        """Return batches, what is saved after each step, and `exact` as the loop and its first step begin."""
        torch.manual_seed(3)
        loader = CASES["shuffled"]()
        cursor = adopt(loader, seed=0)
        if saved is not None:
            cursor.restore(saved["loader"])
            rng.restore(saved["rng"])
        said, states = [cursor.exact], list[Any]()

        def steps_of_the_loop() -> Iterator[int]:
            cursor.enter_first_step()
            said.append(cursor.exact)
            for step in range(0 if saved is None else saved["step"] + 1, steps):
                yield step
                states.append(saved_after(step, cursor))

        batches, loop = again_and_again(loader), steps_of_the_loop()
        if self.ahead:
            return [batch.tolist() for batch, _ in zip(batches, loop)], states, said  # noqa: B905
        return [batch.tolist() for _, batch in zip(loop, batches)], states, said  # noqa: B905


def test_batches_that_run_ahead_of_their_steps_are_told_of_in_the_first_run_and_in_resumed_ones() -> None:
    batches, states, said = Feeding(ahead=True).run()
    assert said[0] == ""
    assert "before the first step" in said[1]
    for step, saved in enumerate(states[:3]):
        resumed, _, repeated = Feeding(ahead=True).run(saved)
        assert resumed != batches[step + 1 :]
        assert repeated == [said[1], said[1]]


def test_batches_taken_in_their_steps_are_not() -> None:
    batches, states, said = Feeding(ahead=False).run()
    assert said == ["", ""]
    for step, saved in enumerate(states):
        resumed, _, repeated = Feeding(ahead=False).run(saved)
        assert resumed == batches[step + 1 :]
        assert repeated == ["", ""]


@pytest.mark.parametrize("name", ["shuffled", "shuffled, workers", "stream"])
def test_whether_a_batch_was_given_is_known_while_its_iteration_is_under_way(name: str) -> None:
    loader = CASES[name]()
    cursor = adopt(loader, seed=0)
    said = [cursor.has_given]
    peek(loader), look_at_all(loader)
    said.append(cursor.has_given)  # nobody can go on with these
    iterator = iter(loader)
    said.append(cursor.has_given)
    next(iterator)
    assert [*said, cursor.has_given] == [False, False, False, True]


@pytest.mark.parametrize("early", [False, True], ids=["iter in the loop", "iter before the loop"])
def test_what_a_saved_iteration_had_given_does_not_count_as_given_in_the_resumed_run(early: bool) -> None:
    saved = Training(CASES["shuffled"]).run().saved[1]
    loader = CASES["shuffled"]()
    cursor = adopt(loader, seed=0)
    iterator: Any = iter(loader) if early else None
    cursor.restore(saved["loader"])
    iterator = iterator if early else iter(loader)
    said = [cursor.has_given]
    next(iterator)
    assert [*said, cursor.has_given] == [False, True]


class Wild(Sampler[int]):
    """Draws each index from the generator that training uses."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(10):
            yield int(torch.randint(10, ()))

    def __len__(self) -> int:
        return 10


def test_a_sampler_that_shares_its_numbers_with_training_is_refused_when_it_cannot_be_repeated() -> None:
    training = Training(lambda: DataLoader(Numbers(), 2, sampler=Wild()))
    undisturbed = training.run()
    assert "its sampler draws from the global random number generators" in undisturbed.exact
    with pytest.raises(ConfigurationError, match=r"other indices .* 2 batches .*generator=torch\.Generator"):
        training.run(undisturbed.saved[1])


def test_a_stream_that_draws_again_and_again_is_told_of() -> None:
    build: Build = lambda: DataLoader(Stream(noise=True), batch_size=2)  # noqa: E731
    assert "its IterableDataset draws from the global" in Training(build).run().exact


class Strided(Sampler[int]):
    """Has a setting of its own."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def __iter__(self) -> Iterator[int]:
        return iter([number * self.stride % 10 for number in range(10)])


def test_a_changed_setting_of_a_sampler_is_refused_and_not_put_back() -> None:
    undisturbed = Training(lambda: DataLoader(Numbers(), 2, sampler=Strided(3))).run()
    with pytest.raises(ConfigurationError, match="gave other indices"):
        Training(lambda: DataLoader(Numbers(), 2, sampler=Strided(7))).run(undisturbed.saved[1])


def test_other_weights_are_noticed_by_other_indices() -> None:
    undisturbed = Training(CASES["weighted"]).run()
    others = lambda: DataLoader(Numbers(), 3, sampler=WeightedRandomSampler(WEIGHTS[::-1], 10))  # noqa: E731
    with pytest.raises(ConfigurationError, match="gave other indices"):
        Training(others, early=True).run(undisturbed.saved[1])


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            lambda: DataLoader(Numbers(), batch_size=4, shuffle=True),
            "batch_size 3 when it was saved and has 4",
        ),
        (lambda: DataLoader(Numbers(11), batch_size=3, shuffle=True), "length 10 .* has 11"),
        (lambda: DataLoader(Numbers(), batch_size=3, shuffle=True, drop_last=True), "drop_last False"),
        (lambda: DataLoader(Numbers(), batch_size=3), r"sampler '.*RandomSampler' .*'.*SequentialSampler'"),
        (lambda: DataLoader(Stream(), batch_size=3), "dataset 'map' .* 'iterable'"),
    ],
)
def test_what_changes_the_order_is_refused_by_name(now: Build, message: str) -> None:
    saved = Training(CASES["shuffled"]).run().saved[1]["loader"]
    loader = now()
    cursor = adopt(loader, seed=0)
    for take in (cursor.check, cursor.restore):
        with pytest.raises(ConfigurationError, match=message):
            take(saved)


def test_a_generator_that_is_gone_is_refused_by_name() -> None:
    saved = Training(CASES["shuffled by a generator"]).run().saved[1]["loader"]
    loader = CASES["shuffled"]()
    with pytest.raises(ConfigurationError, match=r"had a torch\.Generator as generator .* has none now"):
        adopt(loader, seed=0).restore(saved)


def test_a_stream_shorter_than_what_was_given_of_it_is_refused() -> None:
    saved = Training(CASES["stream"]).run().saved[2]["loader"]
    loader = DataLoader(Stream(5), batch_size=3)
    adopt(loader, seed=0).restore(saved)
    with pytest.raises(ConfigurationError, match=r"over after 2 batches.* given 3"):
        iter(loader)


def loader_with(workers: int, noise: bool = False) -> DataLoader[Any]:
    return DataLoader(Numbers(noise=noise), 2, shuffle=True, generator=seeded(), num_workers=workers)


@pytest.mark.parametrize(("then", "now"), [(0, 2), (2, 0), (2, 1)])
def test_another_number_of_workers_keeps_the_order_and_is_noted(then: int, now: int) -> None:
    undisturbed = Training(lambda: loader_with(then), 12).run()
    resumed = Training(lambda: loader_with(now), 12).run(undisturbed.saved[2])
    assert [batch for batch, _ in resumed.steps] == [batch for batch, _ in undisturbed.steps[3:]]
    assert f"num_workers was {then} and is {now} now" in resumed.notes


def test_randomness_in_workers_depends_neither_on_their_number_nor_repeats_itself() -> None:
    with_one = Training(lambda: loader_with(1, noise=True), 10).run()
    with_two = Training(lambda: loader_with(2, noise=True), 10).run()
    assert with_one.steps == with_two.steps
    noise = [value for batch, _ in with_one.steps for item in batch for value in item[1:]]
    assert len(set(noise)) == len(noise) == 60


def test_another_seed_makes_other_noise_and_a_resumed_run_keeps_the_first() -> None:
    def second_batch(seed: int, saved: Any = None) -> tuple[Any, Any]:
        loader = DataLoader(Numbers(noise=True), batch_size=2, num_workers=1)
        cursor = adopt(loader, seed=seed)
        if saved is not None:
            cursor.restore(saved)
            return next(iter(loader)).tolist(), None
        iterator = iter(loader)
        next(iterator)
        state = cursor.capture()
        return next(iterator).tolist(), state

    first, state = second_batch(1)
    assert second_batch(2)[0] != first
    assert second_batch(2, state)[0] == first


def test_the_epoch_of_a_distributed_sampler_goes_on() -> None:
    def build() -> DataLoader[Any]:
        return DataLoader(Numbers(), 2, sampler=DistributedSampler(Numbers(), num_replicas=2, rank=1))

    def epochs(loader: DataLoader[Any]) -> Iterator[Any]:
        while True:
            yield from loader
            sampler: Any = loader.sampler
            sampler.set_epoch(sampler.epoch + 1)

    training = Training(build, batches=epochs)
    undisturbed = training.run()
    assert undisturbed.steps[0][0] != undisturbed.steps[3][0]
    assert training.resume_everywhere() == [True] * 11


class Faulty(Numbers):
    """Cannot read one of its items."""

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise OSError("unreadable")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_failed_is_passed_over_by_a_resumed_run_too(workers: int) -> None:
    loader = DataLoader(Faulty(), batch_size=2, num_workers=workers)
    cursor = adopt(loader, seed=0)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(OSError, match="unreadable"):
        next(iterator)
    fresh = DataLoader(Faulty(), batch_size=2, num_workers=workers)
    adopt(fresh, seed=0).restore(cursor.capture())
    assert (
        look_at_all(fresh)
        == [batch.tolist() for batch in iterator]
        == [[[4.0], [5.0]], [[6.0], [7.0]], [[8.0], [9.0]]]
    )


class Endless(DataLoader[Any]):
    """Never stops."""

    def __iter__(self) -> Any:
        while True:
            yield from super().__iter__()


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: Endless(Numbers()), r"Endless has an __iter__ of its own"),
        (lambda: DataLoader(Numbers(), num_workers=2, in_order=False), "in_order=False"),
        (lambda: DataLoader(Stream(), num_workers=2, persistent_workers=True), "in persistent workers"),
    ],
)
def test_where_it_cannot_be_exact_it_says_why(build: Build, why: str) -> None:
    cursor = adopt(build(), seed=0)
    with pytest.raises(ReferenceError):
        cursor.exact  # noqa: B018  a cursor doesn't keep its loader
    loader = build()
    cursor = adopt(loader, seed=0)
    assert re.search(why, cursor.exact)
    assert "\n" not in cursor.exact


def test_a_loader_that_cannot_be_followed_begins_an_epoch_anew() -> None:
    loader = Endless(Numbers(), batch_size=2)
    cursor = adopt(loader, seed=0)
    batches = iter(loader)
    assert [next(batches).tolist() for _ in range(6)][5] == [[0.0], [1.0]]
    fresh = Endless(Numbers(), batch_size=2)
    adopt(fresh, seed=0).restore(cursor.capture())
    assert next(iter(fresh)).tolist() == [[0.0], [1.0]]


class Named(DataLoader[Any]):
    """A subclass with something of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name = "train"


def test_the_loader_stays_what_it_was() -> None:
    loader = Named(Numbers(), batch_size=3, shuffle=True)
    sampler, batch_sampler = loader.sampler, loader.batch_sampler
    cursor = adopt(loader, seed=0)
    assert adopt(loader, seed=1) is cursor
    assert isinstance(loader, Named)
    adopt(loader, seed=0, owner=DataLoader)
    assert type(loader).__qualname__ == "Named"
    assert len(type(loader).__mro__) == len(Named.__mro__) + 1
    assert (loader.name, loader.sampler, loader.batch_sampler) == ("train", sampler, batch_sampler)
    assert (len(loader), len(iter(loader))) == (4, 4)
    with pytest.raises(ValueError, match="batch_size attribute should not be set after Named is initialized"):
        loader.batch_size = 5


class Owner:
    """An execution."""


OUTSIDE: dict[str, Build] = {
    "shuffled": CASES["shuffled"],
    "workers": lambda: Named(Numbers(noise=True), 3, shuffle=True, num_workers=1),
    "persistent workers": CASES["seed of a persistent worker"],
    "stream": CASES["stream, shuffled"],
    "a sampler that draws": lambda: DataLoader(Numbers(), 2, sampler=Wild()),
}


def executed(loader: DataLoader[Any], seed: int, saved: Any = None) -> tuple[list[Any], list[Any], str]:
    """Use a loader in an execution of its own; return batches, what was saved after each, and doubts."""
    torch.manual_seed(seed)
    owner = Owner()
    cursor = adopt(loader, seed, owner=owner)
    if saved is not None:
        cursor.restore(saved["loader"])
        rng.restore(saved["rng"])
    iterator, seen, states = again_and_again(loader), [], []
    for step in range(5):
        seen.append(next(iterator).tolist())
        states.append(saved_after(step, cursor))
        assert adopt(loader, seed, owner=owner) is cursor
    return seen, states, cursor.exact


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_loader_that_several_executions_use_begins_anew_in_each(name: str) -> None:
    shared = OUTSIDE[name]()
    first = executed(shared, 1)
    for seed in (2, 1):
        alone = executed(OUTSIDE[name](), seed)
        assert executed(shared, seed) == alone
    assert executed(shared, 1) == first
    if name != "a sampler that draws":
        resumed = executed(shared, 2, first[1][1])
        assert resumed[0][:3] == first[0][2:]


def test_an_execution_does_not_go_on_with_what_another_left_under_way() -> None:
    loader, earlier = CASES["shuffled"](), Owner()
    adopt(loader, 0, owner=earlier)
    kept = iter(loader)
    next(kept)
    later = Owner()
    cursor = adopt(loader, 0, owner=later)
    assert not cursor.has_given
    assert cursor.capture()["under_way"] is None
    look_at_all(loader)
    assert cursor.exact == ""
    assert len(list(kept)) == 3  # whoever holds it may use it up


def test_an_execution_whose_loader_was_taken_over_by_another_says_so() -> None:
    loader, outer, inner = CASES["shuffled"](), Owner(), Owner()
    cursor = adopt(loader, 0, owner=outer)
    assert cursor.exact == ""
    adopt(loader, 0, owner=inner)
    assert "another execution" in cursor.exact


def test_who_names_no_owner_gets_the_cursor_there_is() -> None:
    loader, owner = CASES["shuffled"](), Owner()
    cursor = adopt(loader, 0, owner=owner)
    assert adopt(loader, 0) is cursor
    other = CASES["shuffled"]()
    assert adopt(other, 0) is not adopt(other, 0, owner=owner)


def test_a_loader_does_not_keep_an_execution_alive() -> None:
    loader, owner = CASES["shuffled"](), Owner()
    adopt(loader, 0, owner=owner)
    gone = weakref.ref(owner)
    del owner
    assert gone() is None


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))],  # noqa: S301
)
def test_a_copy_of_a_loader_is_a_loader_of_its_own(duplicate: Callable[[Any], Any]) -> None:
    loader = Named(Numbers(), batch_size=3)
    cursor = adopt(loader, seed=0)
    iterator = iter(loader)
    next(iterator)
    state = cursor.capture()
    twin = duplicate(loader)
    assert look_at_all(twin) == look_at_all(Named(Numbers(), batch_size=3))
    assert cursor.capture() == state
    assert adopt(twin, seed=0) is not cursor


def test_persistent_workers_that_were_started_before_are_replaced() -> None:
    loader = DataLoader(Numbers(noise=True), 5, num_workers=1, persistent_workers=True)
    first = look_at_all(loader)
    adopt(loader, seed=5)
    then = look_at_all(loader)
    other = DataLoader(Numbers(noise=True), 5, num_workers=1)
    adopt(other, seed=5)
    assert then == look_at_all(other) != first


def test_workers_end_with_their_loader() -> None:
    before = multiprocessing.active_children()
    loader = DataLoader(Numbers(), num_workers=1, persistent_workers=True)
    adopt(loader, seed=0)
    look_at_all(loader)
    workers = [worker for worker in multiprocessing.active_children() if worker not in before]
    assert workers
    gc.disable()
    try:
        del loader
        assert not [worker for worker in multiprocessing.active_children() if worker in workers]
    finally:
        gc.enable()


def test_what_a_spawned_worker_needs_can_be_sent_to_it() -> None:
    start = WorkerStart(3, reseed_worker)
    assert pickle.loads(pickle.dumps(start)) == start  # noqa: S301


@pytest.mark.parametrize("value", [None, 3, [1], DataLoader, Numbers()])
def test_other_values_are_no_loaders(value: object) -> None:
    assert not is_loader(value)
    assert is_loader(DataLoader(Numbers()))


def test_telling_a_loader_imports_nothing() -> None:
    program = (
        "import sys, alchemy.state.loader as l; assert not l.is_loader([]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


if __name__ == "__main__":
    in_another_process()
