"""The doctor: bands of made-up and of real runs, five planted faults, live halts, one batch."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import commands
import jax.numpy as jnp
import numpy as np
import pytest
import test_train
import tiny

from ns2_jax import doctor
from ns2_jax.evals import bands
from ns2_jax.runtime import metrics
from ns2_jax.systems.system import Field

ROOT = pathlib.Path(__file__).parent.parent


def log(seed: int, steps: int = 3000, every: int = 50, noise: float = 0.03, **factors: float) -> list[dict]:
    """A healthy log: a loss that falls, a gradient norm, codebooks that awake, an adversary from step 1000; `factors` spoil it."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(every, steps + 1, every):
        loss = 1 + 3 * (step / 50) ** -0.5 + (1.5 if step > 1000 else 0)
        values = {
            "loss": loss, "grad_norm": 10 * (step / 50) ** -0.2, "accuracy": 0.1 + 0.1 * np.log10(step / 50),
            "perplexity": 300 + 600 / (1 + np.exp(-(step - 450 - 20 * (seed % 3)) / 50)), "adversarial": 0.3 * (step > 1000), "unused": 0.0}
        lines.append({"step": step, "weight": 12.0, "step_seconds": 0.5, "data_seconds": 0.01, "learning_rate": 1e-3} | {
            name: value * factors.get(name, 1.0) * float(np.exp(noise * rng.normal())) for name, value in values.items()})
    return lines


KNOWN = bands.make([log(0), log(1, steps=2000)])


def verdicts(lines, known=KNOWN, **options) -> dict[str, str]:
    return {row["metric"]: row["verdict"] for row in bands.judge(known, lines, **options)}


# Bands -------------------------------------------------------------------------------------------------------------------


def test_bands_say_what_they_stand_on():
    assert KNOWN["every"] == 50 and KNOWN["steps"][0] == 150 and KNOWN["steps"][-1] == 3000
    assert KNOWN["runs"] == [2 if step <= 2000 else 1 for step in KNOWN["steps"]]
    assert set(KNOWN["metrics"]) == {"loss", "grad_norm", "accuracy", "perplexity", "adversarial"}  # nor bookkeeping, nor what is always 0
    for band in KNOWN["metrics"].values():
        assert all(0 <= low < high for low, high in zip(band["low"], band["high"]))
    width = np.log(np.array(KNOWN["metrics"]["loss"]["high"]) / KNOWN["metrics"]["loss"]["low"])
    assert (width >= 2 * bands.FLOOR - 1e-3).all() and np.median(width) < 0.3


@pytest.mark.parametrize("seed", range(2, 8))
def test_another_healthy_seed_is_inside_at_every_step(seed):
    lines = log(seed)
    outside = [(i, found) for i in range(3, len(lines) + 1) if (found := {v for v in verdicts(lines[:i]).values()} - {"ok"})]
    assert not outside


@pytest.mark.parametrize(("spoilt", "verdict"), [
    (dict(loss=1.6), "high"), (dict(loss=0.6), "ahead"), (dict(grad_norm=3), "high"), (dict(grad_norm=0.3), "low"),
    (dict(accuracy=0.5), "low"), (dict(accuracy=2), "ahead"), (dict(perplexity=0.5), "low"), (dict(perplexity=1.4), "high")])
def test_the_wrong_side_is_off_and_the_right_one_ahead(spoilt, verdict):
    name = next(iter(spoilt))
    for steps in (200, 900, 1100, 2500):  # also just after the loss jumps, and where one run stands behind the band
        found = verdicts(log(2, steps, **spoilt))
        if (name, steps) in (("perplexity", 200), ("loss", 1100)):
            continue  # about to rise, just risen: there the band is wide
        assert found.pop(name) == verdict, steps
        assert set(found.values()) == {"ok"}


def test_bands_of_other_data_are_wider():
    assert verdicts(log(2, 900, loss=1.3))["loss"] == "high"
    assert verdicts(log(2, 900, loss=1.3), elsewhere=True)["loss"] == "ok"
    assert verdicts(log(2, 900, loss=2.5), elsewhere=True)["loss"] == "high"


