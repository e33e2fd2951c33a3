"""Runs our commands inside the test process: exit code, stdout and stderr, as `python -m ns2_jax.<name> ...` would give."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from unittest import mock

from absl import flags


def run(name: str, *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python -m <name> <args>`; the flags that it defined are gone afterwards."""
    values = flags.FLAGS
    before = set(values)
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    saved = sys.modules.pop(name, None)  # runpy wants to load it afresh
    try:
        with mock.patch.object(sys, "argv", [name, *args]), mock.patch.dict("os.environ", {"NS2_JAX_CACHE": "off"}):
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    finally:
        if saved is not None:
            sys.modules[name] = saved
        for flag in set(values) - before:
            if not str(values.find_module_defining_flag(flag)).startswith("absl"):  # those are made once and stay
                delattr(values, flag)
    return int(code), out.getvalue(), err.getvalue()


def refused(name: str, *args: str) -> str:
    """The one line on stderr of a command that must refuse its input with exit code 2."""
    code, _, err = run(name, *args)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, (code, err)
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]
