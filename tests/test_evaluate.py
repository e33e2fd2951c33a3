"""The command that scores: who is chosen, what is written, what a score carries, and what is refused."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from commands import refused, run

from data_pipelines import shards
from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import scores
from ns2_jax.evaluate import job, judges, material
from ns2_jax.runtime import checkpoints
from ns2_jax.text import phones

ROOT = pathlib.Path(__file__).parent.parent
NAME = "ns2_jax.evaluate"
TEXT = "The children walked along the river, and looked at the old bridge before dinner."


def write_corpus(root, people: dict[str, int], splits=("train", "test")) -> str:
    """Every speaker says the same sentence at a speed of their own, as often as `people` says."""
    speech = files.read(tiny.SPEECH, 16000)
    for split in splits:
        rows = []
        for n, (speaker, times) in enumerate(people.items()):
            audio = np.interp(np.arange(0, len(speech), 1 + 0.06 * n), np.arange(len(speech)), speech)
            for k in range(times):
                pcm = (audio[: len(audio) - 160 * k] * 30000).astype(np.int16)
                ends = np.linspace(len(pcm) / 40, len(pcm), 40).astype(np.int32)
                meta = {"utt_id": f"{split}-{speaker}-{k}", "speaker": speaker, "source": "flite", "voice": "rms"}
                align = {"phones": (3 + np.arange(40) % 20).astype(np.uint8), "ends": ends}
                rows.append((len(pcm), {"meta": meta | {"text": TEXT, "text_norm": TEXT.lower()}, "audio": {"audio": pcm}, "align": align}))
        for group in ("meta", "audio", "align"):
            with shards.ShardWriter(root, group, split, 0, 1) as writer:
                for samples, values in rows:
                    writer.write(values[group], samples)
    shards.write_manifest(root, name="tiny", phones=phones.inventory_hash())
    return str(root)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"ann": 3, "bob": 2, "cid": 1})


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.write_model("codec", tmp_path_factory.mktemp("codec"))


# Choosing.


def test_choice_goes_round_the_speakers_and_a_prompt_is_another_utterance(corpus):
    items = material.choose(Dataset.open(corpus), "test", 0, seed=0)
    assert [item["speaker"] for item in items] == ["ann", "bob", "ann", "bob", "ann"]  # cid has nothing to be prompted with
    assert all(item["prompt"] != item["id"] and item["prompt"].split("-")[1] == item["speaker"] for item in items)
    assert len({item["id"] for item in items}) == 5
    assert [item["speaker"] for item in material.choose(Dataset.open(corpus), "test", 3, seed=0)] == ["ann", "bob", "ann"]


def test_choice_follows_the_seed(corpus):
    ids = lambda seed: [item["id"] for item in material.choose(Dataset.open(corpus), "test", 0, seed)]
    assert ids(1) == ids(1) and len({tuple(ids(seed)) for seed in range(8)}) > 1


def test_what_is_gone_on_with_must_be_longer_than_what_is_kept(corpus):
    """Ann takes 5.0 s for the sentence, Bob 4.8 s: `least` leaves him out, and nobody has six."""
    items = material.choose(Dataset.open(corpus), "test", 0, seed=0, least=4.9)
    assert [item["speaker"] for item in items] == ["ann"] * 3 and len({item["prompt"] for item in items}) > 1
    with pytest.raises(ValueError, match="no utterance of split 'test' has 6 s.*--seconds"):
        material.from_dataset(Dataset.open(corpus), "test", 0, 0, least=6.0)
    asked = job.Ask(task="continue", data=str(corpus), limit=0, seconds=3.85)
    assert {item["speaker"] for item in job.gather(asked, None, None).items} == {"ann"}
    assert "--seconds=2 goes with --task=continue" in refused(NAME, "--model=M", "--data=D", "--seconds=2")


def test_prompts_have_the_seconds_that_are_asked_for(corpus):
    """Three are cut from one recording, seven from two by the same speaker, whose texts go along; Bob has no seven beside an utterance."""
    data = Dataset.open(corpus)
    short = material.from_dataset(data, "test", 0, 0, heard=3.0)
    assert {len(prompt) for prompt in short.prompts} == {48000} and len(short.items) == 5 and short.about["prompt"] == "3 s"
    assert all(len(said) == 1 and said[0].seconds == 3.0 and said[0].text == TEXT for said in short.voices)
    long = material.from_dataset(data, "test", 0, 0, heard=7.0)
    assert {item["speaker"] for item in long.items} == {"ann"} and {len(prompt) for prompt in long.prompts} == {112000}
    for item, prompt, said in zip(long.items, long.prompts, long.voices):
        first, second = (material.read_audio(data, "test", i) for i in item["prompt_indices"])
        assert item["index"] not in item["prompt_indices"] and item["prompt"].count("+") == 1
        np.testing.assert_array_equal(prompt, np.concatenate([first, second])[:112000])
        assert (said[0].voice[0] == first).all() and said[0].seconds == 0 and said[1].seconds == pytest.approx(7 - len(first) / 16000)
    assert short.about["items"] != long.about["items"] and "prompt_indices" not in material.choose(data, "test", 0, 0)[0]
    with pytest.raises(ValueError, match="20 s by its speaker"):
        material.choose(data, "test", 0, 0, heard=20.0)
    common = ["--model=M", "--data=D", "--prompt_seconds=3"]
    assert "does not go with prosody" in refused(NAME, *common, "--evals=prosody")
    assert "does not go with --task=continue" in refused(NAME, *common, "--task=continue")


def test_table_and_summary():
    line = lambda name, value, unit: {"name": name, "value": value, "unit": unit, "interval": [value - 1, value + 1]}
    lines = [line("wer_recording", 4.0, "%"), line("wer_synthesis", 40.04, "%"), line("secs_own_recording", 0.9, "cosine"),
             line("secs_own_synthesis", 0.7, "cosine"), line("secs_others_synthesis", 0.5, "cosine")]
    rows = scores.table(lines).splitlines()
    assert rows[0].split() == ["recording", "synthesis"]
    assert rows[1].split() == ["wer", "%", "4.0", "(3.0-5.0)", "40.0", "(39.0-41.0)"]
    summary = scores.summarise(lines)
    assert summary["secs_own"] == 0.7 and summary["secs_others"] == 0.5 and summary["wer_recording"] == 4.0


# The command.


def test_codec_scores(codec, corpus, tmp_path):
    code, out, err = run(NAME, f"--model={codec}", f"--data={corpus}", f"--out={tmp_path}/o", "--limit=2", "--save_audio",
                         "--evals=speaker_similarity,codec_quality,predictability")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "o" / "scores.jsonl").read_text().splitlines()]
    items = [json.loads(line) for line in (tmp_path / "o" / "items.jsonl").read_text().splitlines()]
    names = {line["name"] for line in lines}
    assert {f"{m}_{c}" for m in ("pesq", "stoi", "si_sdr", "secs_own") for c in ("codec", "codec_unquantised")} <= names
    tables = {f"predictability{p}_{of}" for p in ("", "_power") for of in ("latents", "quantised", "log_mel")}
    assert {"secs_own_recording"} | tables <= names and "pesq_recording" not in names
    table = {line["name"]: line for line in lines if line["name"] in tables}
    for of in ("latents", "quantised", "log_mel"):
        assert table[f"predictability_power_{of}"]["value"] == pytest.approx(table[f"predictability_{of}"]["power"])
    assert table["predictability_latents"]["value"] != table["predictability_quantised"]["value"]
    assert len(items) == 2 and items[0]["codec_quality"]["codec"]["pesq"] > 0.9
    for line in lines:
        assert line["interval"][0] <= line["value"] <= line["interval"][1] and line["n"] > 0
        about = line["fingerprint"]
        assert about["data"] == Dataset.open(corpus).fingerprint and about["evaluator"] and about["averaging"]
        assert ("model" in about) is not line["name"].endswith("recording") and len(about.get("model", "x" * 12)) == 12
    own, others = (next(line["value"] for line in lines if line["name"] == f"secs_{k}_recording") for k in ("own", "others"))
    assert own > 0.98 and own > others  # the same speech but for a few samples, against the same speech faster
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["secs_own_recording"] == own
    audio = sorted(path.name for path in (tmp_path / "o" / "audio").iterdir())
    assert len(audio) == 6 and audio[0].endswith("-codec.flac") and files.read(tmp_path / "o" / "audio" / audio[0], 16000).size > 16000
    assert "predictability" in out and "codec_unquantised" in out


def test_a_codec_at_its_rates_beside_opus(corpus, tmp_path):
    """16 levels of 64 codes, 80 frames a second: 0.48 kbit/s a level. Of 0.48, 1.44 and 7.68 kbit/s Opus reaches the last."""
    model = tiny.write_model("codec", tmp_path / "m", size="smoke,levels=16,codes=64")
    args = [f"--data={corpus}", "--limit=2", "--evals=spectral_distance,codec_quality", f"--out={tmp_path}/o", "--save_audio"]
    code, out, err = run(NAME, f"--model={model}", *args, "--levels=1,3,16", "--rivals=opus")
    assert code == 0, err
    lines = {line["name"]: line for line in scores.read(tmp_path / "o")}
    conditions = ("codec", "codec_1", "codec_3", "codec_unquantised", "opus_7.68")
    assert set(lines) == {f"{m}_{c}" for m in ("pesq", "stoi", "si_sdr", "mel_distance", "stft_distance") for c in conditions}
    rates = [lines[f"mel_distance_{c}"].get("kbps") for c in conditions]
    assert rates[:4] == [7.68, 0.48, 1.44, None] and rates[4] == pytest.approx(7.68, rel=0.05)
    about = lines["mel_distance_opus_7.68"]["fingerprint"]
    assert about["encoder"].startswith("libopus ") and about["kbps"] == rates[4] < about["kbps_with_ogg"] and "model" not in about
    assert "encoder" not in lines["mel_distance_codec"]["fingerprint"] and "kbps" not in lines["mel_distance_codec"]["fingerprint"]
    assert lines["mel_distance_opus_7.68"]["value"] < lines["mel_distance_codec"]["value"]  # of which the weights are noise
    audio = {path.name.rsplit("-", 1)[1] for path in (tmp_path / "o" / "audio").iterdir()}
    assert audio == {"recording.flac", *(f"{c}.flac" for c in conditions)}
    assert run(NAME, "rate", f"{tmp_path}/o", f"--out={tmp_path}/r")[0] == 0
    assert "| all levels | 7.68 |" in (tmp_path / "r" / "rates.md").read_text() and (tmp_path / "r" / "rates.png").stat().st_size > 9999


def test_a_vocoder_is_scored_by_its_copies(corpus, tmp_path):
    """Mel and back, beside the recordings; it has no levels, no bits and no latents to explain."""
    args = [f"--model={tiny.write_model('vocoder', tmp_path / 'm')}", f"--data={corpus}", "--limit=2"]
    code, out, err = run(NAME, *args, f"--out={tmp_path}/o", "--evals=spectral_distance,codec_quality")
    assert code == 0, err
    lines = {line["name"]: line for line in scores.read(tmp_path / "o")}
    assert set(lines) == {f"{m}_codec" for m in ("pesq", "stoi", "si_sdr", "mel_distance", "stft_distance")}
    assert not [name for name, line in lines.items() if "kbps" in line]
    for word, message in (("--levels=2", "decodes from no levels"), ("--rivals=opus", "has none: it makes no codes"),
                          ("--evals=predictability", "needs a codec, whose latents")):  # fmt: skip
        code, out, err = run(NAME, *args, word)
        assert code == 2 and message in err, (word, out, err)


def test_rates_that_a_rival_does_not_reach(codec, corpus, tmp_path):
    code, out, err = run(NAME, f"--model={codec}", f"--data={corpus}", "--limit=2", "--evals=spectral_distance", "--rivals=opus", "--levels=2")
    assert code == 0 and "opus reaches none of the rates 0.8, 1.6 kbit/s" in out and "codec_2" in out, err


def test_what_the_judges_lack_is_said_before_the_synthesis(codec, corpus, monkeypatch):
    dataset = Dataset.open(corpus)
    items = material.choose(dataset, "test", 0, seed=0)
    model = inference.load(codec)
    others = ("prosody", "diversity", "voice_change", "intonation", "turns", "boundaries")  # of what speaks, or aligns
    judges.check([name for name in judges.EVALS if name not in others], "codec", model, dataset, items)
    with pytest.raises(ValueError, match="test-bob-0 has no words in its text '...'"):
        judges.check(["word_error"], "codec", model, dataset, [{"id": "test-bob-0", "text": "..."}])
    dataset.groups = ("meta", "audio")
    with pytest.raises(ValueError, match="no group 'align'"):
        judges.check(["predictability"], "codec", model, dataset, items)
    for name, package in (("word_error", "pocketsphinx"), ("codec_quality", "pesq")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=package):
            judges.check([name], "codec", model, dataset, items)
    with pytest.raises(ValueError, match="--task=recordings has none"):
        judges.check(["codec_quality"], "recordings", None, dataset, items)
    with pytest.raises(ValueError, match="prosody needs a model that speaks"):
        judges.check(["prosody"], "codec", model, dataset, items)
    with pytest.raises(ValueError, match="--evals=robustness compares with the recordings"):
        judges.check(["robustness"], "recordings", None, dataset, items)
    with pytest.raises(ValueError, match="predictability needs a codec"):
        judges.check(["predictability"], "tts", None, dataset, items)


def test_synthesis_scores(corpus, tmp_path):
    model = tiny.write_model("naturalspeech2", tmp_path / "m")
    args = [f"--data={corpus}", f"--out={tmp_path}/o", "--limit=2", "--steps=1", "--takes=2",
            "--evals=speaker_similarity,acoustic_distance,prosody,room,diversity"]
    code, out, err = run(NAME, f"--model={model}", *args)
    assert code == 0, err
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["secs_own"] == summary["secs_own_synthesis"] < summary["secs_own_recording"]
    assert summary["diversity_mcd_synthesis"] > 0 and summary["reverberation_error_codec"] >= 0 and "diversity_mcd_codec" not in summary
    line = json.loads((tmp_path / "o" / "scores.jsonl").read_text().splitlines()[-1])
    assert line["fingerprint"]["sampler"]["steps"] == 1 and line["fingerprint"]["missing"] == 0 and "spoke" in out
    assert summary["mcd_codec"] > 0 and summary["mcd_synthesis"] > 0 and summary["prosody_duration_mean_synthesis"] > 0
    item = json.loads((tmp_path / "o" / "items.jsonl").read_text().splitlines()[0])
    assert item["diversity"]["synthesis"]["takes"] == 2 and [row[0] for row in item["alignment"]["synthesis"]["words"]][:2] == ["the", "children"]
    assert len(item["alignment"]["recording"]["phones"]) == 40 and "words" not in item["alignment"]["recording"]
    assert item["prosody"]["synthesis"]["duration_mean"] > 0 and "mcd" in item["acoustic_distance"]["codec"]


def test_another_systems_wavs(corpus, tmp_path):
    """The recordings themselves, handed in as another system's: no distance. One is missing, one is no audio."""
    dataset = Dataset.open(corpus)
    items = material.choose(dataset, "test", 0, seed=0)
    (tmp_path / "theirs").mkdir()
    for item in items[:-1]:
        files.write(tmp_path / "theirs" / f"{item['id']}.wav", material.read_audio(dataset, "test", item["index"]), 16000)
    (tmp_path / "theirs" / f"{items[0]['id']}.wav").write_text("no audio")
    args = [f"--wavs={tmp_path}/theirs", f"--data={corpus}", f"--out={tmp_path}/o", "--evals=speaker_similarity,acoustic_distance"]
    code, out, err = run(NAME, *args)
    assert code == 0, err
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["secs_own"] == summary["secs_own_wavs"] < summary["secs_own_recording"]  # two of five are missing
    rows = [json.loads(line) for line in (tmp_path / "o" / "items.jsonl").read_text().splitlines()]
    assert summary["mcd_wavs"] == pytest.approx(0, abs=0.05) and [row["speaker_similarity"]["wavs"]["own"] == 0 for row in rows] == [
        True, False, False, False, True]
    assert items[0]["id"] in rows[0]["failures"]["wavs"] and "no file with" in rows[-1]["failures"]["wavs"]
    assert out.count("counts as missing: wavs of") == 2
    about = {line["name"]: line["fingerprint"] for line in scores.read(tmp_path / "o")}
    assert about["secs_own_wavs"]["system"] == "theirs" and len(about["secs_own_wavs"]["wavs"]) == 12
    assert not {"system", "wavs", "model"} & set(about["secs_own_recording"])
    code, _, err = run(NAME, f"--wavs={tmp_path}/nowhere", f"--data={corpus}")
    assert code == 2 and "has none of the 5 files" in err


