"""Conversations scored: which are chosen, what recordings get, what another script and other voices would get, and the command."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from unittest import mock

import numpy as np
import pytest
import tiny
from commands import refused, run

from data_pipelines import dialogues, features, remade, shards
from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.evaluate import talking
from ns2_jax.text import front, phones

HERE = pathlib.Path(__file__).parent / "data_pipelines"
NAME = "ns2_jax.evaluate"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> tuple[str, str]:
    """Conversations and what they were made of: two sentences by rms, one by slt, and that again from its middle on, which nobody aligned."""
    root, rows = tmp_path_factory.mktemp("talking") / "clean", []
    for i, said in enumerate(json.loads((HERE / "sentences.json").read_text())[:3]):
        audio, ends = files.read(HERE / f"sentence{i}.flac", 16000), np.array([end for _, end in said["segments"]]) * 16000
        ends = np.minimum(np.rint(ends), len(audio)).astype(np.int32)
        ends[-1] = len(audio)
        align = {"phones": phones.ids(front.phonemise(said["text"])).astype(np.uint8), "ends": ends}
        rows.append((said["voice"], said["text"], audio, align))
    rows.append(("slt", "Over the lazy dog it jumps.", np.roll(rows[1][2], 20000), {name: x[:0] for name, x in rows[1][3].items()}))
    for group in ("meta", "audio", "align"):
        with shards.ShardWriter(root, group, "test", 0, 1) as writer:
            for i, (speaker, text, audio, align) in enumerate(rows):
                meta = {"utt_id": f"{speaker}-{i}", "speaker": speaker, "source": "flite", "voice": speaker, "text": text, "text_norm": text}
                writer.write({"meta": meta, "audio": {"audio": (audio * 30000).astype(np.int16)}, "align": align}[group], len(audio))
    shards.write_manifest(root, phones=phones.inventory_hash())
    features.add_f0(root)
    remade.build(root, root.parent / "talks", dialogues.Dialogues((2, 2), (0.3, 0.5), 20.0), 10)
    return str(root.parent / "talks"), str(root)


@pytest.fixture(scope="module")
def talks(corpora) -> talking.Talks:
    return talking.gather(*corpora, "test", 16000, 0, 0)


def test_everybody_has_another_utterance_as_prompt(talks, corpora):
    assert len(talks.turns) >= 1
    for item, said, prompts, names in zip(talks.material.items, talks.turns, talks.prompts, talks.names, strict=True):
        assert {who for who, _ in said} == {"rms", "slt"} == set(prompts) and set(item["speaker"].split("+")) == set(prompts)
        assert all((who, one.text) not in said and names[who] == f"{who}: {one.text}" for who, one in prompts.items())
        assert item["text"] == " ".join(text for _, text in said)
    with pytest.raises(ValueError, match="16000 Hz, the model works at 800"):
        talking.gather(*corpora, "test", 800, 0, 0)
    with pytest.raises(ValueError, match="no conversation"):
        talking.gather(corpora[0], corpora[0], "test", 16000, 0, 0)  # who spoke alone in it?


def test_what_recordings_get(talks):
    """All of it; a script that has the answer 0.5 s later gets half of the times, missing ones nothing; with prompts exchanged nobody is found."""
    recordings, aligner = talks.material.recordings, inference.load(inference.ALIGNER)
    later = [one._replace(ends=one.ends + 8000 * (one.turn == 1)) for one in talks.scripts]
    made = {"recording": recordings, "late": recordings, "gone": [None] * len(recordings), "untimed": recordings}
    scripts = {"recording": talks.scripts, "late": later, "gone": talks.scripts, "untimed": None}
    score = lambda some, made: {line["name"]: line["value"] for line in talking.judge(some, made, scripts, aligner, 0, {name: {} for name in made})}
    found = score(talks, made)
    assert found["turn_within_250_recording"] == 1 and found["secs_nearest_recording"] == 100
    assert found["turn_within_250_late"] == 0.5 and found["secs_own_late"] == found["secs_own_recording"] > found["secs_others_recording"]
    assert found["turn_within_250_gone"] == 0 and found["secs_nearest_gone"] == 0 and found["secs_own_gone"] == 0
    assert "turn_within_250_untimed" not in found and found["secs_nearest_untimed"] == 100
    for item, said in zip(talks.material.items, talks.turns):
        row = item["turns"]["recording"]
        assert len(row["errors"]) == 2 and len(row["voices"]) == len(said) and all(voice["nearest"] for voice in row["voices"])
    exchanged = [{"rms": some["slt"], "slt": some["rms"]} for some in talks.prompts]
    assert score(dataclasses.replace(talks, prompts=exchanged), {"recording": recordings})["secs_nearest_recording"] == 0


def test_the_command(corpora, talks, tmp_path):
    """A toy hums every phone in a script of its own; what it makes, how, and what is refused."""
    toy = tiny.toy(buckets=(dict(b=1, t=20000, p=160, u=30),), rate=16000)
    load = inference.load
    asked = ("--model=a,b", f"--data={corpora[0]}", f"--clean={corpora[1]}", "--evals=turns", f"--out={tmp_path / 'o'}")
    toy.path = "a,b"
    with mock.patch.object(inference, "load", lambda path: toy if path == "a,b" else load(path)):
        code, _, err = run(NAME, "--task=dialogue", *asked, "--option=speed=0.02", "--save_audio")
        assert code == 0, err
        assert "needs --data=DIR" in refused(NAME, "--task=dialogue", *asked[:2])
        assert "does not go with --task=dialogue" in refused(NAME, "--task=dialogue", *asked, "--wavs=x")
        assert "--evals=prosody does not go" in refused(NAME, "--task=dialogue", *asked[:3], "--evals=prosody")
        assert "it needs --task=dialogue" in refused(NAME, "--model=a,b", f"--data={corpora[1]}", "--evals=turns")
        assert "--at_once goes with --task=dialogue" in refused(NAME, *asked[:2], "--at_once")
    lines = {line["name"]: line for line in map(json.loads, (tmp_path / "o" / "scores.jsonl").read_text().splitlines())}
    assert {f"{what}_{on}" for what in ("turn_within_100", "turn_within_250", "secs_own", "secs_nearest")
            for on in ("recording", "codec", "synthesis")} <= set(lines)
    about = lines["turn_within_250_synthesis"]["fingerprint"]
    assert about["at_once"] is False and about["sampler"]["speed"] == 0.02 and about["model"] == toy.hash and len(about["aligner"]) == 12
    assert "model" not in lines["turn_within_250_recording"]["fingerprint"] and about["clean"] != about["data"]
    items = [json.loads(line) for line in (tmp_path / "o" / "items.jsonl").read_text().splitlines()]
    assert len(items) == len(talks.turns) and all("failures" not in item and len(item["turns"]["synthesis"]["errors"]) == 2 for item in items)
    assert len(list((tmp_path / "o" / "audio").glob("*-synthesis.flac"))) == len(items)
