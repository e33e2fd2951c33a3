"""Compiling for machines that are not here: TPU slices through libtpu, and CPU meshes; the HLO reader by hand."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from configs import codec as codec_config
from ns2_jax import precompile

ROOT = pathlib.Path(__file__).parent.parent
TINY = ["--config=configs/codec.py:smoke,levels=2,codes=8,coarse=0", "--config.model.mel_scales=((256,20),)", "--config.model.judge_sizes=(256,)",
        "--config.model.judge_filters=8", "--config.model.codec.width=16", "--config.data.buckets=[{'b':8,'t':16}]"]


def call(*words, **variables):
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | variables
    return subprocess.run([sys.executable, "-m", "ns2_jax.precompile", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=2400)


def test_a_tpu_slice_without_a_tpu():
    done = call(*TINY, "--topology=v5e:2x2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"fits", "hbm_bytes_per_chip", "hbm_limit_bytes", "flops_per_step", "collectives", "compile_s"} <= set(report)
    assert report["fits"] is True and report["devices"] == 4 and "TPU v5" in report["device_kind"]
    assert report["mesh"] == {"data": 1, "fsdp": 4, "sequence": 1, "tensor": 1}
    assert report["state_bytes_per_chip"] < report["hbm_bytes_per_chip"] < report["hbm_limit_bytes"] == 16 << 30
    gradients = report["collectives"]["all-reduce"]  # small params are replicated: at least their gradients are summed
    assert gradients["count"] >= 1 and gradients["bytes"] >= 4 * report["parameters"]


def test_what_does_not_fit_exits_one(monkeypatch, capsys):
    monkeypatch.setitem(precompile.HBM, "cpu", 1 << 20)  # a chip of one megabyte
    config = codec_config.get_config("smoke,levels=2,codes=8,coarse=0")
    config.model.mel_scales, config.model.judge_sizes, config.model.judge_filters = ((256, 20),), (256,), 8
    config.model.codec.width = 16
    config.data.buckets = (dict(b=8, t=16),)
    report = precompile.measure(config, "cpu:8")
    assert report["fits"] is False and report["hbm_bytes_per_chip"] > 1 << 20 and report["devices"] == 8
    assert "DOES NOT FIT" in precompile.lines(report)
    monkeypatch.setattr(precompile, "measure", lambda *_: report)
    flags = types.SimpleNamespace(config=config, topology="v5e:2x2", slices=1, json=True)
    monkeypatch.setattr(precompile, "FLAGS", flags)
    monkeypatch.setattr(precompile.cluster, "pretend", lambda devices: None)
    assert precompile.main([]) == 1
    assert json.loads(capsys.readouterr().out)["fits"] is False


HLO = """
  %ag = f32[512,256]{1,0:T(8,128)} all-gather(%p), replica_groups={{0,1}}, dimensions={0}
  %ars = (f32[16]{0}, f32[4,4]{1,0}, /*index=2*/bf16[2]{0}) all-reduce-start(%a, %b, %c), to_apply=%add
  %ard = (f32[16]{0}, f32[4,4]{1,0}) all-reduce-done(%ars)
  %ags = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
  %cp = u8[3]{0} collective-permute(%y), source_target_pairs={{0,1}}
  %f = f32[8]{0} fusion(%all-reduce.1), calls=%c
"""


def test_collectives_are_read_from_hlo():
    assert precompile.collectives(HLO) == {
        "all-gather": {"count": 2, "bytes": 512 * 256 * 4 + 64},
        "all-reduce": {"count": 1, "bytes": 64 + 64 + 4},
        "collective-permute": {"count": 1, "bytes": 3}}


@pytest.mark.parametrize("words, line", [
    (["--topology=v5e:2x2"], "error: --config is missing"),
    (["--config=configs/codec.py:smoke", "--topology=v9:2x2"], "error: --topology=v9:2x2 is not FAMILY:SHAPE"),
    (["--config=configs/codec.py:smoke", "--topology=cpu:3"], "error: a bucket has b=8 rows, which do not divide by 3"),
])
def test_wrong_commands(words, line):
    done = call(*words)
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.slow
def test_two_slices():
    done = call(*TINY, "--topology=v5e:2x2", "--slices=2", "--config.mesh.data=2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mesh"] == {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}


def test_the_papers_naturalspeech2_compiles_for_sixteen_v5e_chips():
    """The whole train step of `base`, 410 M trained parameters (the frozen codec is in `rest`), at low compiler effort."""
    done = call("--config=configs/naturalspeech2.py:base", "--topology=v5e:4x4", "--json", JAX_EXEC_TIME_OPTIMIZATION_EFFORT="-1.0")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["fits"] is True and report["devices"] == 16
    assert abs(report["parameters"] / (72e6 + 34e6 + 50e6 + 69e6 + 183e6) - 1) < 0.01
    assert report["flops_per_step"] > 1e14