def test_a_published_list_and_a_tampered_one(tmp_path):
    """Seed-TTS's format without recordings; the fingerprint tells a changed sentence from the list's own."""
    model = tiny.write_model("naturalspeech2", tmp_path / "m")
    speech = files.read(tiny.SPEECH, 16000)
    for name in ("p1", "p2"):
        files.write(tmp_path / f"{name}.wav", speech, 16000)
    (tmp_path / "meta.lst").write_text(f"a|{TEXT}|p1.wav|A quiet morning.\nb|{TEXT}|p2.wav|Two old friends.\n")
    digests = []
    for out in ("one", "two"):
        args = [f"--list=seed_tts:{tmp_path}/meta.lst", f"--out={tmp_path}/{out}", "--steps=1", "--evals=speaker_similarity"]
        code, said, err = run(NAME, f"--model={model}", *args)
        assert code == 0, err
        lines = [json.loads(line) for line in (tmp_path / out / "scores.jsonl").read_text().splitlines()]
        assert {line["name"] for line in lines} == {f"secs_{k}_synthesis" for k in ("own", "others", "nearest")}
        digests.append(lines[0]["fingerprint"]["items"])
        (tmp_path / "meta.lst").write_text((tmp_path / "meta.lst").read_text().replace("Two old", "Two new"))
    assert digests[0] != digests[1] and lines[0]["fingerprint"]["source"] == "seed_tts"
    code, _, err = run(NAME, f"--model={model}", f"--list=seed_tts:{tmp_path}/meta.lst", "--evals=acoustic_distance")
    assert code == 2 and "has no recordings to compare with" in err
    code, _, err = run(NAME, f"--model={model}", "--list=nothing")
    assert code == 2 and "is not tsv:FILE" in err


