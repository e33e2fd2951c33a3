"""Models that go on from their prompts: what is heard of one, what the model must be told, continuation; with an untrained VALL-E."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import refused, run
from test_evaluate import TEXT as SENTENCE
from test_evaluate import write_corpus

from data_pipelines.sentences import load_list
from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import scores
from ns2_jax.evaluate import material
from ns2_jax.inference import aligning, prompts, provenance, speech
from ns2_jax.text import front, units

NAME = "ns2_jax.synthesize"
HERE = Path(__file__).parent / "data_pipelines"
RECORDING, TEXT = HERE / "sentence0.flac", json.loads((HERE / "sentences.json").read_text())[0]["text"]
VOICE = (files.read(tiny.SPEECH, 16000)[:6400], 16000)
SAID = inference.Said(VOICE, "hello")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model("valle", tmp_path_factory.mktemp("valle"))


@pytest.fixture
def model(folder):
    return inference.load(folder)


@pytest.fixture(scope="module")
def shared(folder):
    """One for all that compile; its aligner is left alone."""
    return inference.load(folder)


@dataclasses.dataclass
class Even:
    """An aligner that finds every phone equally long."""

    rate: int = 16000
    hop: int = 200


@pytest.fixture
def even(monkeypatch):
    def align(aligner, audio, phones):
        del aligner
        total = len(audio) // 200
        edges = total * np.arange(len(phones) + 1) // len(phones)
        return aligning.Aligned(np.diff(edges), np.append(edges[1:-1] * 200, len(audio)), 1.0)

    monkeypatch.setattr(aligning, "align", align)
    return Even()


def test_it_must_be_told_what_its_prompt_says(shared):
    assert shared.continues and shared.paces
    for prompt in (VOICE, str(tiny.SPEECH), inference.Said(VOICE, " "), [SAID, VOICE]):
        with pytest.raises(ValueError, match="must be told what it says: --prompt_text"):
            shared.speak("Hello.", prompt)
    with pytest.raises(ValueError, match="unknown option 'steps'"):
        shared.speak("Hello.", SAID, steps=3)
    spoken = front.words("Hello.")
    timed = inference.Score(spoken, (0.1,) * 6, (None,) * 6)
    with pytest.raises(ValueError, match="decides on the length of each phone"):
        shared.speak(timed, SAID)


def test_it_speaks_and_says_when(shared):
    """Lengths are its own; phones are where its guided head looked; alone and in a batch alike."""
    alone = shared.speak("Hello.", SAID, seed=4)
    assert list(alone.phones) == front.phonemise("Hello.") and alone.ends[-1] == len(alone.audio) and (np.diff(alone.ends, prepend=0) > 0).all()
    assert alone.seconds == pytest.approx(sum(alone.score.seconds)) and [word for word, _, _ in alone.words] == ["hello"]
    both = shared.speak_batch([("Yes.", SAID), ("Hello.", SAID)], [1, 4])
    np.testing.assert_allclose(both[1].audio, alone.audio, atol=1e-4)
    assert len(both[0].audio) != len(alone.audio) or np.abs(both[0].audio - alone.audio).max() > 1e-4


def test_a_prompt_is_cut_between_phones(model, even):
    """With an aligner a long prompt loses its end, and its text with it; without one it is refused."""
    audio, text = (files.read(tiny.SPEECH, 16000)[:20000], 16000), "one two three four"
    with pytest.raises(ValueError, match="hears 0.4 s and 32 phones.*aligner"):
        prompts.hear(model, inference.Said(audio, text), None, "en")
    model.aligner = even
    whole = prompts.hear(model, inference.Said(VOICE, "hello"), None, "en")
    assert list(whole.phones) == front.phonemise("hello") and sum(whole.durations) == len(whole.codes) <= 32
    heard = prompts.hear(model, inference.Said(audio, text), None, "en")
    phones = front.phonemise(text)
    assert list(heard.phones) == phones[: len(heard.phones)] and len(heard.phones) == len(heard.durations)
    assert len(heard.codes) == sum(heard.durations) <= 32 < sum(heard.durations) + len(model.listen(audio)) // 200 // len(phones) + 1
    several = prompts.hear(model, [inference.Said(VOICE, "hello"), inference.Said(VOICE, "hello"), inference.Said(VOICE, "hello")], None, "en")
    assert len(several.codes) <= 32 and sum(several.durations) == len(several.codes)
    short = prompts.hear(model, inference.Said(audio, text, 0.2), None, "en")
    assert 0 < len(short.codes) <= 16


def test_every_phone_of_a_prompt_has_a_frame(model, monkeypatch):
    """Also where the aligner's are shorter than the model's: two phones that end inside one frame share it with their neighbours."""
    ends = np.array([60, 130, 300, 6300, 6390, 6400])

    def align(aligner, audio, phones):
        return aligning.Aligned(np.diff(ends, prepend=0), ends, 1.0)

    monkeypatch.setattr(aligning, "align", align)
    monkeypatch.setattr(prompts, "listen", lambda model, voice: (VOICE[0], ""))
    monkeypatch.setattr(model, "encode", lambda audio: np.zeros((len(audio) // 200, 3), np.int32))
    model.aligner = Even()
    heard = prompts.hear(model, SAID, None, "en")
    assert heard.durations == (1, 1, 1, 27, 1, 1) and len(heard.codes) == 32
    monkeypatch.setattr(prompts, "listen", lambda model, voice: (VOICE[0][:1000], ""))
    with pytest.raises(ValueError, match="0.06 s are 5 frames and the text has 6 phones"):
        prompts.hear(model, SAID, None, "en")


def test_words_are_divided_at_a_phone():
    words = front.words("one two")
    first, second = prompts.divide(words, 3)
    assert [(w.text, w.phones) for w in first] == [("", ("sil",)), ("one", ("w", "ah"))]
    assert [w.text for w in second] == ["one", "two", ""] and second[0].phones == ("n",)
    assert prompts.divide(words, 0)[1] == words and prompts.divide(words, 99)[0] == words


def test_a_recording_goes_on(model, even, shared):
    """Its beginning is the codec's copy of it, what follows is spoken, and all words are there in their order."""
    audio, text = (files.read(tiny.SPEECH, 16000)[:20000], 16000), "one two three four"
    with pytest.raises(ValueError, match="needs Model.aligner"):
        inference.continue_all(model, [(audio, text)])
    model.aligner, model._compiled = even, shared._compiled
    (made,) = inference.continue_all(model, [(audio, text)], 3, seconds=0.3)
    begun = prompts.hear(model, inference.Said(audio, text, 0.3), None, "en")
    assert 1 < len(begun.phones) < len(front.phonemise(text)) and made.phones == tuple(front.phonemise(text))
    np.testing.assert_allclose(made.audio[: len(begun.codes) * 200], model.decode(begun.codes), atol=1e-5)
    assert files.active_rms(made.audio[len(begun.codes) * 200 :], 16000) == pytest.approx(files.LEVEL, rel=0.01)  # not softer in mid-sentence
    assert made.ends[-1] == len(made.audio) > len(begun.codes) * 200 and (np.diff(made.ends, prepend=0) > 0).all()
    assert made.seconds == pytest.approx(sum(made.score.seconds))
    assert made.origin.prompts == begun.digests == (provenance.digest(audio),) and made.origin.options == {"seconds": 0.3} and made.origin.seed == 3
    first = begun.first(sum(begun.durations) - 1)
    assert len(first.codes) == sum(first.durations) == sum(begun.durations[:-1]) and first.phones == begun.phones[:-1]
    with pytest.raises(ValueError, match="not about the recording"):
        inference.continue_all(model, [(audio, text)], seconds=0.3, consent=provenance.consent("Somebody else allows something.\n" + "0" * 64))
    failures: dict[int, str] = {}
    short = (audio[0][:4000], 16000)
    assert inference.continue_all(model, [(short, "yes")], failures=failures) == [None] and "all of its text" in failures[0]


