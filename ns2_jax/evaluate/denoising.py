"""Asks a model that denoises waveforms about its own loss, on recordings with their true durations: which schedules of few steps suit it, and
what training on windows has done to whole utterances. No audio is made and no judge is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ns2_jax import inference
from ns2_jax.data import frames as frames_lib
from ns2_jax.evals import schedule_search, scores, window_mismatch
from ns2_jax.evaluate.material import Material
from ns2_jax.inference import FOUND
from ns2_jax.runtime import cluster

EVALS = {"schedule_search": "trial", "window_mismatch": "score"}
"""Evaluator -> the program it needs."""
STEPS = (50, 25, 12, 6)  # of the schedules, unless --by_steps or --steps says otherwise
ITEMS = 16  # utterances, unless --limit says otherwise


def check(evals: Sequence[str], model: inference.Model | None, out: Path | None) -> None:
    """Raises ValueError for what cannot be asked of the model."""
    for name in evals:
        if name not in EVALS:
            raise ValueError(f"--evals={name} judges audio; it does not go with {', '.join(n for n in evals if n in EVALS)}, which make none")
        if model is None or EVALS[name] not in model.programs:
            raise ValueError(f"--evals={name} needs a model with the program {EVALS[name]!r}, as wavegrad2 has; give its run or export as --model")
    if "schedule_search" in evals and out is None:
        raise ValueError(f"--evals=schedule_search needs --out=DIR for {FOUND}, the schedules that it finds")


def rows_of(model: inference.Model, material: Material) -> list[tuple[dict[str, int], list[int], list[dict[str, np.ndarray]]]]:
    """(sizes, places of the items, rows of the programs) by bucket; items that fit no bucket are left out, and said."""
    if not material.dataset or "align" not in material.dataset.groups:
        raise ValueError("the data has no phone times, and true durations are needed: give a --data with the group 'align'")
    groups: dict[int, tuple[dict[str, int], list[int], list[dict[str, np.ndarray]]]] = {}
    for place, (audio, align, prompt) in enumerate(zip(material.recordings, material.aligned("index"), material.prompts, strict=True)):
        durations = frames_lib.durations(align["ends"], len(audio), model.rate, model.hop)
        fits = (i for i, b in enumerate(model.buckets) if b["p"] >= len(durations) and b["t"] >= durations.sum())
        if (index := next(fits, None)) is None:
            print(f"left out: {material.items[place]['id']} of {durations.sum()} frames and {len(durations)} phones fits no bucket", flush=True)
            continue
        bucket = model.buckets[index]
        samples, heard = bucket["t"] * model.hop, model.framed(prompt)[: bucket["u"]]
        fill = lambda x: np.pad(x, (0, bucket["p"] - len(x)))
        row = {
            "phones": fill(align["phones"]), "durations": fill(durations), "audio": np.pad(audio[:samples], (0, max(samples - len(audio), 0))),
            "prompt_audio": np.pad(heard, ((0, bucket["u"] - len(heard)), (0, 0))).reshape(-1), "prompt_frames": np.int32(len(heard))}
        sizes = {**{axis: bucket[axis] for axis in "tpu"}, "s": samples, "v": bucket["u"] * model.hop}
        group = groups.setdefault(index, (sizes, [], []))
        group[1].append(place)
        group[2].append(row)
    if not groups:
        raise ValueError("no utterance fits a bucket of the model")
    return [groups[index] for index in sorted(groups)]


def search(model: inference.Model, material: Material, steps: Sequence[int], seed: int, out: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines of `schedule_search`; the schedules are in OUT/found.json, which in the folder of a run becomes part of its model."""
    rows, number = rows_of(model, material), len(material.items)
    lowest = float(model.system.schedule(model.system.betas[2])[-1])  # where training is noisiest

    def loss(ratios: np.ndarray) -> np.ndarray:
        made = np.full(number, np.nan)
        for sizes, places, group in rows:
            given = [row | {"logsnr": np.asarray(ratios, np.float32)} for row in group]
            outs = model.run("trial", given, [seed + place for place in places], sizes | {"n": len(ratios)})
            made[places] = [float(one["distance"]) for one in outs]
        return made[np.isfinite(made)] if np.isfinite(made).any() else made

    lines, betas = [], {len(one): list(one) for one in model.system.schedules}
    for count in steps:
        found = schedule_search.search(loss, count, lowest, say=cluster.say)
        lines += schedule_search.summarise(found, loss(model.system.schedule(count)), seed, **about)
        betas[count] = lines[-2]["betas"]
    out.mkdir(parents=True, exist_ok=True)
    (out / FOUND).write_text(json.dumps({"schedules": [betas[count] for count in sorted(betas)]}, indent=1) + "\n")
    cluster.say(f"{out / FOUND} in the folder of the run makes these its schedules, and those of exports made of it then")
    return lines


def mismatch(model: inference.Model, material: Material, seed: int, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines of `window_mismatch`: windows of training, twice as long ones, and the whole."""
    size = model.system.window or max(bucket["t"] for bucket in model.buckets)
    kinds = {"whole": 0, str(size): size, str(2 * size): 2 * size}
    losses: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    for sizes, places, group in rows_of(model, material):
        for name, window in kinds.items():
            parts = []
            for place in window_mismatch.PLACES:
                given = [row | {"place": np.float32(place)} for row in group]
                parts.append([out["loss"] for out in model.run("score", given, [seed + at for at in places], sizes, window=window)])
            losses[name] += [np.stack([part[i] for part in parts])[:, : int(row["durations"].sum())] for i, row in enumerate(group)]
    return window_mismatch.summarise(losses, seed, **about)


def score(evals: Sequence[str], model: inference.Model, material: Material, steps: Sequence[int], seed: int, out: Path | None,
          about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of what is asked for, printed; schedules of so many `steps`."""
    lines = search(model, material, steps, seed, out, about) if "schedule_search" in evals else []
    lines += mismatch(model, material, seed, about) if "window_mismatch" in evals else []
    cluster.say("\n" + scores.table(lines))
    return lines