def test_changed_recordings_and_speakers_make_another_list(tmp_path):
    speech = files.read(tiny.SPEECH, 16000)
    (tmp_path / "wavs").mkdir()
    for path in ("p.wav", "wavs/a.wav", "wavs/b.wav"):
        files.write(tmp_path / path, speech, 16000)
    (tmp_path / "meta.lst").write_text(f"a|{TEXT}|p.wav|A quiet morning.\nb|{TEXT}|p.wav|Two old friends.\n")
    spec = f"seed_tts:{tmp_path}/meta.lst"
    before = material.from_list(spec, 16000, 0, 0)
    assert all(item["source"] == item["prompt_source"] for item in before.items)  # the same bytes
    files.write(tmp_path / "wavs" / "a.wav", speech[::-1], 16000)
    after = material.from_list(spec, 16000, 0, 0)
    assert before.about["items"] != after.about["items"]
    assert material.digest(after.items) != material.digest([dict(item, speaker="x") for item in after.items])


def test_what_fails_is_named_and_judged_alike(corpus, tmp_path):
    """Of a codec that makes NaN and of a text that cannot be spoken: every judge counts it as missing, the reason is in the row."""
    folder = tiny.write_run("codec", tmp_path / "run", step=7)
    tree, config = checkpoints.read_model(folder)
    broken = jax.tree.map(lambda x: x * np.nan, tree["params"])
    store = checkpoints.Checkpoints(folder)
    store.save({"step": np.int32(9), "params": broken, "ema": broken, "rest": tree["rest"], "opt": {"count": np.int32(9)}})
    store.close()
    args = [f"--data={corpus}", "--limit=2", "--task=codec", "--save_audio", "--evals=speaker_similarity,dnsmos,drift,room,codec_quality"]
    code, out, err = run(NAME, f"--workdir={folder}", *args)
    assert code == 0, err
    about = {line["name"]: line["fingerprint"] for line in scores.read(tmp_path / "run" / "evaluation" / "9")}
    assert [about[f"{name}_codec"]["missing"] for name in ("secs_own", "dnsmos_overall", "pesq")] == [2, 2, 2]
    assert about["secs_own_recording"]["missing"] == 0 and "no score: room found nothing to measure in the 2 outputs of codec" in out
    item = json.loads((tmp_path / "run" / "evaluation" / "9" / "items.jsonl").read_text().splitlines()[0])
    assert item["failures"]["codec"] == "not finite" and "counts as missing: codec of" in out
    assert {path.name.rsplit("-", 1)[1] for path in (tmp_path / "run" / "evaluation" / "9" / "audio").iterdir()} == {"recording.flac"}

    model = tiny.write_model("naturalspeech2", tmp_path / "m")
    files.write(tmp_path / "p.wav", files.read(tiny.SPEECH, 16000), 16000)
    (tmp_path / "meta.lst").write_text(f"a|{TEXT}|p.wav|...\nb|{TEXT}|p.wav|Two old friends.\n")
    code, out, err = run(NAME, f"--model={model}", f"--list=seed_tts:{tmp_path}/meta.lst", "--steps=1", "--evals=dnsmos", f"--out={tmp_path}/o")
    assert code == 0, err
    first, second = [json.loads(line) for line in (tmp_path / "o" / "items.jsonl").read_text().splitlines()]
    assert "synthesis" in first["failures"] and "failures" not in second and first["dnsmos"]["synthesis"]["missing"] is True
    assert "2 utterances have no recording (a, for one): recordings and codec are not scored" in out


