"""Several processes that train together, by torch.distributed: started by torchrun or by `driftgate train --processes`.

A thread of each rank says every second that it lives, and looks after the next rank. So no rank waits for ever for one
that has died: all end, and one of them says why.
"""

import datetime
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from .errors import InputError, RunError
from .stop import Stopped
from .world import Alone, World

Key = TypeVar("Key")
Value = TypeVar("Value")
SILENCE = 15.0
"""Seconds without a sign of life after which a rank counts as dead."""
GRACE = 5.0
"""Seconds that a rank has to end by itself once another is dead."""
_LOST = ("gloo", "nccl", "by peer", "connection closed", "connection reset", "tcpstore", "broken pipe")
"""Words in the errors that torch raises where another rank is gone."""


@contextmanager
def joined() -> Iterator[World]:
    """All ranks, where the environment says that there are several, else `Alone`. An error that ends one rank ends all;
    one of them raises it, the others leave silently with the same exit code."""
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        yield Alone()
        return
    world = Ranks()
    try:
        yield world
        world.share(None)  # none leaves before all are done
    except Stopped:
        world.share(None)
        raise
    except InputError as error:
        world.leave(error)
    except Exception as error:
        world.leave(world.cause_of(error))
    finally:
        world.close()


def end_process(code: int | str | None) -> NoReturn:
    """End a rank with this exit code, and without Python's own clearing up: threads of torch that wait for others may
    abort the process in it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


class Ranks:
    """See `World`. Numbers and objects travel by gloo, over the CPU; parameters and gradients by NCCL on GPUs."""

    def __init__(self) -> None:
        """Waits for all ranks. Raises InputError where the port is in use or the others do not come."""
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        backend = "cpu:gloo,cuda:nccl" if _took_gpu() else "gloo"
        try:
            store, _, _ = next(rendezvous("env://", timeout=datetime.timedelta(minutes=10)))
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise InputError(_no_meeting(error)) from None
        self.watch = Watch(cast(Any, store).clone(), self.rank, self.size)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)

    @property
    def asked_to_stop(self) -> bool:
        return self.watch.asked_to_stop

    def ask_to_stop(self) -> None:
        self.watch.stopping = True

    def sum(self, totals: Mapping[Key, float]) -> dict[Key, float]:
        values = torch.tensor(list(totals.values()), dtype=torch.float64)
        return dict(zip(totals, self.add(values).tolist()))

    def add(self, values: Tensor) -> Tensor:
        wide = values.float() if values.dtype == torch.bfloat16 else values.clone()
        dist.all_reduce(wide)
        return wide.to(values.dtype)

    def share(self, value: Value) -> list[Value]:
        found: list[Value] = [value] * self.size
        dist.all_gather_object(found, value)
        return found

    def agree(self, wish: bool) -> bool:
        return any(self.share(wish))

    def leave(self, error: Exception) -> NoReturn:
        """Raises the error on the first rank that leaves, SystemExit on the others."""
        if self.rank and isinstance(error, (InputError, RunError)):
            time.sleep(1)  # most of these are met by all ranks: let rank 0 say it
        if not (self.watch.mine or self.watch.leave(f"rank {self.rank} has ended: {error}")):
            raise SystemExit(2 if isinstance(error, InputError) else 1) from None
        if isinstance(error, RunError) and self.rank and not self.watch.mine:
            raise RunError(f"rank {self.rank}: {error}") from error
        raise error

    def cause_of(self, error: Exception) -> Exception:
        """What is to be said of an error: where it came of a dead rank, that rank's number."""
        if not any(word in str(error).lower() for word in _LOST):
            return error
        lost = self.watch.wait_for_cause(SILENCE + GRACE)
        return RunError(lost) if lost else error

    def close(self) -> None:
        self.watch.close()
        if not self.watch.gone:
            dist.destroy_process_group()


class Watch(threading.Thread):
    """Says that this rank lives, and notices where the next one has died."""

    def __init__(self, store: Store, rank: int, size: int):
        super().__init__(daemon=True, name="driftgate ranks")
        self.store, self.rank, self.next = store, rank, (rank + 1) % size
        self.stopping, self.asked_to_stop, self.closed = False, False, threading.Event()
        self.gone = ""
        """Why the ranks cannot go on; empty while they can."""
        self.mine = False
        """Whether it is for this rank to say so."""
        store.set(f"where/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
        store.set(f"alive/{rank}", "0")
        self.start()

    def run(self) -> None:
        beat, heard, since = 0, b"", time.monotonic()
        while not self.closed.wait(1.0) and not self.gone:
            try:
                beat += 1
                self.store.set(f"alive/{self.rank}", str(beat))
                heard, since = self._listen(heard, since)
                self._signals()
            except (dist.DistError, RuntimeError):
                self._lose(
                    "the process that holds the ranks together (rank 0, or the launcher) has died", self.rank < 2
                )
        if self.gone and not self.closed.wait(GRACE):
            self._end()

    def leave(self, why: str) -> bool:
        """Tell the others why the ranks cannot go on. Returns whether this rank is the first to say so."""
        if self.gone:
            return False
        try:
            return self.store.compare_set("left", "", why) == why.encode()
        except (dist.DistError, RuntimeError):
            return self.rank < 2

    def wait_for_cause(self, seconds: float) -> str:
        """Why the ranks cannot go on, as soon as it is known; empty where it does not become known."""
        until = time.monotonic() + seconds
        while not self.gone and time.monotonic() < until:
            time.sleep(0.1)
        return self.gone

    def close(self) -> None:
        self.closed.set()
        self.join(GRACE)  # a thread that still talks to the store would spoil the end of the process

    def _listen(self, heard: bytes, since: float) -> tuple[bytes, float]:
        """The next rank's last sign of life, and when it came."""
        sign = self.store.get(f"alive/{self.next}") if self.store.check([f"alive/{self.next}"]) else b""
        if sign != heard:
            return sign, time.monotonic()
        if time.monotonic() - since > SILENCE:
            where = self.store.get(f"where/{self.next}").decode() if sign else "it never came"
            why = f"rank {self.next} ({where}) has died or does not answer"
            self._lose(why, self.leave(why))
        return heard, since

    def _signals(self) -> None:
        if self.stopping:
            self.store.set("stop", "1")
        self.asked_to_stop = self.asked_to_stop or self.store.check(["stop"])
        if not self.gone and self.store.check(["left"]):
            self._lose(self.store.get("left").decode(), False)

    def _lose(self, why: str, mine: bool) -> None:
        self.mine, self.gone = mine, f"{why}; the same command resumes from the last checkpoint"

    def _end(self) -> None:
        """The main thread waits for a rank that is gone: end the process."""
        if self.mine:
            os.write(2, f"driftgate: {self.gone}\n".encode())
        os._exit(1)


def _took_gpu() -> bool:
    """Whether there are GPUs; this rank's is then the one that "cuda" means."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.cuda.is_available()


def _no_meeting(error: Exception) -> str:
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        return f"MASTER_PORT: {address} is in use; choose another port (torchrun --master-port)"
    return f"the ranks cannot meet at MASTER_ADDR:MASTER_PORT = {address} ({why}); see that it is reachable from all"