def test_noisy_logs_make_wide_bands():
    wide = bands.make([log(0, noise=0.3), log(1, noise=0.3)])
    assert verdicts(log(2, 900, loss=1.3), wide)["loss"] == "ok" and verdicts(log(2, 900, loss=4), wide)["loss"] == "high"


def curves(name: str) -> list[dict]:
    """The log of the long run that the published bands are of."""
    file = {"codec": "curves.jsonl", "naturalspeech2": "curves-known.jsonl"}[name]
    return [json.loads(line) for line in (ROOT / "results" / name / file).read_text().splitlines()]


def averaged(lines: list[dict], count: int) -> list[dict]:
    """The log that the same run writes when it logs `count` times more seldom."""
    groups = [lines[i : i + count] for i in range(0, len(lines) - count + 1, count)]
    return [{name: float(np.mean([line[name] for line in group])) for name in group[0]} | {"step": group[-1]["step"]} for group in groups]


@pytest.mark.parametrize("name", ["codec", "naturalspeech2"])
@pytest.mark.parametrize("count", [2, 4, 5, 10, 20])
def test_a_healthy_run_that_logs_more_seldom_is_not_off(name, count):
    """Its windows hold steps from before the band's; the first holds the very start."""
    run, known = kept(f"{name}-healthy")
    lines = averaged(curves(name), count)
    config = run["config"] | {"train": run["config"]["train"] | {"log_every": 50 * count}}
    reports = [doctor.judge(config, lines[:i], known) for i in range(1, len(lines) + 1)]
    assert [report["verdict"] for report in reports] == ["early"] + ["on track"] * (len(lines) - 1)


def test_a_run_that_logs_every_step_is_read_in_the_windows_of_the_bands():
    """Medians of steps are not medians of means: those of a skewed metric lie lower."""
    often = [log(seed, 900, every=1, noise=1.0) for seed in range(3)]
    mixed = bands.make([averaged(often[0], 50), often[1]]), bands.make([averaged(often[0], 50), averaged(often[1], 50)])
    assert mixed[0] == mixed[1] and mixed[0]["every"] == 50
    assert set(verdicts(often[2], mixed[0]).values()) == {"ok"}
    assert verdicts(log(2, 900, every=1, noise=1.0, loss=2.5), mixed[0])["loss"] == "high"


def test_a_metric_of_the_bands_that_is_not_logged_is_missing():
    without = lambda *names: [{name: value for name, value in line.items() if name not in names} for line in log(2, 900)]
    assert verdicts(without("grad_norm"))["grad_norm"] == "missing"
    assert "grad_norm" not in verdicts(without("grad_norm"), elsewhere=True)  # another model may lack it
    assert verdicts(without("loss"), elsewhere=True)["loss"] == "missing"


def test_what_is_not_finite_is_never_ok():
    assert bands.row("text_use", 10, float("nan"), 0.1, None) == {
        "metric": "text_use", "step": 10, "value": None, "low": 0.1, "high": None, "verdict": "not finite"}
    assert bands.row("loss", 10, float("inf"), None, 3.0)["verdict"] == "not finite"


@pytest.mark.parametrize("runs", [[log(0)], [log(0), log(1, steps=100)], [log(0), []]])
def test_bands_need_two_runs(runs):
    with pytest.raises(ValueError, match="two"):
        bands.make(runs)


def test_between_two_known_points():
    assert bands.at_step([[100, 1.0], [10000, 3.0]], 1000) == pytest.approx(2.0)
    assert bands.at_step([[100, 1.0], [10000, 3.0]], 50) is None and bands.at_step([[100, 1.0]], 900) == 1.0


# Without bands -----------------------------------------------------------------------------------------------------------


def off(rows) -> set[str]:
    return {row["metric"].split(",")[0] for row in rows if row["verdict"] in ("high", "low")}


