"""Speech through semantic tokens: the three models as one, step by step the same by hand, by the commands; what does not fit is refused."""

from __future__ import annotations

import json
import pathlib
from unittest import mock

import jax
import numpy as np
import pytest
import soundfile
import tiny
from commands import refused, run

from data_pipelines import shards
from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.data import frames
from ns2_jax.inference import chain, editing, provenance, revoicing
from ns2_jax.text import phones

SOURCE = pathlib.Path(__file__).parent / "data_pipelines" / "sentence0.flac"
STEPS = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    made = {"sound": ("soundstorm", "smoke,semantic"), "tokenizer": ("semantic", "smoke,kmeans"), "writer": ("text_to_semantic", "smoke")}
    return {part: tiny.write_model(name, tmp_path_factory.mktemp(part), size=size) for part, (name, size) in made.items()}


@pytest.fixture(scope="module")
def model(folders) -> inference.Model:
    return inference.load(",".join(folders.values()))


@pytest.fixture(scope="module")
def voice(model) -> inference.Heard:
    """A prompt of 20 frames, of which the model has room for 32."""
    return model.hear((files.read(SOURCE, 16000)[: 16000 * 2], 16000)).first(20)


def test_it_speaks_like_any_other(model, voice, folders):
    """The same seed says the same, alone and beside others; prompt, seed and the writer's options are heard; no prompt is a voice by chance."""
    assert model.speaks and model.paces and not model.continues and model.tokenizer.path == folders["tokenizer"]
    made = model.batch([("Go.", voice), ("Hi.", voice), ("Hi.", None)], 3, steps=STEPS)
    for one in made:
        assert np.isfinite(one.audio).all() and len(one.audio) == one.ends[-1] and len(one.audio) % 200 == 0 and np.abs(one.audio).max() > 0
        assert one.phones[0] == one.phones[-1] == "sil" and one.rate == 16000
    alone = model("Hi.", voice, 3, steps=STEPS)
    np.testing.assert_array_equal(made[1].audio, alone.audio)
    assert alone.origin.seed == 3 and len(alone.origin.prompts) == 1 and alone.origin.model == model.hash
    assert len(made[2].audio) == len(alone.audio) and np.abs(made[2].audio - alone.audio).max() > 0  # the writer does not hear the prompt
    other = model("Hi.", voice, 4, steps=STEPS).audio
    assert len(other) != len(alone.audio) or np.abs(other - alone.audio).max() > 0


def test_it_holds_a_conversation_at_once(model, voice):
    """The writer reads all turns; how long each takes nobody says."""
    made = inference.converse_at_once(model, [("Ann", "Oh."), ("Ben", "I.")], {"Ann": voice, "Ben": voice}, 3, steps=STEPS)  # six phones have room
    assert [who for who, *_ in made.turns] == ["Ann", "Ben"] and made.turns[1][1:] == (made.turns[0][2], len(made.speech.audio))
    assert np.isfinite(made.speech.audio).all() and np.abs(made.speech.audio).max() > 0


def test_its_sample_is_its_stages_by_hand(model, voice):
    """Text -> tokens -> frames, the prompt's before them -> codes: each stage's own program, times rounded as in a data set."""
    text = np.pad(phones.ids(["sil", "hh", "ay", "sil"]), (0, 20)).astype(np.int32)
    given = {"phones": text, "prompt_codes": np.pad(voice.codes, ((0, 12), (0, 0))), "prompt_frames": 20, "schedule": np.zeros(3, np.int32)}
    (made,) = model.run("sample", [given], [7], {"t": 64, "p": 24, "u": 32, "s": 64 * 200}, steps=STEPS)
    for_text, for_sound = jax.random.split(jax.random.key(7))
    asked = {"phones": text[None], "prompt_semantic": np.zeros((1, 1), np.int32), "prompt_frames": np.zeros(1, np.int32)}
    write = jax.jit(model.programs["translate"].bind({"t": 20}))
    written = jax.device_get(write(model.params, model.rest, asked, for_text[None]))
    n = int(written["frames"][0])
    m = n * 640 // 200
    assert made["frames"] == m == made["durations"].sum() and (made["durations"][:4] > 0).all() and made["ended"] == written["ended"][0]
    said = frames.tokens_at_frames(written["semantic"][0, :n], 640, 200, m)
    held = {"prompt_codes": given["prompt_codes"][None], "prompt_frames": np.array([20])}
    heard = np.asarray(jax.jit(model.system.heard)(model.params, model.rest, held))[0, :20]
    known = revoicing.tokens_of(model.tokenizer, model.decode(voice.codes), 16000, 200)
    np.testing.assert_array_equal(heard, known)
    row = {"semantic": np.concatenate([heard, said]), "codes": np.concatenate([voice.codes, np.zeros((m, 3), int)])}
    row = {name: np.pad(x, ((0, 96 - len(x)),) + ((0, 0),) * (x.ndim - 1))[None] for name, x in row.items()}
    row |= {"frames": np.array([20 + m]), "begin": np.array([20]), "end": np.array([20 + m]), "schedule": given["schedule"][None]}
    fill = jax.jit(model.programs["infill"].bind({"t": 96, "s": 96 * 200, "b": 1}, steps=STEPS))
    out = jax.device_get(fill(model.params, model.rest, row, for_sound))
    np.testing.assert_array_equal(made["codes"][:m], out["codes"][0, 20 : 20 + m])
    np.testing.assert_allclose(made["audio"][: m * 200], out["audio"][0, 20 * 200 : (20 + m) * 200], atol=1e-5)


