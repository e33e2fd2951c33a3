"""Conversations of a toy whose every output is known: who says what when."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
from commands import refused, run

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.inference import dialogue, provenance

NAME = "ns2_jax.synthesize"
TEXT = "Ann: Hello, you.\n\n# they meet\nBen: Yes: me.\nAnn:   And I!  \n"
VOICES = {"Ann": (0.1 * np.sin(np.arange(400)).astype(np.float32), 800), "Ben": (np.sin(0.3 * np.arange(400)).astype(np.float32), 800)}


@pytest.fixture(scope="module")
def toy():
    return tiny.toy()


def test_a_transcript_is_read_line_by_line():
    assert dialogue.read(TEXT) == [("Ann", "Hello, you."), ("Ben", "Yes: me."), ("Ann", "And I!")]
    with pytest.raises(ValueError, match="line 2 of the transcript is 'Hello'"):
        dialogue.read("Ann: Yes.\nHello\n")
    with pytest.raises(ValueError, match="no turn"):
        dialogue.read("# nothing\n")


def test_turns_follow_each_other_in_their_voices(toy):
    turns = dialogue.read(TEXT)
    made = dialogue.speak(toy, turns, VOICES, seed=5, gap=0.1)
    alone = [toy.speak(text, VOICES[who], seed=5 + i) for i, (who, text) in enumerate(turns)]
    begin = 0
    for (who, text), (speaker, first, end), one in zip(turns, made.turns, alone):
        assert (speaker, first, end - first) == (who, begin, len(one.audio))
        np.testing.assert_allclose(made.speech.audio[first:end], one.audio, atol=1e-5)
        assert (made.speech.audio[end : end + 80] == 0).all()
        begin = end + 80  # 0.1 s
    assert len(made.speech.audio) == made.speech.ends[-1] == made.turns[-1][2]
    assert [word for word, _, _ in made.speech.words] == ["hello", "you", "yes", "me", "and", "i"]
    inside = [next(i for i, (_, first, end) in enumerate(made.turns) if first <= b < e <= end) for _, b, e in made.speech.words]
    assert inside == [0, 0, 1, 1, 2, 2]
    said = provenance.consent(f"They allow their voices to be imitated.\n{provenance.digest(VOICES['Ann'])}\n{provenance.digest(VOICES['Ben'])}")
    assert made.speech.origin.prompts == (provenance.digest(VOICES["Ann"]), provenance.digest(VOICES["Ben"])) and made.speech.origin.consent is None
    consented = provenance.together([dataclasses.replace(one.origin, consent=said) for one in alone])
    assert consented.consent is said and consented.prompts == made.speech.origin.prompts and consented.seed == 5
    other = provenance.consent(f"Ben allows his voice to be imitated.\n{provenance.digest(VOICES['Ben'])}")
    both = provenance.together([dataclasses.replace(one.origin, consent=by) for one, by in zip(alone, (said, other))])
    both.consent.check(made.speech.origin.prompts)
    assert said.statement in both.consent.statement and other.statement in both.consent.statement
    assert provenance.together([dataclasses.replace(alone[0].origin, consent=said), alone[1].origin]).consent is None
    assert sum(made.speech.score.seconds) == pytest.approx(made.speech.seconds) and len(made.speech.f0) * 4 == len(made.speech.audio)


def test_a_speaker_without_a_prompt_is_refused(toy):
    with pytest.raises(ValueError, match="no prompt for speaker 'Ben'"):
        dialogue.speak(toy, dialogue.read(TEXT), {"Ann": VOICES["Ann"]})


def test_the_command_speaks_a_transcript(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load", lambda *_: toy)
    (tmp_path / "talk.txt").write_text(TEXT)
    for who, (audio, rate) in VOICES.items():
        files.write(tmp_path / f"{who}.wav", 0.9 * audio, rate)
    prompts = [f"--prompt=Ann={tmp_path}/Ann.wav", f"--prompt=Ben={tmp_path}/Ben.wav"]
    common = ["--model=M", "--task=dialogue", f"--text={tmp_path}/talk.txt", f"--out={tmp_path}/a.wav"]
    code, out, err = run(NAME, *common, *prompts, "--times=json", "--seed=5")
    assert code == 0 and "3 turns" in out and (tmp_path / "a.json").exists(), err
    wanted = dialogue.speak(toy, dialogue.read(TEXT), {who: str(tmp_path / f"{who}.wav") for who in VOICES}, seed=5)
    np.testing.assert_allclose(files.read(tmp_path / "a.wav", 800), wanted.speech.audio, atol=2e-4)
    assert "no prompt for speaker 'Ben'" in refused(NAME, *common, prompts[0])
    assert "expected SPEAKER=FILE" in refused(NAME, *common, f"--prompt={tmp_path}/Ann.wav")
    lost = ["--model=M", "--task=dialogue", f"--text={tmp_path}/nowhere.txt", f"--out={tmp_path}/a.wav"]
    assert "nowhere.txt: no such file" in refused(NAME, *lost, *prompts)