@pytest.mark.parametrize("name", ["codec", "naturalspeech2"])
def test_published_runs_are_sound_at_every_step_without_bands(name):
    lines = curves(name)
    assert len(lines) > 100
    assert not [i for i in range(1, len(lines) + 1) if off(bands.general(lines[:i]) + bands.codebooks(lines[:i], 1024))]


def test_what_holds_for_every_training():
    lines = log(0, 900)
    assert not off(bands.general(lines) + bands.codebooks(lines, 1024))
    assert {row["verdict"] for row in bands.general(lines[:5])} == {"early"}
    assert off(bands.general([line | {"loss": 2 + 0.1 * (i % 3)} for i, line in enumerate(lines)])) == {"trend of loss"}
    assert off(bands.general([line | {"loss": 1 + i} for i, line in enumerate(lines)])) == {"trend of loss", "loss / its lowest"}
    assert off(bands.general([line | {"loss": line["loss"] + (i > 14)} for i, line in enumerate(lines)])) == {"loss / its lowest"}
    assert off(bands.general([line | {"grad_norm": 2.0**i} for i, line in enumerate(lines)])) == {"grad_norm / the first"}
    assert off(bands.codebooks([line | {"perplexity": 512.0} for line in lines], 1024)) == {"perplexity's movement"}
    assert off(bands.codebooks([line | {"perplexity": 3.0 + 0.1 * i} for i, line in enumerate(lines)], 1024)) == {"perplexity / codes"}
    after = log(0, 2000)
    assert bands.phase(after) == 20 and not off(bands.general(after))
    longer = log(0, 2400)
    stuck = [line | {name: 1.0 + 0.01 * (i % 4) for name in ("loss", "adversarial")} if i >= 20 else line for i, line in enumerate(longer)]
    assert off(bands.general(stuck)) == {"trend of the best term"}


@pytest.mark.parametrize("seed", range(4))
def test_after_an_adversary_set_in_a_healthy_run_is_never_off_without_bands(seed):
    lines = [line | {"adversarial": line["adversarial"] * (1 - line["step"] / 12000)} for line in log(seed, 4000)]  # falls slowly
    assert not [i for i in range(1, len(lines) + 1) if off(bands.general(lines[:i]))]


def test_trend_is_mann_kendalls():
    x = np.array([3.0, 1, 4, 1, 5, 9, 2, 6])
    s = sum(np.sign(x[j] - x[i]) for i in range(8) for j in range(i + 1, 8))
    assert bands.trend(x) == pytest.approx(s / np.sqrt(8 * 7 * 21 / 18)) and bands.trend(-x) == -bands.trend(x)


# Use of text and prompt --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reader:
    """Its loss counts the phones that are not the batch's target, and how far a row's prompt is from the row's voice."""

    text: float = 1.0
    prompt: float = 1.0
    floor: float = 1.0
    sizes = {}
    fields = {name: Field(axes, "int32") for name, axes in (
        ("phones", "bp"), ("target", "bp"), ("prompt_codes", "bu"), ("voice", "b"), ("weight", "b"))}

    def grads(self, params, rest, batch, rng, step):
        missed = (batch["phones"] != batch["target"]).sum() / (batch["target"] > 0).sum()
        far = jnp.abs(batch["prompt_codes"].mean(1) - batch["voice"]) * batch["weight"]
        return {}, {}, {"loss": self.floor + self.text * missed + self.prompt * far.mean()}


