"""The builder killed and its files damaged: what the same command makes of it is what an undisturbed one made, byte for byte."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import tiny

from configs.data import ljspeech
from data_pipelines import run
from ns2_jax.data import records
from ns2_jax.runtime import cluster
from tests import sessions

ROOT = pathlib.Path(__file__).parents[2]
RATE = 16000
STAGES = "ingest,normalise,phonemise,f0,encode,index"
LATER = "align,quality,verify,stats"
ARGUMENT = "per_shard=4,valid=0,test=0"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pathlib.Path:
    """Eight hums as LJSpeech has them, one line without a recording, and a codec of the smallest size."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "wavs").mkdir()
    lines = ["LJ-none|Nothing.|Nothing."]
    for i in range(8):
        t = np.arange(int(RATE * (1 + i / 20))) / RATE
        wave = 0.2 * np.sin(2 * np.pi * (120 + 10 * i) * t) * (1 + 0.3 * np.sin(2 * np.pi * 3 * t))
        soundfile.write(root / "wavs" / f"LJ-{i}.wav", wave.astype(np.float32), RATE)
        lines.append(f"LJ-{i}|It cost ${i}.|It cost {i} dollars.")
    (root / "metadata.csv").write_text("\n".join(lines), encoding="utf8")
    tiny.write_model("codec", root / "codec")
    return root


