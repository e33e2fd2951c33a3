"""launch/quickstart.ipynb from top to bottom: with a model of the smallest size, and (slow) as it stands."""

from __future__ import annotations

import json
import pathlib
import sys
import types

import matplotlib
import numpy as np
import pytest
import tiny

from ns2_jax import inference
from ns2_jax.audio import files

ROOT = pathlib.Path(__file__).parent.parent


def run(monkeypatch, capsys, change) -> tuple[dict, list[np.ndarray], str]:
    """(its variables, what it let hear, what it printed); `change` edits each cell."""
    heard: list[np.ndarray] = []
    display = types.ModuleType("IPython.display")
    display.Audio, display.display = lambda audio, rate: (audio, rate), lambda shown: heard.append(shown[0])
    shell = types.ModuleType("IPython")
    shell.get_ipython, shell.version_info = lambda: None, (9, 0)  # matplotlib asks whether it is in one
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("NS2_JAX_CACHE", "off")
    monkeypatch.chdir(ROOT / "launch")
    matplotlib.use("Agg")
    variables: dict = {}
    for cell in json.loads((ROOT / "launch" / "quickstart.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
            exec(compile(change("".join(cell["source"])), cell["id"], "exec"), variables)
    return variables, heard, capsys.readouterr().out


def check(variables, heard, said) -> None:
    out = variables["OUT"]
    assert len(heard) == 2 and all(np.isfinite(audio).all() and np.abs(audio).max() > 0 for audio in heard)
    mark = inference.read_mark(out / "morning.wav")
    assert mark["model"] == variables["tts"].hash and str(mark) in said and (out / "morning.png").stat().st_size > 5000
    assert "doctor" in said and variables["again"].seconds > variables["speech"].seconds and "jh" in variables["speech"].phones
    assert len(variables["parts"]) == 2 and len(variables["several"]) == 2
    assert len(files.read(out / "decoded.wav", 16000)) == len(variables["decoded"])


def test_with_a_small_model(tmp_path, monkeypatch, capsys):
    model = tiny.write_model("naturalspeech2", tmp_path)
    known = {'MODEL = "results/naturalspeech2/model"': f'MODEL = "{model}"', 'OUT = Path("runs/notebook")': f'OUT = Path("{tmp_path}/out")',
             "STEPS = 8": "STEPS = 2"}

    def change(cell):
        for old in [old for old in known if old in cell]:
            cell = cell.replace(old, known.pop(old))
        return cell

    check(*run(monkeypatch, capsys, change))
    assert not known


@pytest.mark.slow
def test_as_it_stands(tmp_path, monkeypatch, capsys):
    check(*run(monkeypatch, capsys, lambda cell: cell.replace('Path("runs/notebook")', f'Path("{tmp_path}/out")')))
