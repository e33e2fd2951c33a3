"""Every layout on a small copy of its real directory structure, from the files to the records."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pathlib
import sys

import commands
import numpy as np
import pytest
import soundfile

from data_pipelines import corpora, plans, run, shards, tfds_builder, transcripts
from data_pipelines.corpora import Reject, Utterance
from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import front, phones

RATE = 16000


def hum(seconds: float, rate: int = RATE) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (0.2 * np.sin(2 * np.pi * 150 * t) * (1 + 0.3 * np.sin(2 * np.pi * 3 * t)) / 1.3).astype(np.float32)


def save(path: pathlib.Path, seconds: float = 1.0, rate: int = RATE, **kwargs) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, hum(seconds, rate), rate, **kwargs)


def write(path: pathlib.Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf8")


def config(file: str, root, out, **layout) -> dict:
    name, _, arg = file.partition(":")
    made = importlib.import_module(f"configs.data.{name}").get_config(arg).to_dict()
    return {**made, "root": str(root), "out": str(out), "layout": {**made["layout"], **layout}}


def build(settings: dict, stages: str = "ingest,phonemise,index,verify") -> Dataset:
    run.run(settings, stages.split(","), run.local(0))
    return Dataset.open(settings["out"])


def metas(dataset: Dataset) -> dict[str, dict]:
    rows = [{**dataset.read(split, "meta", i), "split": split} for split in dataset.splits for i in range(dataset.records(split))]
    return {row["utt_id"]: row for row in rows}


def reasons(dataset: Dataset) -> dict[str, str]:
    rows = [json.loads(line) for line in (dataset.root / "rejects.jsonl").read_text().splitlines()]
    return {row["item"].rsplit("/", 1)[-1]: row["reason"] for row in rows}


def make_mls(root: pathlib.Path, kind: str, texts: dict[str, list[tuple[str, str]]]) -> pathlib.Path:
    for split, rows in texts.items():
        for utt_id, _ in rows:
            speaker, book, _ = utt_id.split("_")
            path = root / split / "audio" / speaker / book / f"{utt_id}{kind}"
            save(path, 1.0, RATE, **(dict(format="OGG", subtype="OPUS") if kind == ".opus" else {}))
        write(root / split / "transcripts.txt", *(f"{utt_id}\t{text}" for utt_id, text in rows))
        write(root / split / "segments.txt", *(f"{utt_id}\thttps://x.org/a_{i}_64kb.mp3\t{12.5 + i}\t{13.5 + i}"
                                               for i, (utt_id, _) in enumerate(rows)))  # fmt: skip
    write(root / "metainfo.txt", "SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | TITLE | CHAPTER")
    return root


@pytest.mark.parametrize(("language", "code", "kind", "text"), [
    ("english", "en", ".flac", "the cat sat on the mat"),
    ("german", "de", ".flac", "über allen gipfeln ist ruh"),
    ("french", "fr", ".opus", "longtemps je me suis couché de bonne heure"),
])
def test_mls(tmp_path, language, code, kind, text):
    rows = {"train": [("4800_10003_000000", text), ("4800_10003_000001", text), ("52_77_000009", text)],
            "dev": [("1724_29_000004", text)], "test": [("999_1_000000", text)]}  # fmt: skip
    root = make_mls(tmp_path / f"mls_{language}", kind, rows)
    (root / "train" / "audio" / "4800" / "10003" / f"4800_10003_000001{kind}").unlink()
    dataset = build(config(f"mls:{language}", root, tmp_path / "out"))
    found = metas(dataset)
    assert {name: row["split"] for name, row in found.items()} == {
        "4800_10003_000000": "train", "52_77_000009": "train", "1724_29_000004": "valid", "999_1_000000": "test"}
    one = found["52_77_000009"]
    assert (one["speaker"], one["book"], one["lang"], one["text"]) == ("52", "77", code, text)
    assert one["source"] == "https://x.org/a_2_64kb.mp3#t=14.5,15.5"
    assert reasons(dataset) == {f"4800_10003_000001{kind}": "missing"}
    spoken = phones.names(dataset.read("test", "phones", 0)["phones"])
    assert spoken == front.phonemise(text, language=code) and "spn" not in spoken
    assert dataset.read("test", "audio", 0)["num_samples"] == RATE


def test_mls_in_a_language_without_phones(tmp_path):
    root = make_mls(tmp_path / "mls", ".flac", {"train": [("1_2_000000", "qapla")]})
    with pytest.raises(ValueError, match="'tlh', which can't be phonemised: espeak-ng has no voice"):
        build(config("mls", root, tmp_path / "out", lang="tlh"))
    with pytest.raises(ValueError, match="pocketsphinx has an English model only, the corpus has .'de'"):
        build(config("mls:german", root, tmp_path / "german"), "ingest,align")
    with pytest.raises(FileNotFoundError, match="is no language of MLS"):
        list(corpora.mls(tmp_path))
    with pytest.raises(ValueError, match="names 2 languages"):
        config("mls:german,polish", root, tmp_path)


def test_wrong_names_of_subsets(tmp_path):
    with pytest.raises(ValueError, match="has 'foo-bar'; LibriTTS has names like"):
        list(corpora.libritts(tmp_path, subsets=["foo-bar"]))


def test_libritts(tmp_path):
    root = tmp_path / "LibriTTS"
    for subset, name in (("train-clean-100", "19_198_000000_000000"), ("train-other-500", "20_5_000001_000000"),
                         ("dev-clean", "84_121123_000007_000001"), ("test-other", "7_8_000000_000002")):  # fmt: skip
        speaker, chapter = name.split("_")[:2]
        folder = root / subset / speaker / chapter
        save(folder / f"{name}.wav", 1.0, 24000)
        write(folder / f"{name}.original.txt", "Mr. Smith, No. 5.")
        write(folder / f"{name}.normalized.txt", "Mister Smith, Number five.")
        write(folder / f"{speaker}_{chapter}.trans.tsv", "not", "read")
    save(root / "dev-clean" / "84" / "121123" / "84_121123_000008_000000.wav", 1.0, 24000)
    write(root / "speakers.tsv", "READER\tGENDER")
    dataset = build(config("libritts", root, tmp_path / "out"))
    found = metas(dataset)
    assert {name: (row["split"], row["speaker"], row["book"]) for name, row in found.items()} == {
        "19_198_000000_000000": ("train", "19", "198"), "20_5_000001_000000": ("train", "20", "5"),
        "84_121123_000007_000001": ("valid", "84", "121123"), "7_8_000000_000002": ("test", "7", "8")}
    assert {row["text"] for row in found.values()} == {"Mister Smith, Number five."}
    assert reasons(dataset) == {"84_121123_000008_000000.wav": "no_transcript"}
    original = list(corpora.libritts(root, ["train-clean-100"], "original"))
    assert [item.text for item in original] == ["Mr. Smith, No. 5."]
    with pytest.raises(FileNotFoundError, match="it is not LibriTTS"):
        list(corpora.libritts(tmp_path))


def test_vctk(tmp_path):
    root = tmp_path / "VCTK-Corpus-0.92"
    for speaker in ("p225", "p280", "p315", "s5"):
        for microphone in ("mic1", "mic2") if speaker not in ("p280", "p315") else ("mic1",):
            save(root / "wav48_silence_trimmed" / speaker / f"{speaker}_001_{microphone}.flac", 1.0, 48000)
        if speaker != "p315":
            write(root / "txt" / speaker / f"{speaker}_001.txt", "Please call Stella. ")
    dataset = build(config("vctk", root, tmp_path / "out"))
    assert {name: row["speaker"] for name, row in metas(dataset).items()} == {
        "p225_001_mic1": "p225", "p280_001_mic1": "p280", "s5_001_mic1": "s5"}
    assert {row["text"] for row in metas(dataset).values()} == {"Please call Stella."}
    assert reasons(dataset) == {"p315_001_mic1.flac": "no_transcript"}
    both = [item.utt_id for item in corpora.vctk(root, ("mic1", "mic2")) if isinstance(item, Utterance)]
    assert both == ["p225_001_mic1", "p225_001_mic2", "p280_001_mic1", "s5_001_mic1", "s5_001_mic2"]
    old = tmp_path / "VCTK-Corpus"
    save(old / "wav48" / "p225" / "p225_001.wav", 1.0, 48000)
    write(old / "txt" / "p225" / "p225_001.txt", "Please call Stella.")
    assert [(item.utt_id, item.speaker) for item in corpora.vctk(old)] == [("p225_001", "p225")]


def test_ljspeech(tmp_path):
    """The second column has what was written, the third what was read."""
    save(tmp_path / "wavs" / "LJ001-0001.wav", 1.0, 22050)
    write(tmp_path / "metadata.csv", "LJ001-0001|It was 1455.|It was fourteen fifty-five.")
    assert list(corpora.ljspeech(tmp_path)) == [
        Utterance("LJ001-0001", str(tmp_path / "wavs" / "LJ001-0001.wav"), "LJ", "It was fourteen fifty-five.")]


def test_manifest(tmp_path):
    """Two segments of one recording, another language, a column of another name, and lines that are none."""
    save(tmp_path / "clips" / "long.wav", 4.0)
    save(tmp_path / "clips" / "b.flac", 1.0)
    write(tmp_path / "list.tsv", "clip\tsentence\tspeaker\tlang\tstart\tend\tsplit",
          "clips/long.wav\tOne, two.\tann\ten\t0.5\t1.5\ttrain", "clips/long.wav\tThree.\tann\ten\t2\t4.02\ttrain",
          "clips/long.wav\tThree.\tann\ten\t3\t9\ttrain", "clips/b.flac\tGuten Tag.\tbob\tde\t\t\ttest", "\tNo file.\tbob\ten\t\t\t",
          "clips/b.flac\tHello.\tbob\ten\tsoon\t\t", "clips/b.flac\tHello.\tbob\ten\t\t\t\tmore",
          "clips/long.wav\tAgain.\tann\ten\t2\t4\ttrain")
    dataset = build(config("manifest", tmp_path / "list.tsv", tmp_path / "out", columns={"path": "clip", "text": "sentence"}))
    found = metas(dataset)
    assert {name: (row["split"], row["speaker"], row["lang"], row["text"]) for name, row in found.items()} == {
        "clips/long@0.50": ("train", "ann", "en", "One, two."), "clips/long@2.00": ("train", "ann", "en", "Three."),
        "clips/b": ("test", "bob", "de", "Guten Tag.")}
    samples = sorted(dataset.read("train", "audio", i)["num_samples"] for i in range(2))
    assert samples == [RATE, 2 * RATE]  # what reaches 20 ms beyond the recording is cut there
    whole = hum(4.0)[RATE // 2 : 3 * RATE // 2]
    i = next(i for i in range(2) if dataset.read("train", "audio", i)["num_samples"] == RATE)
    got = dataset.read("train", "audio", i)["audio"]
    assert np.corrcoef(got, whole)[0, 1] > 0.9999
    rejects = [json.loads(line) for line in (dataset.root / "rejects.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in rejects) == ["bad_line"] * 3 + ["bad_segment", "duplicate_id"]
    with pytest.raises(ValueError, match="none of them 'path'; say which"):
        list(corpora.manifest(tmp_path / "list.tsv"))
    with pytest.raises(ValueError, match="'transcript', which is none of"):
        list(corpora.manifest(tmp_path / "list.tsv", {"transcript": "sentence"}))
    write(tmp_path / "two.csv", "path,text,split", 'clips/b.flac,"Hello, you.",dev')
    assert [item.text for item in corpora.manifest(tmp_path / "two.csv")] == ["Hello, you."]
    write(tmp_path / "two.csv", "path,text,split", 'clips/b.flac,"Hello, you.",unseen')
    with pytest.raises(ValueError, match="into split 'unseen', which is none of"):
        build(config("manifest", tmp_path / "two.csv", tmp_path / "other"))


def test_marks_and_numbers_of_a_manifest(tmp_path):
    """A quotation mark is part of a TSV's text and may span lines in no text; times are numbers; splits have several names."""
    write(tmp_path / "a.tsv", "path\ttext\tsplit", 'a.wav\t"Stop\tdev', "b.wav\tGo home.\tvalidation", 'c.wav\t"Come," he said.\ttrain')
    found = list(corpora.find("manifest", tmp_path / "a.tsv"))
    assert [(item.text, item.split) for item in found] == [('"Stop', "valid"), ("Go home.", "valid"), ('"Come," he said.', "train")]
    write(tmp_path / "b.csv", "path,text,start,end", 'a.wav,"Stop', "b.wav,Go home.", 'c.wav,"Come",1,2', "d.wav,x,nan,", "e.wav,x,,inf")
    found = list(corpora.find("manifest", tmp_path / "b.csv"))
    assert [getattr(item, "reason", "") for item in found] == ["bad_line"] * 3 and "not closed" in found[0].detail
    write(tmp_path / "c.csv", "path,text", f"a.wav,{'x' * 200_000}")
    assert len(next(corpora.find("manifest", tmp_path / "c.csv")).text) == 200_000


