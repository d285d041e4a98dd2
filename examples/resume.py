"""Kill this training and start it again: it goes on, and ends with the same weights, bit by bit.

    pytest examples/resume.py -s              # a few seconds; kill it on the way: Ctrl-C, or kill -9
    pytest examples/resume.py -s              # the same command again goes on from the last checkpoint
    pytest examples/resume.py -s --alchemy-fresh    # starts over; the last line printed is the same

There is no line about resuming below. What is assigned to `ctx` is saved every 100 steps and restored, with
the place in the shuffled epoch, the noise and the dropout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import alchemy as al

STEPS = 3000

exp = al.experiment(
    "resume", criteria={"accuracy": "> 0.9"}, matrix={"lr": [0.01], "seed": [42]}, resources={"cpus": 1}
)


def load(train: bool) -> TensorDataset:
    digits = load_digits()
    pictures = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    chosen = slice(0, 1200) if train else slice(1200, None)
    return TensorDataset(pictures[chosen], labels[chosen])


def batches(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


@exp.task(total_steps=STEPS, eval_every=500, checkpoint_every=100)
def train(ctx: al.Context) -> None:
    torch.set_num_threads(1)  # how sums are split among threads changes their last bits
    ctx.loader = DataLoader(load(train=True), batch_size=64, shuffle=True)
    ctx.model = nn.Sequential(
        nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10)
    )
    ctx.optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=ctx.param("lr"))
    ctx.schedule = torch.optim.lr_scheduler.OneCycleLR(
        ctx.optimizer, max_lr=ctx.param("lr"), total_steps=STEPS
    )

    for step, (pictures, labels) in zip(ctx.steps(), batches(ctx.loader), strict=False):
        noisy = pictures + 0.2 * torch.randn_like(pictures)
        loss = F.cross_entropy(ctx.model(noisy), labels)
        ctx.optimizer.zero_grad()
        loss.backward()
        ctx.optimizer.step()
        ctx.schedule.step()
        ctx.log(loss=loss)
        if ctx.should_eval():
            accuracy = evaluate(ctx.model)
            ctx.log_eval(accuracy=accuracy)
            print(f"step {step + 1:4}  accuracy {accuracy:.3f}  weights {fingerprint(ctx.model)}", flush=True)


@torch.no_grad()
def evaluate(model: nn.Module) -> float:
    pictures, labels = load(train=False).tensors
    model.eval()
    correct = (model(pictures).argmax(1) == labels).float().mean().item()
    model.train()
    return correct


def fingerprint(model: nn.Module) -> str:
    data = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    train()
