"""One input for every reason to refuse it, through the command's stages; the counts balance and no reason is left out."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import shutil
from collections import Counter

import numpy as np
import soundfile

from configs.data import folder, kaldi, libritts
from data_pipelines import ingest, run
from ns2_jax.data.dataset import Dataset

ROOT = pathlib.Path(__file__).parents[2]
RATE = 16000


def hum(seconds: float, level: float = 0.2) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * 150 * t) * (1 + 0.3 * np.sin(2 * np.pi * 3 * t)) / 1.3).astype(np.float32)


def save(path: pathlib.Path, audio: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, RATE, **options)


def refused(config, root: pathlib.Path, out: pathlib.Path, expected: list[tuple[str, str]], kept: set[str], **changed) -> set[str]:
    """Runs `ingest` and `verify`; what came of it is `expected` (item's name, reason) and `kept` (ids), and nothing got lost."""
    run.run({**config.to_dict(), "root": str(root), "out": str(out), **changed}, ["ingest", "index", "verify"], run.local(0))
    rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert sorted((row["item"].rsplit("/", 1)[-1], row["reason"]) for row in rows) == sorted(expected)
    assert all(row["detail"] for row in rows)
    counts = ingest.balance(out, json.loads((out / "plan.json").read_text()))
    reasons = Counter(reason for _, reason in expected)
    assert counts == {"in": len(kept) + len(expected), "out": len(kept), **reasons}
    dataset = Dataset.open(out)
    assert {dataset.read(split, "meta", i)["utt_id"] for split in dataset.splits for i in range(dataset.records(split))} == kept
    return set(reasons)


def left_empty(out: pathlib.Path, aligner: str, expected: dict[str, str]) -> set[str]:
    """Runs `align` and `verify`; what stayed empty is `expected` (id -> reason), all others have times, and all that counts agrees."""
    run.run({**folder.get_config().to_dict(), "out": str(out), "aligner": aligner}, ["align", "index", "verify"], run.local(0))
    dataset = Dataset.open(out)
    rows = [json.loads(line) for path in (out / "rejects" / "align").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert {row["item"]: row["reason"] for row in rows} == expected and len(rows) == len(expected) and all(row["detail"] for row in rows)
    assert dataset.manifest["groups"]["align"]["rejects"] == Counter(expected.values())
    places = [(split, i) for split in dataset.splits for i in range(dataset.records(split))]
    timed = {dataset.read(split, "meta", i)["utt_id"]: len(dataset.read(split, "align", i)["phones"]) for split, i in places}
    assert {name for name, count in timed.items() if not count} == set(expected) and len(timed) == len(places) > len(expected)
    return set(expected.values())


def reasons_in_the_code() -> set[str]:
    """Every reason that is given to a Reject, Rejected or AudioError anywhere in the pipelines and where audio files are read."""
    found = set()
    for path in (*(ROOT / "data_pipelines").rglob("*.py"), ROOT / "ns2_jax" / "audio" / "files.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            place = {"Reject": 1, "Rejected": 0, "AudioError": 0}.get(ast.unparse(node.func).split(".")[-1]) if isinstance(node, ast.Call) else None
            if place is not None and len(node.args) > place:
                given = node.args[place]
                assert isinstance(given, ast.Constant) or ast.unparse(given) in ("reason", "*reason"), f"{path}:{node.lineno}"
                found |= {given.value} if isinstance(given, ast.Constant) else set()
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
                found |= named(node.value)
    return found


def named(value: ast.expr) -> set[str]:
    """The words that an expression may be, or the first of its pairs: `"a" if ... else ("b", detail) if ... else None`."""
    if isinstance(value, ast.IfExp):
        return named(value.body) | named(value.orelse)
    word = value.elts[0] if isinstance(value, ast.Tuple) else value
    assert isinstance(word, ast.Constant), ast.unparse(value)
    return {word.value} - {None}


def test_reasons_are_found():
    found = reasons_in_the_code()
    assert {"too_few_frames", "word_mismatch", "speaker_missing", "bad_name", "nan"} <= found and all(map(str.isidentifier, found))


def test_every_reason_has_its_animal(tmp_path):
    wavs, lines = tmp_path / "a", []
    for name, audio in {
        "good": hum(1), "empty": hum(0), "silent": np.zeros(RATE, np.float32), "clipped": np.clip(hum(1) * 50, -1, 1), "long": hum(31),
        "short": hum(0.2), "alone": hum(1), "blank": hum(1), "mute": hum(1), "torn": hum(1), "x/twice": hum(1), "y/twice": hum(1),
    }.items():  # fmt: skip
        save(wavs / f"{name}.wav", audio)
    save(wavs / "nan.wav", np.where(np.arange(RATE) == 500, np.nan, hum(1)), subtype="FLOAT")
    (wavs / "letter.wav").write_text("this is not audio")
    lines += [f"{name}|Some words." for name in ("good", "letter", "empty", "silent", "clipped", "nan", "long", "short", "twice", "gone")]
    lines += ["blank|", "mute|...", "torn|One text.", "torn|Another text.", "no separator here"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    config = folder.get_config()
    seen = refused(config, wavs, tmp_path / "out" / "a", [
        ("letter.wav", "unreadable"), ("empty.wav", "empty"), ("silent.wav", "silent"), ("clipped.wav", "clipped"), ("nan.wav", "nan"),
        ("long.wav", "long"), ("short.wav", "short"), ("alone.wav", "no_transcript"), ("twice.wav", "duplicate_id"),
        ("blank.wav", "empty_text"), ("mute.wav", "unpronounceable"), ("torn.wav", "ambiguous_transcript"), ("a.csv:14", "duplicate_id"),
        ("a.csv:15", "bad_line"), ("gone", "no_audio"),
    ], {"good", "twice"}, layout={**config.layout.to_dict(), "transcripts": str(tmp_path / "a.csv")})  # fmt: skip

    data = tmp_path / "b"
    save(data / "r.wav", hum(5))
    files = {
        "wav.scp": [f"r {data}/r.wav", "piped sox x.wav -t wav - |", f"lost {data}/none.wav"],
        "text": ["r-1 Some words.", "r-2 Beyond the end.", "piped A command.", "lost No file.", "mumble No name."],
        "utt2spk": ["r-1 ann", "r-2 ann", "piped ann", "lost ann"],
        "segments": ["r-1 r 0 1.5", "r-2 r 4 9", "piped piped 0 1", "lost lost 0 1", "mumble r 1 2"],
    }
    for name, rows in files.items():
        (data / name).write_text("\n".join(rows) + "\n")
    seen |= refused(kaldi.get_config(), data, tmp_path / "out" / "b", [
        ("r.wav", "bad_segment"), ("piped", "pipe_command"), ("none.wav", "missing"),
        ("mumble", "speaker_missing"),
    ], {"r-1"}, split_seconds=4.0)  # fmt: skip

    whole = tmp_path / "b2"
    whole.mkdir()
    save(data / "s.wav", hum(2))
    for name, rows in {"wav.scp": [f"r {data}/r.wav", f"s {data}/s.wav"], "text": ["r Some words.", "s Others."], "utt2spk": ["r ann", "s ann"]}.items():
        (whole / name).write_text("\n".join(rows) + "\n")
    seen |= refused(kaldi.get_config(), whole, tmp_path / "out" / "b2", [("r.wav", "text_without_times")], {"s"}, split_seconds=4.0)

    save(tmp_path / "c" / "train-clean-100" / "1" / "2" / "1_2_3.wav", hum(1))
    (tmp_path / "c" / "train-clean-100" / "1" / "2" / "1_2_3.normalized.txt").write_text("Some words.")
    save(tmp_path / "c" / "train-clean-100" / "stray.wav", hum(1))
    seen |= refused(libritts.get_config(), tmp_path / "c", tmp_path / "out" / "c", [("stray.wav", "bad_place")], {"1_2_3"})

    save(tmp_path / "d" / "good.wav", hum(1))
    os.rename(shutil.copy(tmp_path / "d" / "good.wav", tmp_path / "d" / "other.wav"), os.path.join(os.fsencode(tmp_path), b"d", b"caf\xe9.wav"))
    seen |= refused(folder.get_config(), tmp_path / "d", tmp_path / "out" / "d", [("caf\\udce9.wav", "bad_name")], {"good"}, transcribed=False)

    seen |= left_empty_by_grids(tmp_path) | left_empty_by_the_aligner(tmp_path)
    assert seen == reasons_in_the_code()


def left_empty_by_grids(tmp_path: pathlib.Path) -> set[str]:
    """A TextGrid of MFA for every reason, of recordings of a second that say "the cat"."""
    said, words = [(0.1, 0.4, "DH"), (0.4, 0.9, "AH0")], [(0.1, 0.5, "the"), (0.5, 0.9, "cat")]
    animals = {
        "good": ("", words, said), "words": ("word_mismatch", [*words[:1], (0.5, 0.9, "dog")], said),
        "longer": ("length_mismatch", words, [*said, (0.9, 1.5, "K")]), "mute": ("no_alignment", words, []), "lost": ("no_alignment", None, None),
        "strange": ("text_unpronounceable", words, [(0.1, 0.9, "☃")]), "unknown": ("unknown_word", words, [*said, (0.9, 1.0, "spn")]),
        "backwards": ("decode_error", words, said[::-1]),
    }  # fmt: skip
    corpus, grids = tmp_path / "e", tmp_path / "grids"
    grids.mkdir()
    for name, (_, *tiers) in animals.items():
        save(corpus / f"{name}.wav", hum(1))
        (corpus / f"{name}.txt").write_text("The cat.")
        if tiers[0] is not None:
            rows = [line for label, tier in zip(("words", "phones"), tiers) for line in (
                '"IntervalTier"', f'"{label}"', "0", "1", str(len(tier)), *(f'{start} {end} "{text}"' for start, end, text in tier))]
            head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "1", "<exists>", "2"]
            (grids / f"{name}.TextGrid").write_text("\n".join(head + rows) + "\n", encoding="utf8")
    refused(folder.get_config(), corpus, tmp_path / "out" / "e", [], set(animals))
    return left_empty(tmp_path / "out" / "e", str(grids), {name: reason for name, (reason, *_) in animals.items() if reason})


def left_empty_by_the_aligner(tmp_path: pathlib.Path) -> set[str]:
    """The published one, on a sentence, on another's text, and on so little of it that there are fewer frames than phones."""
    here = pathlib.Path(__file__).parent
    speech = soundfile.read(here / "sentence0.flac", dtype="float32")[0]
    said, other, *_ = (sentence["text"] for sentence in json.loads((here / "sentences.json").read_text()))
    corpus = tmp_path / "f"
    for name, audio, text in (("good", speech, said), ("other", speech, other), ("little", speech[4000:12400], f"{said} {other}")):
        save(corpus / f"{name}.wav", audio)
        (corpus / f"{name}.txt").write_text(text)
    refused(folder.get_config(), corpus, tmp_path / "out" / "f", [], {"good", "other", "little"})
    return left_empty(tmp_path / "out" / "f", str(ROOT / "results" / "aligner" / "model"), {"other": "align_failed", "little": "too_few_frames"})
