"""An export is whole, checked, equal to its run, and its programs take the weights as arguments."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
import tiny

from ns2_jax import export, inference
from ns2_jax.audio import files
from ns2_jax.data import dataset
from ns2_jax.evals import scores, statistics
from ns2_jax.runtime import state, weights
from ns2_jax.systems import system as systems
from ns2_jax.text import phones
from tests.data import noise_corpus


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {"codec": tiny.write_run("codec", tmp_path_factory.mktemp("runs") / "codec")}


@pytest.fixture(scope="module")
def codec(runs, tmp_path_factory):
    """(folder, lines of the comparison) of an unrounded export of the codec."""
    out = tmp_path_factory.mktemp("exports") / "codec"
    return out, export.export(runs["codec"], out)


def tone(seconds: float = 4.0) -> np.ndarray:
    return (0.3 * np.sin(np.arange(int(16000 * seconds)) * 0.05)).astype(np.float32)


def test_it_holds_what_it_says_and_the_sums_are_right(codec):
    out, _ = codec
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    programs = {f"programs/{name}.stablehlo" for name in ("encode", "decode", "decode_latents")}
    assert names == {"params.safetensors", "config.json", "phones.json", "README.md", "SHA256SUMS", *programs}
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())


def test_only_what_the_system_exports_is_in_it(codec):
    flat = state.flatten(weights.read_weights(codec[0]))
    assert {"/".join(path.split("/")[:2]) for path in flat} == {"params/gen", "rest/codebooks", "rest/mean", "rest/deviation"}


def test_config_tells_where_the_weights_come_from(codec):
    config = json.loads((codec[0] / "config.json").read_text())
    assert config["provenance"]["dataset"] == "tiny" and config["provenance"]["revision"] == "0" * 40
    assert config["weights"] == {"hash": weights.weights_hash(codec[0]), "quantize": "none"}
    assert config["system"] == "codec" and config["programs"]["encode"]["inputs"]["audio"]["shape"] == ["b", "200*t"]
    card = (codec[0] / "README.md").read_text()
    assert "inference.load" in card and "| dataset | tiny |" in card and "`decode`: codes [b, t, 4] -> audio [b, 200*t]" in card


def test_unrounded_export_is_the_run_to_the_last_bit(runs, codec):
    run, exported = inference.load(runs["codec"]), inference.load(codec[0])
    audio = files.read(tiny.SPEECH, 16000)
    np.testing.assert_array_equal(run.encode(audio), exported.encode(audio))
    np.testing.assert_array_equal(run.latents(audio), exported.latents(audio))
    assert any(line.startswith("encode: coarse equal, codes 100.0 % equal, latents equal") for line in codec[1])


def test_programs_run_at_any_batch_size_and_obey_their_weights(codec):
    out, _ = codec
    model = inference.load(out)
    program = jax.export.deserialize((out / "programs" / "encode.stablehlo").read_bytes())
    batch = np.stack([tone(), 0.5 * tone(), np.roll(tone(), 7)])
    result = program.call(model.params, model.rest, {"audio": batch}, np.uint32(0))
    expected = [model.run("encode", [{"audio": row}], sizes={"s": 64000, "t": 320})[0] for row in batch]
    np.testing.assert_array_equal(np.asarray(result["codes"]), np.stack([e["codes"] for e in expected]))
    doubled = program.call(jax.tree.map(lambda x: 2 * x, model.params), model.rest, {"audio": batch}, np.uint32(0))
    assert np.abs(np.asarray(doubled["latents"]) - np.asarray(result["latents"])).max() > 0.1


def test_programs_do_not_contain_the_weights(codec):
    out, _ = codec
    flat = state.flatten(weights.read_weights(out))
    for path in (out / "programs").iterdir():
        data = path.read_bytes()
        inside = [name for name, leaf in flat.items() if leaf.size >= 64 and leaf.astype("<f4").tobytes()[:128] in data]
        assert not inside


@pytest.mark.parametrize("quantize,at_least", [("bf16", 40), ("int8", 20)])
def test_rounding_makes_it_smaller_and_costs_little(runs, codec, tmp_path, quantize, at_least):
    export.export(runs["codec"], tmp_path / "x", quantize, programs=False)
    size = lambda folder: (Path(folder) / weights.FILE).stat().st_size
    assert size(tmp_path / "x") < 0.6 * size(codec[0])
    assert not (tmp_path / "x" / "programs").exists()
    assert "model.encode(audio)" in (tmp_path / "x" / "README.md").read_text()  # which it can do all the same
    whole, rounded = inference.load(codec[0]), inference.load(tmp_path / "x")
    assert export.decibels(whole.latents(tone()), rounded.latents(tone())) > at_least


def test_same_run_same_bytes(runs, codec, tmp_path):
    export.export(runs["codec"], tmp_path / "x", programs=False)
    assert (tmp_path / "x" / weights.FILE).read_bytes() == (codec[0] / weights.FILE).read_bytes()


def test_an_export_can_be_exported_again(codec, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    export.export(str(codec[0]), tmp_path / "link", programs=False)
    assert weights.weights_hash(tmp_path / "x") == weights.weights_hash(codec[0]) and (tmp_path / "link").is_symlink()


# NaturalSpeech 2: with its codec inside, and with its codec by name.


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A run whose codec is an export that exists: (run, codec)."""
    root = tmp_path_factory.mktemp("speaker")
    run = tiny.write_model("naturalspeech2", root / "run")
    tree = weights.read_weights(run)
    weights.write_weights(root / "codec", tree["rest"]["codec"])
    return run, str(root / "codec")


