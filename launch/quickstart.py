"""The sums behind quickstart.sh: how large, how many steps, and the report.

    python -m launch.quickstart begin|steps NAME|prompt|report --out=DIR --minutes=N --began=UNIX_TIME

`begin` and `steps` print assignments for the shell and keep them in DIR/plan.json. `report` writes DIR/summary.json and
DIR/quickstart.png and prints the table. Times are of this start: `--began` plus `--minutes` is when all should be done.
"""

from __future__ import annotations

import glob
import json
import os
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
SENTENCE = "The evening train arrives at seven, and my sister is waiting for us at the station."
SHIPPED = "results/naturalspeech2"
SMALL_FROM = 600.0  # seconds that must be left for the models of size small; below it is size smoke
# Seconds on two cores at rest of what comes beside the trainings: a training's start with its compilation, its second start
# (compiled already), export of the codec and encoding, and all that comes last. On a machine whose step takes twice STEP, twice that.
BESIDE = {
    "smoke": {"naturalspeech2": 60.0, "again": 12.0, "encode": 20.0, "end": 75.0},
    "small": {"naturalspeech2": 120.0, "again": 20.0, "encode": 60.0, "end": 200.0},
}
STEP = {"smoke": {"codec": 0.025, "naturalspeech2": 0.08}, "small": {"codec": 0.36, "naturalspeech2": 0.45}}
CODEC_SHARE = 0.35  # of the time for steps
SIZES = {
    "smoke": dict(utterances=9, sampler=8, probe=30, warmup=20, ema=0.97,
                  buckets="({'b':6,'t':400,'p':80,'u':96},{'b':3,'t':800,'p':160,'u':96})"),
    "small": dict(utterances=16, sampler=20, probe=40, warmup=60, ema=0.99,
                  buckets="({'b':6,'t':280,'p':64,'u':96},{'b':2,'t':800,'p':160,'u':160})"),
}


def begin(minutes: float, installed: float) -> dict[str, Any]:
    """The plan for `minutes` of which `installed` seconds are gone: what does not depend on the machine's speed.

    A corpus of an hour in twenty-five minutes and in proportion below; the averages of weights remember a tenth of a training.
    """
    size = "small" if 60 * minutes - installed >= SMALL_FROM else "smoke"
    hours = round(min(1.0, max(0.1, minutes / 25)), 2)
    return {"minutes": minutes, "size": size, "hours": hours, "stages": {}, "installed": installed, **SIZES[size]}


