"""The command that speaks: what it writes, and that it refuses bad input in one line, before anything is written."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import soundfile
import tiny
from commands import refused, run

from ns2_jax import inference
from ns2_jax.audio import files

NAME = "ns2_jax.synthesize"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model("naturalspeech2", tmp_path_factory.mktemp("ns2"))


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.write_model("codec", tmp_path_factory.mktemp("codec"))


def test_it_speaks_one_and_a_list(model, tmp_path):
    one = [f"--model={model}", "--text=Hello, you.", f"--prompt={tiny.SPEECH}", "--steps=2"]
    code, out, err = run(NAME, *one, f"--out={tmp_path}/a.wav", "--seed=3")
    assert code == 0 and "a.wav:" in out and "s of speech" in out, err
    (tmp_path / "list.tsv").write_text(f"# out, text, prompt\n{tmp_path}/b.wav\tHello, you.\t{tiny.SPEECH}\n\n"
                                       f"{tmp_path}/c.flac\tHello, you.\t{tiny.SPEECH}\n")
    code, out, err = run(NAME, f"--model={model}", f"--batch={tmp_path}/list.tsv", "--steps=2", "--seed=3")
    assert code == 0 and out.count("s of speech") == 3, err
    a, b, c = (files.read(tmp_path / name, 16000) for name in ("a.wav", "b.wav", "c.flac"))
    np.testing.assert_array_equal(b, c)
    np.testing.assert_allclose(a, b, atol=2e-4)  # alone or in a batch, from the same seed
    assert soundfile.info(str(tmp_path / "a.wav")).samplerate == 16000


def test_its_controls_are_the_models(model, tmp_path, monkeypatch):
    seen, speak = {}, inference.Model.speak_batch
    monkeypatch.setattr(inference.Model, "speak_batch", lambda self, *args, **options: seen.update(options) or speak(self, *args, **options))
    controls = {"steps": 2, "speed": 1.25, "temperature": 0.5, "guidance": 1.5, "pitch_shift": 2.0, "sampler": "ddim"}
    code, _, err = run(NAME, f"--model={model}", "--text=Hello, you.", f"--prompt={tiny.SPEECH}", f"--out={tmp_path}/a.wav", "--seed=3",
                       *(f"--{name}={value}" for name, value in controls.items()))
    assert code == 0 and controls.items() <= seen.items(), err
    said = inference.load(model).speak("Hello, you.", str(tiny.SPEECH), seed=3, **controls)
    np.testing.assert_allclose(files.read(tmp_path / "a.wav", 16000), said.audio, atol=2e-4)


@pytest.mark.parametrize("change,message", [
    ({"model": None}, "--model=DIR is missing"),
    ({"model": "nowhere"}, "nowhere does not exist"),
    ({"text": None}, "--text is missing"),
    ({"text": ""}, "empty"),
    ({"text": "   "}, "empty"),
    ({"text": "!?"}, "no pronounceable word"),
    ({"prompt": None}, "--prompt is missing"),
    ({"prompt": "nowhere.wav"}, "nowhere.wav: no such audio file"),
    ({"prompt": "TMP/text.wav"}, "not an audio file"),
    ({"prompt": "TMP/silent.wav"}, "silent"),
    ({"prompt": "TMP/empty.wav"}, "no audio"),
    ({"prompt": "TMP/nan.wav"}, "NaN"),
    ({"prompt": "TMP/blip.wav"}, "at least 0.1 s"),
    ({"out": None}, "--out is missing"),
    ({"out": "TMP/out.doc"}, "must end in one of .wav .flac .ogg"),
    ({"out": "TMP/nowhere/out.wav"}, "does not exist"),
    ({"out": "TMP/folder.wav"}, "is a folder"),
    ({"out": "TMP/blip.wav", "prompt": "TMP/blip.wav"}, "would be overwritten"),
    ({"steps": "0"}, "steps"),
    ({"steps": "many"}, "steps"),
    ({"task": "dance"}, "dance"),
    ({"task": "sing"}, "--task=sing needs --score=SONG"),
    ({"sampler": "magic"}, "magic"),
    ({"lexicon": "TMP/nowhere.txt"}, "nowhere.txt"),
    ({"model": "CODEC"}, "does not speak"),
])
def test_it_refuses(model, codec, tmp_path, change, message):
    (tmp_path / "text.wav").write_text("this is not audio")
    (tmp_path / "folder.wav").mkdir()
    for name, audio in {"silent": np.zeros(16000), "empty": np.zeros(0), "nan": np.full(16000, np.nan), "blip": np.ones(800)}.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, 16000, subtype="FLOAT")
    before = sorted(tmp_path.iterdir())
    flags = {"model": model, "text": "Hello.", "prompt": str(tiny.SPEECH), "out": f"{tmp_path}/out.wav"} | change
    args = [f"--{k}={v}".replace("TMP", str(tmp_path)).replace("CODEC", codec) for k, v in flags.items() if v is not None]
    assert message in refused(NAME, *args)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text,message", [
    ("", "no lines"),
    ("# nothing but a comment\n", "no lines"),
    ("TMP/a.wav\tHello.\n", "list.tsv:1: 2 columns, expected 3"),
    ("TMP/a.wav\tHello.\tPROMPT\nTMP/b.wav\t\tPROMPT\n", "the text for TMP/b.wav is empty"),
    ("TMP/a.wav\tHello.\tPROMPT\nTMP/b.wav\tHello.\tnowhere.wav\n", "nowhere.wav: no such audio file"),
    ("TMP/a.wav\tHello.\tPROMPT\nTMP/a.wav\tYes.\tPROMPT\n", "written by two lines"),
    ("TMP/a.wav\tHello.\tPROMPT\nTMP/b.wav\t!?\tPROMPT\n", "the line of TMP/b.wav: there is no pronounceable word"),
    ("TMP/a.wav\tHello.\tPROMPT\nTMP/b.wav\tYes.\tTMP/silent.wav\n", "the line of TMP/b.wav: TMP/silent.wav"),
])
def test_a_bad_list_is_refused_before_its_first_line_is_spoken(model, tmp_path, text, message):
    text, message = (x.replace("TMP", str(tmp_path)).replace("PROMPT", str(tiny.SPEECH)) for x in (text, message))
    (tmp_path / "list.tsv").write_text(text)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    assert message in refused(NAME, f"--model={model}", f"--batch={tmp_path}/list.tsv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.tsv", "silent.wav"]


def test_a_score_is_written_changed_and_spoken_and_prompts_may_be_several(model, tmp_path):
    common = [f"--model={model}", f"--prompt={tiny.SPEECH}", "--steps=2", "--seed=3"]
    code, out, err = run(NAME, *common, "--text=Hello, you.", f"--out={tmp_path}/a.wav", "--times=json,TextGrid,srt")
    assert code == 0 and "a.json" in out and "hello," in (tmp_path / "a.srt").read_text() and (tmp_path / "a.TextGrid").exists(), err
    said = json.loads((tmp_path / "a.json").read_text())
    assert [word["text"] for word in said["words"]] == ["", "hello", ",", "you", "."]
    code, _, err = run(NAME, *common, f"--score={tmp_path}/a.json", f"--out={tmp_path}/same.wav")
    assert code == 0, err
    a, same = (files.read(tmp_path / name, 16000) for name in ("a.wav", "same.wav"))
    np.testing.assert_allclose(same, a, atol=2e-4)
    for phone in said["words"][1]["phones"]:
        phone["seconds"] *= 2
    (tmp_path / "slow.json").write_text(json.dumps(said))
    code, _, err = run(NAME, *common, f"--prompt={tiny.SPEECH}", f"--score={tmp_path}/slow.json", f"--out={tmp_path}/slow.wav")
    assert code == 0 and soundfile.info(str(tmp_path / "slow.wav")).frames > len(a), err
    before = sorted(path.name for path in tmp_path.iterdir())
    for args, message in (
            ([f"--score={tmp_path}/a.json", f"--out={tmp_path}/a.wav", "--times=json"], "a.json is also read"),
            ([f"--score={tmp_path}/a.json", "--text=Yes.", f"--out={tmp_path}/b.wav"], "--text does not go with --score"),
            ([f"--score={tmp_path}/a.wav", f"--out={tmp_path}/b.wav"], "a.wav: not a score"),
            ([f"--score={tmp_path}/a.json", "--speed=2", f"--out={tmp_path}/b.wav"], "--speed does not go with --score"),
            (["--text=Yes.", f"--out={tmp_path}/b.wav", "--times=lrc"], "--times=lrc: expected json, TextGrid, srt"),
            (["--text=Yes.", f"--out={tmp_path}/b.wav", "--pitch_shift=99"], "pitch_shift=99.0 semitones")):
        assert message in refused(NAME, *common, *args)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_song_is_sung(model, tmp_path):
    one = "<note><pitch><step>A</step><octave>4</octave></pitch><duration>1</duration><lyric><text>star</text></lyric></note>"
    tempo = '<direction><sound tempo="200"/></direction>'
    (tmp_path / "song.musicxml").write_text(f"<score-partwise><part><measure>{tempo}{one}</measure></part></score-partwise>")
    common = [f"--model={model}", f"--prompt={tiny.SPEECH}", "--steps=2", f"--score={tmp_path}/song.musicxml"]
    code, out, err = run(NAME, *common, "--task=sing", f"--out={tmp_path}/a.wav", "--times=json")
    assert code == 0, err
    assert soundfile.info(str(tmp_path / "a.wav")).frames == pytest.approx(16000 * 0.7, abs=400)
    assert 440.0 in [value for word in json.loads((tmp_path / "a.json").read_text())["words"] for phone in word["phones"] for value in phone["hz"]]
    assert "not a score" in refused(NAME, *common, f"--out={tmp_path}/b.wav")
    assert "2 syllables and the song 1 notes" in refused(NAME, *common, "--task=sing", "--text=Hello.", f"--out={tmp_path}/b.wav")


def test_a_list_and_a_text_do_not_go_together(model, tmp_path):
    assert "does not go with --batch" in refused(NAME, f"--model={model}", "--batch=x.tsv", "--text=Hello.")
    assert "no such file" in refused(NAME, f"--model={model}", f"--batch={tmp_path}/nowhere.tsv")
    (tmp_path / "a.tsv").write_bytes(b"\xff\xfe\x00\x01")
    assert "UTF-8" in refused(NAME, f"--model={model}", f"--batch={tmp_path}/a.tsv")


def test_what_is_said_is_shown_without_a_model_and_is_a_lexicon(tmp_path):
    code, out, err = run(NAME, "--say", "--text=Dr. Smith, the gif is 3.")
    assert code == 0 and "doctor\td aa k t" in out and "# pause ," in out and "three\tth r iy" in out, err
    (tmp_path / "lexicon.txt").write_text(out.replace("gif\tg ih f", "gif\tjh ih f"))
    code, again, err = run(NAME, "--say", "--text=Dr. Smith, the gif is 3.", f"--lexicon={tmp_path}/lexicon.txt")
    assert code == 0 and again == out.replace("gif\tg ih f", "gif\tjh ih f") != out, err
    code, third, err = run(NAME, "--say", "--text=Dr. Smith, the gif is 3.", "--word=gif=JH IH1 F")
    assert code == 0 and third == again, err
    (tmp_path / "lexicon.txt").write_text("gif JH IH F\nsmith M IH S\n")  # as an export has it
    code, own, err = run(NAME, "--say", "--text=Dr. Smith, the gif is 3.", f"--model={tmp_path}", "--word=smith=S M IH TH")
    assert code == 0 and own == again, err
    for args, message in ((["--word=gif"], "expected a word and its phones"), (["--word=gif=QQ"], "QQ"), (["--lexicon=nowhere"], "no such file"),
                          ([f"--lexicon={tiny.SPEECH}"], "sentence.flac: not a UTF-8 text file")):
        assert message in refused(NAME, "--say", "--text=A gif.", *args)
    assert "--text is missing" in refused(NAME, "--say")
    assert f"--model={tmp_path}/typo: no such folder" in refused(NAME, "--say", "--text=A gif.", f"--model={tmp_path}/typo")
    assert "empty" in refused(NAME, "--say", "--text= ")


def test_names_of_other_programs_a_word_and_a_consent(model, tmp_path):
    digest = hashlib.sha256(tiny.SPEECH.read_bytes()).hexdigest()
    (tmp_path / "consent.txt").write_text(f"The speaker of this sentence allows it.\n{digest}  sentence.flac\n")
    common = [f"--model={model}", f"--ref_audio={tiny.SPEECH}", "--steps=2", "--text=A gif, you."]
    code, out, err = run(NAME, *common, "--word=gif=JH IH F", f"--consent={tmp_path}/consent.txt", f"--out={tmp_path}/a.wav", "--times=json")
    assert code == 0 and "sentence.flac: " in out and "of silence cut off" in out, err
    assert '"jh"' in (tmp_path / "a.json").read_text()
    said = json.loads((tmp_path / "a.wav.json").read_text())
    assert said["synthetic"] and said["prompts"] == [digest] and said["seed"] == 0 and said["consent"]["statement"].startswith("The speaker")
    assert inference.read_mark(tmp_path / "a.wav")["model"] == said["model"]
    (tmp_path / "other.txt").write_text(f"The speaker of this sentence allows it.\n{'0' * 64}\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    for args, message in (([f"--consent={tmp_path}/other.txt"], "not about the recording"), (["--consent=nowhere"], "no such file with a consent"),
                          (["--pitch=99"], "pitch_shift=99")):
        assert message in refused(NAME, *common, *args, f"--out={tmp_path}/b.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_help_teaches(capsys):
    code, out, _ = run(NAME, "--help")
    assert code == 0 and "python -m ns2_jax.synthesize --model=" in out and "--prompt: " in out and "--guidance: " in out