def test_codec_by_hash_and_path(speaker, tmp_path):
    run, codec = speaker
    export.export(run, tmp_path / "x", codec=codec, programs=False)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["codec"]["hash"] == weights.weights_hash(codec)
    assert (tmp_path / "x" / config["codec"]["path"]).resolve() == Path(codec).resolve()
    assert not [path for path in state.flatten(weights.read_weights(tmp_path / "x")) if path.startswith("rest/codec")]
    shutil.copytree(tmp_path / "x", tmp_path / "far" / "from" / "it" / "x")
    with pytest.raises(FileNotFoundError, match=f"needs codec {config['codec']['hash']}, and there is no export at .*; put that codec's there"):
        inference.load(tmp_path / "far" / "from" / "it" / "x")
    model, whole = inference.load(tmp_path / "x"), inference.load(run)
    np.testing.assert_array_equal(model.encode(tone()), whole.encode(tone()))
    assert json.loads((tmp_path / "x" / "phones.json").read_text())["phones"] == list(phones.PHONES)


def test_the_card_shows_what_the_model_is_for():
    """A speaker has its codec's programs too. The committed cards show it as well."""
    for name, use in {"naturalspeech2": export.SPEAKS, "codec": export.USES["encode"], "aligner": export.USES["align"]}.items():
        folder = Path(__file__).parents[1] / "results" / name / "model"
        config = json.loads((folder / "config.json").read_text())
        card = export.card(config, config["provenance"], 1, 1, [], "int8", export.About(), config["programs"])
        assert [shown for shown in export.USES.values() if shown in card] == [use] and use in (folder / "README.md").read_text()


def test_a_lexicon_licences_scores_and_the_data_go_along(tmp_path):
    (tmp_path / "model").mkdir()
    run = tiny.write_model("codec", tmp_path / "model")
    noise_corpus.write_corpus(tmp_path / "data", 4, 1)
    config = json.loads((Path(run) / "config.json").read_text())
    config["data"]["path"] = f"{tmp_path}/data,{tmp_path}/nowhere"
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "lexicon.txt").write_text("gif\tJH IH1 F\n")
    scores.write(tmp_path / "scores", [statistics.score("wer_synthesis", [1.0, 2.0], [4.0, 4.0], unit="%", evaluator="judge 7")], [])
    about = export.About(f"{tmp_path}/lexicon.txt", "Apache-2.0", "CC-BY-4.0", f"{tmp_path}/scores")
    export.export(str(tmp_path / "run"), tmp_path / "x", programs=False, about=about)
    export.export(str(tmp_path / "x"), tmp_path / "again", programs=False)
    data = dataset.Dataset.open(tmp_path / "data")
    for folder in (tmp_path / "x", tmp_path / "again"):
        model, said = inference.load(folder), json.loads((folder / "config.json").read_text())["provenance"]
        assert model.lexicon == {"gif": ("jh", "ih", "f")}
        assert said["licence"] == "Apache-2.0" and said["data_licence"] == "CC-BY-4.0"
        assert [one["fingerprint"] for one in said["data"]] == [data.fingerprint]
        card = (folder / "README.md").read_text()
        assert f"fingerprint `{data.fingerprint[:12]}`" in card and "licence of the data: CC-BY-4.0" in card
        assert "Licence of the weights: Apache-2.0." in card
    assert "| wer_synthesis | 0.375 %" in (tmp_path / "x" / "README.md").read_text() and "judge 7" in (tmp_path / "x" / "README.md").read_text()
    (tmp_path / "lexicon.txt").write_text("gif\tQQ\n")
    with pytest.raises(ValueError, match="QQ"):
        export.export(run, tmp_path / "y", programs=False, about=about)
    with pytest.raises(FileNotFoundError, match="no scores.jsonl"):
        export.export(run, tmp_path / "y", programs=False, about=export.About(scores=str(tmp_path / "data")))
    assert not (tmp_path / "y").exists()


