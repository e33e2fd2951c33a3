"""What a model says with other numbers of sampler steps and other samplers, each made from the same noise and timed: conditions
`synthesis_SAMPLER_STEPS`, rows of one table beside the `synthesis` by its own number.

Real-time factors are of one utterance at a time, after a call that compiled the same; seconds that JAX compiles in inside of what is timed are in
the fingerprint (`compiling`, 0 unless something is wrong). Another job on the machine makes them worthless: read `load_average`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from ns2_jax import inference
from ns2_jax.evals import speed
from ns2_jax.evaluate.material import Material
from ns2_jax.runtime import cluster

ITEMS = 12  # utterances that are timed
REPEATS = 3


def conditions(model: inference.Model, steps: Sequence[int], samplers: Sequence[str], usual: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Condition -> options of the program `sample`. `usual` are the options of all.

    Raises ValueError for a model whose speech has no steps, or no samplers where some are asked for.
    """
    options = model.programs["sample"].options
    if lacking := next((name for name in ("steps", "sampler") if (name == "steps" or samplers) and name not in options), None):
        raise ValueError(f"--{'by_steps' if lacking == 'steps' else 'samplers'}: {model.name} speaks without {lacking}; it takes {sorted(options)}")
    named = list(samplers) or [usual.get("sampler", options.get("sampler"))]
    found = {}
    for sampler in named:
        chosen = {} if sampler is None else {"sampler": sampler}
        found |= {f"synthesis_{sampler or 'steps'}_{number}": {**usual, **chosen, "steps": number} for number in steps}
    return found


def check_times(model: inference.Model, material: Material) -> None:
    """Raises ValueError where the model can't speak the phones of the recordings as long as they are there."""
    if not material.dataset or "align" not in material.dataset.groups:
        raise ValueError("--true_times needs the phone times of the recordings: give a --data with the group 'align'")
    if model.paces or model.unit_text:
        why = "decides on the length of each phone as it speaks" if model.paces else "reads units of text instead of phones"
        raise ValueError(f"--true_times: {model.name} {why}")


def timed(model: inference.Model, material: Material, some: Mapping[str, Mapping[str, Any]], seed: int,
          fingerprint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Score lines `rtf_*` and `first_audio_*` of every condition, on this host's first ITEMS utterances. Raises ValueError for options that the
    model does not take: before anything else is made with them."""
    requests, lines = material.requests(model)[:ITEMS], []
    watch = speed.Stopwatch()
    try:
        for condition, options in tqdm.tqdm(some.items(), "timing", mininterval=2, disable=not cluster.is_first()):
            load_average = [round(x, 2) for x in os.getloadavg()]
            mine = [speed.timed(model, "item", [request], options, REPEATS, watch) for request in requests]
            rows = cluster.gather([{name: value for name, value in row.items() if name != "text"} for row in mine])  # a score is no JSON
            about = {**speed.about(model, options), "load_average": load_average, **fingerprint}
            lines += speed.summarise(condition, rows, seed, "in the process that evaluates", **about)
    finally:
        watch.close()
    return lines