def tree(root: pathlib.Path) -> dict[str, bytes]:
    """Every file below `root`, hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# Killed --------------------------------------------------------------------------------------------------------------


class Builder:
    """The command on `corpus` in a session of its own; what it compiles is kept for the next."""

    def __init__(self, corpus: pathlib.Path, out: pathlib.Path, cache: pathlib.Path, stages: str):
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-m", "data_pipelines.run", f"--config=configs/data/ljspeech.py:{ARGUMENT}", f"--config.root={corpus}",
                   f"--config.out={out}", f"--config.codec={corpus / 'codec'}", "--config.aligner=", f"--stages={stages}", "--workers=2"]  # fmt: skip
        self.log = open(cache.parent / "log", "w+b")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True, cwd=ROOT,
                                        env={**os.environ, **compiled})  # fmt: skip

    def finish(self) -> None:
        code = self.process.wait(timeout=300)
        self.log.seek(0)
        assert code == 0, self.log.read().decode()

    def kill(self, out: pathlib.Path, files: int, after: float, group: bool) -> bool:
        """SIGKILL some seconds after there are so many files (0: when one is being written), to all its processes or to the coordinator
        alone; False if it was through."""
        try:
            while self.process.poll() is None and sum(path.is_file() for path in list(out.rglob("*"))) < files:
                time.sleep(0.01)
            while self.process.poll() is None and after == 0 and not any(".tmp-" in path.name for path in list(out.glob("*/.*"))):
                pass
            self.process.wait(timeout=after)
            return False
        except subprocess.TimeoutExpired:
            (os.killpg if group else os.kill)(self.process.pid, signal.SIGKILL)
            return self.process.wait() == -signal.SIGKILL
        finally:
            deadline = time.monotonic() + 20
            while (left := sessions.living(self.process.pid)) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not left, f"orphans: {left}"


def killed_often(corpus: pathlib.Path, folder: pathlib.Path, kills: int, seed: int) -> None:
    """Seven in ten times in the stages of STAGES, the others in those of LATER."""
    calm, killed, cache, rng = folder / "calm" / "out", folder / "killed" / "out", folder / "cache", random.Random(seed)
    want, seen, cut_short = {}, set(), 0
    for stages, times in ((STAGES, kills * 7 // 10), (LATER, kills - kills * 7 // 10)):
        had, done, before = len(want), 0, folder / "before" / stages
        Builder(corpus, calm, cache, stages).finish()
        want = tree(calm)
        if killed.exists():
            shutil.copytree(killed, before)
        while done < times:
            have = len(tree(killed)) if killed.exists() else 0
            target = have + rng.randrange((len(want) - had) // 3)
            after = rng.uniform(0, 0.5) if done % 3 else 0
            if Builder(corpus, killed, cache, stages).kill(killed, target, after, group=done % 2 == 0):
                done += 1
                cut_short += any(".tmp-" in name for name in tree(killed))
                seen.add((stages, *sorted(path.name for path in killed.glob("*/"))))
            else:
                shutil.rmtree(killed)  # it was through: another life
                if before.exists():
                    shutil.copytree(before, killed)
        Builder(corpus, killed, cache, stages).finish()
        assert tree(killed) == want
    assert len({stages for stages, *_ in seen}) == 2 and len(seen) > 4 and cut_short  # met in different stages, and in the middle of a file
    groups = {path.split("/")[0] for path in want if path.endswith(".tfrecord")}
    assert {group.split("-")[0] for group in groups} == {"align", "audio", "codes", "f0", "meta", "phones", "quality", "text"}
    assert {"DATASHEET.md", "stats.json", "plots/length.png", "duplicates.jsonl", "verify/train-00000.json"} <= set(want)
    assert not [path for path in want if ".tmp-" in path]


def test_killed_ten_times_it_makes_the_same_tree(corpus, tmp_path):
    """All files are compared: shards, indexes, markers, plan, rejects, manifest; no temporary file and no process is left."""
    killed_often(corpus, tmp_path, kills=10, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_thirty_times(corpus, tmp_path, seed):
    killed_often(corpus, tmp_path, kills=30, seed=seed)


# Damaged -------------------------------------------------------------------------------------------------------------


def build(corpus: pathlib.Path, out: pathlib.Path, stages: str = STAGES, **changed) -> None:
    config = {**ljspeech.get_config(ARGUMENT).to_dict(), "root": str(corpus), "out": str(out), "codec": str(corpus / "codec"), **changed}
    run.run(config, stages.split(","), run.local(0))


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("built") / "out"
    build(corpus, out, STAGES + ",verify")
    return out


def states(root: pathlib.Path) -> dict[str, tuple[int, int]]:
    """(inode, time of the last change) of every file of a group."""
    files = [path for path in root.glob("*/*-of-*") if path.parent.name != "plan"]
    return {str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def flip(path: pathlib.Path) -> None:
    """One bit of some byte; the length stays."""
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [flip, cut, pathlib.Path.unlink], ids=["flipped", "cut", "deleted"])
@pytest.mark.parametrize("kind", [".tfrecord", ".idx.npy", ".json"])
def test_one_damaged_file_is_named_and_made_again_alone(corpus, built, kind, damage):
    want, before = tree(built), states(built)
    for data in sorted(built.glob("*/train-00001-of-*.tfrecord")):
        path = data.with_name(data.name.removesuffix(".tfrecord") + kind)
        damage(path)
        if kind == ".idx.npy" and damage is pathlib.Path.unlink:
            build(corpus, built, "index")  # no damage: it is made again by whoever needs it
        else:
            with pytest.raises(ValueError, match=f"(?s)1 problems in .*run the command that made it again.*{path.name}"):
                build(corpus, built, "verify")
        build(corpus, built, STAGES)
        after = states(built)
        changed, marker = {name for name in before if after[name] != before[name]}, records.marker_path(data)
        mended, without = str(path.relative_to(built)), str(marker.relative_to(built))  # other bytes are written without a marker
        assert mended in changed and changed <= ({mended, without} if kind == ".tfrecord" else {mended})
        build(corpus, built, STAGES + ",verify")
        assert tree(built) == want and states(built) == after
        before = after


def lists(root: pathlib.Path) -> list[str]:
    """Files of `built` that are no group's."""
    return [name for name in tree(root) if "-of-" not in name or name.startswith("plan/")]