def test_another_codec_is_refused(speaker, runs, tmp_path):
    tree = weights.read_weights(speaker[1])
    tree["rest"]["codebooks"] = tree["rest"]["codebooks"] + 1
    weights.write_weights(tmp_path / "other", tree)
    with pytest.raises(ValueError, match="1 of .* tensors differ, first rest/codebooks"):
        export.export(speaker[0], tmp_path / "x", codec=str(tmp_path / "other"), programs=False)
    with pytest.raises(ValueError, match="contains no codec"):
        export.export(runs["codec"], tmp_path / "x", codec=speaker[1], programs=False)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("name", ["durations", pytest.param("sample", marks=pytest.mark.slow)])
def test_a_speaking_program_takes_any_sizes(speaker, name):
    model = inference.load(speaker[0])
    program = model.programs[name]
    sizes = export.program_sizes(program, model.config, model.system.sizes)
    exported = export.lower(program, model.params, model.rest, sizes, ["cpu", "cuda", "tpu"])
    assert exported.platforms == ("cpu", "cuda", "tpu")
    again = jax.export.deserialize(exported.serialize())
    for p, t, u in ((7, 40, 9), (12, 56, 20)):
        sizes = {**model.system.sizes, "p": p, "t": t, "u": u, "s": t * model.hop, "b": 1}
        row = {key: export.fixed_input(key, field, sizes, None, model.hop, model.rate) for key, field in program.inputs.items()}
        made = again.call(model.params, model.rest, {key: np.asarray(value)[None] for key, value in row.items()}, np.uint32(0))
        expected = model.run(name, [row], [0], {"p": p, "t": t, "u": u, "s": t * model.hop})[0]
        for key, value in expected.items():
            assert export.decibels(value, np.asarray(made[key])[0]) > 60, key


def test_a_program_that_asks_for_its_lengths_is_written_for_every_bucket():
    """Of 4 s at 800 Hz no bucket of the toy has the 800 frames: the largest is the usual one."""
    model = tiny.toy()

    def picky(params, rest, inputs, rng, sizes):
        return {"audio": jax.numpy.repeat(inputs["codes"][..., 0] * 1.0, 4, 1) * (2 if sizes["t"] > 100 else 1)}

    given = {"codes": systems.Field("btq", "int32"), "phones": systems.Field("bp", "int32")}
    model.programs["picky"] = systems.Program(picky, given, {"audio": systems.Field("bs", "float32")})
    found = export.lower_all("picky", model, model.config, model.params, model.rest, ["cpu"])
    assert {name: (sizes["t"], sizes["p"]) for name, (_, sizes) in found.items()} == {"picky": (140, 40), "picky-1": (60, 20)}
    for name, (exported, sizes) in found.items():
        assert export.free_sizes(exported) == {"b"}
        said = export.describe(exported, model.programs["picky"], sizes)["inputs"]["codes"]["shape"]
        assert said == ["b", sizes["t"], 2]
        rows = {"codes": np.ones((3, sizes["t"], 2), np.int32), "phones": np.ones((3, sizes["p"]), np.int32)}
        audio = np.asarray(exported.call(model.params, model.rest, rows, np.uint32(0))["audio"])
        assert audio.shape == (3, 4 * sizes["t"]) and (audio == (2 if name == "picky" else 1)).all()
    assert list(export.lower_all("decode", model, model.config, model.params, model.rest, ["cpu"])) == ["decode"]


def test_a_length_that_only_an_output_has_is_written_for_every_bucket():
    """Phones and prompt of `contour` are of any length; how long its F0 is, no input tells."""
    model = tiny.toy()
    found = export.lower_all("contour", model, model.config, model.params, model.rest, ["cpu"])
    inputs = {"phones": np.ones((2, 7)), "durations": np.full((2, 7), 10), "prompt_codes": np.ones((2, 9, 2)), "prompt_frames": np.full(2, 9)}
    rows = {key: value.astype(model.programs["contour"].inputs[key].dtype) for key, value in inputs.items()}
    f0 = {name: np.asarray(exported.call(model.params, model.rest, rows, np.uint32(0))["f0"]) for name, (exported, _) in found.items()}
    assert {name: made.shape for name, made in f0.items()} == {"contour": (2, 140), "contour-1": (2, 60)}
    assert (f0["contour"] > 0).sum() == 2 * 70 and (f0["contour-1"] > 0).all()


