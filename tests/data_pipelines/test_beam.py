"""The stages under Apache Beam: the bytes of the local pool."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from data_pipelines import beam, run

RATE = 16000
ROOT = pathlib.Path(__file__).parents[2]
needs_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed")
STAGES = "ingest,normalise,phonemise,f0,index,verify"


@pytest.fixture
def corpus(tmp_path) -> pathlib.Path:
    root = tmp_path / "LJSpeech-1.1"
    (root / "wavs").mkdir(parents=True)
    for i in range(7):
        t = np.arange(RATE + 800 * i) / RATE
        soundfile.write(root / "wavs" / f"{i}.wav", 0.2 * np.sin(2 * np.pi * 150 * t), RATE)
    (root / "metadata.csv").write_text("\n".join(f"{i}|Number {i}.|Number {i}." for i in range(7)))
    return root


def config(root: pathlib.Path, out: pathlib.Path) -> dict:
    made = importlib.import_module("configs.data.ljspeech").get_config("per_shard=2").to_dict()
    return {**made, "root": str(root), "out": str(out)}


def digests(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def wrong(root: str, k: int) -> None:
    (pathlib.Path(root) / f"{k}").touch()
    if k == 3:
        raise ValueError("no such shard")


@needs_beam
def test_beam_makes_the_bytes_of_the_local_pool(corpus, tmp_path):
    """Also when it goes on after a shard was lost."""
    for name, runner in (("local", run.local(0)), ("beam", run.on_beam([]))):
        run.run(config(corpus, tmp_path / name / "out"), STAGES.split(","), runner)
    expected = digests(tmp_path / "local")
    assert digests(tmp_path / "beam") == expected and len(expected) > 40
    for lost in ("audio/train-00001-of-00004.json", "phones/train-00002-of-00004.tfrecord"):
        (tmp_path / "beam" / "out" / lost).unlink()
    run.run(config(corpus, tmp_path / "beam" / "out"), STAGES.split(","), run.on_beam([]))
    assert digests(tmp_path / "beam") == expected


@needs_beam
def test_a_failing_shard_fails_the_pipeline(tmp_path):
    with pytest.raises(Exception, match="no such shard"):
        beam.run_shards(functools.partial(wrong, str(tmp_path)), 5, [], "wrong")


@needs_beam
@pytest.mark.slow
def test_the_command_with_two_worker_processes(corpus, tmp_path):
    run.run(config(corpus, tmp_path / "local" / "out"), ["ingest", "phonemise", "index"], run.local(0))
    command = [sys.executable, "-m", "data_pipelines.run", "--config=configs/data/ljspeech.py:per_shard=2", f"--config.root={corpus}",
               f"--config.out={tmp_path / 'beam' / 'out'}", "--stages=ingest,phonemise,index", "--runner=beam", "--",
               "--direct_num_workers=2", "--direct_running_mode=multi_processing"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "beam") == digests(tmp_path / "local")


def test_without_beam_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match="pip install -e '.\\[beam\\]'"):
        beam.run_shards(functools.partial(wrong, str(tmp_path)), 1, [], "wrong")
