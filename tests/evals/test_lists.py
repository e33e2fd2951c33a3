"""Lists and protocols on miniature copies of the corpora, and WAVs of another system that are missing or broken."""

from __future__ import annotations

import numpy as np
import pytest

from ns2_jax.audio import files
from ns2_jax.evals import lists, robustness, word_error


def tone(path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, 0.1 * np.sin(np.arange(int(8000 * seconds)) * 0.1), 8000)


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory):
    """Two speakers of five utterances (2, 5, 12, 25 and 4 s), one of a single utterance."""
    root = tmp_path_factory.mktemp("libri")
    for speaker, lengths in (("61", (2, 5, 12, 25, 4)), ("121", (2, 5, 12, 25, 4)), ("237", (5,))):
        names = [f"{speaker}-70-{k:04d}" for k in range(len(lengths))]
        for name, seconds in zip(names, lengths):
            tone(root / speaker / "70" / f"{name}.flac", seconds)
        lines = "".join(f"{name} SENTENCE {name} OF MINE\n" for name in names)
        (root / speaker / "70" / f"{speaker}-70.trans.txt").write_text(lines + f"{speaker}-70-9999 WITHOUT AUDIO\n")
    return root


def test_librispeech_protocols(librispeech):
    items = lists.protocol("naturalspeech2_librispeech", librispeech)
    assert len(items) == 10 and {item.speaker for item in items} == {"61", "121"}  # the single utterance has no prompt
    assert all(item.prompt_seconds == 3 for item in items) and len(lists.audio(items[0].prompt, 16000, 3.0)) == 48000
    for item in items:
        assert item.text == f"SENTENCE {item.id} OF MINE" and item.audio.endswith(f"{item.id}.flac")
        assert item.prompt != item.audio and f"/{item.speaker}/" in item.prompt and files.seconds(item.prompt) >= 3
    lengths = lambda name: sorted({files.seconds(item.audio) for item in lists.protocol(name, librispeech)})
    assert lengths("valle") == lengths("soundstorm_short") == [4, 5] and lengths("soundstorm_mid") == [12] and lengths("soundstorm_long") == [25]
    with pytest.raises(ValueError, match="'voicebox' is not one of naturalspeech2_librispeech"):
        lists.protocol("voicebox", librispeech)


def test_a_draw_follows_seed_and_names_only(librispeech):
    recordings = lists.librispeech(librispeech)
    few = lambda seed, order=1: [(item.id, item.prompt) for item in lists.draw(recordings[::order], per_speaker=2, seed=seed)]
    assert few(0) == few(0, -1) and len(few(0)) == 4 and len({tuple(few(seed)) for seed in range(5)}) > 1
    with pytest.raises(ValueError, match="no utterance of 40 to 50 s"):
        lists.draw(recordings, seconds=(40, 50))


@pytest.mark.parametrize("layout", ["wav48/{0}/{0}_{1:03d}.wav", "wav48_silence_trimmed/{0}/{0}_{1:03d}_mic1.flac"])
def test_vctk(tmp_path, layout):
    for speaker in ("p225", "p226"):
        for k in range(1, 8):
            tone(tmp_path / layout.format(speaker, k), 3.5)
            text = tmp_path / f"txt/{speaker}/{speaker}_{k:03d}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("Please call Stella.\n")
    tone(tmp_path / layout.format("p315", 1), 3.5)  # the speaker without transcripts
    items = lists.protocol("naturalspeech2_vctk", tmp_path)
    assert len(items) == 10 and {item.speaker for item in items} == {"p225", "p226"} and items[0].text == "Please call Stella."
    with pytest.raises(FileNotFoundError, match="no VCTK"):
        lists.vctk(tmp_path / "txt")


def test_librispeech_pc_list(librispeech, tmp_path):
    path = tmp_path / "x.lst"
    path.write_text("61-70-0004\t4.0\tThe prompt.\t61-70-0001\t5.0\tWhat is said, with commas.\n")
    (item,) = lists.librispeech_pc(path, librispeech)
    assert item.id == "61-70-0001" and item.text == "What is said, with commas." and item.prompt_text == "The prompt."
    assert item.prompt.endswith("61/70/61-70-0004.flac") and item.audio.endswith("61/70/61-70-0001.flac") and item.speaker == "61"
    path.write_text("61-70-0004\t4.0\tThe prompt.\n")
    with pytest.raises(ValueError, match="x.lst line 1 has 3 fields between '\\\\t', expected 6"):
        lists.librispeech_pc(path, librispeech)
    path.write_text("61-70-0004\t4.0\tThe prompt.\t61-70-7777\t5.0\tx\n")
    with pytest.raises(FileNotFoundError, match="61-70-7777.flac for 61-70-7777, which is not there"):
        lists.librispeech_pc(path, librispeech)


