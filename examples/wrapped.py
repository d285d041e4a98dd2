"""A plain training script that knows nothing of experiments, but says how far it is and takes commands.

    python examples/wrapped.py                               # alone: the two lines do nothing
    python -m alchemy_agent -- python examples/wrapped.py    # with run directory, heartbeat, commands

While it runs under the wrapper, drop files into the `commands/` of the run directory that the wrapper
names, and read the answers in `ack/`:

    echo '{"lr": 0.01}' > .alchemy/jobs/wrapped-.../commands/update_params.json
    touch .alchemy/jobs/wrapped-.../commands/graceful_stop.json
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

from alchemy_agent import Command, check_commands, report_progress


class Regression:
    """y = w x + b, fitted by gradient descent to points around y = 3 x - 1."""

    def __init__(self, lr: float) -> None:
        rng = random.Random(0)  # noqa: S311 (data, no secret)
        xs = [rng.uniform(-1, 1) for _ in range(64)]
        self.points = [(x, 3 * x - 1 + rng.gauss(0, 0.1)) for x in xs]
        self.w = self.b = 0.0
        self.lr = lr

    def step(self) -> float:
        """Go one step downhill; return the mean squared error before it."""
        errors = [(self.w * x + self.b - y, x) for x, y in self.points]
        self.w -= self.lr * 2 * sum(e * x for e, x in errors) / len(errors)
        self.b -= self.lr * 2 * sum(e for e, _ in errors) / len(errors)
        return sum(e * e for e, _ in errors) / len(errors)

    def update_params(self, command: Command) -> dict[str, Any]:
        """Take new values; what is returned stands in the acknowledgement."""
        self.lr = float(command.args["lr"])
        return {"lr": self.lr}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit a line by gradient descent.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--pause", type=float, default=0.005, help="seconds a step waits, to be watched")
    args = parser.parse_args()

    model = Regression(args.lr)
    for step in range(args.steps):
        loss = model.step()
        report_progress(step=step + 1, total=args.steps, metrics={"loss": loss})
        check_commands({"update_params": model.update_params})
        time.sleep(args.pause)
    print(f"y = {model.w:.2f} x {model.b:+.2f}, loss {loss:.4f}")


if __name__ == "__main__":
    main()
