"""Run against export, system by system: the same to the last bit unrounded, in dB what int8 costs, and the programs say what the run says."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
import tiny

from ns2_jax import export, inference
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import state, weights

SIZES = {"semantic": "smoke,kmeans"}
"""Arguments of a config whose `smoke` is not the stage that others use."""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """One row is not padded to eight."""
    monkeypatch.setattr(meshes, "local_mesh", lambda: meshes.make_mesh({"fsdp": 1}, jax.devices()[:1]))


def parts(lines: list[str]) -> dict[str, dict[str, str]]:
    """`["decode: audio 43 dB, ..."]` -> `{"decode": {"audio": "43 dB"}}`."""
    split = lambda text: re.fullmatch(r"(.+?) (equal|-?\d+ dB|\d+\.\d % equal|\d+\.\d+)", text).groups()
    return {name: dict(split(part) for part in rest.split(", ")) for name, _, rest in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_an_unrounded_export_is_its_run_and_int8_costs_what_it_says(name, tmp_path, monkeypatch):
    """Of every program: its outputs are equal; of weights in int8 they are not all, so that equality is none of constants."""
    real, real_run, rounded, outputs = export.compare, inference.Model.run, [], {}

    def watched(model, program, *args, **options):
        made = real_run(model, program, *args, **options)
        outputs.setdefault(program, made[0])
        return made

    def both(run, exported, folder, described):
        lines = real(run, exported, folder, described)
        weights.write_weights(tmp_path / "int8", weights.read_weights(folder), "int8")
        coarse = {"params": {}, "rest": {}, **weights.read_weights(tmp_path / "int8")}
        rounded[:] = real(run, run.like(coarse["params"], coarse["rest"], run.config), folder, {})
        return lines

    monkeypatch.setattr(inference.Model, "run", watched)
    monkeypatch.setattr(export, "compare", both)
    run = tiny.write_run(name, tmp_path / "run", size=SIZES.get(name, "smoke"))
    lines = export.export(run, tmp_path / "x", programs=False)
    said, cost = parts(lines), parts(rounded)
    assert set(said) == set(outputs) and all(value in ("equal", "100.0 % equal") for found in said.values() for value in found.values()), lines
    assert f"- {lines[0]}" in (tmp_path / "x" / "README.md").read_text()
    assert set(said) == set(cost)
    for program, found in outputs.items():
        assert all(np.isfinite(value).all() for value in found.values()), program
    changed = [value for found in cost.values() for value in found.values() if value not in ("equal", "100.0 % equal")]
    assert changed or name == "text_to_semantic", rounded  # untrained, it writes one token whatever is rounded
    assert all(float(value.split()[0]) > -100 for value in changed), rounded


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_its_programs_say_what_the_run_says(name, tmp_path):
    run = tiny.write_run(name, tmp_path / "run", size=SIZES.get(name, "smoke"))
    lines = export.export(run, tmp_path / "x")
    described = json.loads((tmp_path / "x" / "config.json").read_text())["programs"]
    for program, found in parts(lines).items():
        own = {key.removesuffix(" of the program"): value for key, value in found.items() if key.endswith(" of the program")}
        assert own and all(shape["shape"][0] == "b" for shape in described[program]["inputs"].values()), (program, described)
        for value in own.values():
            assert value in ("equal", "100.0 % equal") or value.endswith("dB") and float(value.split()[0]) > 60, lines
    model = inference.load(tmp_path / "x")
    assert all(np.array_equal(a, state.flatten(inference.load(run).params)[path]) for path, a in state.flatten(model.params).items())