def test_an_earlier_evaluation_is_not_mixed_with(codec, corpus, tmp_path):
    args = [f"--data={corpus}", "--limit=2", "--task=codec", "--evals=speaker_similarity"]
    assert run(NAME, f"--model={codec}", *args, "--save_audio", f"--out={tmp_path}/o")[0] == 0
    assert "holds the audio of an earlier evaluation" in refused(NAME, f"--model={codec}", *args, f"--out={tmp_path}/o")
    before = (tmp_path / "o" / "scores.jsonl").read_bytes()
    folder = tiny.write_run("codec", tmp_path / "run", step=7)
    for more in ([], ["--follow"]):
        assert "holds an evaluation of one model" in refused(NAME, f"--workdir={folder}", *args, *more, f"--out={tmp_path}/o")
    assert (tmp_path / "o" / "scores.jsonl").read_bytes() == before
    code, _, err = run(NAME, f"--workdir={folder}", *args, f"--out={tmp_path}/steps")
    assert code == 0 and (tmp_path / "steps" / "7" / "items.jsonl").is_file() and len(scores.read(tmp_path / "steps")) > 2, err


def test_word_error_of_recordings_needs_no_model(corpus, tmp_path):
    code, out, err = run(NAME, "--task=recordings", f"--data={corpus}", "--limit=2", "--evals=word_error", f"--out={tmp_path}/o")
    assert code == 0, err
    (line, *_) = [json.loads(text) for text in (tmp_path / "o" / "scores.jsonl").read_text().splitlines()]
    assert line["name"] == "wer_recording" and 0 <= line["value"] < 40 and "pocketsphinx" in line["fingerprint"]["evaluator"]
    items = [json.loads(text) for text in (tmp_path / "o" / "items.jsonl").read_text().splitlines()]
    assert sum(item["word_error"]["recording"]["words"] for item in items) == 28


