"""What importing the package pulls in, seen from a fresh interpreter."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

import ns2_jax

ROOT = pathlib.Path(__file__).parent.parent
HEAVY = ("tensorflow", "torch", "clu", "wandb", "matplotlib", "pocketsphinx", "numba")


def loaded(statement: str) -> set[str]:
    """Top-level names in `sys.modules` after `statement`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_the_probe_sees_imports():
    assert {"json", "numpy"} <= loaded("import numpy")


@pytest.mark.parametrize("module", [
    "train", "inference", "synthesize", "codec", "export", "evaluate.__main__", "precompile.__main__", "bench", "doctor", "serve.app", "corpus"])
def test_neither_tensorflow_nor_torch(module):
    got = loaded(f"import ns2_jax.{module}")
    assert "jax" in got
    assert not got & {"tensorflow", "torch", "clu"}


def test_training_does_not_wait_for_what_it_does_not_use():
    assert not loaded("import ns2_jax.train") & set(HEAVY)


def test_version_is_the_packages():
    text = (ROOT / "ns2_jax" / "__init__.py").read_text()
    assert f'"{ns2_jax.__version__}"' in text
