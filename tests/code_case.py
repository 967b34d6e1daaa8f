"""What the tests of kind `code` share."""

import json

import pytest

from driftgate.config.verify import verify_settings
from driftgate.verify import code_sandbox
from driftgate.verify.choose import verifier_of

PAIRS = json.dumps([{"input": "3\n4\n", "output": "7\n"}, {"input": "5\n5", "output": "10"}])
needs_namespaces = pytest.mark.skipif(not code_sandbox.namespaces(), reason="this system gives users no namespaces")


def limited(**settings):
    return verifier_of(verify_settings({"kind": "code", **settings}))
