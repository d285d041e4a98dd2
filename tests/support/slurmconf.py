"""What stands in the slurm.conf of a test cluster, and why."""

from __future__ import annotations

import os
import pwd
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["default_settings", "slurm_conf"]


def default_settings(directory: Path, controller_port: int) -> dict[str, str]:
    """Return settings that suit tests: all of it below `directory`, for this user, and without waiting."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    return {
        "ClusterName": directory.name,
        "SlurmctldHost": f"{_host()}(127.0.0.1)",
        "SlurmctldPort": str(controller_port),
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # a requeued job waits until its credential has expired, 120 s by default
        "AuthInfo": f"socket={directory}/munge/socket,cred_expire=5",
        "StateSaveLocation": f"{directory}/state",
        "SlurmdSpoolDir": f"{directory}/spool/%n",
        "SlurmctldPidFile": f"{directory}/slurmctld.pid",
        "SlurmdPidFile": f"{directory}/%n.pid",
        "SlurmctldLogFile": f"{directory}/slurmctld.log",
        "SlurmdLogFile": f"{directory}/%n.log",
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerType": "sched/backfill",
        # a job starts at the controller's next tick, within a second; by default it waits for 3 s
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
        "SlurmdParameters": "config_overrides",  # nodes may claim more than the machine has
        "ReturnToService": "2",
        "KillWait": "2",
    }


def slurm_conf(
    settings: Mapping[str, str], nodes: Mapping[str, int], node_resources: str, extra: Sequence[str]
) -> str:
    """Return the text of slurm.conf.

    Args:
        settings: Keys and values; one that a line of `extra` sets too is left out.
        nodes: Node names and the ports of their slurmd, all on this host, all in the partition `main`.
        node_resources: What every node claims to have, in Slurm's words.
        extra: Lines to add.
    """
    replaced = {line.partition("=")[0].strip() for line in extra}
    lines = [f"{key}={value}" for key, value in settings.items() if key not in replaced]
    lines += [
        f"NodeName={node} NodeHostname={_host()} NodeAddr=127.0.0.1 Port={port} {node_resources}"
        for node, port in nodes.items()
    ]
    lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    return "\n".join([*lines, *extra, ""])


def _host() -> str:
    return socket.gethostname().partition(".")[0]
