"""A Ray cluster: reached, and each of its nodes fit for a study, or refused in one line before any compute.

Made for ray 2.60.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..errors import InputError

PACKAGES = ("driftgate", "torch", "transformers", "numpy")
"""What a node must have in the same versions: another one may give other numbers."""
REACH, ANSWER = 60.0, 120.0
"""Seconds: to reach the cluster; for a node to answer, a first import of torch from a slow disk included."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_TRY = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


def connect() -> Any:
    """Join the cluster at RAY_ADDRESS, else the one that this machine is part of. Returns the module `ray`.

    Raises InputError without the extra, for an address without a cluster, and for a cluster of other versions.
    """
    if util.find_spec("ray") is None:
        raise InputError("--on ray: needs the extra `ray`: pip install 'driftgate[ray]'")
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address.startswith("ray://"):
        raise InputError(
            f"RAY_ADDRESS = {address}: Ray's client is not supported; run the command on a node of the cluster, with "
            f"RAY_ADDRESS=HOST:6379 or none"
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address != "local":
        _check_reached(address)
    import ray  # pyright: ignore[reportMissingImports]

    alone = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
    return ray


def _check_reached(address: str) -> None:
    """In a process of its own, because Ray waits for minutes where nobody answers. Raises InputError."""
    where = "RAY_ADDRESS is not set" if address == "auto" else f"RAY_ADDRESS = {address}"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRY, address], capture_output=True, text=True, timeout=REACH, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"--on ray: {where}: no cluster answers there; check host and port, or start one") from None
    if tried.returncode == 0:
        return
    if "Could not find any running Ray instance" in tried.stderr:
        why = "no cluster runs here; start one by `ray start --head`, or set RAY_ADDRESS=HOST:PORT"
    else:
        lines = [line.strip() for line in tried.stderr.splitlines() if line.strip()]
        why = f"cannot join a cluster there: {' '.join(_after_traceback(lines))[:300]}"
    raise InputError(f"--on ray: {where}: {why}")


def _after_traceback(lines: list[str]) -> list[str]:
    """From the line on that names the exception."""
    named = [number for number, line in enumerate(lines) if "Error: " in line]
    return lines[named[-1] :] if named else lines[-1:]


@dataclass(frozen=True)
class Place:
    """What a node must see and have: it is sent to each node, and compared there."""

    folder: str
    """Where the command runs: relative paths in settings begin there."""
    token: str
    """A file in the folder of the runs."""
    secret: str
    """What the file holds."""
    versions: dict[str, str]

    def enter(self) -> None:
        """Go to the folder of the command. Raises InputError on a node that does not see the same files."""
        problem = self.problem()
        if problem:
            raise InputError(f"--on ray: node {socket.gethostname()} {problem}")
        os.chdir(self.folder)

    def problem(self) -> str:
        """What this node lacks, in one line; empty for nothing."""
        if not Path(self.folder).is_dir():
            return f"does not see {self.folder}, where the command runs; use a file system that all nodes share"
        try:
            seen = Path(self.token).read_text()
        except OSError:
            seen = ""
        if seen != self.secret:
            return f"does not see {Path(self.token).parent}; choose an --out on a file system that all nodes share"
        other = [f"{name} {mine}" for name, mine in versions().items() if mine != self.versions[name]]
        here = ", ".join(f"{name} {self.versions[name]}" for name in self.versions)
        return f"has {', '.join(other)}, but here are {here}; install the same versions" if other else ""


def versions() -> dict[str, str]:
    """Of the packages that results depend on, by name; without the kind of build, such as +cpu."""
    return {name: metadata.version(name).partition("+")[0] for name in PACKAGES}


@contextmanager
def shared_place(out: Path) -> Iterator[Place]:
    """A context in which `out` holds the token."""
    out.mkdir(parents=True, exist_ok=True)
    token, secret = out.absolute() / ".seen-by-all-nodes", token_hex()
    token.write_text(secret)
    try:
        yield Place(os.getcwd(), str(token), secret, versions())
    finally:
        token.unlink(missing_ok=True)


def check_nodes(ray: Any, place: Place, cpus: int, gpus: int) -> None:
    """Raises InputError if no node has so many CPUs and GPUs, and for a node with them that lacks something else."""
    fit = [
        node
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("GPU", 0) >= gpus
    ]
    if not fit:
        needs = f"{cpus} CPUs (the setting threads)" + (" and a GPU" if gpus else "")
        raise InputError(f"--on ray: no node of the cluster has {needs}, which a run takes; add one, or lower threads")
    ask = ray.remote(num_cpus=0, max_retries=0)(Place.problem)
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    asked = [ask.options(scheduling_strategy=where(node["NodeID"], soft=False)).remote(place) for node in fit]
    for node, answer in zip(fit, asked):
        problem = _answer(ray, answer)
        if problem:
            raise InputError(f"--on ray: node {node['NodeManagerHostname']} {problem}")


def _answer(ray: Any, answer: Any) -> str:
    """What a node lacks; also where it cannot even say so."""
    try:
        return ray.get(answer, timeout=ANSWER)
    except ray.exceptions.GetTimeoutError:
        return f"does not answer within {ANSWER:.0f} seconds; check it with `ray status`"
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"cannot run driftgate ({lines[-1] if lines else type(error).__name__}); install it there"