def test_seed_tts_list(tmp_path):
    for name in ("prompt-wavs/p1.wav", "prompt-wavs/p2.wav", "wavs/b.wav"):
        tone(tmp_path / name, 1)
    path = tmp_path / "meta.lst"
    path.write_text("a|Prompt one.|prompt-wavs/p1.wav|Text one.\n\nb|Prompt two.|prompt-wavs/p2.wav|Text two.|wavs/b.wav\n")
    first, second = lists.seed_tts(path)
    assert first.prompt == str(tmp_path / "prompt-wavs/p1.wav") and first.audio == "" and first.text == "Text one."
    assert second.audio == str(tmp_path / "wavs/b.wav") and second.prompt_text == "Prompt two." and second.speaker == "p2"
    path.write_text("a|P|prompt-wavs/p1.wav|T\na|P|prompt-wavs/p1.wav|T\n")
    with pytest.raises(ValueError, match="'a' more than once"):
        lists.seed_tts(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no items"):
        lists.seed_tts(path)


def test_a_list_is_written_and_read_back_and_another_header_is_refused(librispeech, tmp_path):
    items = lists.protocol("valle", librispeech)
    lists.write(tmp_path / "l.tsv", items)
    assert lists.read(tmp_path / "l.tsv") == items
    (tmp_path / "l.tsv").write_text("name\ttext\n1\t2\n")
    with pytest.raises(ValueError, match="begins with the columns"):
        lists.read(tmp_path / "l.tsv")


def test_wavs_of_another_system(tmp_path):
    tone(tmp_path / "set_a.wav", 1)
    tone(tmp_path / "c.flac", 2)
    (tmp_path / "b.wav").write_bytes(b"not audio")
    files.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    audios, failures = lists.wavs(tmp_path, ["set/a", "b", "c", "silent", "d"], 16000)
    assert [None if audio is None else len(audio) for audio in audios] == [16000, None, 32000, None, None]
    assert set(failures) == {"b", "silent", "d"} and "no file with" in failures["d"] and "b.wav" in failures["b"]
    assert lists.wavs(tmp_path, [], 16000) == ([], {})


def test_a_prompt_whose_part_is_silent_is_refused_by_name(tmp_path):
    audio = np.zeros(32000, np.float32)
    audio[20000:] = 0.1 * np.sin(np.arange(12000) / 7)
    files.write(tmp_path / "late.wav", audio, 16000)
    assert len(lists.audio(tmp_path / "late.wav", 16000)) == 32000
    with pytest.raises(files.AudioError, match="late.wav: its first 1 s are silent"):
        lists.audio(tmp_path / "late.wav", 16000, 1.0)


def test_specs(librispeech, tmp_path):
    items = lists.load(f"valle:{librispeech}", seed=3)
    assert items == lists.protocol("valle", librispeech, seed=3)
    lists.write(tmp_path / "l.tsv", items)
    assert lists.load(f"tsv:{tmp_path}/l.tsv") == items
    for spec in ("valle", "tsv:", "nobody:x", "librispeech_pc:x", "seed_tts:a:b"):
        with pytest.raises(ValueError, match="is not tsv:FILE"):
            lists.load(spec)


def test_hard_sentences_can_be_spoken_and_judged(tmp_path, monkeypatch):
    tone(tmp_path / "voice.wav", 3)
    items = lists.load(f"hard:{tmp_path}/voice.wav")
    assert len(items) == 50 and len({item.text for item in items}) == 50 and all(item.prompt.endswith("voice.wav") for item in items)
    assert [item.id for item in lists.spread([lists.Item(x, "", "", speaker=x[0]) for x in ("a1", "a2", "a3", "b1", "c1")], 4)] == [
        "a1", "b1", "c1", "a2"]
    with pytest.raises(FileNotFoundError, match="hard-01.wav for hard-01, which is not there"):
        lists.load(f"hard:{tmp_path}/voice.wav:{tmp_path}")
    counts = [len(robustness.spoken_words(item.text)) for item in items]
    assert min(counts) >= 1 and max(counts) > 20 and all(word_error.words(item.text) for item in items)
    monkeypatch.setattr(lists, "RECORDINGS", tmp_path / "no repository here")
    assert all(item.audio == "" for item in lists.hard(tmp_path / "voice.wav"))


def test_the_judge_errs_little_on_the_recordings_of_the_hard_sentences(tmp_path):
    """What `lists.hard` says of them: the sentences whose recordings are flagged, and four that are not."""
    tone(tmp_path / "voice.wav", 3)
    items = lists.hard(tmp_path / "voice.wav")
    assert all(item.audio.endswith(f"results/hard_sentences/{item.id}.ogg") for item in items)
    verdicts = {k: robustness.verdict(lists.audio(items[k - 1].audio, 16000), items[k - 1].text) for k in (7, 25, 42, 44, 47, 48, 49, 50)}
    flagged = {k: len(verdict["skipped"]) + len(verdict["repeated"]) for k, verdict in verdicts.items()}
    assert flagged == {7: 0, 25: 1, 42: 3, 44: 2, 47: 2, 48: 0, 49: 0, 50: 0}
    assert verdicts[50]["words"] == 20 and 200 < sum(files.seconds(item.audio) for item in items) < 220