def train_steps(size: str, name: str, left: float, step_seconds: float, made: int) -> dict[str, Any]:
    """How many steps fit into `left` seconds when so many were `made` and each takes `step_seconds`; at least 20 more.

    Returns steps (in all), seconds for those still to make, and the limit in seconds after which the training is stopped.
    """
    slow = max(1.0, step_seconds / STEP[size][name])
    beside = {key: seconds * slow for key, seconds in BESIDE[size].items()}
    seconds = left - beside["end"] - beside["again"]
    if name == "codec":
        seconds = CODEC_SHARE * (seconds - beside["encode"] - beside["naturalspeech2"] - beside["again"])
    more = max(int(seconds / step_seconds), 20)
    steps = made + (more if more < 100 else more // 10 * 10)
    return {"steps": steps, "step_seconds": step_seconds, "seconds": round(max(seconds, 0.0), 1),
            "limit": int(1.25 * max(seconds, 20 * step_seconds) + 2 * beside["again"])}


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. Raises FileNotFoundError naming the stage that did not write it."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the training {folder.name} did not begin (see {folder.parent}/logs/{folder.name}.log)")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def measured_step(lines: Sequence[Mapping[str, Any]]) -> float:
    """Seconds a step: the median over log lines, because the first ones (and those with a new bucket) contain a compilation."""
    times = sorted(line["step_seconds"] for line in lines if "step_seconds" in line)
    return times[len(times) // 2] if len(times) % 2 else (times[len(times) // 2 - 1] + times[len(times) // 2]) / 2


def read_plan(out: pathlib.Path) -> dict[str, Any] | None:
    path = out / "plan.json"
    return json.loads(path.read_text()) if path.is_file() else None


def write_json(path: pathlib.Path, content: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def assignments(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{key.upper()}={shlex.quote(str(value))}" for key, value in values.items() if isinstance(value, (int, float, str)))


def start(out: pathlib.Path, minutes: float, began: float) -> dict[str, Any]:
    """The plan of this folder, or a new one. A folder made for other minutes is moved aside."""
    plan = read_plan(out)
    if plan and plan["minutes"] != minutes:
        aside = out.with_name(f"{out.name}-{plan['minutes']:g}min")
        while aside.exists():
            aside = aside.with_name(aside.name + "-older")
        out.rename(aside)
        print(f"the earlier run of {plan['minutes']:g} minutes is now {aside}", file=sys.stderr)
        plan = None
    for folder in ("done", "logs", "export"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    if plan is None:
        plan = begin(minutes, round(time.time() - began, 1))
        write_json(out / "plan.json", plan)
    return plan


def size_training(out: pathlib.Path, name: str, deadline: float) -> dict[str, Any]:
    """STEPS, EVERY (log), SAVE and LIMIT of one training; sized once, then as plan.json has it."""
    plan = read_plan(out)
    if name not in plan["stages"]:
        lines = read_metrics(out / name)
        plan["stages"][name] = train_steps(plan["size"], name, deadline - time.time(), measured_step(lines), lines[-1]["step"])
        write_json(out / "plan.json", plan)
    stage = plan["stages"][name]
    every = max(5, stage["steps"] // 100 * 5)
    print(f"{stage['step_seconds']:.3g} s a step: {stage['steps']} steps", file=sys.stderr)
    return {"steps": stage["steps"], "every": every, "save": max(50, stage["steps"] // 5), "limit": stage["limit"]}


def heldout_recording(data: pathlib.Path, seconds: float = 3.0) -> tuple[np.ndarray, int, str]:
    """(audio float32 [s], rate, speaker): the first recording of the held-out voice that is long enough for a prompt."""
    from ns2_jax.data.dataset import Dataset

    dataset = Dataset.open(data)  # without flite there are other voices in the same split
    split = "heldout" if "heldout" in dataset.splits else "test"
    best = None
    for i in range(dataset.records(split)):
        samples = int(dataset.read(split, "meta", i)["num_samples"]) / dataset.sample_rate
        if best is None or samples > best[0]:
            best = (samples, i)
        if best[0] >= seconds:
            break
    audio = dataset.read(split, "audio", best[1])["audio"].astype(np.float32) / 32768
    return audio, dataset.sample_rate, dataset.read(split, "meta", best[1])["speaker"]


def prompt(out: pathlib.Path) -> None:
    """Writes prompt.wav and sentence.txt."""
    from ns2_jax.audio import files

    audio, rate, speaker = heldout_recording(out / "data")
    files.write(out / "prompt.wav", audio, rate)
    (out / "sentence.txt").write_text(SENTENCE + "\n")
    print(f"prompt: {len(audio) / rate:.1f} s of {speaker}, who is in no training data")


def corpus_hours(data: pathlib.Path) -> float:
    manifest = json.loads((data / "manifest.json").read_text())
    return sum(split["seconds"] for split in manifest["splits"].values()) / 3600


def losses(out: pathlib.Path, name: str) -> dict[str, float]:
    lines = [line for line in read_metrics(out / name) if "loss" in line]
    return {"loss_first": lines[0]["loss"], "loss_last": lines[-1]["loss"]}


def summarise(out: pathlib.Path, began: float) -> dict[str, Any]:
    """summary.json: seconds of all starts until now, hours, losses, word errors (percent) and similarities."""
    earlier = out / "starts"  # seconds of the starts before this one, a line each
    seconds = sum(map(float, earlier.read_text().split())) if earlier.exists() else 0.0
    scores = json.loads((out / "scores" / "summary.json").read_text())
    return {
        "seconds": round(seconds + time.time() - began, 1),
        "corpus_hours": round(corpus_hours(out / "data"), 3),
        "codec": losses(out, "codec"),
        "naturalspeech2": losses(out, "naturalspeech2"),
        **{key: scores[key] for key in ("wer_recording", "wer_codec", "wer_synthesis", "secs_own", "secs_others")},
    }


def table(summary: Mapping[str, Any], plan: Mapping[str, Any], shipped: Sequence[str]) -> str:
    """What a reader sees at the end."""
    row = lambda name, *cells: f"  {name:34s}" + "".join(f"{cell:>12s}" for cell in cells)
    rate = lambda value: f"{value:.1f} %"
    steps = {name: f"({stage['steps']} steps)" for name, stage in plan["stages"].items()}
    lines = [
        f"{summary['corpus_hours']:.2f} h of corpus, {summary['seconds'] / 60:.1f} minutes in all, models of size {plan['size']}", "",
        row("", "first", "last"),
        *(row(f"{name} loss", f"{summary[name]['loss_first']:.3g}", f"{summary[name]['loss_last']:.3g}", steps.get(name, ""))
          for name in ("codec", "naturalspeech2")), "",
        row("", "recordings", "codec", "synthesis"),
        row("word error (pocketsphinx)", *(rate(summary[f"wer_{name}"]) for name in ("recording", "codec", "synthesis"))), "",
        row("", "own voice", "others"),
        row("similarity of synthesis (SECS)", *(f"{summary[f'secs_{name}']:.3f}" for name in ("own", "others"))), "",
        f"{plan['minutes']:g} minutes of training do not make a voice that speaks well: this shows that every part works.",
        "The longer recipe (--config=configs/codec.py:small, then configs/naturalspeech2.py:small, hours on two cores)",
        f"is in {SHIPPED}/README.md.",
    ]
    if shipped:
        lines += ["How that one sounds: " + ", ".join(shipped)]
    return "\n".join(lines)


def draw(path: pathlib.Path, audio: np.ndarray, rate: int, phones: Sequence[str], ends: np.ndarray,
         curves: Mapping[str, Sequence[Mapping[str, float]]], title: str = "", wanted: np.ndarray = np.zeros(0), hop: int = 200) -> None:
    """The picture: spectrogram with pitch, durations over the phones below it, and the loss curves of both trainings.

    Args: audio float32 [s]; phones and their ends in samples; metric lines by training; `wanted`: the model's own F0, Hz per `hop`.
    """
    import jax.numpy as jnp
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ns2_jax.maths import pitch, spectral

    mel = np.asarray(spectral.log_mel(jnp.asarray(audio)[None], rate, 4 * hop, hop, 80))[0]
    f0 = np.asarray(pitch.track(jnp.asarray(audio)[None], rate, period=hop))[0]
    seconds, edges = len(audio) / rate, np.concatenate([[0], np.asarray(ends)]) / rate
    figure = plt.figure(figsize=(14, 9), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(3, 1.1, 2.4))
    top = figure.add_subplot(grid[0, :])
    top.imshow(mel.T, origin="lower", aspect="auto", extent=(0, seconds, 0, 80), cmap="magma")
    top.set(title=title, ylabel="mel band", xlim=(0, seconds))
    tones = top.twinx()
    for name, hz, style in (("heard", f0, dict(color="cyan", linewidth=2)), ("predicted", wanted, dict(color="white", linestyle=":"))):
        if len(hz):
            tones.plot((np.arange(len(hz)) + 0.5) * hop / rate, np.where(hz > 0, hz, np.nan), label=name, **style)
    tones.legend(loc="upper right")
    tones.set(ylabel="pitch, Hz", ylim=(50, 400))
    below = figure.add_subplot(grid[1, :], sharex=top)
    below.bar(edges[:-1], 1000 * np.diff(edges), width=np.diff(edges), align="edge", color="lightsteelblue", edgecolor="slategrey")
    for phone, left, right in zip(phones, edges[:-1], edges[1:]):
        below.text((left + right) / 2, 4, phone, ha="center", va="bottom", fontsize=8)
    below.set(ylabel="duration, ms", xlabel="seconds")
    for column, (name, lines) in enumerate(curves.items()):
        axes = figure.add_subplot(grid[2, column])
        axes.plot([line["step"] for line in lines if "loss" in line], [line["loss"] for line in lines if "loss" in line])
        axes.set(title=f"{name} loss", xlabel="step", yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(out: pathlib.Path, began: float) -> str:
    """Writes quickstart.png and, last, summary.json; returns what to print."""
    from ns2_jax import inference
    from ns2_jax.runtime import cluster

    cluster.start(lambda line: None)
    plan = read_plan(out)
    model = inference.load(out / "export" / "naturalspeech2")
    speech = model.speak((out / "sentence.txt").read_text().strip(), out / "prompt.wav", seed=0, steps=plan["sampler"])
    curves = {name: read_metrics(out / name) for name in ("codec", "naturalspeech2")}
    draw(out / "quickstart.png", speech.audio, speech.rate, speech.phones, speech.ends, curves, SENTENCE, speech.f0, speech.hop)
    shipped = []
    for path in sorted(glob.glob(f"{SHIPPED}/audio/*-synthesis.flac")):
        shutil.copy(path, out / f"shipped-{os.path.basename(path)}")
        shipped.append(str(out / f"shipped-{os.path.basename(path)}"))
    made = {"this model": "speech.wav", "the voice it was to take": "prompt.wav", "test sentences": "scores/audio",
            "picture": "quickstart.png", "summary": "summary.json", "model": "export/naturalspeech2"}
    summary = summarise(out, began)
    write_json(out / "summary.json", summary)
    paths = "\n".join(f"  {name:26s}{out / file}" for name, file in made.items() if (out / file).exists())
    return f"\n{table(summary, plan, shipped)}\n\n{paths}"


def main(argv: Sequence[str]) -> int:
    out, command = pathlib.Path(FLAGS.out), argv[1] if len(argv) > 1 else ""
    if command == "begin":
        print(assignments(start(out, FLAGS.minutes, FLAGS.began)))
    elif command == "steps" and len(argv) == 3:
        print(assignments(size_training(out, argv[2], FLAGS.began + 60 * FLAGS.minutes)))
    elif command == "prompt":
        prompt(out)
    elif command == "report":
        print(report(out, FLAGS.began))
    else:
        print(f"error: {' '.join(argv[1:])!r}: expected begin, steps NAME, prompt or report", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/quickstart", "Folder of the quickstart.")
    flags.DEFINE_float("minutes", 20.0, "Minutes for everything.")
    flags.DEFINE_float("began", time.time(), "Unix time at which the minutes began.")
    app.run(main)
