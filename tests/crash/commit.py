"""Commits a checkpoint and retires older ones, to be killed at it; knows nothing of torch.

    python -S -I commit.py SDK_DIRECTORY AGENT_DIRECTORY SCRATCH_DIRECTORY

For each line `RUN_DIRECTORY ATTEMPT STEP SEQ` on standard input it forks a child, so that a tracer which then
attaches to the child sees the calls of one commit and of one retirement, and no interpreter that starts:

    stopped PID         it waits for SIGCONT
    committed NAME      then, unless it is killed, one of these
    failed TEXT
    problem TEXT        and what the retirement had to say, line by line
    ended STATUS        exit status, or minus the signal
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import types

SDK, AGENT, SCRATCH = sys.argv[1:4]
sys.path[:0] = [SDK, AGENT]
# The package without its front door, which loads what a commit doesn't need.
package = types.ModuleType("alchemy")
package.__path__ = [f"{SDK}/alchemy"]
sys.modules["alchemy"] = package

import alchemy_agent as agent  # noqa: E402
from alchemy.checkpoint.retention import retire  # noqa: E402
from alchemy.checkpoint.store import write_checkpoint  # noqa: E402
from alchemy.checkpoint.writing import Part, Sink  # noqa: E402

LARGE = bytes(range(256)) * 4200
"""More than a megabyte: hashed by a second thread, sent on its way early."""
ANY_PROCESS = ctypes.c_ulong(-1)
PR_SET_PTRACER = 0x59616D61


def parts(step: int) -> list[Part]:
    def write_model(sink: Sink) -> None:
        sink.write(b"model %d" % step)
        sink.write(LARGE)

    return [Part("model.pt", write_model), Part("loop.json", lambda sink: sink.write(b'{"step":%d}' % step))]


def say(text: str) -> None:
    os.writev(1, [text.replace("\n", " ").encode() + b"\n"])  # not `write`, which faults are injected into


def commit(run: str, name: str, step: int, seq: int) -> None:
    attempt = agent.RunDir(run).attempt(name)
    try:
        ref = write_checkpoint(attempt, step, parts(step), seq=seq, parent=None, kinds={}, applied=())
    except OSError as error:
        say(f"failed {error}")
        return
    say(f"committed {ref}")
    for problem in retire(attempt, keep=2, protected=None):
        say(f"problem {problem}")


def serve(run: str, name: str, step: str, seq: str) -> None:
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY_PROCESS, 0, 0, 0)  # a sibling may trace us
        os.kill(os.getpid(), signal.SIGSTOP)
        commit(run, name, int(step), int(seq))
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    say(f"stopped {pid}")
    say(f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


def main() -> None:
    warm = agent.claim_attempt(agent.RunDir(f"{SCRATCH}/jobs/warm"), 1, 0)
    for step in range(3):  # so that what is loaded when needed is loaded
        write_checkpoint(warm, step, parts(step), seq=step + 1, parent=None, kinds={}, applied=())
    if problems := retire(warm, keep=2, protected=None):
        sys.exit(str(problems))
    say("ready")
    for line in sys.stdin:
        serve(*line.split())


if __name__ == "__main__":
    main()
