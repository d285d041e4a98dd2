"""The run loop for remote backends: submit everything, run ordinary tests meanwhile, report as runs end.

Only the main thread is here. What happens on the cluster arrives as events on the backend's queue, this
loop is their one consumer, and a case is reported between any two ordinary tests while their fixtures stay
up. For that the protocol of a case calls every plugin's setup and teardown hook except pytest's own
runner, which drives the fixtures of the ordinary tests.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import pytest

from alchemy.errors import ConfigurationError
from pytest_alchemy.case import CaseItem
from pytest_alchemy.events import Finished, Notice
from pytest_alchemy.live import Live
from pytest_alchemy.outcome import Reason
from pytest_alchemy.signals import ctrl_c_sets_flag

if TYPE_CHECKING:
    from pytest_alchemy.backends import RemoteBackend
    from pytest_alchemy.events import Event

__all__ = ["Dispatcher"]

_TICK_S = 0.1
"""How long the loop waits for news before it redraws."""
_SECOND_CTRL_C_S = 3.0
"""Within this time a second Ctrl-C cancels the jobs that the first one left running."""


class Dispatcher:
    """Hooks that run cases as jobs. Registered in a process that dispatches, never in a worker."""

    def __init__(self, config: pytest.Config, backend: RemoteBackend) -> None:
        self._config = config
        self._backend = backend
        self._live: Live
        self._waiting: dict[str, CaseItem] = {}
        """Submitted and not yet reported, by run id."""
        self.detached: tuple[str, ...] = ()
        """Run ids that live on without us."""

    # The loop.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Replace pytest's loop if there are jobs to dispatch, else leave it alone."""
        option = session.config.option
        if option.collectonly or getattr(option, "setuponly", False) or getattr(option, "setupplan", False):
            return None
        if session.testsfailed and not option.continue_on_collection_errors:
            return None
        cases = [item for item in session.items if isinstance(item, CaseItem)]
        if not cases:
            return None
        others = [item for item in session.items if not isinstance(item, CaseItem)]
        self._live = Live(self._config)
        with self._leaving():
            self._submit(session, cases)
            for item, following in zip_longest(others, others[1:]):
                self._report(session, item, following)
                self._drain(session)
            self._wait(session)
        return True

    def _submit(self, session: pytest.Session, cases: Sequence[CaseItem]) -> None:
        try:
            self._backend.check([item.plan for item in cases])
        except ConfigurationError as error:
            raise pytest.UsageError(str(error)) from error
        accepted = []
        for item in cases:
            item.veto = _veto(item)
            if item.veto is None:
                accepted.append(item)
            else:  # skipped, xfail(run=False), a veto in a conftest: reported at once, no job
                self._report(session, item)
        self._waiting = {item.plan.spec.run: item for item in accepted}
        self._live.expect({run: item.name for run, item in self._waiting.items()})
        self._backend.submit([item.plan for item in accepted])

    def _wait(self, session: pytest.Session) -> None:
        while self._waiting:
            self._drain(session, timeout=_TICK_S)
            if self._waiting:
                self._live.draw(time.monotonic())
        self._live.clear()

    def _drain(self, session: pytest.Session, timeout: float | None = None) -> None:
        """Handle the news at hand; with a timeout, wait for the first."""
        for event in self._news(timeout):
            self._live.apply(event, time.monotonic())
            if isinstance(event, Finished):
                item = self._waiting.pop(event.run)
                item.outcome = event.outcome
                self._live.clear()
                self._report(session, item)
            elif isinstance(event, Notice):
                self._live.say(event.text)

    def _news(self, timeout: float | None) -> Iterator[Event]:
        events = self._backend.events()
        try:
            yield events.get(block=timeout is not None, timeout=timeout)
            while True:
                yield events.get_nowait()
        except queue.Empty:
            return

    def _report(
        self, session: pytest.Session, item: pytest.Item, following: pytest.Item | None = None
    ) -> None:
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)

    # Leaving before everything has ended.

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        """Leave jobs as they should be left, whichever way the loop ends."""
        try:
            yield
        except pytest.Session.Failed:  # -x, --maxfail: what waits is cancelled, what runs lives on
            self._backend.cancel(list(self._waiting), pending_only=True)
            self._say_notices()
            self._detach()
            raise
        except KeyboardInterrupt:
            with ctrl_c_sets_flag() as again:
                self._report_finished()
                self._detach()
                self._offer_to_cancel(again)
            raise
        except BaseException:
            self._report_finished()
            self._detach()
            raise
        finally:
            self._live.clear()
            self._backend.close()

    def _report_finished(self) -> None:
        """Report what ended while nobody looked, so that it doesn't count as left behind."""
        for event in self._news(None):
            if isinstance(event, Finished):
                item = self._waiting.pop(event.run)
                item.outcome = event.outcome
                if event.outcome.reason is not Reason.CANCELLED:  # by our leaving, before it was submitted
                    item.ihook.pytest_runtest_protocol(item=item, nextitem=None)

    def _say_notices(self) -> None:
        for event in self._news(None):
            if isinstance(event, Notice):
                self._live.say(event.text)

    def _detach(self) -> None:
        self._live.clear()
        self.detached = tuple(self._waiting)
        if self.detached:
            for line in self._backend.how_to_return():
                self._live.say(line)

    def _offer_to_cancel(self, again: threading.Event) -> None:
        if not self.detached:
            return
        self._live.say(f"alchemy: press Ctrl-C again within {_SECOND_CTRL_C_S:.0f} s to cancel these jobs")
        if not again.wait(_SECOND_CTRL_C_S):
            return
        if self._backend.cancel(self.detached):
            self._live.say(f"alchemy: cancelled {len(self.detached)} jobs")
            self.detached = ()
        else:
            self._say_notices()
            self._live.say("alchemy: the jobs could not be cancelled; see above for how to end them by hand")

    # The protocol of one case.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a case whose run has ended (or was not allowed to start) as pytest's own runner would."""
        if not isinstance(item, CaseItem):
            return None
        hooks = item.ihook
        hooks.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        if self._emit(item, "setup", lambda: self._set_up(item)).passed:
            self._emit(item, "call", lambda: hooks.pytest_runtest_call(item=item))
        self._emit(
            item,
            "teardown",
            lambda: _without_runner(item, "pytest_runtest_teardown")(item=item, nextitem=None),
        )
        hooks.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _set_up(self, item: CaseItem) -> None:
        _without_runner(item, "pytest_runtest_setup")(item=item)
        if item.veto is not None:  # of the runner, or of a hook that doesn't repeat itself
            raise item.veto
        item.setup()

    def _emit(self, item: CaseItem, when: Any, function: Callable[[], object]) -> pytest.TestReport:
        call = _call(when, function)
        report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
        item.ihook.pytest_runtest_logreport(report=report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
        """Let the setup phase last as long as the run was queued, and the call phase as long as it ran."""
        if isinstance(item, CaseItem) and item.outcome is not None and call.when != "teardown":
            seconds = item.outcome.queued_s if call.when == "setup" else item.outcome.duration_s
            call.duration, call.start = seconds, call.stop - seconds
        return (yield)


def _call(when: Any, function: Callable[[], object]) -> pytest.CallInfo[object]:
    return pytest.CallInfo.from_call(function, when=when, reraise=(pytest.exit.Exception, KeyboardInterrupt))


def _veto(item: CaseItem) -> BaseException | None:
    """Ask every setup hook, pytest's own included, while no fixture is up: a skip costs no job."""
    asked = _call("setup", lambda: item.ihook.pytest_runtest_setup(item=item))
    _call("teardown", lambda: item.ihook.pytest_runtest_teardown(item=item, nextitem=None))
    return asked.excinfo.value if asked.excinfo else None


def _without_runner(item: CaseItem, name: str) -> Callable[..., object]:
    """Return the hook as `item.ihook` would call it, minus the implementation that drives fixtures.

    `subset_hook_caller` alone would bring back conftest files of other directories, which `item.ihook`
    leaves out.
    """
    manager = item.config.pluginmanager
    runner = manager.get_plugin("runner")
    above = {id(implementation.plugin) for implementation in getattr(item.ihook, name).get_hookimpls()}
    others = [plugin for plugin in manager.get_plugins() if plugin is runner or id(plugin) not in above]
    caller: Callable[..., object] = manager.subset_hook_caller(name, others)
    return caller