@pytest.mark.parametrize(("text", "prompt"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_use_is_by_how_much_the_loss_rises(monkeypatch, text, prompt):
    phones = np.array([[*range(1, 41), 0, 0], [*range(60, 100), 0, 0], [0] * 42])
    voice = np.array([10.0, 30.0, 0.0])
    batch = {"phones": phones, "target": phones.copy(), "prompt_codes": np.repeat(voice[:, None], 5, 1), "voice": voice,
             "weight": np.array([1.0, 1.0, 0.0])}
    other = {name: np.concatenate([x, x]) for name, x in batch.items()}  # of another bucket: not for this measurement
    monkeypatch.setattr(doctor.systems, "make", lambda *_: Reader(text, prompt))
    people = {"valid": ["one", "two"]}
    monkeypatch.setattr(doctor.Dataset, "open", lambda path: types.SimpleNamespace(splits=("train", "valid"), speakers=people))
    splits = []
    monkeypatch.setattr(doctor.feed, "make_feed", lambda *_, split: splits.append(split) or iter([batch, other] * doctor.USE_BATCHES))
    monkeypatch.setattr(doctor.checkpoints, "read_model", lambda *_: ({"params": {}, "rest": {}}, {}))
    use = doctor.measure_use("run", {"system": "reader", "model": {}, "data": {"path": "x"}}, 7, None)
    assert splits == ["valid"]
    assert use["text_use"] == pytest.approx(text, abs=0.1)  # a shuffled row has about one phone in its place
    assert use["prompt_use"] == pytest.approx(prompt * 2 * 20 / 3, rel=1e-5)  # padding keeps its prompt

    measure = lambda: doctor.measure_use("run", {"system": "reader", "model": {}, "data": {"path": "x"}}, 7, None)
    monkeypatch.setattr(doctor.systems, "make", lambda *_: Reader(text, prompt, floor=-9.0))
    assert measure()["text_use"] == pytest.approx(text / 9, abs=0.02)  # of a loss below zero too
    lone = {name: x[:1] for name, x in batch.items()}
    monkeypatch.setattr(doctor.feed, "make_feed", lambda *_, split: iter([lone] * doctor.USE_BATCHES))
    assert measure().keys() == {"text_use"}  # nobody to exchange a prompt with
    monkeypatch.setattr(doctor.feed, "make_feed", lambda *_, split: iter([batch] * doctor.USE_BATCHES))
    people["valid"] = ["one"]
    assert measure().keys() == {"text_use"}  # a prompt of the same voice says the same


def test_little_use_is_off_when_healthy_runs_have_much():
    known = {"text_use": [[500, 0.9], [5000, 1.5]], "prompt_use": [[500, 0.3], [5000, 0.6]]}
    judged = lambda step, **found: {row["metric"]: row["verdict"] for row in bands.use_rows(found, step, known, 9000)}
    assert judged(500, text_use=0.5, prompt_use=0.02) == {"text_use": "ok", "prompt_use": "low"}
    assert judged(100, text_use=0.0, prompt_use=0.3) == {"text_use": "early", "prompt_use": "ok"}
    without = lambda step, value: bands.use_rows({"text_use": value}, step, {}, 9000)[0]["verdict"]
    assert (without(100, 0.0), without(5000, 0.0), without(5000, 0.2)) == ("early", "low", "ok")


# Verdicts on real runs ---------------------------------------------------------------------------------------------------

FAULTS = {  # file of tests/doctor -> what must be off, and what the first hints name
    "naturalspeech2-learning_rate_x30": ({"loss"}, "learning rate"),
    "naturalspeech2-shuffled_phones": ({"loss", "text_use"}, "text is not used"),
    "naturalspeech2-zero_prompt": ({"prompt_use"}, "prompt is not used"),
    "naturalspeech2-nan": (set(), "batch/weight"),
    "codec-learning_rate_x30": ({"grad_norm", "param_norm"}, "learning rate"),
    "codec-still_codebook": ({"loss", "quantisation_error"}, "codebooks"),
    "codec-frozen_codebook": ({"perplexity's movement"}, "codebooks are frozen"),
}


def kept(name: str) -> tuple[dict, dict]:
    """(arguments of doctor.judge, the known-good file of its recipe)."""
    run = json.loads((ROOT / "tests" / "doctor" / f"{name}.json").read_text())
    return run, doctor.find_known(run["config"], None)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_flagged(name):
    run, known = kept(name)
    report = doctor.judge(known=known, **run)
    wrong, hint = FAULTS[name]
    assert report["verdict"] == "off" and report["sentence"].startswith("off at step")
    assert wrong <= {row["metric"] for row in report["rows"] if row["verdict"] in ("high", "low")}, report["rows"]
    assert any(hint in text for text in report["hints"][:2]), report["hints"]


@pytest.mark.parametrize("name", ["naturalspeech2-healthy", "codec-healthy"])
def test_a_seed_that_no_band_knows_is_on_track_at_every_step(name):
    run, known = kept(name)
    assert run["config"]["seed"] not in known["seeds"]
    for i in range(1, len(run["lines"]) + 1):
        report = doctor.judge(known=known, **run | {"lines": run["lines"][:i], "used": run["used"] if i == len(run["lines"]) else None})
        begun = run["lines"][i - 1]["step"] >= known["bands"]["steps"][0]
        assert report["verdict"] == ("on track" if begun else "early"), report["sentence"]
    assert not report["hints"] and not report["notes"] and not report["differences"]


def test_a_longer_training_than_that_of_the_bands_has_wider_ones():
    """Its rate falls later, its weights grow on."""
    run, known = kept("naturalspeech2-healthy")
    end = curves("naturalspeech2")
    grown = [line | {"param_norm": 1.15 * line["param_norm"]} for line in end]
    assert doctor.judge(run["config"], grown, known)["verdict"] == "off"
    longer = run["config"] | {"train": run["config"]["train"] | {"steps": 30000}}
    report = doctor.judge(longer, grown, known)
    assert report["verdict"] == "on track" and any("length of the training" in note for note in report["notes"])
    report = doctor.judge(run["config"], [line | {"step": 2 * line["step"]} for line in grown], known)  # went on at the last rate
    assert report["verdict"] == "on track"


def test_a_run_from_trained_weights_is_not_held_against_runs_from_none():
    run, _ = kept("naturalspeech2-healthy")
    tuned = run["config"] | {"init_from": run["config"]["init_from"] | {"params": "runs/other"}}
    assert doctor.find_known(run["config"], None) and doctor.find_known(tuned, None) is None
    flat = [line | {"step": 50 * i, "param_norm": 211.0} for i, line in enumerate(run["lines"][::-1], 1)]  # nothing much left to learn
    level = [line | {"loss": 1.2 + 0.01 * (i % 3)} for i, line in enumerate(flat)]
    report = doctor.judge(tuned, level, None)
    assert report["verdict"] == "on track" and "from trained weights" in report["notes"][0]
    assert doctor.judge(run["config"], level, None)["verdict"] == "off"
    worse = [line | {"loss": 1.2 + 0.02 * i} for i, line in enumerate(level)]
    assert doctor.judge(tuned, worse, None)["verdict"] == "off"


def test_a_run_that_is_over_too_soon_is_not_waited_for():
    run, known = kept("codec-healthy")
    short = run["config"] | {"train": run["config"]["train"] | {"steps": 100}}
    assert doctor.judge(short, run["lines"][:2], known)["sentence"] == "early: the 100 steps of this run are too few to say; it takes 150"


# The command -------------------------------------------------------------------------------------------------------------


def write_run(folder: pathlib.Path, lines: list[dict], **changes) -> pathlib.Path:
    """A run of codec's smoke size with these lines."""
    folder.mkdir()
    config = tiny._model("codec", 0)[1]
    tiny._about(config | {"train": config["train"] | {"steps": 3000}} | changes, folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_bands_from_runs_and_a_verdict_by_them(tmp_path):
    runs = [write_run(tmp_path / f"{seed}", log(seed), seed=seed) for seed in (0, 1, 2)]
    file = tmp_path / "known_good.json"
    code, out, err = commands.run("ns2_jax.doctor", "bands", str(runs[0]), str(runs[1]), f"--out={file}")
    assert code == 0 and "5 metrics" in out, err
    known = json.loads(file.read_text())
    assert known["seeds"] == [0, 1] and known["dataset"] == "tiny" and known["config"]["model.levels"] == "4" and known["use"] == {}
    code, out, err = commands.run("ns2_jax.doctor", str(runs[2]), f"--known_good={file}")
    assert code == 0 and out.startswith("on track at step 3000 of the recipe's 3000: loss "), err
    # Made again, what was measured on checkpoints that are gone stays; of other runs it does not.
    for other, kept in ((runs[1], {"text_use": [[500, 0.5]]}), (runs[2], {})):
        file.write_text(json.dumps(known | {"use": {"text_use": [[500, 0.5]]}}))
        assert commands.run("ns2_jax.doctor", "bands", str(runs[0]), str(other), f"--out={file}")[0] == 0
        assert json.loads(file.read_text())["use"] == kept
    file.write_text(json.dumps(known))
    assert "Note: no checkpoint yet" in out

    bad = write_run(tmp_path / "bad", [line | {"data_seconds": 0.3} for line in log(3, 900, loss=1.5)], seed=3)
    config = json.loads((bad / "config.json").read_text())
    config["optim"]["peak"] = 0.06
    (bad / "config.json").write_text(json.dumps(config))
    code, out, _ = commands.run("ns2_jax.doctor", str(bad), f"--known_good={file}")
    assert code == 1 and out.startswith("off at step 900: loss is high")
    assert "1. what differs from the recipe: config.optim.peak is 0.06, not 0.002" in out and "optim.peak: 0.06 here, 0.002 there" in out
    assert "0.3 of a step's 0.5 s are spent waiting for data" in out
    code, out, _ = commands.run("ns2_jax.doctor", str(bad), f"--known_good={file}", "--json")
    assert code == 1 and json.loads(out)["verdict"] == "off" and json.loads(out)["differences"] == {"optim.peak": ["0.06", "0.002"]}

    for lines, said in (([], "early: step 0 is too soon to say; wait for step 150"),
                        (log(4, 100), "early: step 100 is too soon to say; wait for step 150 (25s)")):
        young = write_run(tmp_path / f"young{len(lines)}", lines, seed=4)
        code, out, _ = commands.run("ns2_jax.doctor", str(young), f"--known_good={file}")
        assert code == 0 and out.startswith(said)


def test_a_log_that_is_damaged_or_out_of_order(tmp_path):
    lines = [json.dumps(line) for line in log(2, 900)]
    bad = json.dumps(json.loads(lines[-1]) | {"step": 950, "loss": float("nan")})
    junk = ["123", "null", '{"loss": 3.0}', '{"step": 425, "loss": "high", "grad_norm": {"a": 1}}', '{"step": 5', "\udcff\udcfe"]
    run = write_run(tmp_path / "run", [])
    read = lambda *text: (run / "metrics.jsonl").write_bytes("\n".join(text).encode(errors="surrogateescape")) and doctor.read_log(str(run))
    healthy = read(*lines)
    assert [line["step"] for line in healthy] == list(range(50, 901, 50))
    assert read(*lines[::-1]) == read(*lines, *lines) == healthy
    assert [line for line in read(*lines[:9], *junk, *lines[9:]) if line["step"] != 425] == healthy
    assert read(*lines, bad)[-1]["loss"] is None  # as the trainer writes it
    assert doctor.judge({"system": "codec", "size": "smoke", "model": {}, "train": {"log_every": 50, "steps": 900}, "optim": {"peak": 1}},
                        read(*lines, bad), None)["sentence"] == "off at step 950: loss is not finite"


def test_it_refuses(tmp_path):
    one = write_run(tmp_path / "one", log(0))
    same = write_run(tmp_path / "same", log(1))
    other = write_run(tmp_path / "other", log(1), seed=1, precision="bfloat16")
    export = tiny.write_model("codec", tmp_path / "export")
    file = tmp_path / "known_good.json"
    file.write_text(json.dumps({"system": "codec", "size": "base", "config": {}, "dataset": "", "bands": {}, "use": {}}))
    fewer = write_run(tmp_path / "fewer", log(1), seed=1)
    config = json.loads((fewer / "config.json").read_text())
    del config["optim"]["clip"]
    (fewer / "config.json").write_text(json.dumps(config))
    broken, cut = tmp_path / "broken.json", write_run(tmp_path / "cut", log(0))
    broken.write_text("not JSON")
    (cut / "config.json").write_text('{"system": "co')
    (alien := tmp_path / "alien").mkdir()
    (alien / "config.json").write_text("[]")
    halted, named = write_run(tmp_path / "halted", log(0)), tmp_path / "named.json"
    (halted / "halted.json").write_text("{")
    named.write_text('{"system": "codec", "size": "smoke"}')
    for words, line in (
        (["bands", str(one), str(fewer), f"--out={file}"], f"error: {fewer} is not of the recipe of {one}: config.optim.clip differs"),
        (["bands", str(one), str(fewer), f"--out={tmp_path}/none/known_good.json"], f"error: --out={tmp_path}/none/known_good.json: there is no"),
        ([str(one), f"--known_good={broken}"], f"error: {broken} is not JSON: "), ([str(one), f"--known_good={named}"], f"error: {named} has no"),
        ([str(cut)], f"error: {cut}/config.json is not JSON: "), ([str(alien)], f"error: {alien}/config.json names no system"), ([str(halted)], f"error: {halted}/halted.json is not JSON: "),
        ([], "error: say which run to look at"), ([str(tmp_path / "no")], f"error: {tmp_path}/no does not exist"),
        ([export], f"error: {export} is an export"), (["bands", str(one)], "error: bands needs --out"),
        (["bands", str(one), f"--out={file}"], "error: bands need at least two runs"),
        (["bands", str(one), str(same), f"--out={file}"], "error: bands need runs of different seeds"),
        (["bands", str(one), str(other), f"--out={file}"], f"error: {other} is not of the recipe of {one}: config.precision differs"),
        ([str(one), f"--known_good={file}"], f"error: --known_good={file} is of codec base"),
        (["--overfit"], "error: --overfit needs --config"),
        (["--overfit", "--config=configs/codec.py:smoke"], "error: --overfit takes its batch from a data set"),
    ):
        assert commands.refused("ns2_jax.doctor", *words).startswith(line)


# Live --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    test_train.make_data(folder / "data")
    return folder


def call(place, *words, code=0) -> str:
    at = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    config = ["--config=" + test_train.CONFIG, f"--config.data.path={place / 'data'}", *test_train.SMALL]
    done = subprocess.run([sys.executable, *words[:at], *config, *words[at:]], cwd=ROOT, env=test_train.environment(place),
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_nan_in_a_batch_live(place):
    """Planted, halted, named by the doctor; gone when the run is started again without it."""
    run = place / "nan"
    log_often = [f"--workdir={run}", "--config.train.steps=8", "--config.train.log_every=2"]
    said = call(place, "tests/faults.py", "nan", "5", *log_often, code=1)
    assert "not finite at step 5" in said
    halted = json.loads((run / "halted.json").read_text())
    assert halted["step"] == 5 and halted["paths"][0] == "batch/audio"
    code, out, _ = commands.run("ns2_jax.doctor", str(run))
    assert code == 1 and out.startswith("off at step 5: a number was not finite (batch/audio, ")
    assert "1. the data: batch/audio came out of the feed not finite" in out
    call(place, "-m", "ns2_jax.train", *log_often)
    assert not os.path.exists(run / "halted.json") and metrics.read(str(run))[-1]["step"] == 8
    code, out, _ = commands.run("ns2_jax.doctor", str(run))
    assert code == 0 and out.startswith("early: the 8 steps of this run are too few to say; it takes 16")


def test_one_batch_is_learnt_unless_something_is_cut(place):
    words = ["-m", "ns2_jax.doctor", "--overfit", "--steps=60", "--config.model.adversarial_from=1000",
             "--config.model.codec.wave=0", "--config.model.complex_weight=0.0"]  # eight codes cannot say how noise runs
    with concurrent.futures.ThreadPoolExecutor() as pool:
        whole = pool.submit(call, place, *words)
        cut = pool.submit(call, place, *words, "--config.train.frozen=('params/gen/.*',)", code=1)
    said = whole.result()
    assert "passed: the loss of one batch went from" in said and "; params/disc did not move" in said and "params/gen" not in said
    assert "failed: the loss of one batch" in cut.result() and "; params/gen did not move" in cut.result()
