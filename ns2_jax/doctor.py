"""Is it broken or just early? Holds a run against what healthy runs of its recipe did at the same step.

    python -m ns2_jax.doctor runs/naturalspeech2                             a verdict, a table, likely causes
    python -m ns2_jax.doctor --overfit --config=configs/codec.py:small --config.data.path=data/default
    python -m ns2_jax.doctor bands runs/a runs/b --out=results/codec/known_good.json        of your own recipe: two seeds or more

The first line is the verdict: "on track", "early" (too few steps to say; it says what to wait for) or "off" with what is
off. The bands of a recipe (system and size) are in `results/*/known_good.json` or where `--known_good` says; without any, and when it
starts from trained params (`config.init_from`), a run is judged by what holds for every training. On a checkpoint it measures
whether the model listens: how much the loss rises when the phones of every row are shuffled (`text_use`) and when rows exchange
their prompts (`prompt_use`), on batches of the run's own data, or `--data`. Beside a training that holds the accelerator, set
JAX_PLATFORMS=cpu. What it can't see: faults that leave losses, norms and these two as they are, such as a single bad recording or
wrong sampling.

`--overfit` trains one batch in memory, with a constant learning rate after a short warm-up, and passes when the loss, measured with the
same noise before and after, falls by a factor: then loss, gradients and optimiser are wired; it names parts of the params that did
not move. It says nothing of the data.

Exit codes: 0 on track, early or passed; 1 off or failed; 2 the command is wrong.
"""

from __future__ import annotations

import collections
import glob
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from ns2_jax import train
from ns2_jax.data import feed
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import bands
from ns2_jax.runtime import checkpoints, cluster, metrics, weights
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import state as states
from ns2_jax.runtime.program import Program
from ns2_jax.systems import system as systems

FLAGS = flags.FLAGS
TAKES_WORDS = True  # RUN; bands RUN RUN...
KNOWN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "results", "*", "known_good.json")
NOT_RECIPE = ("seed", "data.path", "data.weights", "data.workers", "mesh.", "init_from.", "train.log_every", "train.save_every", "train.keep")
USE_BATCHES, USE_ROWS = 8, 12  # rows of a batch, at most
WITHOUT = ("0", "0.0", "false", "null", '""', '"[]"', "{}")  # as JSON; lists are text in it
WAITING = 0.2  # of a step's time spent on data
FACTOR, OVERFIT_STEPS, KEYS = 1.5, 120, 4  # healthy runs of smoke and small reach 1.9 to 5.8; cut or diverging ones 0.3 to 1.1
MOVED = 0.01  # of its norm: a part of the params that moved less got no gradient


def define_flags() -> None:
    """When this file is the command; importing it defines none."""
    config_flags.DEFINE_config_file("config", None, "With --overfit: FILE[:argument], as in configs/codec.py:small.", lock_config=True)
    flags.DEFINE_bool("overfit", False, "Train one batch in memory: pass or fail.")
    flags.DEFINE_integer("steps", OVERFIT_STEPS, "With --overfit: steps.", lower_bound=10)
    flags.DEFINE_string("data", None, "The run's data set, where config.data.path does not lead to it from here.")
    flags.DEFINE_bool("use", True, "Measure the use of text and prompt on the newest checkpoint; --nouse saves the minute.")
    flags.DEFINE_string("known_good", None, "Bands to hold the run against, instead of those in results/.")
    flags.DEFINE_string("out", None, "With bands: the file to write, results/SYSTEM/known_good.json.")
    flags.DEFINE_bool("json", False, "Print one JSON object and nothing else.")


# The recipe ------------------------------------------------------------------------------------------------------------


def recipe(config: Mapping[str, Any]) -> dict[str, str]:
    """What makes a recipe: `{"model.width": "256", ...}`, the config without what does not change the curves."""
    flat = {path.replace("/", "."): json.dumps(leaf) for path, leaf in states.flatten(_leaves(config)).items()}
    kept = {path: leaf for path, leaf in flat.items() if not path.startswith(NOT_RECIPE)}
    if config["optim"]["schedule"] == "constant":
        kept.pop("train.steps", None)
    return kept


