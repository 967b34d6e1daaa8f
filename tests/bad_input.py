"""Run the command line in this process on changed settings."""

import json
import sys

from driftgate import cli


def drive(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["driftgate", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    return code, capsys.readouterr().err


def write_prompts(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))
    return {"path": str(path), "per_step": 2}


def problem(text="3+4=", **more):
    return json.dumps({"problem": text, **more})


def reference_term(**settings):
    return {"sft": {"responses": "reference", "objective": {"kind": "nll"}} | settings}
