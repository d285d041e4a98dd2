"""After an update a managed optimizer goes on as if the run had begun with the new value."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR

from alchemy.errors import ConfigurationError
from alchemy.live.following import Follower
from alchemy.live.params import Change, LiveParams
from alchemy.matrix import Value

A, B = 0.1, 0.03
STEPS = 24
# Better, then worse and worse: with a patience of 2 a plateau is seen several times.
METRICS = [1.0, 0.9, 0.8, *[0.85] * STEPS]

Make = Callable[[Any], Any]


def unscheduled(_: Any) -> None:
    """Make no scheduler."""


EXACT: Mapping[str, Make] = {
    "no schedule": unscheduled,
    "StepLR": lambda o: lrs.StepLR(o, 5, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [3, 9, 15], 0.3),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.9),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.3, 8),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.1, 1.0, 10),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 15, 2.0),
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda k: 1 / (1 + k)),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda _: 0.95),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 10),
    "cosine with eta_min": lambda o: lrs.CosineAnnealingLR(o, 30, eta_min=0.01),
    "cosine with eta_min, turning": lambda o: lrs.CosineAnnealingLR(o, 8, eta_min=0.01),
    "cosine with a high eta_min": lambda o: lrs.CosineAnnealingLR(o, 30, eta_min=0.05),
    "warm restarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4, 2),
    "warm restarts with eta_min": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4, 2, eta_min=0.01),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, factor=0.5, patience=2),
    "chained": lambda o: lrs.ChainedScheduler([lrs.LinearLR(o, 0.2, 1.0, 6), lrs.ExponentialLR(o, 0.9)]),
    "sequential": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, 1.0, 6), lrs.CosineAnnealingLR(o, 20)], [6]
    ),
    "sequential with eta_min": lambda o: lrs.SequentialLR(
        o,
        [lrs.LinearLR(o, 0.1, 1.0, 5), lrs.CosineAnnealingLR(o, 9, eta_min=0.02), lrs.StepLR(o, 3, 0.5)],
        [5, 14],
    ),
    "sequential in chained": lambda o: lrs.ChainedScheduler(
        [lrs.SequentialLR(o, [lrs.ConstantLR(o, 0.5, 3), lrs.StepLR(o, 4)], [5]), lrs.ExponentialLR(o, 0.9)]
    ),
}


class Run:
    """A loop that changes no weights: one optimizer, perhaps a scheduler, both managed."""

    def __init__(self, declared: Mapping[str, Value], make_optimizer: Make, make_scheduler: Make) -> None:
        self.params = LiveParams(declared)
        self.follower = Follower()
        self.weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
        self.optimizer = make_optimizer(self)
        self.follower.bind("optimizer", self.optimizer, self.params)
        self.scheduler = make_scheduler(self.optimizer)
        if self.scheduler is not None:
            self.follower.bind("scheduler", self.scheduler, self.params)

    def update(self, **new: Value) -> list[str]:
        checked = self.params.check(new)
        old = self.params.live
        self.follower.can_follow(old, checked)
        texts = self.follower.follow(old, checked)
        self.params.apply(Change(f"c{len(self.params.changes)}", 0, checked))
        return texts

    def step(self, k: int) -> None:
        self.optimizer.step()
        if isinstance(self.scheduler, lrs.ReduceLROnPlateau):
            self.scheduler.step(METRICS[k])
        elif self.scheduler is not None:
            self.scheduler.step()

    def values(self, key: str = "lr") -> list[float]:
        return [float(group[key]) for group in self.optimizer.param_groups]

    def state(self) -> Any:
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return copy.deepcopy((self.params.state(), self.optimizer.state_dict(), scheduler))

    def load(self, state: Any) -> None:
        params, optimizer, scheduler = copy.deepcopy(state)
        self.params.restore(params)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(scheduler)
        self.optimizer.load_state_dict(optimizer)


def sgd(run: Run) -> Any:
    return torch.optim.SGD([{"params": [weight]} for weight in run.weights[:2]], lr=run.params.lookup("lr"))


def trajectory(
    make: Make,
    lr: float,
    changes: Mapping[int, float],
    *,
    resumes: tuple[int, ...] = (),
    make_optimizer: Make = sgd,
) -> Iterator[list[float]]:
    run = Run({"lr": lr}, make_optimizer, make)
    run.params.begin()
    for k in range(STEPS):
        if k in resumes:
            state = run.state()
            run = Run({"lr": lr}, make_optimizer, make)
            run.load(state)
            run.params.begin()
        if k in changes:
            run.update(lr=changes[k])
        if run.scheduler is not None:
            assert [float(each) for each in run.scheduler.get_last_lr()] == run.values()
        yield run.values()
        run.step(k)


def assert_close(found: list[list[float]], expected: list[list[float]], rel: float = 1e-9) -> None:
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one == pytest.approx(other, rel=rel, abs=1e-12), f"step {k}"


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("at", [0, 1, 4, 6, 10, 17])
def test_the_learning_rate_goes_on_as_if_the_run_had_begun_with_the_new_value(name: str, at: int) -> None:
    make = EXACT[name]
    found = list(trajectory(make, A, {at: B}))
    assert found[:at] == list(trajectory(make, A, {}))[:at]
    assert_close(found[at:], list(trajectory(make, B, {}))[at:])


@pytest.mark.parametrize("name", EXACT)
def test_several_changes_add_up_to_the_last(name: str) -> None:
    make = EXACT[name]
    found = list(trajectory(make, A, {2: 0.5, 7: 1e-3, 12: B}))
    assert_close(found[12:], list(trajectory(make, B, {}))[12:])


@pytest.mark.parametrize("name", EXACT)
def test_a_resumed_optimizer_follows_to_the_bit_as_the_undisturbed_one_does(name: str) -> None:
    make = EXACT[name]
    undisturbed = list(trajectory(make, A, {3: 0.5, 11: B}))
    assert list(trajectory(make, A, {3: 0.5, 11: B}, resumes=(2, 5, 11, 15))) == undisturbed


@pytest.mark.parametrize("name", ["no schedule", "StepLR", "LambdaLR", "cosine", "plateau", "sequential"])
def test_a_tensor_is_filled_and_stays_the_same_tensor(name: str) -> None:
    make = EXACT[name]

    def capturable(run: Run) -> Any:
        optimizer = torch.optim.Adam(run.weights, lr=run.params.lookup("lr"))
        run.follower.bind("optimizer", optimizer, run.params)
        return optimizer

    def trained(lr: float, changes: Mapping[int, float]) -> Iterator[list[float]]:
        run = Run({"lr": lr}, capturable, unscheduled)
        group = run.optimizer.param_groups[0]
        tensor = group["lr"] = torch.tensor(group["lr"])
        run.scheduler = make(run.optimizer)
        if run.scheduler is not None:
            run.follower.bind("scheduler", run.scheduler, run.params)
        for k in range(STEPS):
            if k in changes:
                run.update(lr=changes[k])
            assert group["lr"] is tensor
            yield run.values()
            run.step(k)

    found = list(trained(A, {7: B}))
    assert_close(found[7:], list(trained(B, {}))[7:], rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lrs.OneCycleLR(o, max_lr=1.0, total_steps=STEPS + 1),
        lambda o: lrs.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=4),
        lambda o: lrs.CyclicLR(o, base_lr=A, max_lr=1.0, step_size_up=4),
    ],
)
def test_a_schedule_with_values_of_its_own_is_refused_before_anything_changes(make: Make) -> None:
    def optimizer(run: Run) -> Any:
        return torch.optim.SGD(run.weights, lr=run.params.lookup("lr"), momentum=0.9, weight_decay=0.1)

    run = Run({"lr": A}, optimizer, make)
    before = run.state()
    with pytest.raises(
        ConfigurationError, match=r"LR sets optimizer.lr from values of its own; start a new run"
    ):
        run.follower.can_follow({"lr": A}, {"lr": B})
    with pytest.raises(ConfigurationError, match=r"values of its own"):
        run.follower.follow({"lr": A}, {"lr": B})
    assert run.state() == before


@pytest.mark.parametrize(
    "make",
    [
        lambda run, o: lrs.OneCycleLR(o, max_lr=run.params.lookup("lr"), total_steps=STEPS),
        lambda run, o: lrs.CyclicLR(o, base_lr=run.params.lookup("lr"), max_lr=1.0),
        lambda run, o: SWALR(o, swa_lr=run.params.lookup("lr")),
    ],
)
def test_a_value_that_only_such_a_schedule_took_is_refused_too(make: Any) -> None:
    run = Run({"lr": A}, lambda run: torch.optim.SGD(run.weights, lr=0.5, momentum=0.9), unscheduled)
    run.follower.bind("scheduler", make(run, run.optimizer), run.params)
    with pytest.raises(ConfigurationError, match=r"lr can't be updated"):
        run.update(lr=B)


def test_an_swa_schedule_is_refused_once_it_has_begun() -> None:
    run = Run({"lr": A}, sgd, lambda o: SWALR(o, swa_lr=0.05))
    (text,) = run.update(lr=B)
    assert "provided that SWALR makes a multiple" in text
    run.step(0)
    with pytest.raises(ConfigurationError, match=r"SWALR"):
        run.update(lr=A)


def test_a_command_that_is_refused_in_part_changes_nothing() -> None:
    def optimizer(run: Run) -> Any:
        return torch.optim.AdamW(
            run.weights, lr=run.params.lookup("lr"), weight_decay=run.params.lookup("decay")
        )

    run = Run({"decay": 0.1, "lr": A}, optimizer, unscheduled)
    before = run.state()
    with pytest.raises(ConfigurationError, match=r"lr can't become -1: .*no optimizer takes a negative lr"):
        run.update(decay=0.2, lr=-1.0)
    assert run.state() == before


def test_a_schedule_that_begins_elsewhere_is_refused() -> None:
    run = Run({"lr": A}, sgd, lambda o: lrs.StepLR(o, 5))
    run.optimizer.param_groups[0]["initial_lr"] = 0.7
    with pytest.raises(ConfigurationError, match=r"begins at 0.7 and not at lr, 0.1"):
        run.update(lr=B)


# With an eta_min it is that value at which a schedule stands still.
@pytest.mark.parametrize("name", [name for name in EXACT if name != "no schedule" and "eta_min" not in name])
def test_a_schedule_that_begins_at_zero_is_refused(name: str) -> None:
    run = Run({"lr": 0.0}, sgd, EXACT[name])
    with pytest.raises(ConfigurationError, match=r"stands still at 0"):
        run.update(lr=B)


def test_a_schedule_that_begins_at_its_eta_min_is_refused() -> None:
    run = Run({"lr": A}, sgd, lambda o: lrs.CosineAnnealingLR(o, 10, eta_min=A))
    with pytest.raises(ConfigurationError, match=r"stands still at 0.1"):
        run.update(lr=B)


def test_from_zero_without_a_schedule_the_new_value_is_set() -> None:
    run = Run({"lr": 0.0}, sgd, unscheduled)
    assert run.update(lr=B) == ["optimizer.lr 0 -> 0.03 (2 groups)"]
    assert run.values() == [B, B]


def test_from_zero_no_factor_can_be_kept() -> None:
    run = Run({"lr": 0.0}, sgd, unscheduled)
    run.optimizer.param_groups[1]["lr"] = 0.7
    with pytest.raises(ConfigurationError, match=r"optimizer.lr is 0.7 while lr is 0"):
        run.update(lr=B)


def test_to_zero_it_says_that_there_is_no_way_back() -> None:
    run = Run({"lr": A}, sgd, lambda o: lrs.StepLR(o, 5))
    (text,) = run.update(lr=0.0)
    assert text == (
        "optimizer.lr 0.1 -> 0 (2 groups), as if scheduler (StepLR) had begun at 0; "
        "from there no further update can follow"
    )


def test_what_user_code_has_made_of_the_learning_rate_is_kept_as_a_factor() -> None:
    run = Run({"lr": A}, sgd, unscheduled)
    run.optimizer.param_groups[1]["lr"] = A / 2
    assert run.update(lr=0.2) == [
        "optimizer.lr 0.1 -> 0.2",
        "optimizer.lr 0.05 -> 0.1, scaled by 2: it was not at lr, 0.1",
    ]
    assert run.values() == [0.2, 0.1]


def test_only_what_was_taken_from_the_parameter_follows_and_the_rest_is_named() -> None:
    def optimizer(run: Run) -> Any:
        lr = run.params.lookup("lr")
        first, second, third = run.weights
        groups: Any = [
            {"params": [first]},
            {"params": [second], "lr": lr * 0.1},
            {"params": [third], "lr": A},
        ]
        return torch.optim.SGD(groups, lr=lr)

    run = Run({"lr": A}, optimizer, lambda o: lrs.LambdaLR(o, lambda k: 0.5**k))
    run.step(0)
    assert run.update(lr=B) == [
        "optimizer.lr 0.05 -> 0.015, as if scheduler (LambdaLR) had begun at 0.03",
        "optimizer.lr of group 1 stays: it was not taken from lr",
        "optimizer.lr of group 2 stays: it was not taken from lr",
    ]
    run.step(1)
    assert run.values() == pytest.approx([B / 4, A / 40, A / 4])


def test_a_scheduler_that_came_before_the_assignment_hides_nothing() -> None:
    params, follower = LiveParams({"lr": A}), Follower()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=params.lookup("lr"))
    scheduler = lrs.LambdaLR(optimizer, lambda _: 0.5)
    follower.bind("sched", scheduler, params)
    follower.bind("opt", optimizer, params)
    assert follower.follow({"lr": A}, {"lr": B}) == [
        "opt.lr 0.05 -> 0.015, as if sched (LambdaLR) had begun at 0.03"
    ]


def test_an_unmanaged_scheduler_is_told_by_what_it_left_in_the_groups() -> None:
    params, follower = LiveParams({"lr": A}), Follower()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=params.lookup("lr"))
    scheduler = lrs.ExponentialLR(optimizer, 0.5)
    follower.bind("optimizer", optimizer, params)
    optimizer.step()
    scheduler.step()
    (text,) = follower.follow({"lr": A}, {"lr": B})
    assert text.startswith(
        "optimizer.lr 0.05 -> 0.015, as if it had begun at 0.03; its scheduler is not managed"
    )
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(B / 4)


@pytest.mark.parametrize("order", [1, -1])
def test_other_hyperparameters_follow_wherever_they_came_from(order: int) -> None:
    declared: dict[str, Value] = {"decay": 0.1, "eps": 1e-8, "beta": 0.9}

    def optimizer(run: Run) -> Any:
        look = run.params.lookup
        return torch.optim.AdamW(
            run.weights, weight_decay=look("decay"), eps=look("eps"), betas=(look("beta"), 0.999)
        )

    run = Run(declared, optimizer, unscheduled)
    new = {"decay": 0.2, "eps": 1e-6, "beta": 0.8}
    texts = run.update(**dict(list(new.items())[::order]))
    assert texts[::order] == [
        "optimizer.weight_decay 0.1 -> 0.2",
        "optimizer.eps 1e-08 -> 1e-06",
        "optimizer.betas[0] 0.9 -> 0.8",
    ]
    group = run.optimizer.param_groups[0]
    assert (group["weight_decay"], group["eps"], group["betas"]) == (0.2, 1e-6, (0.8, 0.999))


def test_a_tuple_follows_element_by_element() -> None:
    def optimizer(run: Run) -> Any:
        return torch.optim.Adam(run.weights, betas=run.params.lookup("betas"))

    run = Run({"betas": (0.9, 0.999)}, optimizer, unscheduled)
    assert run.update(betas=(0.9, 0.95)) == ["optimizer.betas[1] 0.999 -> 0.95"]
    assert run.update(betas=(0.5, 0.5)) == [
        "optimizer.betas[0] 0.9 -> 0.5",
        "optimizer.betas[1] 0.95 -> 0.5",
    ]
    assert run.optimizer.param_groups[0]["betas"] == (0.5, 0.5)
    with pytest.raises(
        ConfigurationError, match=r"betas\[1\] follows it, and must be at least 0 and less than 1"
    ):
        run.update(betas=(0.5, 1.0))


def test_a_float_from_inside_a_dict_follows() -> None:
    run = Run(
        {"opt": {"lr": A, "momentum": 0.9}},
        lambda run: torch.optim.SGD(run.weights, **run.params.lookup("opt")),
        lambda o: lrs.StepLR(o, 5),
    )
    assert run.update(opt={"lr": B, "momentum": 0.9}) == [
        "optimizer.lr 0.1 -> 0.03, as if scheduler (StepLR) had begun at 0.03"
    ]


def test_a_hyperparameter_that_something_else_sets_is_left_alone() -> None:
    run = Run(
        {"momentum": 0.9},
        lambda run: torch.optim.SGD(run.weights, lr=A, momentum=run.params.lookup("momentum")),
        unscheduled,
    )
    run.optimizer.param_groups[0]["momentum"] = 0.95
    (text,) = run.update(momentum=0.5)
    assert text.startswith("optimizer.momentum stays 0.95: it was not at the old value of momentum, 0.9, so")
    assert run.values("momentum") == [0.95]


def test_a_parameter_that_nothing_took_says_so() -> None:
    run = Run({"lr": A, "width": 64}, sgd, unscheduled)
    (text,) = run.update(width=32)
    assert text.startswith("nothing follows width")
    assert run.values() == [A, A]


def test_an_update_to_the_same_value_does_nothing() -> None:
    run = Run({"lr": A}, sgd, EXACT["LambdaLR"])
    before = run.state()
    assert run.follower.follow({"lr": A}, {"lr": A}) == []
    assert run.state() == before


def test_what_stays_of_a_schedule_is_said() -> None:
    run = Run({"lr": A}, sgd, EXACT["sequential with eta_min"])
    assert run.update(lr=B)[0].endswith("; eta_min stays 0.02")
    run = Run({"lr": A}, sgd, lambda o: lrs.ReduceLROnPlateau(o, min_lr=0.01))
    assert run.update(lr=B)[0].endswith("; min_lr stays")
    run = Run(
        {"lr": A},
        sgd,
        lambda o: lrs.ChainedScheduler([lrs.CosineAnnealingLR(o, 9, 0.02), lrs.ExponentialLR(o, 0.9)]),
    )
    assert "; not exactly, since" in run.update(lr=B)[0]


class OwnSchedule(lrs.LRScheduler):
    def get_lr(self) -> list[Any]:
        return [base * 0.9**self.last_epoch for base in self.base_lrs]


def test_a_schedule_of_the_users_own_follows_with_a_reservation() -> None:
    assert_close(
        list(trajectory(OwnSchedule, A, {7: B}))[7:],
        list(trajectory(OwnSchedule, B, {}))[7:],
    )
    run = Run({"lr": A}, sgd, OwnSchedule)
    assert "; provided that OwnSchedule makes a multiple" in run.update(lr=B)[0]


def test_two_schedulers_of_one_optimizer_follow_together() -> None:
    def both(o: Any) -> Any:
        return lrs.LambdaLR(o, lambda k: 1.0 if k > 4 else (k + 1) / 5)

    def trained(lr: float, changes: Mapping[int, float]) -> Iterator[list[float]]:
        run = Run({"lr": lr}, sgd, both)
        decay = lrs.ExponentialLR(run.optimizer, 0.9)
        run.follower.bind("decay", decay, run.params)
        for k in range(STEPS):
            if k in changes:
                run.update(lr=changes[k])
            yield run.values()
            run.step(k)
            decay.step()

    assert_close(list(trained(A, {8: B}))[8:], list(trained(B, {}))[8:])


def test_what_is_deleted_or_rebound_no_longer_follows() -> None:
    run = Run({"lr": A}, sgd, unscheduled)
    old = run.optimizer
    run.follower.bind("optimizer", sgd(run), run.params)
    run.update(lr=B)
    assert old.param_groups[0]["lr"] == A
    run.follower.unbind("optimizer")
    assert run.update(lr=A)[0].startswith("nothing follows lr")
    run.follower.bind("optimizer", object(), run.params)
    run.follower.unbind("never there")


def test_one_optimizer_under_two_names_is_scaled_once() -> None:
    run = Run({"lr": A}, sgd, lambda o: lrs.StepLR(o, 1, 0.5))
    run.follower.bind("again", run.optimizer, run.params)
    run.step(0)
    run.update(lr=B)
    assert run.values() == pytest.approx([B / 2, B / 2])


def test_an_optimizer_made_after_a_change_is_bound_to_the_new_value() -> None:
    run = Run({"lr": A}, sgd, unscheduled)
    run.params.begin()
    run.update(lr=B)
    run.follower.bind("optimizer", sgd(run), run.params)
    assert run.update(lr=0.5) == ["optimizer.lr 0.03 -> 0.5 (2 groups)"]


def test_groups_that_are_gone_are_named() -> None:
    run = Run({"lr": A}, sgd, unscheduled)
    run.optimizer.param_groups.pop()
    assert run.update(lr=B) == [
        "optimizer.lr 0.1 -> 0.03",
        "optimizer.lr of group 1 is gone: nothing there could follow",
    ]


def test_other_managed_values_leave_no_trace() -> None:
    params, follower = LiveParams({"lr": A}), Follower()
    for value in (torch.nn.Linear(1, 1), torch.zeros(1), {"lr": params.lookup("lr")}, 3, None, math):
        follower.bind("value", value, params)
    assert follower.follow({"lr": A}, {"lr": B})[0].startswith("nothing follows lr")
