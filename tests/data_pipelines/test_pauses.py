"""Silence at the ends cut, long recordings split: speech with pauses planted where they are known."""

from __future__ import annotations

import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import librosa
import numpy as np
import pytest
import soundfile

from configs.data import folder, ljspeech, manifest
from data_pipelines import ingest, pauses, run
from data_pipelines.corpora import Utterance
from ns2_jax.audio import files
from ns2_jax.data.dataset import Dataset

HERE = pathlib.Path(__file__).parent
RATE = 16000
SPOKEN = [files.trim_silence(soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0], RATE, margin=0.0) for i in range(3)]


def silence(seconds: float) -> np.ndarray:
    """Not quite: 70 dB under full scale."""
    return np.random.default_rng(0).normal(size=round(seconds * RATE)).astype(np.float32) * np.float32(3e-4)


def planted(*parts) -> np.ndarray:
    """Numbers are seconds of silence."""
    return np.concatenate([silence(part) if isinstance(part, float) else part for part in parts])


LONG = planted(0.4, SPOKEN[0], 1.2, SPOKEN[1], 0.8, SPOKEN[2], 0.3, SPOKEN[0], 0.2)
AT = np.cumsum([0.4 + len(SPOKEN[0]) / RATE, 1.2 + len(SPOKEN[1]) / RATE, 0.8 + len(SPOKEN[2]) / RATE])  # where the planted pauses begin
PAUSES = [1.2, 0.8, 0.3]


def stages(config, root, out, names="ingest,index,verify", **changed) -> None:
    run.run({**config.to_dict(), "root": str(root), "out": str(out), "valid": 0, "test": 0, **changed}, names.split(","), run.local(0))


def utterances(out) -> dict[str, tuple[dict, np.ndarray]]:
    dataset = Dataset.open(out)
    rows = ((dataset.read("train", "meta", i), dataset.read("train", "audio", i)["audio"]) for i in range(dataset.records("train")))
    return {meta["utt_id"]: (meta, audio) for meta, audio in rows}


def tree(root: pathlib.Path) -> dict[str, tuple[bytes, int]]:
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.glob("*/*") if path.is_file()}