def test_a_name_that_is_not_text_is_refused_alone(tmp_path):
    save(tmp_path / "recordings" / "good.wav")
    os.rename(tmp_path / "recordings" / "good.wav", os.path.join(os.fsencode(tmp_path), b"recordings", b"caf\xe9.wav"))
    save(tmp_path / "recordings" / "good.wav")
    dataset = build(config("folder:transcribed=False", tmp_path / "recordings", tmp_path / "out"))
    assert set(metas(dataset)) == {"good"} and [line["reason"] for line in map(json.loads, open(tmp_path / "out" / "rejects.jsonl"))] == ["bad_name"]


def test_folder(tmp_path):
    root = tmp_path / "recordings"
    save(root / "ann" / "1.wav")
    save(root / "ann" / "deep" / "2.flac")
    save(root / "3.wav")
    save(root / "bob" / "4.wav")
    write(root / "ann" / "1.txt", "Hello", "there.")
    write(root / "ann" / "deep" / "2.lab", "Goodbye.")
    write(root / "3.txt", "Nobody's.")
    dataset = build(config("folder", root, tmp_path / "out"))
    assert {name: (row["speaker"], row["text"]) for name, row in metas(dataset).items()} == {
        "ann/1": ("ann", "Hello there."), "ann/deep/2": ("ann", "Goodbye."), "3": ("recordings", "Nobody's.")}
    assert reasons(dataset) == {"4.wav": "empty_text"}
    dataset = build(config("folder:transcribed=False", root, tmp_path / "audio"), "ingest,normalise,phonemise,index,verify")
    assert len(metas(dataset)) == 4 and dataset.manifest["groups"]["phones"]["rejects"] == {"empty_text": 1}
    empty = [i for i in range(dataset.records("train")) if not dataset.read("train", "meta", i)["text"]]
    assert [dataset.phones and len(dataset.read("train", "phones", i)["phones"]) for i in empty] == [0]
    write(tmp_path / "t.txt", "ann/1|One.", "bob/4|Four.")
    listed = list(corpora.folder(root, str(tmp_path / "t.txt")))
    assert [item.utt_id for item in listed if isinstance(item, Utterance)] == ["ann/1", "bob/4"]