def test_the_command_speaks_and_says_recordings_again(model, folders, tmp_path):
    source = tmp_path / "source.wav"
    soundfile.write(source, files.read(SOURCE, 16000)[:16000], 16000)
    path, prompt = ",".join(folders.values()), str(SOURCE)
    with mock.patch.object(inference, "load", lambda given, **_: {path: model}[given]):
        code, _, err = run("ns2_jax.synthesize", f"--model={path}", "--text=Hi.", f"--prompt={prompt}", "--steps=2", f"--out={tmp_path / 'a.wav'}")
        assert code == 0, err
        asked = ("ns2_jax.synthesize", f"--model={path}", "--task=revoice", f"--source={source}", f"--prompt={prompt}", "--steps=2")
        code, _, err = run(*asked, f"--out={tmp_path / 'b.wav'}")
        assert code == 0, err
        assert "--text does not go with --task=revoice" in refused(*asked, "--text=Hi.", f"--out={tmp_path / 'c.wav'}")
        assert "takes one prompt" in refused(*asked, f"--prompt={source}", f"--out={tmp_path / 'c.wav'}")
    plain = revoicing.revoice(model, model.tokenizer, str(source), prompt, 0, steps=2)
    np.testing.assert_allclose(files.read(tmp_path / "b.wav", 16000), plain.audio, atol=2e-4)
    said = json.loads((tmp_path / "b.wav.json").read_text())
    assert said["model"] == model.hash and said["prompts"] == [provenance.digest(str(path)) for path in (source, prompt)]


def test_evaluation_hears_the_true_tokens_beside(model, tmp_path):
    """Recordings, codec, speech from text, and the recordings from their own tokens, as long as they are."""
    audio, root = files.read(SOURCE, 16000), tmp_path / "corpus"
    about = {"speaker": "ann", "source": "flite", "voice": "ann"}
    pcm = [(audio[at : at + 16000] * 30000).astype(np.int16) for at in (0, 12000)]
    for group in ("meta", "audio"):
        with shards.ShardWriter(root, group, "test", 0, 1) as writer:
            for i, text in enumerate(("Hi.", "Go.")):
                values = {"audio": pcm[i]} if group == "audio" else about | {"utt_id": f"ann-{i}", "text": text, "text_norm": text}
                writer.write(values, len(pcm[i]))
    shards.write_manifest(root, phones=phones.inventory_hash())
    with mock.patch.object(inference, "load", lambda path: model):
        code, _, err = run("ns2_jax.evaluate", f"--model={model.path}", f"--data={root}", "--evals=acoustic_distance", "--steps=2", "--save_audio",
                           f"--out={tmp_path / 'out'}")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    measured = {line["name"]: line["fingerprint"] for line in lines}
    told = next(about for name, about in measured.items() if name.endswith("true_tokens"))
    assert told["tokenizer"] == inference.codec_hash(model.tokenizer) and told["model"] == model.hash
    assert any(name.endswith("synthesis") for name in measured) and any(name.endswith("codec") for name in measured)
    for i in range(2):
        again = files.read(tmp_path / "out" / "audio" / f"ann-{i}-true_tokens.flac", 16000)
        assert len(again) == 16000 and np.abs(again).max() > 0


def test_what_does_not_fit_is_refused(folders, model, tmp_path):
    sound, tokenizer, writer = (inference.load(path) for path in folders.values())
    assert chain.join([tokenizer, sound]) is sound and sound.tokenizer is tokenizer and not sound.speaks
    with pytest.raises(ValueError, match=r"expected a SoundStorm of tokens.*a tokenizer"):
        chain.join([sound, writer])
    with pytest.raises(ValueError, match="expected a SoundStorm of tokens"):
        chain.join([sound, sound, tokenizer])
    more = inference.load(tiny.write_model("text_to_semantic", tmp_path, size="smoke,tokens=9"))
    with pytest.raises(ValueError, match=r"16000 Hz with 9 tokens.*16000 Hz with 16"):
        chain.join([sound, tokenizer, more])
    config = {**writer.config, "data": {**writer.config["data"], "tokenizer": "0" * 12}}
    with pytest.raises(ValueError, match="was trained on the tokens of 000000000000"):
        chain.join([sound, tokenizer, inference.Model(writer.system, writer.params, writer.rest, config)])
    with pytest.raises(ValueError, match="does not fill in words"):
        editing.fill(model, np.zeros(4000, np.float32), None, 0, 0, [])