def test_rows_of_a_program_have_the_keys_they_have_alone():
    """Row i of a batch that was exported is what the model says with seed + i."""
    model = tiny.toy()

    def noise(params, rest, inputs, rng, sizes):
        return {"audio": inputs["audio"] + jax.vmap(lambda key: jax.random.normal(key, (sizes["s"],)))(rng)}

    field = systems.Field("bs", "float32")
    model.programs["noise"] = systems.Program(noise, {"audio": field}, {"audio": field}, rows=True)
    exported = export.lower(model.programs["noise"], {}, {}, {"b": 1, "t": 60, "s": 240}, ["cpu"])
    together = np.asarray(exported.call({}, {}, {"audio": np.zeros((3, 240), np.float32)}, np.uint32(5))["audio"])
    alone = model.run("noise", [{"audio": np.zeros(240, np.float32)}] * 3, [5, 6, 7], {"t": 60, "s": 240})
    np.testing.assert_allclose(together, np.stack([row["audio"] for row in alone]), atol=1e-6)


# Overwriting and breaking.


def test_folders_that_are_no_export_are_left_alone(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not an export"):
        export.export(runs["codec"], tmp_path / "mine", programs=False)
    with pytest.raises(ValueError, match="not an export"):
        export.export(runs["codec"], tmp_path / "mine" / "thesis.txt", programs=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_old_export_is_replaced_whole(runs, tmp_path):
    export.export(runs["codec"], tmp_path / "x", programs=False)
    (tmp_path / "x" / "leftover.txt").write_text("of the old one")
    export.export(runs["codec"], tmp_path / "x", "bf16", programs=False)
    assert not (tmp_path / "x" / "leftover.txt").exists()
    assert json.loads((tmp_path / "x" / "config.json").read_text())["weights"]["quantize"] == "bf16"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failure_leaves_nothing_and_keeps_the_old_one(runs, tmp_path, monkeypatch):
    export.export(runs["codec"], tmp_path / "x", programs=False)
    before = (tmp_path / "x" / "SHA256SUMS").read_text()

    def broken(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(export, "compare", broken)
    for out in ("x", "y"):
        with pytest.raises(RuntimeError, match="disk full"):
            export.export(runs["codec"], tmp_path / out, "bf16", programs=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "SHA256SUMS").read_text() == before


def test_damage_is_noticed(codec, tmp_path):
    data = bytearray((codec[0] / weights.FILE).read_bytes())
    data[-100] ^= 1
    (tmp_path / weights.FILE).write_bytes(data)
    with pytest.raises(ValueError, match="do not have the sha256 it was written with"):
        weights.read_weights(tmp_path)


@pytest.mark.parametrize("name", ["params.safetensors", "config.json", "README.md", "programs/encode.stablehlo", "phones.json"])
def test_a_changed_or_missing_file_is_named(codec, tmp_path, name):
    shutil.copytree(codec[0], tmp_path / "x")
    inference.load(tmp_path / "x")
    (tmp_path / "x" / "notes.txt").write_text("of the user")
    inference.load(tmp_path / "x")
    data = (tmp_path / "x" / name).read_bytes()
    for wrong in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), data + b" "):
        (tmp_path / "x" / name).write_bytes(wrong)
        with pytest.raises(ValueError, match=f"damaged: {name} does not have the sha256"):
            inference.load(tmp_path / "x")
    (tmp_path / "x" / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        inference.load(tmp_path / "x")


def test_what_came_later_is_named_or_logged(codec, tmp_path, caplog):
    for name, text in (("lexicon.txt", "the\tg ih f\n"), ("units.model", "?"), ("found.json", '{"temperature": 9.0}')):
        shutil.copytree(codec[0], tmp_path / name)
        (tmp_path / name / name).write_text(text)
        with pytest.raises(ValueError, match=f"damaged: {name} came to it later"):
            inference.load(tmp_path / name)
    tiny.write_run("codec", tmp_path / "x")
    (tmp_path / "x" / "found.json").write_text('{"schedules": []}')
    with pytest.raises(ValueError, match="schedules is not a field"):  # of a codec
        inference.load(tmp_path / "x")
    assert "schedules of the model come from it" in caplog.text
    (tmp_path / "x" / "found.json").write_text("[3]")
    with pytest.raises(ValueError, match="found.json is no JSON object"):
        inference.load(tmp_path / "x")


def test_its_hash_is_that_of_what_was_loaded(codec, runs, tmp_path):
    shutil.copytree(codec[0], tmp_path / "x")
    model, known = inference.load(tmp_path / "x"), weights.weights_hash(codec[0])
    export.export(runs["codec"], tmp_path / "x", "bf16", programs=False)
    assert model.hash == known != inference.load(tmp_path / "x").hash


def test_sums_that_are_no_sums_are_refused(codec, tmp_path):
    shutil.copytree(codec[0], tmp_path / "x")
    for line in ("nonsense", "0" * 64 + "  ../secret", "0" * 64 + "  /etc/passwd"):
        (tmp_path / "x" / "SHA256SUMS").write_text(line + "\n")
        with pytest.raises(ValueError, match="SHA256SUMS is damaged"):
            inference.load(tmp_path / "x")
    lines = (codec[0] / "SHA256SUMS").read_text().splitlines(keepends=True)
    (tmp_path / "x" / "SHA256SUMS").write_text("".join(line for line in lines if "params" not in line))
    with pytest.raises(ValueError, match="SHA256SUMS does not name params.safetensors"):
        inference.load(tmp_path / "x")
    (tmp_path / "x" / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="damaged: SHA256SUMS is missing"):
        inference.load(tmp_path / "x")


def test_a_codecs_programs_take_any_length(codec):
    out, _ = codec
    model, said = inference.load(out), json.loads((out / "config.json").read_text())["programs"]["encode"]
    assert said["inputs"]["audio"]["shape"] == ["b", "200*t"] and said["outputs"]["codes"]["shape"][:2] == ["b", "t"]
    program = jax.export.deserialize((out / "programs" / "encode.stablehlo").read_bytes())
    for frames in (64, 96):
        audio = tone()[: frames * 200]
        codes = np.asarray(program.call(model.params, model.rest, {"audio": audio[None]}, np.uint32(0))["codes"])[0]
        expected = model.run("encode", [{"audio": audio}], sizes={"s": len(audio), "t": frames})[0]["codes"]
        assert (codes == expected).mean() > 0.995


def test_decibels():
    x = np.sin(np.arange(1000.0))
    assert export.decibels(x, x) == 200 and export.decibels(0 * x, 0 * x) == 200
    assert export.decibels(x, 1.1 * x) == pytest.approx(20) and export.decibels(0 * x, x) == -200


# The command.


def test_what_is_terminated_leaves_nothing(tmp_path, monkeypatch):
    handler = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it would have ended at once"))
    monkeypatch.setattr(inference, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    try:
        assert commands.run("ns2_jax.export", "--workdir=RUN", f"--out={tmp_path}/x")[0] == 143 and not list(tmp_path.iterdir())
        given = ("--model=M", "--text=Hi.", f"--prompt={tiny.SPEECH}", f"--out={tmp_path}/a.wav")
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it would have ended at once"))
        assert commands.run("ns2_jax.synthesize", *given)[0] == 143
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_command(runs, tmp_path):
    code, out, _ = commands.run("ns2_jax.export", f"--workdir={runs['codec']}", f"--out={tmp_path}/x", "--quantize=int8", "--noprograms")
    assert code == 0 and "latents" in out and " dB" in out and weights.weights_hash(tmp_path / "x") in out


@pytest.mark.parametrize("args,message", [
    (["--out=OUT"], "--workdir=DIR is missing"),
    (["--workdir=RUN"], "--out=DIR is missing"),
    (["--workdir=nowhere", "--out=OUT"], "nowhere does not exist"),
    (["--workdir=RUN", "--out=OUT", "--quantize=int3"], "int3"),
    (["--workdir=RUN", "--out=OUT", "--platforms=abacus"], "abacus"),
    (["--workdir=RUN", "--out=OUT", "--platforms="], "--platforms: none is given; expected some of cpu"),
    (["--workdir=RUN", "--out=OUT", "--codec=nowhere"], "contains no codec"),
    (["--workdir=RUN", f"--out={__file__}/x"], "test_export.py: File exists; choose another name"),
    (["--workdir=RUN", "--out=OUT", "--colour=red"], "colour"),
    (["--workdir=RUN", "--out=OUT", "extra"], "extra"),
])
def test_command_refuses(runs, tmp_path, args, message):
    args = [arg.replace("RUN", runs["codec"]).replace("OUT", f"{tmp_path}/x") for arg in args]
    assert message in commands.refused("ns2_jax.export", *args)
    assert list(tmp_path.iterdir()) == []