@pytest.mark.parametrize("damage", [flip, cut, pathlib.Path.unlink], ids=["flipped", "cut", "deleted"])
def test_a_damaged_list_is_written_again_or_named(corpus, built, tmp_path, damage):
    """Plans cannot be made again when the corpus may have changed; all else is. No traceback, no shard written."""
    root = pathlib.Path(shutil.copytree(built, tmp_path / "out"))
    want, before, named = tree(root), states(root), set()
    for name in lists(root):
        if not want[name] and damage is not pathlib.Path.unlink:
            continue
        damage(root / name)
        try:
            build(corpus, root, STAGES + ",verify")
        except (ValueError, FileNotFoundError) as error:
            assert cluster.is_user_error(error) and pathlib.Path(name).name in str(error), name
            named.add(name)
            (root / name).write_bytes(want[name])
            build(corpus, root, STAGES + ",verify")
        if name.endswith("speakers.npz") and damage is flip:  # of a zip file's bits some say nothing
            (root / name).write_bytes(want[name])
        assert tree(root) == want and states(root) == before, name
    assert named == {name for name in want if name.startswith("plan")}


def test_two_thousand_flipped_bits_are_named(built, tmp_path):
    """Any bit of any shard, index or marker of any group, as `verify` reads them; flips in one marker are found by what it says."""
    from data_pipelines import verify

    root = pathlib.Path(shutil.copytree(built, tmp_path / "out"))
    files = sorted(path for path in root.glob("*/*-of-*") if path.parent.name != "plan")
    rng, missed = np.random.default_rng(0), []
    for _ in range(2000):
        path = files[rng.integers(len(files))]
        data = path.read_bytes()
        at, bit = int(rng.integers(len(data))), int(rng.integers(8))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        shard = path.with_name(path.name.split(".")[0] + ".tfrecord")
        problems, _ = verify.check_shard(shard, path.parent.name)
        if not any(shard.name.split(".")[0] in problem for problem in problems):
            missed.append((path, at, bit, problems))
        path.write_bytes(data)
    assert missed == []


def test_what_was_made_from_other_bytes_is_made_again(corpus, tmp_path):
    """A recording is replaced and its shard of audio deleted: f0 and codes of that shard follow, nothing else does."""
    mine, out = pathlib.Path(shutil.copytree(corpus, tmp_path / "corpus")), tmp_path / "out"
    build(mine, out, codec=str(corpus / "codec"))
    before = states(out)
    listed = next(path for path in sorted((out / "plan").glob("train-00000-*.jsonl")))
    name = listed.read_text().split('"path": "')[1].split('"')[0]
    audio, _ = soundfile.read(name, dtype="float32")
    soundfile.write(name, audio[::-1], RATE)
    (shard,) = out.glob("audio/train-00000-of-*.tfrecord")
    shard.unlink()
    build(mine, out, codec=str(corpus / "codec"))
    after = states(out)
    changed = {name for name in before if after[name] != before[name]}
    assert {name.split("/")[1].split("-of-")[0] for name in changed} == {"train-00000"}
    assert {name.split("/")[0].split("-")[0] for name in changed if name.endswith(".tfrecord")} == {"audio", "f0", "codes"}


def test_markers_without_a_checksum_are_read(built, tmp_path):
    """As they were written before; but none with a key that no marker has."""
    path = tmp_path / "m.json"
    data = next(built.glob("audio/*.json")).read_bytes()
    said = records.load_marker(data, path)
    lines = [line for line in data.splitlines() if b'"checksum"' not in line]
    assert records.load_marker(b"\n".join(lines), path) == said
    with pytest.raises(records.Corrupt, match="m.json is not the marker that was written"):
        records.load_marker(data.replace(b'"checksum"', b'"cheksum"'), path)


def test_a_plan_that_was_interrupted_is_begun_again(corpus, tmp_path):
    (tmp_path / "out" / "plan").mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "out" / f".plan.json.tmp-1-{ended.pid}-{socket.gethostname()}").write_text("{")
    build(corpus, tmp_path / "out", "ingest")
    assert not list(tmp_path.rglob("*.tmp-*"))