def test_long_recordings_are_split_at_their_longest_pauses(tmp_path):
    """Three cuts in the middle of the planted pauses; the pieces are the whole recording; another rate and stereo change nothing."""
    (tmp_path / "c" / "ann").mkdir(parents=True)
    soundfile.write(tmp_path / "c" / "ann" / "long.wav", LONG, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "c" / "ann" / "short.wav", SPOKEN[1], RATE, subtype="FLOAT")
    stereo = files.resample(LONG, RATE, 22050)
    soundfile.write(tmp_path / "c" / "ann" / "stereo.flac", np.stack([stereo, 0.5 * stereo], 1), 22050)
    config = folder.get_config("transcribed=False,level=False")
    longest = max(len(part) / RATE for part in SPOKEN) + 1.2
    stages(config, tmp_path / "c", tmp_path / "out", split_seconds=longest)
    found = utterances(tmp_path / "out")
    assert list(found) == [*(f"ann/long#00{k}" for k in range(4)), "ann/short", *(f"ann/stereo#00{k}" for k in range(4))]
    assert {meta["speaker"] for meta, _ in found.values()} == {"ann"} and found["ann/short"][0]["source"] == "recording"
    want = [start + pause / 2 for start, pause in zip(AT, PAUSES)]
    for name in ("long", "stereo"):
        rows = [json.loads(line) for line in (tmp_path / "out" / "pieces" / "train-00000.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["of"] == f"ann/{name}"]
        assert [row["utt_id"] for row in rows] == [f"ann/{name}#00{k}" for k in range(4)] and rows[0]["start"] == 0
        assert [row["end"] for row in rows[:3]] == [row["start"] for row in rows[1:]]
        np.testing.assert_allclose([row["end"] for row in rows[:3]], want, atol=0.04)  # a sentence fades into its pause
        assert abs(rows[3]["end"] - len(LONG) / RATE) < 1e-3
        for row in rows:
            assert found[row["utt_id"]][0]["source"] == f"recording#t={row['start']:.3f},{row['end']:.3f}"
    joined = np.concatenate([found[f"ann/long#00{k}"][1] for k in range(4)])
    np.testing.assert_allclose(joined / 32768, LONG, atol=1 / 32768)
    before = tree(tmp_path / "out")
    stages(config, tmp_path / "c", tmp_path / "out", "ingest", split_seconds=longest)
    assert tree(tmp_path / "out") == before


def test_counts_balance_with_pieces_and_rejects(tmp_path):
    """A piece of planted clipping and one too long for its lack of pauses are rejected alone; in - split + pieces = out + rejects."""
    (tmp_path / "c").mkdir()
    loud = np.clip(20 * SPOKEN[2], -1, 1)
    soundfile.write(tmp_path / "c" / "a.wav", planted(SPOKEN[0], 1.0, loud, 1.0, SPOKEN[1]), RATE)
    soundfile.write(tmp_path / "c" / "b.wav", SPOKEN[1], RATE)
    hum = (0.1 * np.sin(2 * np.pi * 150 * np.arange(40 * RATE) / RATE)).astype(np.float32)
    soundfile.write(tmp_path / "c" / "c.wav", planted(SPOKEN[0], 0.5, hum), RATE)
    soundfile.write(tmp_path / "c" / "d.wav", hum, RATE)
    (tmp_path / "c" / "e.wav").write_text("no audio")
    stages(folder.get_config("transcribed=False"), tmp_path / "c", tmp_path / "out", split_seconds=4.0)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(pathlib.Path(row["item"]).name, row["reason"]) for row in rejects] == [
        ("a.wav", "clipped"), ("c.wav", "long"), ("d.wav", "long"), ("e.wav", "unreadable")]  # fmt: skip
    assert list(utterances(tmp_path / "out")) == ["a#000", "a#002", "b", "c#000"]
    made = json.loads((tmp_path / "out" / "plan.json").read_text())
    counts = ingest.balance(tmp_path / "out", made)
    assert counts == {"in": 5, "out": 4, "split": 2, "pieces": 5, "clipped": 1, "long": 2, "unreadable": 1}
    pieces = tmp_path / "out" / "pieces" / "train-00000.jsonl"
    pieces.write_text("".join(pieces.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RuntimeError, match="5 inputs, 2 of them split into 4, but 4 records .* a recording was lost"):
        ingest.balance(tmp_path / "out", made)
    pieces.unlink()
    stages(folder.get_config("transcribed=False"), tmp_path / "c", tmp_path / "out", split_seconds=4.0)
    assert ingest.balance(tmp_path / "out", made) == counts


def test_a_text_without_times_is_not_split(tmp_path):
    soundfile.write(tmp_path / "long.wav", LONG, RATE)
    with pytest.raises(ValueError, match="config.split_seconds=6: the texts of 'ljspeech' do not say when"):
        stages(ljspeech.get_config(), tmp_path, tmp_path / "out", split_seconds=6.0)
    assert not (tmp_path / "out").exists()
    lines = ["path\tid\ttext\tstart\tend", "long.wav\twhole\tOne text.\t\t", "long.wav\tpart\tAnother text.\t0\t7"]
    (tmp_path / "list.tsv").write_text("\n".join(lines))
    stages(manifest.get_config(), tmp_path / "list.tsv", tmp_path / "out", split_seconds=6.0)
    assert list(utterances(tmp_path / "out")) == ["part"]  # a segment of its own, longer than that, stays
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert row["reason"] == "text_without_times" and "cannot be split at 6 s; give segments with start and end" in row["detail"]


def test_silence_at_the_ends_is_trimmed_as_librosa_does(tmp_path):
    (tmp_path / "c").mkdir()
    for i, spoken in enumerate(SPOKEN):
        soundfile.write(tmp_path / "c" / f"{i}.wav", planted(0.5 + i / 3, spoken, 0.4, spoken, 1.1), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "c" / "click.wav", planted(1.0, SPOKEN[0][8000:8800], 1.0), RATE, subtype="FLOAT")
    config = folder.get_config("transcribed=False,level=False")
    stages(config, tmp_path / "c", tmp_path / "kept")
    stages(config, tmp_path / "c", tmp_path / "cut", trim=40.0)
    kept, cut = utterances(tmp_path / "kept"), utterances(tmp_path / "cut")
    assert list(kept) == ["0", "1", "2", "click"] and list(cut) == ["0", "1", "2"]
    (row,) = [json.loads(line) for line in (tmp_path / "cut" / "rejects.jsonl").read_text().splitlines()]
    assert row["reason"] == "short"
    for i in range(3):
        whole, audio = kept[str(i)][1], cut[str(i)][1]
        _, (start, end) = librosa.effects.trim(whole / 32768, top_db=40, frame_length=320, hop_length=320)
        at = next(k for k in range(len(whole) - len(audio) + 1) if np.array_equal(whole[k : k + len(audio)], audio))
        assert abs(at - (start - 800)) <= 640 and abs(at + len(audio) - (end + 800)) <= 640
        assert len(whole) - len(audio) > RATE * (1.45 + i / 3)
    with pytest.raises(ValueError, match="other recordings, transcripts or settings"):
        stages(config, tmp_path / "c", tmp_path / "cut", trim=30.0)


def test_a_plan_that_does_not_name_them_goes_on_without_and_refuses_them(tmp_path):
    """Plans from before they existed do not, nor do plans that use neither."""
    (tmp_path / "c").mkdir()
    out, config = tmp_path / "out", folder.get_config("transcribed=False")
    soundfile.write(tmp_path / "c" / "a.wav", SPOKEN[0], RATE)
    stages(config, tmp_path / "c", out)
    made = json.loads((out / "plan.json").read_text())
    assert "trim" not in made and "split_seconds" not in made
    (shard,) = (out / "audio").glob("*.tfrecord")
    whole = shard.read_bytes()
    shard.unlink()
    stages(config, tmp_path / "c", out)
    assert shard.read_bytes() == whole and json.loads((out / "plan.json").read_text()) == made
    for root in (tmp_path / "c", ""):  # compared with the plan, and taken from it
        for changed in ({"trim": 30.0}, {"split_seconds": 5.0}):
            with pytest.raises(ValueError, match=f"{next(iter(changed))}( was None, is |=){next(iter(changed.values()))}"):
                stages(config, root, out, **changed)


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), max_size=30), st.integers(1, 60), st.integers(20, 200), st.integers(1, 25)
)
def test_cuts_are_in_pauses_and_no_piece_is_too_short(parts, last, longest, shortest):
    """Speech and pauses by turns: every cut is in a pause, pieces are long enough, and one that is too long had nowhere to be cut."""
    quiet = np.concatenate([np.repeat([False, True], part) for part in parts] + [np.zeros(last, bool)])
    rms = np.where(quiet, 0.0001, 1.0)
    found = pauses.find(rms, 40)
    runs = [(sum(map(sum, parts[:i])) + a, sum(map(sum, parts[: i + 1]))) for i, (a, b) in enumerate(parts) if b >= 8]
    assert found.tolist() == [list(run) for run in runs]
    at = pauses.cuts(found, len(rms), longest, shortest)
    edges = [0, *at, len(rms)]
    middles = [(a + b) // 2 for a, b in runs]
    assert set(at) <= set(middles) and at == sorted(set(at))
    for start, end in zip(edges[:-1], edges[1:]):
        assert end - start >= shortest or not at
        if end - start > longest:
            assert not [m for m in middles if start + shortest <= m <= end - shortest]


def test_of_two_pauses_the_longer_and_of_equals_the_middle_one():
    runs = np.array([[100, 110], [200, 230], [500, 510], [520, 530], [900, 910]])
    assert pauses.cuts(runs, 1000, 990, 10) == [215]
    assert pauses.cuts(runs[[0, 2, 3, 4]], 1000, 990, 10) == [505]
    assert pauses.cuts(runs, 1000, 500, 10) == [215, 525]  # 525 is nearer the middle of 215..1000
    assert pauses.cuts(np.zeros((0, 2), int), 1000, 10, 1) == []


def test_what_is_left_whole(tmp_path):
    soundfile.write(tmp_path / "x.wav", SPOKEN[0], RATE)
    for item in (
        Utterance("a", str(tmp_path / "x.wav"), "s", "", start=1.0, end=9.0),
        Utterance("b", "tfds:x", "s", ""),
        Utterance("c", str(tmp_path / "x.wav"), "s", "a text"),
    ):
        assert pauses.split(item, 30, 0.5, 40) == [item]