def test_report_of_what_the_command_wrote(codec, corpus, tmp_path):
    args = [f"--data={corpus}", "--limit=2", "--evals=speaker_similarity", "--task=codec", "--save_audio", f"--out={tmp_path}/scores"]
    assert run(NAME, f"--model={codec}", *args)[0] == 0
    code, out, err = run(NAME, "report", f"{tmp_path}/scores", str(corpus), f"--out={tmp_path}/page", "--title=Ours")
    assert code == 0, err
    text = (tmp_path / "page" / "index.html").read_text()
    assert "<h1>Ours</h1>" in text and text.count("data:audio/flac") == 6 and f"wrote {tmp_path}/page/index.html" in out
    code, _, err = run(NAME, "report")
    assert code == 2 and "no folder is given" in err
    code, _, err = run(NAME, "reprot", "x")
    assert code == 2 and "expected report, table, rate, listen, answers" in err


def test_listening_test_and_its_answers(codec, corpus, tmp_path):
    args = [f"--data={corpus}", "--limit=2", "--evals=speaker_similarity", "--task=codec", "--save_audio", f"--out={tmp_path}/scores"]
    assert run(NAME, f"--model={codec}", *args)[0] == 0
    code, out, err = run(NAME, "listen", f"a={tmp_path}/scores", f"b={tmp_path}/scores", "--kind=mos", f"--out={tmp_path}/test")
    assert code == 0 and "index.html for the listeners" in out, err
    key = json.loads((tmp_path / "test" / "key.json").read_text())
    stimuli = [name for name, about in key["stimuli"].items() if about["system"] == "a"]
    answers = [{"trial": trial, "order": [stimulus], "score": 4} for trial, stimulus in zip(key["trials"], stimuli)]
    (tmp_path / "answers.json").write_text(json.dumps({"test": key["test"], "listener": "x", "answers": answers}))
    code, out, err = run(NAME, "answers", f"{tmp_path}/test/key.json", f"{tmp_path}/answers.json")
    assert code == 0 and "a: 4.00 (4.00 to 4.00), 2 ratings of 1 listeners" in out, err
    assert run(NAME, "listen", "nameless")[0] == run(NAME, "answers", "x")[0] == 2