def test_text_in_units(tmp_path):
    """A model of SentencePiece units reads those of the words as they are said; phones share its time evenly."""
    size = "smoke,bpe,vocabulary=200"
    folder = tiny.write_model("valle", tmp_path / "units", size=size)
    with pytest.raises(FileNotFoundError, match="units.model"):
        inference.load(folder)
    (tmp_path / "units" / inference.UNITS).write_bytes(units.train(load_list("train"), size=200))
    model = inference.load(folder)
    words = front.words("Hello, you!")
    assert model.units.decode(model.text_ids(words)).startswith("hello")
    row = speech.inputs_of(model, speech.Piece(0, words, 0, np.zeros((4, 3), np.int32), said=words), {"p": 32, "t": 9}, 32)
    np.testing.assert_array_equal(row["units"], row["prompt_units"])
    score = inference.Score(words, (None,) * 9, (None,) * 9)
    pieces = speech.pieces_of(model, 0, score, 0, np.zeros((4, 3), np.int32), words)
    (piece,) = speech.place_in_buckets(model, pieces, {}, lambda request, function, *args: function(*args))
    assert len(piece.durations) == 9 and piece.durations.max() - piece.durations.min() <= 1
    assert piece.spread(model, np.array([3, 7, 0, 10])).tolist() == [2, 2, 2, 2, 3, 2, 2, 2, 3]
    with pytest.raises(ValueError, match="over after 5 frames, it has 9 phones"):
        piece.spread(model, np.array([5, 0]))


