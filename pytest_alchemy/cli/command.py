"""`alchemy command RUN OP [KEY=VALUE ...]`: tell a running training something, and wait for its answer."""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import Any

import alchemy_agent as agent
from pytest_alchemy.cli import runs
from pytest_alchemy.cli.arguments import read_assignments
from pytest_alchemy.cli.printing import complain, say
from pytest_alchemy.cli.trouble import Status, Trouble
from pytest_alchemy.cli.waiting import Ending, Wait, await_answer, why_over

__all__ = ["add"]

_UPDATE_PARAMS = "update_params"
_OPS = (agent.SAVE_CHECKPOINT, agent.GRACEFUL_STOP, _UPDATE_PARAMS)
_WAIT_S = 60.0
_ADVICE = {
    "refused": "nothing was changed, and the run goes on",
    "failed": "the run goes on; what its handler had done by then stays",
    "unsupported": "nothing was changed; a program takes what it hands check_commands a handler for",
}


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "command",
        help="tell a running training something, and wait for its answer",
        description=(
            "Send a command to the latest attempt of a run, and wait for its answer: exit status 0 if it was "
            "applied, 1 if it wasn't, 3 without an answer."
        ),
        allow_abbrev=False,
    )
    runs.add_arguments(parser)
    parser.add_argument("op", metavar="OP", help=f"{', '.join(_OPS)}; others with --any")
    parser.add_argument(
        "values",
        metavar="KEY=VALUE",
        nargs="*",
        help="VALUE is JSON where it is JSON, else text: lr=1e-4, opt=adam, betas=[0.9,0.99], tag='\"1e-4\"'",
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=seconds,
        default=_WAIT_S,
        help="for an answer (default: 60; 0: don't)",
    )
    parser.add_argument(
        "--any", action="store_true", help="send also what only a handler of the program's own may know"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(execute=_execute)


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"wanted a number of seconds, 0 or more, not {text!r}")
    return value


def _execute(arguments: argparse.Namespace) -> int:
    op: str = arguments.op
    args = read_assignments(arguments.values)
    if not arguments.any:
        _check(op, args)
    run_dir = runs.find_run(arguments.run, arguments.root)
    attempt = _addressee(run_dir)
    name = _send(run_dir, op, args, attempt)
    try:
        wait = await_answer(attempt, name, arguments.wait)
    except KeyboardInterrupt:
        complain(f"{op} is sent all the same; the answer will be in {_path_of_answer(run_dir, name)}")
        raise
    if arguments.json:
        say(json.dumps(_record(attempt, op, args, name, wait)))
    elif wait.answer is not None:
        _tell(wait.answer)
    elif arguments.wait == 0:
        say(f"sent to attempt {attempt.name}; the answer will be in {_path_of_answer(run_dir, name)}")
    else:
        complain(_no_answer(attempt, name, wait))
    if wait.answer is not None:
        return Status.DONE if wait.answer.get("outcome") == "applied" else Status.BAD
    return Status.DONE if arguments.wait == 0 else Status.NO_ANSWER


# --- Sending ---------------------------------------------------------------------------------------


def _check(op: str, args: dict[str, Any]) -> None:
    """Refuse what no managed training understands."""
    if op not in _OPS:
        raise Trouble(
            f"there is no command {op!r}: there are {', '.join(_OPS)}; --any sends it to a program that "
            "has a handler of its own",
            Status.USAGE,
        )
    if op == _UPDATE_PARAMS and not args:
        raise Trouble(f"{op} needs what to update, such as lr=1e-4", Status.USAGE)
    if op != _UPDATE_PARAMS and args:
        raise Trouble(f"{op} takes no values, and was given {', '.join(args)}", Status.USAGE)


def _addressee(run_dir: agent.RunDir) -> agent.AttemptDir:
    """Return the attempt that is meant, which has begun and not ended."""
    attempt = run_dir.latest()
    if attempt is None:
        raise Trouble(
            f"run {run_dir.name} has not started yet, so nothing was sent: there is no attempt in "
            f"{run_dir.attempts}",
            Status.BAD,
        )
    if over := why_over(attempt):
        raise Trouble(
            f"run {run_dir.name} is over, so nothing was sent: attempt {attempt.name} {over}; a command "
            "needs one that runs",
            Status.BAD,
        )
    return attempt


def _send(run_dir: agent.RunDir, op: str, args: dict[str, Any], attempt: agent.AttemptDir) -> str:
    try:
        return agent.send_command(run_dir, op, args, attempt.name)
    except ValueError as error:
        raise Trouble(f"{error}: send less at once", Status.USAGE) from None
    except OSError as error:
        raise Trouble(
            f"nothing was sent: {error.filename or run_dir.commands}: {error.strerror}", Status.NO_RUN
        ) from None


# --- Saying what came of it ------------------------------------------------------------------------


def _tell(answer: agent.Record) -> None:
    outcome, why = str(answer.get("outcome")), answer.get("why")
    step = answer.get("step")
    said = [*_results(answer.get("result")), *([str(why)] if why else [])]
    head = outcome if step is None else f"{outcome} after step {step}"
    say(f"{head}: {'; '.join(said)}" if said else head)
    if outcome in _ADVICE:
        say(_ADVICE[outcome])


def _results(result: object) -> list[str]:
    """Return what a handler told, in the order in which people want it."""
    if not isinstance(result, dict):
        return [] if result is None else [json.dumps(result, ensure_ascii=False)]
    result = dict(result)
    has_checkpoint = "checkpoint" in result
    checkpoint, warning = result.pop("checkpoint", None), result.pop("warning", None)
    lists = [result.pop(key, None) for key in ("changed", "followed")]
    said = [str(text) for texts in lists if isinstance(texts, list) for text in texts]
    if has_checkpoint:
        said.append(f"checkpoint {checkpoint}" if checkpoint else "no checkpoint was made")
    said += [str(warning)] if warning else []
    return said + [f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in result.items()]


def _no_answer(attempt: agent.AttemptDir, name: str, wait: Wait) -> str:
    """Say what is known about a run that does not answer, and what to do."""
    run_dir = attempt.run_dir
    lies_there = os.path.lexists(os.path.join(run_dir.commands, name))  # noqa: PTH118
    if wait.ending is Ending.OVER:
        later = "it is void" if lies_there else "the next attempt settles it"
        return f"no answer: attempt {attempt.name} {why_over(attempt) or 'ended'} before it gave one; {later}"
    what_now = (
        f"delete commands/{name} to take it back" if lies_there else "it was taken and is being executed"
    )
    return (
        f"no answer within {wait.waited_s:.3g} s: {wait.pulse}; {what_now}, or look for the answer, "
        f"ack/{name}, in {run_dir.path}"
    )


def _path_of_answer(run_dir: agent.RunDir, name: str) -> str:
    return os.path.join(run_dir.ack, name)  # noqa: PTH118


def _record(
    attempt: agent.AttemptDir, op: str, args: dict[str, Any], name: str, wait: Wait
) -> dict[str, Any]:
    return {
        "v": agent.WIRE_VERSION,
        "run": attempt.run_dir.name,
        "attempt": attempt.name,
        "op": op,
        "args": args,
        "letter": name,
        "answer": wait.answer,
        "is_over": wait.ending is Ending.OVER,
        "heartbeat_moved": None if wait.answer else wait.has_beaten,
    }