def _leaves(node: Any) -> Any:
    """Lists as text: they are one value."""
    return {k: _leaves(v) for k, v in node.items()} if isinstance(node, Mapping) else json.dumps(node) if isinstance(node, list) else node


def from_trained(config: Mapping[str, Any]) -> bool:
    """Whether params come from another training."""
    return any(key.split("/")[0] == "params" for key in config.get("init_from", ()))


def find_known(config: Mapping[str, Any], path: str | None) -> dict[str, Any] | None:
    """The known-good file of the config's system and size, or the one at `path`; None where there is none, and from trained weights,
    unless at `path`. Raises ValueError when that is of another."""
    for found in [path] if path else [] if from_trained(config) else sorted(glob.glob(KNOWN)):
        known = read_json(found)
        if lacking := [key for key in ("system", "size", "config", "dataset", "bands", "use") if key not in known]:
            raise ValueError(f"{found} has no {lacking[0]!r}; expected what `python -m ns2_jax.doctor bands` writes")
        if all(known[key] == config[key] for key in ("system", "size")):
            return known
        if path:
            raise ValueError(f"--known_good={path} is of {known['system']} {known['size']}, the run is {config['system']} {config['size']}")
    return None


def differences(config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """`{"optim.peak": [here, recipe]}` for every field of the recipe that differs. What an older one does not name, it does without."""
    here, there = ({path: None if leaf in WITHOUT else leaf for path, leaf in found.items()} for found in (recipe(config), known["config"]))
    return {path: [here.get(path), there.get(path)] for path in sorted({*here, *there}) if here.get(path) != there.get(path)}


def read_json(path: str) -> dict[str, Any]:
    """The object in a file. Raises FileNotFoundError, and ValueError where there is no JSON object."""
    with open(path, encoding="utf8") as f:
        try:
            found = json.load(f)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object")
    return found


def read_beside(run: str, name: str) -> dict[str, Any]:
    """run.json or halted.json of a run; empty without one."""
    path = os.path.join(run, name)
    return read_json(path) if os.path.exists(path) else {}


def read_log(run: str) -> list[dict[str, Any]]:
    """The numbers of metrics.jsonl in the order of steps, one line a step; None for what is not finite."""
    finite = lambda value: value if value is not None and math.isfinite(value) else None
    lines = {}
    for line in metrics.read(run):
        lines[line["step"]] = {name: finite(value) for name, value in line.items() if isinstance(value, (int, float)) or value is None}
    return [lines[step] for step in sorted(lines)]


# Does the model listen? --------------------------------------------------------------------------------------------------


def shuffled(batch: Mapping[str, np.ndarray], key: jax.Array) -> dict[str, np.ndarray]:
    """The batch with the phones of every row in another order; durations stay where they are."""
    phones, draw = np.array(batch["phones"]), np.asarray(jax.random.uniform(key, batch["phones"].shape))
    for i, row in enumerate(phones):
        real = np.flatnonzero(row)
        phones[i, real] = row[real[np.argsort(draw[i, real])]]
    return {**batch, "phones": phones}


def exchanged(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with every row's prompt given to the next row; rows of padding keep theirs."""
    real = np.flatnonzero(batch["weight"])
    swapped = {name: np.array(x) for name, x in batch.items() if name.startswith("prompt_")}
    for name, x in swapped.items():
        x[real] = batch[name][np.roll(real, 1)]
    return {**batch, **swapped}


def measure_use(run: str, config: Mapping[str, Any], step: int, data: str | None) -> dict[str, float]:
    """`{"text_use", "prompt_use"}` of a checkpoint's averaged weights: by how much of itself the loss rises when phones are shuffled,
    prompts exchanged. Same noise in all cases; batches of `valid`, where the data set has it. Without what the system does not read,
    and without prompts where there is one voice, or one row, to exchange them.

    Raises FileNotFoundError or ValueError when the data can't be read.
    """
    system = systems.make(config["system"], config["model"])
    prompted = any(name.startswith("prompt_") for name in system.fields)
    if not prompted and "phones" not in system.fields:
        return {}
    numbers = dict(config["data"], path=data or config["data"]["path"], workers=0, cut={})  # any data set, also one without columns
    datasets = [Dataset.open(path) for path in feed.paths(numbers)]
    split = "valid" if all("valid" in dataset.splits for dataset in datasets) else None
    prompted = prompted and all(len(dataset.speakers[split or numbers["split"]]) > 1 for dataset in datasets)
    batches = feed.make_feed(numbers, system.fields, system.sizes, 0, 0, split=split)
    tree, _ = checkpoints.read_model(run, step)
    loss = jax.jit(lambda *given: system.grads(*given)[2])  # metrics alone: the backward pass falls away
    rise, base, shape = collections.Counter(), collections.Counter(), None
    bar = tqdm(total=USE_BATCHES, desc=f"use of text and prompt at step {step}", mininterval=2, leave=False)
    while bar.n < USE_BATCHES:
        batch = next(batches)
        shape = shape or batch["weight"].shape
        if batch["weight"].shape != shape:
            continue  # of another bucket, which would have to be compiled
        batch = {name: x[:USE_ROWS] for name, x in batch.items()}
        key = jax.random.fold_in(jax.random.key(0), bar.n)
        changed = {"text_use": shuffled(batch, key)} if "phones" in system.fields else {}
        changed |= {"prompt_use": exchanged(batch)} if prompted and np.count_nonzero(batch["weight"]) > 1 else {}
        plain, *losses = (float(loss(tree["params"], tree["rest"], given, key, np.int32(step))["loss"]) for given in (batch, *changed.values()))
        for name, value in zip(changed, losses):
            rise[name] += value - plain
            base[name] += plain
        bar.update()
    bar.close()
    return {name: rise[name] / max(abs(base[name]), 1e-12) for name in rise}


# Verdict -----------------------------------------------------------------------------------------------------------------


def hints(off: Mapping[str, str], changed: Mapping[str, list], halted: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Likely causes, the likeliest first. `off` is metric -> high or low."""
    said, peak = [], config["optim"]["peak"]
    trained = [f"{path} is {here}, not {there}" for path, (here, there) in changed.items() if path.startswith(("optim.", "train."))]
    if trained and (off or halted):
        said.append("what differs from the recipe: config." + "; config.".join(trained))
    if halted:
        path = (halted.get("paths") or [""])[0]
        if path.startswith("batch/"):
            said.append(f"the data: {path} came out of the feed not finite; look for a broken recording or feature in that step's batch")
        else:
            said.append(f"an overflow, first seen in {path}, while the batch was sound: a learning rate that is too high "
                        f"(config.optim.peak={peak}), a loss without a floor under a logarithm or division, or precision")
    high = {name for name, side in off.items() if side == "high"}
    codes = {name for name in off if name.startswith("perplexity")}
    if {"param_norm", "grad_norm / the first", "loss / its lowest"} & high or {"loss", "grad_norm"} <= high and not codes:
        said.append(f"the learning rate is too high (config.optim.peak={peak}) or its warm-up too short: try a tenth")
    if off.get("text_use") == "low":
        said.append("the text is not used: phones that do not belong to the audio (shuffled or shifted transcripts, a wrong alignment), "
                    "or a text encoder that gets no gradient; look at a few utterances with their phones")
    if off.get("prompt_use") == "low":
        said.append("the prompt is not used: prompts that are empty or of another speaker, or a prompt encoder that gets no gradient")
    if codes:
        if off.get("perplexity's movement"):
            said.append("the codebooks are frozen: they get no updates (config.model.codebook_decay=1, or rest is not updated)")
        elif "low" in (off.get("perplexity"), off.get("perplexity / codes")):
            said.append("the codebooks have collapsed onto few codes: vectors that are not updated, dead codes not replaced")
        else:
            said.append("the codebooks do not follow the encoder: are they updated every step, and with statistics of all hosts?")
    if off.get("param_norm") == "low":
        said.append(f"the weights move too little: a learning rate that is too low (config.optim.peak={peak}), or frozen parameters")
    if high - {"grad_norm", "param_norm"} and not said:
        said.append("the data: other recordings, transcripts or batches than the recipe's; then a part of the model that gets no gradient")
    return said


def judge(
    config: Mapping[str, Any], lines: bands.Lines, known: Mapping[str, Any] | None, *, dataset: str = "", halted: Mapping[str, Any] = {},
    used: tuple[int, Mapping[str, float]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The judgement of a run: verdict, sentence, step, rows, differences, hints, notes.

    Args:
      config, lines, halted: of config.json, metrics.jsonl, halted.json; dataset: its fingerprint.
      known: a known-good file, or None.
      used: (checkpoint, what `measure_use` found there).
    """
    step, notes, trained = lines[-1]["step"] if lines else 0, [], from_trained(config)
    name = f"{config['system']} {config['size']}" + " from trained weights" * trained
    changed = differences(config, known) if known else {}
    if not known:
        notes.append(f"there are no bands of {name}: judged by what holds for every training (two seeds make bands, see --help)")
    other = {
        "data set": known and dataset and dataset != known["dataset"],
        "model or its data's layout": any(path.startswith(("model.", "data.", "precision")) for path in changed),
        "length of the training": known and ("train.steps" in changed or step > known["bands"]["steps"][-1])}
    elsewhere = [what for what, differs in other.items() if differs]
    if elsewhere:
        notes.append(f"not that of the bands: {', '.join(elsewhere)}; they are taken {bands.ELSEWHERE:g} times as wide")
    every = config["train"]["log_every"]
    begin = bands.WINDOWS * every if not known else max(known["bands"]["steps"][0], 2 * every * (every > known["bands"]["every"]))
    rows = []
    if lines:
        rows += bands.codebooks(lines, None if known else config["model"].get("codes"))
        rows += bands.general(lines, trained) if not known else bands.judge(known["bands"], lines, bool(elsewhere)) if step >= begin else []
        rows += [bands.row(metric, step, None, None, None, "not finite") for metric, value in lines[-1].items() if value is None]
        waited, whole = (np.median([line.get(part, 0.0) for line in lines[-bands.MOST :]]) for part in ("data_seconds", "step_seconds"))
        if waited > WAITING * whole > 0:
            notes.append(f"slow, not wrong: {waited:.3g} of a step's {whole:.3g} s are spent waiting for data; raise config.data.workers")
    if used:
        rows += bands.use_rows(used[1], used[0], known["use"] if known else {}, config["train"]["steps"])
    order = {"ahead": 1, "ok": 2, "early": 3}
    rows.sort(key=lambda r: (order.get(r["verdict"], 0), r["metric"] != "loss"))
    off = {r["metric"]: r["verdict"] for r in rows if order.get(r["verdict"], 0) == 0}

    if halted or off:
        verdict, at = "off", halted.get("step", step)
        where = ", ".join(halted.get("paths", [])[:3]) or "where was not found"
        said = [halted.get("reason") or f"a number was not finite ({where})"] if halted else []
        said += [f"{metric} is {side}" for metric, side in list(off.items())[:4]] + [f"{len(off) - 4} more"] * (len(off) > 4)
        sentence = f"off at step {at}: {', '.join(said)}"
    elif not any(r["verdict"] in ("ok", "ahead") for r in rows) or step < begin:
        verdict, wait = "early", begin if step < begin else step + begin
        seconds = (wait - step) * lines[-1].get("step_seconds", 0.0) if lines else 0.0
        sentence = f"early: step {step} is too soon to say; wait for step {wait}" + (f" ({metrics.duration(seconds)})" if seconds else "")
        if begin > config["train"]["steps"]:
            sentence = f"early: the {config['train']['steps']} steps of this run are too few to say; it takes {begin}"
    else:
        verdict, sentence = "on track", f"on track at step {step}"
        if known:
            sentence += f" of the recipe's {known['bands']['steps'][-1]}"
            for r in (r for r in rows if r["metric"] == "loss"):
                low, high = (known["bands"]["metrics"]["loss"][side][-1] for side in ("low", "high"))
                sentence += f": loss {r['value']:.3g}, at the recipe's end {low:.3g} to {high:.3g}"
    sides = {metric: side for metric, side in off.items() if side in ("high", "low")}
    return {"verdict": verdict, "sentence": sentence, "step": step, "recipe": name, "rows": rows, "differences": changed,
            "hints": hints(sides, changed, halted, config), "notes": notes}


def diagnose(run: str, known_path: str | None = None, data: str | None = None, use: bool = True) -> dict[str, Any]:
    """`judge` of a run folder. Raises FileNotFoundError where there is no run, ValueError for an export."""
    config = checkpoints.read_config(run)
    if os.path.exists(os.path.join(run, weights.FILE)):
        raise ValueError(f"{run} is an export; the doctor reads a run (--workdir of train), which has the curves")
    known, used, note = find_known(config, known_path), None, ""
    saved = checkpoints.steps(run)
    if use and not saved:
        note = f"no checkpoint yet (the first comes at step {config['train']['save_every']}): use of text and prompt not measured"
    elif use:
        try:
            used = saved[-1], measure_use(run, config, saved[-1], data)
        except (FileNotFoundError, ValueError) as error:
            note = f"use of text and prompt not measured, --data=DIR can say where the data is: {error}"
    halted, dataset = read_beside(run, "halted.json"), read_beside(run, "run.json").get("dataset", "")
    report = judge(config, read_log(run), known, dataset=dataset, halted=halted, used=used)
    return report | {"notes": report["notes"] + [note] * bool(note)}


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    number = lambda x: "" if x is None else f"{x:.4g}"

    def span(low: float | None, high: float | None) -> str:
        if None not in (low, high):
            return f"{number(low)} to {number(high)}"
        return f"at least {number(low)}" if low is not None else f"at most {number(high)}" if high is not None else ""

    table = [("metric", "step", "here", "known-good", "verdict")]
    table += [(r["metric"], str(r["step"]), number(r["value"]), span(r["low"], r["high"]), r["verdict"]) for r in report["rows"]]
    widths = [max(map(len, column)) for column in zip(*table)]
    out = [report["sentence"], ""]
    out += ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in table] if report["rows"] else []
    if report["hints"]:
        out += ["", "Likely causes, the likeliest first:"] + [f"  {i}. {text}" for i, text in enumerate(report["hints"], 1)]
    if report["differences"]:
        out += ["", "The bands may not hold: the config differs from the recipe's in"]
        out += [f"  {path}: {here} here, {there} there" for path, (here, there) in report["differences"].items()]
    return out + ([""] if report["notes"] else []) + [f"Note: {text}" for text in report["notes"]]


# Bands, overfit ----------------------------------------------------------------------------------------------------------


def make_known(runs: Sequence[str], data: str | None = None, use: bool = True, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The known-good file of runs of one recipe; of an `earlier` one of the same runs it keeps what was measured on checkpoints that are
    gone since. Raises ValueError when they differ in more than seed and length."""
    configs = [checkpoints.read_config(run) for run in runs]
    about = [read_beside(run, "run.json") for run in runs]
    for run, config in zip(runs[1:], configs[1:]):
        if odd := differences(config, {"config": recipe(configs[0])}):
            raise ValueError(f"{run} is not of the recipe of {runs[0]}: config.{next(iter(odd))} differs")
    seeds = [config["seed"] for config in configs]
    if len(set(seeds)) < len(seeds) or len({a.get("dataset") for a in about}) > 1:
        raise ValueError(f"bands need runs of different seeds on one data set; the seeds are {seeds}")
    known = {key: configs[0][key] for key in ("system", "size")}
    known |= {"seeds": seeds, "dataset": about[0].get("dataset"), "revisions": [a.get("revision") for a in about],
              "config": recipe(configs[0]), "bands": bands.make([read_log(run) for run in runs])}
    uses: dict[str, dict[int, float]] = {}
    for run, config in zip(runs, configs) if use else ():
        done = 0
        for step in checkpoints.steps(run):
            if step < max(known["bands"]["steps"][0], done * bands.NEAR):
                continue
            done = step
            for name, value in measure_use(run, config, step, data).items():
                uses.setdefault(name, {})[step] = min(value, uses.get(name, {}).get(step, value))
    if earlier and all(earlier.get(key) == known[key] for key in ("seeds", "dataset", "config")):
        for name, points in earlier.get("use", {}).items():
            uses[name] = {int(step): value for step, value in points} | uses.get(name, {})
    return known | {"use": {name: [[step, float(f"{value:.4g}")] for step, value in sorted(found.items())] for name, found in uses.items()}}


def overfit(config: Any, count: int) -> dict[str, Any]:
    """Trains `count` steps on the first batch alone: loss with the same noise before and after, and whether it fell enough."""
    if not config.data.path:
        raise ValueError("--overfit takes its batch from a data set: --config.data.path=DIR")
    with config.unlocked():
        config.optim.schedule, config.optim.warmup = "constant", min(config.optim.warmup, count // 10)
    system = systems.make(config.system, config.model.to_dict())
    program = Program(config, system, meshes.make_mesh(config.mesh), lambda: systems.rules(meshes.RULES))
    weights.codec_of(config, system.fields)
    batch = meshes.put_batch(program.mesh, next(train.batches(config, program, 0)))
    state = program.create(batch)
    if len(config.init_from):
        state = checkpoints.fill(state, dict(config.init_from), getattr(system, "fresh", ()))

    @jax.jit
    def loss(params: Any, rest: Any) -> Any:
        found = [program.system.grads(params, rest, batch, jax.random.key(i), 0)[2] for i in range(KEYS)]
        return sum(f["loss"] for f in found) / sum(f["weight"] for f in found)

    before, halted, start = float(loss(state["params"], state["rest"])), program.go(), jax.device_get(state["params"])
    for _ in (bar := tqdm(range(count), desc="one batch", unit="step", mininterval=2)):
        state, values = program(state, batch, halted)
        halted = values["halted"]
        if bar.n % 10 == 0:
            bar.set_postfix(loss=f"{float(values['loss']):.4g}")
    after, finite = float(loss(state["params"], state["rest"])), not bool(halted)
    moved = jax.tree.map(np.subtract, jax.device_get(state["params"]), start)
    still = [name for name, part in start.items() if _norm(moved[name]) < MOVED * _norm(part)]
    verdict = "passed" if finite and before / after >= FACTOR else "failed"
    sentence = f"{verdict}: the loss of one batch went from {before:.4g} to {after:.4g} in {count} steps, a factor of {before / after:.3g}"
    sentence += f" ({FACTOR:g} or more expected)" + ("" if finite else "; it met a number that is not finite")
    sentence += "".join(f"; params/{name} did not move" for name in still)
    return {"verdict": verdict, "sentence": sentence, "before": before, "after": after, "steps": count, "finite": finite, "still": still}


def _norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree))))


def main(argv: list[str]) -> int:
    words = argv[1:]
    if FLAGS.overfit:
        if FLAGS.config is None or words:
            raise ValueError("--overfit needs --config=FILE[:argument] and no RUN (see --help)")
        cluster.start(lambda text: None)
        report = overfit(FLAGS.config, FLAGS.steps)
        print(json.dumps(report) if FLAGS.json else report["sentence"])
        return cluster.DONE if report["verdict"] == "passed" else cluster.FAILED
    if words[:1] == ["bands"]:
        if not FLAGS.out:
            raise ValueError("bands needs --out=results/SYSTEM/known_good.json")
        if not os.path.isdir(folder := os.path.dirname(FLAGS.out) or "."):
            raise ValueError(f"--out={FLAGS.out}: there is no folder {folder}")
        cluster.start(lambda text: None)
        known = make_known(words[1:], FLAGS.data, FLAGS.use, read_json(FLAGS.out) if os.path.exists(FLAGS.out) else None)
        with open(FLAGS.out, "w", encoding="utf8") as f:
            f.write("{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in known.items()) + "\n}\n")
        print(f"{FLAGS.out}: {len(known['bands']['metrics'])} metrics at {len(known['bands']['steps'])} steps, seeds {known['seeds']}")
        return cluster.DONE
    if len(words) != 1:
        raise ValueError(f"say which run to look at: python -m ns2_jax.doctor RUN, not {' '.join(words) or '(nothing)'} (see --help)")
    cluster.start(lambda text: None)
    report = diagnose(words[0], FLAGS.known_good, FLAGS.data, FLAGS.use)
    print(json.dumps(report) if FLAGS.json else "\n".join(lines_of(report)))
    return cluster.FAILED if report["verdict"] == "off" else cluster.DONE


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