def test_the_command(folder, tmp_path):
    """A recording goes on, found in its text by the repository's aligner; a prompt with its text in a list; what is refused."""
    hears = [f"--model={folder}", f"--prompt={RECORDING}"]
    code, _, err = run(NAME, *hears, "--task=continue", f"--text={TEXT}", "--seconds=0.4", f"--out={tmp_path}/b.wav", "--times=srt")
    assert code == 0 and (tmp_path / "b.srt").read_text(), err
    (tmp_path / "list.tsv").write_text(f"{tmp_path}/c.wav\tYes.\t{RECORDING}|{TEXT}\n")
    assert "unknown option 'top_q'" in refused(NAME, f"--model={folder}", f"--batch={tmp_path}/list.tsv", "--option=top_q=1")
    before = sorted(tmp_path.iterdir())
    common = [*hears, f"--out={tmp_path}/d.wav", "--text=Yes."]
    for args, message in (
            ([], "must be told what it says: --prompt_text"),
            (["--prompt_text=One.", "--prompt_text=Two."], "--prompt_text is given 2 times, --prompt 1 times"),
            (["--task=continue", "--prompt_text=One."], "--prompt_text does not go with --task=continue"),
            (["--seconds=2"], "--seconds goes with --task=continue"),
            (["--prompt_text=One.", "--option=top_p"], "--option=top_p: expected NAME=VALUE")):
        assert message in refused(NAME, *common, *args)
    assert sorted(tmp_path.iterdir()) == before


def test_it_is_evaluated(folder, tmp_path):
    """Prompts come with their texts from the data set or a list; `continue` goes on from the recordings, and says so in its fingerprint."""
    corpus = write_corpus(tmp_path / "corpus", {"ann": 2}, splits=("test",))
    common = [f"--model={folder}", "--evals=acoustic_distance"]
    code, _, err = run("ns2_jax.evaluate", *common, f"--data={corpus}", "--limit=1", "--task=continue", "--option=top_p=0.9",
                       "--rerank=2", f"--out={tmp_path}/o")
    assert code == 0, err
    (about,) = [line["fingerprint"] for line in scores.read(tmp_path / "o") if line["name"] == "mcd_synthesis"]
    assert about["missing"] == 0 and about["sampler"]["top_p"] == 0.9 and about["continued"] == "after 3 s of the recording"
    (about,) = [line["fingerprint"] for line in scores.read(tmp_path / "o") if line["name"] == "mcd_reranked"]
    assert about["of_takes"] == 2 and about["ranked_by"].startswith("word errors by pocketsphinx")
    found = material.from_dataset(Dataset.open(corpus), "test", 0, 0)
    assert [one.text for one in found.voices] == [SENTENCE] * 2 and (found.voices[0].voice[0] == found.prompts[0]).all()
    wet = found.surrounded("reverberant:0.8")
    assert [one.text for one in wet.voices] == [SENTENCE] * 2 and (wet.voices[1].voice[0] == wet.prompts[1]).all()
    assert np.abs(wet.prompts[0] - found.prompts[0]).max() > 0.01 and wet.about == found.about | {"prompts": "reverberant:0.8"}
    files.write(tmp_path / "p.wav", *VOICE)
    (tmp_path / "list.lst").write_text(f"a||{tmp_path}/p.wav|A quiet morning.\n")
    (voice,) = material.from_list(f"seed_tts:{tmp_path}/list.lst", 16000, 0, 0, "hello").voices
    assert voice.text == "hello" and Path(voice.voice).name == "p.wav"
    listed = [f"--model={folder}", f"--list=seed_tts:{tmp_path}/list.lst", "--evals=room"]
    assert "has no text in --list" in refused("ns2_jax.evaluate", *listed)
    assert "--task=continue needs recordings" in refused("ns2_jax.evaluate", *listed, "--task=continue", "--prompt_text=hello")
    assert "--prompts=wet" in refused("ns2_jax.evaluate", *listed, "--prompts=wet")
