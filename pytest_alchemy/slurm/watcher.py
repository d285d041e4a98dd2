"""The worker behind the Slurm backend: it owns all state of a session's runs and lives in one thread.

Requests of the loop and answers of squeue come through one inbox; what is due (a scan, a question to
squeue) is done in between. squeue itself runs beside the worker: with its controller away it blocks for
seconds, while the files keep talking.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from pytest_alchemy.events import Event, Finished, Notice, Queued
from pytest_alchemy.outcome import Reason
from pytest_alchemy.slurm.pace import Pace
from pytest_alchemy.slurm.receipts import close_receipt, outcome_of, unsubmitted
from pytest_alchemy.slurm.requests import Answer, Cancel, Close, Request, Submit
from pytest_alchemy.slurm.squeue import JobId, Queue, list_jobs, read_queue
from pytest_alchemy.slurm.submission import Accepted, Refused, Unclear, cancel_by_name, cancel_command
from pytest_alchemy.slurm.watch import RunState, Stirred, conclude, hear, sight, silence
from pytest_alchemy.transport import Completed, TransportError

if TYPE_CHECKING:
    from pytest_alchemy.backends import Plan
    from pytest_alchemy.outcome import Outcome
    from pytest_alchemy.slurm.settings import SlurmSettings
    from pytest_alchemy.slurm.submitter import Batch, Sent, Submitter
    from pytest_alchemy.slurm.watch import Conclusion
    from pytest_alchemy.transport import Transport

__all__ = ["Watcher"]

_SCAN_SHARE = 10
"""Scans take at most every tenth second, however many runs there are."""


@dataclass(frozen=True, slots=True)
class _Unresolved:
    """A submission without a clear answer: its name will tell."""

    sent: Sent
    words: str
    missed: float | None = None
    """Since when healthy answers don't list it."""


