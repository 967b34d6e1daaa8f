"""As much of Ray as a study uses, in this process: a task runs when it is waited for."""

from types import SimpleNamespace


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class LostError(RayError):
    """The process of a task was killed."""


class FakeRay:
    """One node. dies(name): called before each task with its function's name; True where its process is killed."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=type("GetTimeoutError", (RayError,), {})
    )
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
    )

    def __init__(self, dies=lambda name: False, **resources):
        self.dies, self.resources = dies, {"CPU": 2.0} | resources
        self.cancelled, self.most, self.needs, self.down = [], 0, [], False

    def nodes(self):
        return [{"Alive": True, "NodeID": "1", "NodeManagerHostname": "one", "Resources": self.resources}]

    def cluster_resources(self):
        return self.resources

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "1")

    def remote(self, **needs):
        self.needs.append(needs)

        def wrap(what):
            if isinstance(what, type):
                return SimpleNamespace(remote=lambda: self._actor(what()))
            made = SimpleNamespace(remote=lambda *args: _Later(what, args))
            made.options = lambda **_: made
            return made

        return wrap

    def _actor(self, inner):
        def method(name):
            return SimpleNamespace(remote=lambda *args: _Later(getattr(inner, name), args).now())

        return SimpleNamespace(add=method("add"), take=method("take"))

    def wait(self, references, timeout):
        self.most = max(self.most, len(references))
        return references[:1], references[1:]

    def cancel(self, reference):
        self.cancelled.append(reference)
        reference.cancelled = True

    def get(self, reference, timeout=None):
        if reference.done:
            return reference.result
        if reference.cancelled or self.dies(reference.call.__name__):
            raise LostError
        try:
            return reference.now().result
        except Exception as error:
            raise RayTaskError(error) from None

    def shutdown(self):
        self.down = True


class _Later:
    def __init__(self, call, args):
        self.call, self.args, self.done, self.cancelled = call, args, False, False

    def now(self):
        self.result, self.done = self.call(*self.args), True
        return self
