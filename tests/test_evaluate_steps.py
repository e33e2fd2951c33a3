"""What is said with other steps and samplers, beside the usual, timed; and in the times of the recordings."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest
import soundfile
import tiny
from commands import refused, run
from test_evaluate import write_corpus

from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import comparison, scores
from ns2_jax.evaluate import material, sweep
from ns2_jax.runtime import mesh as meshes

NAME = "ns2_jax.evaluate"


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(meshes, "local_mesh", lambda: meshes.make_mesh({"fsdp": 1}, jax.devices()[:1]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"ann": 2, "bob": 2}, splits=("test",))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Its bucket holds a sentence: one without a pause can't be cut."""
    folder = pathlib.Path(tiny.write_model("naturalspeech2", tmp_path_factory.mktemp("m")))
    config = json.loads((folder / "config.json").read_text())
    config["data"]["buckets"] = [{"b": 1, "t": 448, "p": 48, "u": 32}]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_conditions_are_named_by_sampler_and_steps(model):
    ns2, usual = inference.load(model), {"guidance": 2.0}
    assert list(sweep.conditions(ns2, (2, 8), ("euler", "dpm"), usual)) == [f"synthesis_{name}" for name in ("euler_2", "euler_8", "dpm_2", "dpm_8")]
    own = ns2.programs["sample"].options["sampler"]
    assert sweep.conditions(ns2, (4,), (), usual) == {f"synthesis_{own}_4": {"guidance": 2.0, "sampler": own, "steps": 4}}
    assert list(sweep.conditions(ns2, (4,), (), {"sampler": "heun"})) == ["synthesis_heun_4"]
    toy = tiny.toy()
    assert sweep.conditions(toy, (2, 3), (), {}) == {"synthesis_steps_2": {"steps": 2}, "synthesis_steps_3": {"steps": 3}}
    with pytest.raises(ValueError, match="--samplers: .* speaks without sampler; it takes .'steps', 'temperature'."):
        sweep.conditions(toy, (2,), ("euler",), {})


def test_true_times_are_those_of_the_recordings(corpus):
    data = Dataset.open(corpus)
    plain = material.from_dataset(data, "test", 0, 0)
    said = material.Material(**{**vars(plain), "timed": True}).said
    assert plain.said == [item["text"] for item in plain.items]
    for score, align, audio in zip(said, plain.aligned("index"), plain.recordings):
        np.testing.assert_array_equal(inference.inventory.ids(score.phones), align["phones"])
        np.testing.assert_allclose(np.cumsum(score.seconds), align["ends"] / 16000, atol=1e-6)
        assert sum(score.seconds) == pytest.approx(len(audio) / 16000, abs=1e-6) and set(score.hz) == {None}
    paces = type("Paces", (), {"paces": True, "unit_text": False, "name": "it"})()
    with pytest.raises(ValueError, match="it decides on the length of each phone"):
        sweep.check_times(paces, plain)


def test_a_table_by_steps_and_sampler(model, corpus, tmp_path):
    """In the times of the recordings: as long as they are, frame by frame, and compared with them."""
    args = [f"--model={model}", f"--data={corpus}", "--limit=2", "--true_times", "--by_steps=1,2", "--samplers=euler,ddim"]
    code, out, err = run(NAME, *args, f"--out={tmp_path}/o", "--evals=speaker_similarity,codec_quality", "--option=steps=3", "--save_audio")
    assert code == 0, err
    lines = {line["name"]: line for line in scores.read(tmp_path / "o")}
    conditions = ["synthesis", *(f"synthesis_{sampler}_{steps}" for sampler in ("euler", "ddim") for steps in (1, 2))]
    for condition in conditions:
        for measure in ("secs_own", "pesq", "stoi", "rtf", "first_audio"):
            about = lines[f"{measure}_{condition}"]["fingerprint"]
            wanted = (condition.split("_")[1:] + ["3"])[1 if condition != "synthesis" else 0]
            assert about["sampler"]["steps"] == int(wanted) and about["times"] == "the recording's", (measure, condition)
        pace = lines[f"rtf_{condition}"]
        assert pace["value"] > 0 and pace["n"] == 2 and pace["fingerprint"]["compiling"] == 0 and len(pace["fingerprint"]["load_average"]) == 3
        assert "in the process that evaluates" in pace["fingerprint"]["evaluator"]
    assert lines["rtf_synthesis_euler_2"]["fingerprint"]["sampler"]["sampler"] == "euler"
    first = json.loads((tmp_path / "o" / "items.jsonl").read_text().splitlines()[0])["id"]
    heard = {condition: soundfile.read(tmp_path / "o" / "audio" / f"{first}-{condition}.flac")[0] for condition in ("recording", *conditions)}
    assert all(abs(len(heard[condition]) - len(heard["recording"])) <= 200 for condition in conditions)  # a frame
    assert np.abs(heard["synthesis_euler_2"] - heard["synthesis_ddim_2"]).max() > 1e-4
    marks = {path.name: inference.read_mark(path) for path in (tmp_path / "o" / "audio").glob(f"{first}-*.flac")}
    assert {name: mark for name, mark in marks.items() if "synthesis" not in name} == {f"{first}-{c}.flac": None for c in ("recording", "codec")}
    for condition in conditions:
        beside = json.loads((tmp_path / "o" / "audio" / f"{first}-{condition}.flac.json").read_text())
        assert marks[f"{first}-{condition}.flac"].items() <= beside.items() and len(beside["prompts"]) == 1
    (result,), _ = comparison.find([tmp_path / "o"])
    pairs = comparison.paired([result])
    assert [pair["b"] for pair in pairs if pair["measure"] == "secs_own"] == [
        f"o {condition}" for condition in (*sorted(conditions[1:]), "codec", "recording")]
    assert run(NAME, "table", f"{tmp_path}/o", f"--out={tmp_path}/steps.md")[0] == 0
    table = (tmp_path / "steps.md").read_text()
    rows = [row.split(" | ")[1] for row in table.splitlines() if row.startswith("| o |")]
    assert [row for row in rows if row.startswith("synthesis")] == [condition.replace("_", " ") for condition in conditions]
    assert "real-time factor" in table and "times the recording's" in table


@pytest.mark.parametrize("args, message", [
    (["--by_steps=2,many"], "--by_steps=many"), (["--by_steps=0"], "--by_steps=0"), (["--samplers=euler"], "--samplers goes with --by_steps"),
    (["--by_steps=2", "--steps=3"], "--steps does not go with --by_steps"), (["--by_steps=2", "--task=continue"], "does not go with --task=continue"),
    (["--by_steps=2", "--evals=speed"], "is timed alone"), (["--true_times", "--task=convert"], "does not go with --task=convert"),
    (["--by_steps=2", "--samplers=magic"], "magic")])
def test_what_cannot_be_asked_is_refused(model, corpus, args, message):
    assert message in refused(NAME, f"--model={model}", f"--data={corpus}", "--limit=2", "--evals=speaker_similarity", *args)