class Watcher:
    """Submits, watches and cancels."""

    def __init__(
        self,
        settings: SlurmSettings,
        transport: Transport,
        submitter: Submitter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox: SimpleQueue[Request] = SimpleQueue()
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.jobs: tuple[JobId, ...] = ()
        """Jobs of which runs are open, replaced as a whole: other threads may read it."""
        self.names: tuple[str, ...] = ()
        """Submissions of which no job is known, or not yet; to be read before `jobs`."""
        self.leaving = threading.Event()
        """Set by other threads: what is not submitted yet stays so."""
        self._settings = settings
        self._knobs = settings.knobs
        self._root = str(settings.root)
        self._transport = transport
        self._submitter = submitter
        self._open: dict[str, RunState] = {}
        self._tasks: Counter[JobId] = Counter()
        """How many runs of a job are open."""
        self._unresolved: list[_Unresolved] = []
        self._submitting: Submit | None = None
        self._owed: set[str] = set()
        """Runs whose Finished is still to come."""
        self._complaints: dict[str, str] = {}
        self._asking = False
        self._closing = False
        self._clock = clock
        now = clock()
        self._scan_pace = Pace(self._knobs.scan_fast_s, self._knobs.scan_slow_s, now)
        self._squeue_pace = Pace(self._knobs.squeue_fast_s, self._knobs.squeue_slow_s, now)

    def run(self) -> None:
        """Work until closed; the target of a thread."""
        try:
            while not self._closing:
                if request := self._next_request():
                    self.handle(request)
                self.attend()
        except Exception:  # noqa: BLE001 (a thread's last line: without this the loop would wait for ever)
            self._give_up(traceback.format_exc())

    # --- the loop ---

    def _next_request(self) -> Request | None:
        try:
            return self.inbox.get(timeout=self.idle_s())
        except Empty:
            return None

    def attend(self) -> None:
        """Do what is due."""
        now = self._clock()
        if self._open and now >= self._scan_pace.due:
            self._scan(now)
        if self._is_curious and now >= self._squeue_pace.due:
            self._ask()

    @property
    def _is_curious(self) -> bool:
        return not self._asking and bool(self._open or self._unresolved)

    def idle_s(self) -> float | None:
        """Return in how many seconds something is due; None for nothing unless somebody asks."""
        due = [self._scan_pace.due] if self._open else []
        if self._is_curious:
            due.append(self._squeue_pace.due)
        return max(0.0, min(due) - self._clock()) if due else None

    def handle(self, request: Request) -> None:
        """Do what is asked."""
        match request:
            case Submit(plans, done):
                self._submitting = request
                self._owed.update(plan.spec.run for plan in plans)
                self._submit(plans)
                done.set()
            case Cancel():
                if not self._cancel(request.runs, pending_only=request.pending_only):
                    request.failed.set()
                request.done.set()
            case Close():
                self._closing = True
            case Answer():
                self._asking = False
                self._hear_squeue(request)

    # --- submitting ---

    def _submit(self, plans: Sequence[Plan]) -> None:
        for batch in self._submitter.batches(plans):
            self._submit_batch(batch)
        now = self._clock()
        self._scan_pace, self._squeue_pace = self._scan_pace.hurry(now), self._squeue_pace.hurry(now)

    def _submit_batch(self, batch: Batch) -> None:
        if self.leaving.is_set():
            return self._leave_out(batch)
        try:
            prepared = self._submitter.prepare(batch)
        except TransportError as error:
            evidence = f"it could not be written down: {error}"
            return self._leave_out(batch, Reason.INFRASTRUCTURE, evidence)
        # Who leaves sets `leaving` and then reads `names`: either we see the one, or they see the other.
        self.names = (*self.names, prepared.key)
        if self.leaving.is_set():
            self._forget_name(prepared.key)
            return self._leave_out(batch)
        return self._sent(self._submitter.send(prepared))

    def _leave_out(
        self,
        batch: Batch,
        reason: Reason = Reason.CANCELLED,
        evidence: str = "not submitted: the session was left",
    ) -> None:
        for plan in batch.plans:
            self._finish_early(plan.spec.run, reason, evidence)

    def _sent(self, sent: Sent) -> None:
        if sent.trouble:
            self.events.put(Notice(sent.trouble))
        match sent.answer:
            case Accepted(job):
                self._accept(sent, job)
            case Refused(words):
                self._give_up_submission(sent, Reason.SUBMIT_REFUSED, f"sbatch refused: {words}")
            case Unclear(words):
                self._unresolved.append(_Unresolved(sent, words))
                text = f"sbatch gave no clear answer ({words}); job {sent.key} is being looked up by its name"
                self.events.put(Notice(text))

    def _accept(self, sent: Sent, job: JobId) -> None:
        now = self._clock()
        self._tasks[job] = len(sent.claims)
        self.jobs = tuple(self._tasks)
        self._forget_name(sent.key)
        for index, (run, claim) in enumerate(sent.claims):
            state = RunState(run, claim, sent.key, job, index, submitted=now, moved=now)
            self._open[run] = state
            self.events.put(Queued(run, state.task))

    def _give_up_submission(self, sent: Sent, reason: Reason, evidence: str) -> None:
        self._forget_name(sent.key)
        for run, _ in sent.claims:
            self._finish_early(run, reason, evidence)

    def _forget_name(self, key: str) -> None:
        self.names = tuple(name for name in self.names if name != key)

    def _finish_early(self, run: str, reason: Reason, evidence: str) -> None:
        self._finish(unsubmitted(self._root, run, reason, evidence))

    def _finish(self, outcome: Outcome) -> None:
        self._owed.discard(outcome.run)
        self.events.put(Finished(outcome.run, outcome))

    # --- files ---

    def _scan(self, now: float) -> None:
        try:
            news = self._transport.scan(list(self._open))
        except TransportError as error:
            self._complain("scan", f"run directories can't be read: {error}")
            self._scan_pace = self._scan_pace.done(now, self._knobs.scan_slow_s)
            return
        cost_s = self._clock() - now
        self._relieve("scan", "run directories can be read again")
        lively = False
        for run in list(self._open):
            lively |= self._read(run, dict(news.get(run, {})), now)
        quiet = self._knobs.scan_steady_s if news else self._knobs.scan_slow_s
        cap = self._knobs.scan_fast_s if lively else quiet
        self._scan_pace = self._scan_pace.done(self._clock(), cap, floor_s=_SCAN_SHARE * cost_s)

    def _read(self, run: str, said: dict[str, Any], now: float) -> bool:
        """Take in what a scan brought of one run; what could not be read counts for nobody."""
        problem, state = said.pop("problem", None), self._open[run]
        if problem is not None:
            self._complain(f"run {run}", f"{run} can't be read: {problem}")
        else:
            self._relieve(f"run {run}", f"{run} can be read again")
        stirred = Stirred(state)
        if said:
            stirred = hear(state, said, now)
        elif problem is None:
            stirred = silence(state, now, self._knobs)
        lively = self._take(stirred)
        if problem is None or stirred.state.is_told:
            self._conclude(stirred.state, now)
        return lively

    def _take(self, stirred: Stirred) -> bool:
        before, state = self._open[stirred.state.run], stirred.state
        self._open[state.run] = state
        for event in stirred.events:
            self.events.put(event)
        if state.needs_word and not before.needs_word:
            self._squeue_pace = self._squeue_pace.hurry(self._clock())
        return stirred.lively

    def _conclude(self, state: RunState, now: float) -> None:
        conclusion = conclude(state, now, self._knobs)
        if conclusion is None:
            return
        del self._open[state.run]
        self._tasks[state.job] -= 1
        if not self._tasks[state.job]:
            del self._tasks[state.job]
            self.jobs = tuple(self._tasks)
        self._report(state, conclusion, now)

    def _report(self, state: RunState, conclusion: Conclusion, now: float) -> None:
        problem = close_receipt(self._transport, self._root, state, conclusion, self._settings.session)
        if problem:
            self.events.put(Notice(problem))
        self._finish(outcome_of(self._transport, self._root, state, conclusion, now))

    # --- squeue ---

    def _ask(self) -> None:
        self._asking, keys = True, self._keys()
        threading.Thread(
            target=lambda: self.inbox.put(self._answer(keys)), name="alchemy-squeue", daemon=True
        ).start()

    def _keys(self) -> frozenset[str]:
        unresolved = {each.sent.key for each in self._unresolved}
        return frozenset(unresolved.union(state.key for state in self._open.values()))

    def _answer(self, keys: frozenset[str]) -> Answer:
        return Answer(self._command(list_jobs(keys, {job.cluster for job in self.jobs if job.cluster})), keys)

    def _command(self, argv: Sequence[str]) -> Completed:
        try:
            return self._transport.run(argv, timeout_s=self._knobs.command_s)
        except TransportError as error:
            return Completed(None, "", str(error))

    def _hear_squeue(self, answer: Answer) -> None:
        now, queue = self._clock(), read_queue(answer.completed)
        if queue is None:
            words = answer.completed.words or "no answer in time"
            self._complain("squeue", f"squeue fails, jobs live on: {words}")
            # Absence counts while answers are healthy, without a gap.
            self._open = {run: replace(state, absent=None) for run, state in self._open.items()}
            self._squeue_pace = self._squeue_pace.done(now, self._knobs.squeue_slow_s)
            return
        self._relieve("squeue", "squeue answers again")
        self._resolve(queue, answer.keys, now)
        lively = self._sight(queue, answer.keys, now)
        waited = any(state.needs_word for state in self._open.values()) or bool(self._unresolved)
        cap = self._knobs.squeue_fast_s if lively or waited else self._knobs.squeue_slow_s
        self._squeue_pace = self._squeue_pace.done(now, cap)
        if lively:
            self._scan_pace = self._scan_pace.hurry(now)

    def _sight(self, queue: Queue, asked: frozenset[str], now: float) -> bool:
        lively = False
        for (key, job), states in self._by_submission().items():
            if key in asked:
                sightings = queue.sight(key, job.number, [state.index for state in states])
                for state in states:
                    lively |= self._take(sight(state, sightings[state.index], now))
        return lively

    def _by_submission(self) -> dict[tuple[str, JobId], list[RunState]]:
        grouped: dict[tuple[str, JobId], list[RunState]] = {}
        for state in self._open.values():
            grouped.setdefault((state.key, state.job), []).append(state)
        return grouped

    def _resolve(self, queue: Queue, asked: frozenset[str], now: float) -> None:
        """Adopt submissions that sbatch did not report, or give them up."""
        unresolved, self._unresolved = self._unresolved, []
        for each in unresolved:
            missed = now if each.missed is None else each.missed
            if number := queue.find(each.sent.key):
                self._accept(each.sent, JobId(number))
            elif each.sent.key not in asked or now - missed < self._knobs.lookup_s:
                self._unresolved.append(replace(each, missed=missed))
            else:
                self._abandon(each)

    def _abandon(self, each: _Unresolved) -> None:
        self._command(cancel_by_name(each.sent.key))  # should it turn up after all, it must not run unwatched
        evidence = f"sbatch gave no clear answer ({each.words}), and no job is called {each.sent.key}"
        self._give_up_submission(each.sent, Reason.INFRASTRUCTURE, evidence)

    # --- cancelling ---

    def _cancel(self, runs: Collection[str], *, pending_only: bool) -> bool:
        if pending_only and self._open:
            self._hear_squeue(self._answer(self._keys()))
        done = [
            self._scancel(cancel_by_name(each.sent.key, pending_only=pending_only))
            for each in self._unresolved
            if any(run in runs for run, _ in each.sent.claims)
        ]
        for (_, job), states in self._by_submission().items():
            candidates = [state for state in states if not (pending_only and state.is_begun)]
            chosen = [state for state in candidates if state.run in runs]
            if chosen:
                whole = len(chosen) == len(candidates)
                indices = None if whole else [state.index for state in chosen]
                done.append(self._scancel(cancel_command(job, indices, pending_only=pending_only), chosen))
        now = self._clock()
        self._scan_pace, self._squeue_pace = self._scan_pace.hurry(now), self._squeue_pace.hurry(now)
        return all(done)

    def _scancel(self, command: Sequence[str], chosen: Sequence[RunState] = ()) -> bool:
        completed = self._command(command)
        if completed.returncode != 0:
            self.events.put(Notice(f"{' '.join(command)} failed: {completed.words or 'no answer in time'}"))
            return False
        for state in chosen:
            self._open[state.run] = replace(state, cancelling=True)
        return True

    # --- trouble ---

    def _complain(self, about: str, text: str) -> None:
        """Say it once until it is over."""
        if about not in self._complaints:
            self._complaints[about] = text
            self.events.put(Notice(text))

    def _relieve(self, about: str, text: str) -> None:
        if self._complaints.pop(about, None):
            self.events.put(Notice(text))

    def _give_up(self, story: str) -> None:
        for run in sorted(self._owed):
            self._finish_early(
                run, Reason.INFRASTRUCTURE, f"the watcher failed, the job may live on:\n{story}"
            )
        if self._submitting:
            self._submitting.done.set()
