"""Work shared by several servers. One that dies is left out, and its jobs go to the others."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from .client import Limits, LostError, Server, ServingError

Job = TypeVar("Job")
Result = TypeVar("Result")
TURN = 0.2
"""Seconds after which the caller is asked whether to go on, also where nothing has ended."""
MISSED = 3
"""Health checks in a row without an answer after which a server counts as dead."""
ATTEMPTS = 4
"""Servers that a job may fail on, beyond one attempt on each, before the job itself is blamed."""


class Servers:
    """Servers that answer the same questions.

    `revive(server)` is called before a server that was lost is used again. It may raise: LostError leaves the server
    out, anything else ends the work. `alive` are the addresses in use.
    """

    def __init__(
        self,
        urls: Sequence[str],
        limits: Limits | None = None,
        concurrency: int = 64,
        revive: Callable[[Server], None] = lambda server: None,
        cancel: Callable[[Server], None] = lambda server: None,
    ):
        """concurrency: requests of one `run` that a server has at once. cancel: tells a server that the answers which
        it is working on are no longer wanted. Raises InputError for what is no address."""
        self.limits, self.concurrency = limits or Limits(), concurrency
        self.revive, self.cancel = revive, cancel
        self.servers = [Server(url, self.limits) for url in dict.fromkeys(urls)]
        self.alive = {server.url for server in self.servers}

    def living(self) -> list[Server]:
        return [server for server in self.servers if server.url in self.alive]

    def lose(self, server: Server) -> None:
        """Leave it out until it is healthy and `revive` has had it."""
        self.alive.discard(server.url)
        server.hang_up()

    def run(
        self,
        jobs: Sequence[Job],
        work: Callable[[Server, Job], Result],
        advance: Callable[[int], None] = lambda count: None,
    ) -> list[Result]:
        """work(server, job) of every job, in their order, in threads. advance(n): called in this thread when n more
        have ended, and with 0 every `TURN` seconds; what it raises ends all work at once.

        `work` raises LostError where the server is to blame; the job is then done elsewhere. Whatever else it raises
        ends the work, and is raised here. Raises ServingError where a job fails everywhere, or no server is left for
        `limits.lost` seconds.
        """
        shared = _Shared(self, jobs, work)
        try:
            shared.begin()
            while shared.left:
                advance(shared.wait())
            advance(shared.take_ended())
        finally:
            shared.close()
        return [shared.results[index] for index in range(len(jobs))]


class _Shared(Generic[Job, Result]):
    """One `run`: what is to do and what is done, guarded by `news`."""

    def __init__(self, pool: Servers, jobs: Sequence[Job], work: Callable[[Server, Job], Result]):
        self.pool, self.jobs, self.work = pool, jobs, work
        self.todo = deque(range(len(jobs)))
        self.results: dict[int, Result] = {}
        self.failures = [0] * len(jobs)
        self.ended = 0
        self.busy = {server.url: 0 for server in pool.servers}
        self.reviving: set[str] = set()
        self.news = threading.Condition()
        self.over = threading.Event()
        self.error: BaseException | None = None
        self.last, self.none_since = "", time.monotonic()
        self.threads: list[threading.Thread] = []

    @property
    def left(self) -> bool:
        return len(self.results) < len(self.jobs)

    def begin(self) -> None:
        for server in self.pool.servers:
            self._thread(self._watch, server)
            if server.url in self.pool.alive:
                self._staff(server)

    def wait(self) -> int:
        """How many more have ended. Raises what ends the work."""
        with self.news:
            if not self.ended and self.error is None and self.left:
                self.news.wait(TURN)
        if self.error is not None:
            raise self.error
        if self.pool.alive:
            self.none_since = time.monotonic()
        elif time.monotonic() - self.none_since >= self.pool.limits.lost:
            urls = ", ".join(server.url for server in self.pool.servers)
            raise ServingError(
                f"no server is left of {urls} for {self.pool.limits.lost:g} s; the last error was: {self.last}"
            )
        return self.take_ended()

    def take_ended(self) -> int:
        with self.news:
            count, self.ended = self.ended, 0
        return count

    def close(self) -> None:
        """Nothing of this run goes on after it."""
        self.over.set()
        with self.news:
            self.news.notify_all()
        for server in self.pool.servers:
            if self.busy[server.url]:
                server.hang_up()
                with suppress(Exception):  # it may be what has just died
                    self.pool.cancel(server)
        while self.threads:
            thread = self.threads.pop()
            while thread.is_alive():
                thread.join(TURN)
                for server in self.pool.servers:  # a call that began while the others were ended
                    if server.url not in self.reviving:  # half a revival would leave the server useless
                        server.hang_up()

    def _thread(self, target: Callable[[Server], None], server: Server) -> None:
        thread = threading.Thread(target=target, args=(server,), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _staff(self, server: Server) -> None:
        for _ in range(min(self.pool.concurrency, len(self.jobs)) - self.busy[server.url]):
            self._thread(self._serve, server)

    def _serve(self, server: Server) -> None:
        """Do jobs on a server as long as there are any and it lives."""
        while (index := self._next(server)) is not None:
            try:
                result = self.work(server, self.jobs[index])
            except LostError as error:
                self._failed(server, index, error)
            except BaseException as error:  # whatever it is, the caller's thread has to hear of it
                self._end(error)
            else:
                self._done(index, result)
            with self.news:
                self.busy[server.url] -= 1

    def _next(self, server: Server) -> int | None:
        with self.news:
            while self.left and server.url in self.pool.alive and not self.over.is_set():
                if self.todo and self.busy[server.url] < self.pool.concurrency:
                    self.busy[server.url] += 1
                    return self.todo.popleft()
                self.news.wait(TURN)
        return None

    def _done(self, index: int, result: Result) -> None:
        with self.news:
            self.results[index] = result
            self.ended += 1
            self.news.notify_all()

    def _failed(self, server: Server, index: int, error: LostError) -> None:
        if self.over.is_set():
            return
        self.pool.lose(server)
        with self.news:
            self.last = str(error)
            self.failures[index] += 1
            self.todo.appendleft(index)
            self.news.notify_all()
        if self.failures[index] >= ATTEMPTS + len(self.pool.servers):
            self._end(
                ServingError(f"{error}; the same request has failed {self.failures[index]} times, so it is given up")
            )

    def _end(self, error: BaseException) -> None:
        with self.news:
            self.error = self.error or error
            self.news.notify_all()

    def _watch(self, server: Server) -> None:
        """Look after a server: notice that it is gone although its connections stand, and that it is back."""
        missed, pause = 0, min(TURN, self.pool.limits.health)
        while not self.over.wait(pause if server.url not in self.pool.alive else self.pool.limits.health):
            healthy = server.healthy()
            if server.url in self.pool.alive:
                missed = 0 if healthy else missed + 1
                if missed == MISSED:
                    self.last = f"{server.url}: does not answer its health check"
                    self.pool.lose(server)
                continue
            missed, pause = 0, min(2 * pause, self.pool.limits.health)
            if healthy and self._revived(server):
                pause = min(TURN, self.pool.limits.health)

    def _revived(self, server: Server) -> bool:
        self.reviving.add(server.url)
        try:
            self.pool.revive(server)
        except LostError as error:
            self.last = str(error)
            return False
        except BaseException as error:  # a server that came back wrong ends the run
            self._end(error)
            return False
        finally:
            self.reviving.discard(server.url)
        self.pool.alive.add(server.url)
        self._staff(server)
        return True
