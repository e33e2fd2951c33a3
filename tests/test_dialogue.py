"""Conversations of a toy whose every output is known: who says what when."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import tiny
from commands import refused, run

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.inference import dialogue, prompts, provenance, score
from ns2_jax.text import front, phones

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
    monkeypatch.setattr(inference, "load", lambda *_, **__: toy)
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
    (tmp_path / "talk.txt").write_bytes(b"Ann: caf\xe9\n")
    assert "talk.txt: not a UTF-8 text file" in refused(NAME, *common, *prompts)


HERE = pathlib.Path(__file__).parent / "data_pipelines"
TALK = [("Ann", "Hi."), ("Ben", "Go."), ("Ben", "On."), ("Ann", "Oh.")]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> inference.Model:
    return inference.load(tiny.write_model("soundstorm", tmp_path_factory.mktemp("soundstorm")))


@pytest.fixture(scope="module")
def voices(sound) -> dict[str, inference.Heard]:
    return {who: sound.hear(str(HERE / f"sentence{i}.flac")) for i, who in enumerate(("Ann", "Ben"))}


def test_at_once_both_prompts_stand_before_all_turns(sound, voices):
    """One row of the sampler: half of the room for who begins, half for the other, then all phones, a turn ending where two silences meet."""
    asked, run_ = [], sound.run

    def listening(name, rows, *args, **options):
        asked.extend(rows if name == "sample" else ())
        return run_(name, rows, *args, **options)

    sound.run = listening
    made = dialogue.speak_at_once(sound, TALK, voices, seed=3, steps=2)
    sound.run = run_
    (row,) = asked
    np.testing.assert_array_equal(row["prompt_codes"], np.concatenate([voices[who].codes[:16] for who in ("Ann", "Ben")]))
    said = [phones.ids(front.phonemise(text)) for text in ("Hi.", "Go. On.", "Oh.")]
    np.testing.assert_array_equal(row["phones"][: sum(map(len, said))], np.concatenate(said))
    ends = np.cumsum(row["durations"])[np.cumsum([len(ids) for ids in said]) - 1] * sound.hop
    assert made.turns == (("Ann", 0, ends[0]), ("Ben", ends[0], ends[1]), ("Ann", ends[1], ends[2])) and len(made.speech.audio) == ends[2]
    both = prompts.Heard(np.concatenate([voices[who].codes[:16] for who in ("Ann", "Ben")]))
    words = [word for text in ("Hi.", "Go. On.", "Oh.") for word in front.words(text)]
    np.testing.assert_array_equal(made.speech.audio, sound.speak(score.of_words(words), both, 3, steps=2).audio)
    assert made.speech.origin.prompts == voices["Ann"].digests + voices["Ben"].digests and made.speech.origin.consent is None
    other = dialogue.speak_at_once(sound, [("Ben", "Hi."), ("Ann", "Go. On."), ("Ben", "Oh.")], voices, seed=3, steps=2)
    assert other.speech.origin.prompts == voices["Ben"].digests + voices["Ann"].digests
    assert len(other.speech.audio) != len(made.speech.audio) or np.abs(other.speech.audio - made.speech.audio).max() > 0


def test_at_once_is_refused(sound, voices, toy):
    with pytest.raises(ValueError, match="does not hold a conversation at once"):
        dialogue.speak_at_once(toy, TALK, VOICES)
    with pytest.raises(ValueError, match="of two speakers, this one of 3: Ann, Ben, Eve"):
        dialogue.speak_at_once(sound, [*TALK, ("Eve", "No.")], voices | {"Eve": voices["Ann"]})
    with pytest.raises(ValueError, match="no prompt for speaker 'Ben'"):
        dialogue.speak_at_once(sound, TALK, {"Ann": voices["Ann"]})
    with pytest.raises(ValueError, match="longer than .* speaks at once"):
        dialogue.speak_at_once(sound, TALK * 3, voices, steps=2)
    assert "--at_once goes with --task=dialogue" in refused(NAME, "--model=M", "--at_once", "--text=Hi.", "--prompt=x.wav", "--out=a.wav")