def test_kaldi(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "wav" / "rec1.wav", 4.0)
    save(tmp_path / "wav" / "rec2.flac", 1.0)
    root = tmp_path / "data"
    write(root / "wav.scp", "rec1 wav/rec1.wav", f"rec2 flac -c -d -s {tmp_path}/wav/rec2.flac |", "rec3 sph2pipe -f wav x.sph |")
    write(root / "segments", "ann-1 rec1 0.5 2.0", "ann-2 rec1 2.0 -1", "bob-1 rec2 0 1", "bob-2 rec3 0 1",
          "eve-1 rec1 0 1", "eve-2 rec4 0 1",
          "eve-3 rec1 x 1", "eve-4 rec1 1 2")
    write(root / "text", "ann-1 MR. SMITH SAT", "ann-2 ON THE MAT", "bob-1 GUTEN TAG", "bob-2 HELLO", "eve-1 HI", "eve-2 HI", "gone HI")
    write(root / "utt2spk", "ann-1 ann", "ann-2 ann", "bob-1 bob", "bob-2 bob", "eve-4 eve")
    write(root / "utt2lang", "bob-1 de")
    dataset = build(config("kaldi", root, tmp_path / "out", lower=True))
    assert {name: (row["speaker"], row["lang"], row["text"]) for name, row in metas(dataset).items()} == {
        "ann-1": ("ann", "en", "mr. smith sat"), "ann-2": ("ann", "en", "on the mat"), "bob-1": ("bob", "de", "guten tag")}
    lengths = {dataset.read(s, "meta", i)["utt_id"]: dataset.read(s, "audio", i)["num_samples"] for s in dataset.splits
               for i in range(dataset.records(s))}  # fmt: skip
    assert lengths == {"ann-1": 3 * RATE // 2, "ann-2": 2 * RATE, "bob-1": RATE}
    assert reasons(dataset) == {"bob-2": "pipe_command", "eve-1": "speaker_missing", "eve-2": "no_audio", "segments: eve-3": "bad_line",
                                "eve-4": "no_transcript", "gone": "no_audio"}  # fmt: skip
    write(root / "segments", "u1 rec1 0 1", "u1 rec1 1 2", "u2 rec1 1.0", "u3 rec1 1 2 1", "u4 rec1 nan 1", "u5 rec1 1 2")
    write(root / "wav.scp", "rec1 wav/rec1.wav", 'rec2 cat "open |')
    write(root / "text", *(f"u{i} HI" for i in range(1, 6)))
    write(root / "utt2spk", *(f"u{i} ann" for i in range(1, 6)))
    found = list(corpora.kaldi(root))
    assert [item.utt_id for item in found if isinstance(item, Utterance)] == ["u1", "u5"] and len(found) == 6
    assert [(item.item.split(": ")[-1].split(":")[-1], item.reason) for item in found if not isinstance(item, Utterance)] == [
        ("2", "duplicate_id"), ("u2", "bad_line"), ("u3", "bad_line"), ("u4", "bad_line")]
    (root / "segments").unlink()
    write(root / "text", "rec1 HELLO")
    write(root / "utt2spk", "rec1 ann")
    found = list(corpora.kaldi(root))
    assert [item.utt_id for item in found if isinstance(item, Utterance)] == ["rec1"] and found[0].start is None


def test_tfds_there_and_back(tmp_path):
    """Our corpus as a data set of TFDS, and that one as a corpus of ours: the same samples; no TensorFlow."""
    root = tmp_path / "recordings"
    for i in range(4):
        save(root / f"speaker{i % 2}" / f"{i}.wav", 1.0 + i / 10)
        write(root / f"speaker{i % 2}" / f"{i}.txt", f"Number {i}.")
    ours = build(config("folder", root, tmp_path / "ours"))
    code, _, said = commands.run("data_pipelines.tfds_builder", f"--data={tmp_path / 'ours'}", f"--out={tmp_path / 'tfds'}")
    assert code == 0, said
    import tensorflow_datasets as tfds

    tfds_builder.export(tmp_path / "ours", tmp_path / "tfds")  # the same again is there already
    build(config("folder", root, tmp_path / "ours"), "normalise,index")
    with pytest.raises(ValueError, match="copy of other data: text changed since; delete it, or choose another --out"):
        tfds_builder.export(tmp_path / "ours", tmp_path / "tfds")
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("number  N AH1 M\n")
    build({**config("folder", root, tmp_path / "again"), "out": str(tmp_path / "again")}, "ingest,phonemise,index")
    tfds_builder.export(tmp_path / "again", tmp_path / "other")
    build({**config("folder", root, tmp_path / "again"), "lexicon": str(lexicon)}, "phonemise,index")  # a group made again
    with pytest.raises(ValueError, match="copy of other data: phones changed since"):
        tfds_builder.export(tmp_path / "again", tmp_path / "other")

    folder = tmp_path / "other" / "ns2_corpus" / "1.0.0"
    build({**config("folder", root, tmp_path / "again"), "out": str(tmp_path / "again")}, "phonemise,index")
    tfds_builder.export(tmp_path / "again", tmp_path / "other")
    about, damage = json.loads((folder / "metadata.json").read_text()), {}
    damage["metadata.json"] = [None, b"{", b"[]", json.dumps({**about, "groups": list(about["groups"])}).encode()]
    damage["metadata.json"] += [json.dumps({key: value for key, value in about.items() if key != "groups"}).encode()]  # earlier versions
    damage |= {"dataset_info.json": [None, b"{", b"{}"], "features.json": [None]}
    for name, states in damage.items():
        file, whole = folder / name, (folder / name).read_bytes()
        for state in states:
            file.unlink() if state is None else file.write_bytes(state)
            with pytest.raises(ValueError, match="1.0.0 does not say what it is a copy of; delete it, or choose another --out"):
                tfds_builder.export(tmp_path / "again", tmp_path / "other")
            file.write_bytes(whole)
    tfds_builder.export(tmp_path / "again", tmp_path / "other")
    next(folder.glob("*train.array_record*")).unlink()
    with pytest.raises(ValueError, match="1.0.0 is no longer whole: ns2_corpus-train.array_record-00000-of-00001 is missing; delete it"):
        tfds_builder.export(tmp_path / "again", tmp_path / "other")

    source = tfds.data_source("ns2_corpus", data_dir=str(tmp_path / "tfds"), split="train")
    found = {row["utt_id"].decode(): row for row in source}
    assert len(found) == ours.records("train") > 0
    for i in range(ours.records("train")):
        meta, audio, spoken = (ours.read("train", group, i) for group in ("meta", "audio", "phones"))
        row = found[meta["utt_id"]]
        assert row["audio"].dtype == np.int16 and np.array_equal(row["audio"], audio["audio"])
        assert np.array_equal(row["phones/phones"], spoken["phones"]) and row["text"].decode() == meta["text"]
    settings = config("tfds", tmp_path / "tfds", tmp_path / "back", name="ns2_corpus", splits={"train": "train"},
                      columns={"audio": "audio", "text": "text", "id": "utt_id", "speaker": "speaker"})  # fmt: skip
    back = build({**settings, "level": False})
    assert {name: (row["speaker"], row["text"]) for name, row in metas(back).items() if row["split"] == "train"} == {
        name: (row["speaker"].decode(), row["text"].decode()) for name, row in found.items()}
    for i in range(back.records("train")):
        row = found[back.read("train", "meta", i)["utt_id"]]
        assert np.abs(back.read("train", "audio", i)["audio"].astype(int) - row["audio"]).max() <= 1
    assert "tensorflow" not in sys.modules
    with pytest.raises(FileNotFoundError, match="TensorFlow Datasets has no nothing"):
        list(corpora.tfds(tmp_path / "tfds", "nothing"))
    with pytest.raises(ValueError, match="none of them 'speech'"):
        list(corpora.tfds(tmp_path / "tfds", "ns2_corpus", columns={"audio": "speech"}))
    with pytest.raises(ValueError, match="has no split 'dev'"):
        list(corpora.tfds(tmp_path / "tfds", "ns2_corpus", {"dev": "valid"}))


def test_tfds_audio_feature_as_libritts_has_it(tmp_path):
    """A data set whose audio is TFDS's own feature: int64 lists with a rate. Only TensorFlow can write that, so it is written as plain
    numbers, and its description is made what TFDS says of LibriTTS."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"speech": tfds.features.Tensor(shape=(None,), dtype=np.int64), "id": np.str_,
                                           "text_normalized": tfds.features.Text(), "speaker_id": np.int64,
                                           "chapter_id": np.int64})  # fmt: skip

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "libritts_tiny"

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train_clean100": self._generate_examples(1), "dev_clean": self._generate_examples(2)}

        def _generate_examples(self, speaker):
            pcm = np.rint(hum(1.0, 24000) * 32768).astype(np.int64)
            yield 0, {"speech": pcm, "id": f"{speaker}_5_0", "text_normalized": "Hello.", "speaker_id": speaker, "chapter_id": 5}

    Tiny(data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
    (path,) = (tmp_path / "tfds").rglob("features.json")
    about = json.loads(path.read_text())
    about["featuresDict"]["features"]["speech"] = {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "fileFormat": "wav", "sampleRate": "24000", "encoding": "none"}}
    path.write_text(json.dumps(about))
    splits = {"train_clean100": "train", "dev_clean": "valid"}
    dataset = build(config("tfds", tmp_path / "tfds", tmp_path / "out", name="libritts_tiny", splits=splits))
    assert {name: (row["split"], row["speaker"], row["book"], row["text"]) for name, row in metas(dataset).items()} == {
        "1_5_0": ("train", "1", "5", "Hello."), "2_5_0": ("valid", "2", "5", "Hello.")}
    audio = dataset.read("train", "audio", 0)["audio"]
    assert len(audio) == RATE and np.corrcoef(audio[1000:-1000], hum(1.0)[1000:-1000])[0, 1] > 0.999


def test_adding_data_moves_no_speaker():
    names = [f"speaker{i}" for i in range(3000)]
    items = [Utterance(f"u{i}", "p", name, "t") for i, name in enumerate(names)]
    splits = {item.speaker: plans.split_of(item, "speaker", 20, 50) for item in items}
    again = {item.speaker: plans.split_of(Utterance("other", "q", item.speaker, "x"), "speaker", 20, 50) for item in reversed(items[::7])}
    assert all(splits[name] == split for name, split in again.items())
    share = {split: list(splits.values()).count(split) / 3000 for split in ("train", "valid", "test")}
    np.testing.assert_allclose([share["valid"], share["test"]], [0.02, 0.05], atol=0.012)
    assert plans.bucket("LJ") == int.from_bytes(hashlib.blake2b(b"LJ", digest_size=8).digest(), "big") % 1000


def test_plan_is_written_once_and_rejects_what_is_twice(tmp_path):
    items = [Utterance(f"u{i}", f"{i}.wav", f"s{i % 3}", "t") for i in range(10)]
    found = [*items, Utterance("u3", "again.wav", "s1", "t"), Reject("x", "bad_line", "y"), Utterance("u3", "third.wav", "s0", "t")]
    split = lambda item: {"s0": "train", "s1": "valid", "s2": "test"}[item.speaker]
    made = plans.plan(tmp_path / "out", iter(found), {"rate": 1}, split, 3)
    assert made["inputs"] == 13 and made["splits"] == {
        "train": {"shards": 2, "utterances": 4}, "valid": {"shards": 1, "utterances": 3}, "test": {"shards": 1, "utterances": 3}}
    lines = [line for path in (tmp_path / "out" / "plan").glob("*-of-*.jsonl") for line in plans.read_list(path)]
    assert sorted(json.loads(line)["path"] for line in lines) == sorted(item.path for item in items)
    rejects = [json.loads(line) for line in plans.read_list(tmp_path / "out" / "plan" / "rejects.jsonl")]
    assert sorted((row["reason"], row["item"]) for row in rejects) == [
        ("bad_line", "x"), ("duplicate_id", "again.wav"), ("duplicate_id", "third.wav")]
    assert plans.plan(tmp_path / "out", iter(()), {"rate": 1}, split, 3) == made  # not looked at again
    with pytest.raises(ValueError, match="made from other recordings"):
        plans.plan(tmp_path / "out", iter(found), {"rate": 2}, split, 3)


def test_any_bit_of_a_plan_is_named(tmp_path):
    """And a list that has lost lines, its last, or itself: `plan.json`, what a shard is made of, and what was rejected before."""
    found = [Utterance("u", "u.wav", "s", "t"), Utterance("v", "v.wav", "s", "t"), Reject("x", "bad_line", "y")]
    plans.plan(tmp_path, found, {"rate": 1}, lambda item: "train")
    for path, read in ((tmp_path / "plan.json", plans.read_plan), (plans.list_path(tmp_path, "train", 0, 1), plans.read_list),
                       (tmp_path / "plan" / "rejects.jsonl", plans.read_list)):  # fmt: skip
        whole, lines = path.read_bytes(), path.read_bytes().splitlines(keepends=True)
        flipped = [whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for at in range(len(whole)) for bit in range(8)]
        for damaged in (*flipped, b"".join(lines[:-1]), b"".join(lines[1:]), b""):
            path.write_bytes(damaged)
            with pytest.raises(records.Corrupt, match=f"{path} is not the "):
                read(path)
        path.write_bytes(whole)
        read(path)
    path.unlink()
    with pytest.raises(records.Corrupt, match="rejects.jsonl is not the list that was written; delete the whole data set and make it again, or put"):
        plans.read_list(path)


def test_unknown_layout():
    with pytest.raises(ValueError, match="config.corpus='timit' is no layout; there are"):
        corpora.find("timit", "x")
    with pytest.raises(ValueError, match="config.root is empty"):
        corpora.find("mls", "")
    assert set(corpora.LAYOUTS) == {path.stem for path in pathlib.Path("configs/data").glob("*.py")} - {"__init__", "common"}


@pytest.mark.parametrize("text", ["Grüße, 3 Uhr!", "  a\u0308hnlich \n gut "])
def test_other_languages_keep_their_letters(text):
    assert transcripts.normalise(text, "de") == {"G": "Grüße, 3 Uhr!", " ": "ähnlich gut"}[text[0]]
    with pytest.raises(shards.Rejected, match="no pronounceable word"):
        transcripts.normalise("...", "de")