def test_follow_beside_a_live_training(corpus, tmp_path):
    """Two processes; the follower is killed after its first score and started again: nothing is scored twice, and it ends when
    training has."""
    workdir, env = tmp_path / "run", {**os.environ, "JAX_PLATFORMS": "cpu", "NS2_JAX_CACHE": str(tmp_path / "cache")}
    small = ["--config=configs/codec.py:smoke,levels=2,codes=8,coarse=0", "--config.model.mel_scales=((256,20),)", "--config.model.judge_sizes=(256,)",
             "--config.model.judge_filters=8", "--config.data.buckets=[{'b':4,'t':16}]", "--config.train.save_every=40"]
    train = [sys.executable, "-m", "ns2_jax.train", *small, f"--config.data.path={corpus}", f"--workdir={workdir}", "--config.train.steps=120"]
    args = [f"--workdir={workdir}", "--follow", "--poll=0.3", f"--data={corpus}", "--limit=2", "--task=codec", "--evals=speaker_similarity"]
    follow = [sys.executable, "-m", NAME, *args]
    training = subprocess.Popen(train, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    follower = subprocess.Popen(follow, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 240
        while not (scored := sorted(workdir.glob("evaluation/*/summary.json"))) and time.monotonic() < deadline:
            time.sleep(0.1)
            assert follower.poll() is None, follower.stdout.read()
        follower.kill()
        first = {path: path.stat().st_mtime_ns for path in scored}
        assert training.wait(240) == 0, training.stdout.read()
        done = subprocess.run(follow, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    finally:
        training.kill(), follower.kill()
    assert done.returncode == 0 and "has reached its last step 120: done" in done.stdout, done.stderr
    assert first and all(path.stat().st_mtime_ns == at for path, at in first.items())
    lines = scores.read(workdir / "evaluation")
    steps = [line["fingerprint"]["step"] for line in lines if line["name"] == "secs_own_codec"]
    assert steps == sorted(set(steps)) and steps[-1] == 120 and set(steps) <= {40, 80, 120}
    assert list((workdir / "evaluation" / "tensorboard").glob("events.*"))


def test_two_hosts_share_the_work_and_count_as_one(corpus, tmp_path):
    """Five utterances over two processes that follow a run which has ended; the second writes its audio and nothing else: the scores
    of one process."""
    folder = tiny.write_run("naturalspeech2", tmp_path / "run", step=60)
    args = [f"--workdir={folder}", f"--data={corpus}", "--steps=1", "--save_audio", "--evals=speaker_similarity,prosody"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NS2_JAX_CACHE": str(tmp_path / "cache")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    hosts = [subprocess.Popen([sys.executable, "-m", NAME, *args, "--follow", f"--out={tmp_path}/two"], cwd=ROOT,
                              env={**env, **cluster, "JAX_PROCESS_ID": str(i)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(2)]
    try:
        (first, problems), (second, more) = (host.communicate(timeout=600) for host in hosts)
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], problems + more
    assert "5 utterances of 2 speakers" in first and "has reached its last step 60: done" in first and "5 utterances" not in second
    code, _, err = run(NAME, *args, f"--out={tmp_path}/one")
    assert code == 0, err
    one, two = (scores.read(tmp_path / name) for name in ("one", "two"))
    assert [line["name"] for line in one] == [line["name"] for line in two] and len(one) == 13
    for a, b in zip(one, two):
        assert a["interval"] == pytest.approx(b["interval"], rel=1e-3, abs=1e-3)  # the same rows in the same order
        assert a["fingerprint"] == b["fingerprint"] and a["n"] == b["n"] and a["value"] == pytest.approx(b["value"], rel=1e-3, abs=1e-3)
    rows = [[json.loads(line) for line in (tmp_path / name / "60" / "items.jsonl").read_text().splitlines()] for name in ("one", "two")]
    assert [row["id"] for row in rows[0]] == [row["id"] for row in rows[1]] and all("prosody" in row for row in rows[1])
    kept = collections.Counter(path.suffix for path in (tmp_path / "two" / "60" / "audio").iterdir())
    assert kept == {".flac": 15, ".json": 5}  # what each synthesis came of stands beside it


def test_a_run_is_scored_into_its_folder_and_a_read_model_is_left_alone(codec, corpus, tmp_path):
    folder = tiny.write_run("codec", tmp_path / "run", step=7)
    args = [f"--data={corpus}", "--limit=2", "--evals=speaker_similarity", "--task=codec"]
    assert run(NAME, f"--workdir={folder}", *args)[0] == 0
    first = json.loads((tmp_path / "run" / "evaluation" / "scores.jsonl").read_text().splitlines()[0])
    assert first["fingerprint"]["step"] == 7 and (tmp_path / "run" / "evaluation" / "7" / "items.jsonl").is_file()
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run(NAME, f"--model={folder}", *args)
    assert code == 0 and "secs_own" in out and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("args,message", [
    ([], "--model=DIR (a run or an export) or --workdir=DIR is missing"),
    (["--model=CODEC", "--follow"], "--follow needs --workdir=DIR"),
    (["--model=CODEC", "--workdir=CODEC"], "both given"),
    (["--model=nowhere"], "nowhere does not exist"),
    (["--model=CODEC"], "config.data.path is empty"),
    (["--model=CODEC", "--data=nowhere"], "no data set at nowhere"),
    (["--model=CODEC", "--data=DATA", "--split=dev"], "no split 'dev'"),
    (["--model=CODEC", "--data=DATA", "--evals=beauty"], "'beauty' is not one of"),
    (["--model=CODEC", "--data=DATA", "--evals=speed,word_error"], "--evals=speed is timed alone"),
    (["--model=CODEC", "--data=DATA", "--evals=diversity"], "it needs a model that speaks"),
    (["--model=CODEC", "--data=DATA", "--evals=word_error", "--recogniser=whisper:nowhere"], "nowhere does not exist"),
    (["--model=CODEC", "--data=DATA", "--task=tts"], "does not speak"),
    (["--model=CODEC", "--data=DATA", "--levels=2,5"], "--levels=5: CODEC (system 'codec') decodes from 1 to 4 levels"),
    (["--model=CODEC", "--data=DATA", "--levels=two"], "--levels=two are no numbers of levels"),
    (["--model=CODEC", "--data=DATA", "--rivals=mp3"], "--rivals: 'mp3' is not opus, encodec:DIR or dac:DIR"),
    (["--model=CODEC", "--data=DATA", "--rivals=dac:nowhere"], "there is no nowhere/config.json"),
    (["--task=recordings", "--data=DATA", "--rivals=opus"], "--rivals is about codecs"),
    (["--workdir=CODEC", "--data=DATA", "--rivals=opus"], "give the run as --model=DIR"),
    (["--task=recordings", "--data=DATA", "--evals=spectral_distance"], "--evals=spectral_distance compares a codec with the recordings"),
    (["--model=CODEC", "--data=DATA", "--save_audio"], "--save_audio needs --out"),
    (["--model=CODEC", "--data=DATA", "--limit=-1"], "limit"),
    (["--model=CODEC", "--data=DATA", "--out=CODEC/config.json"], "is a file"),
    (["--task=recordings"], "--data=DIR is missing"),
])
def test_it_refuses(codec, corpus, args, message):
    assert message.replace("CODEC", codec) in refused(NAME, *(arg.replace("CODEC", codec).replace("DATA", corpus) for arg in args))


def test_speakers_with_one_utterance_cannot_be_scored(codec, tmp_path):
    lonely = write_corpus(tmp_path / "d", {"ann": 1, "bob": 1})
    assert "no speaker of split 'test' has two utterances" in refused(NAME, f"--model={codec}", f"--data={lonely}")
