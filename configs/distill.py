"""Few steps, small models: a student that speaks in 8, 4, 2 or 1 evaluations, taught by a trained NaturalSpeech 2 or Grad-StyleSpeech.

    python -m ns2_jax.train --config=configs/distill.py:small,teacher=results/naturalspeech2/model \
        --config.data.path=runs/data/default --workdir=runs/distill
    python -m ns2_jax.export --workdir=runs/distill --out=exports/guided
    python -m ns2_jax.train --config=configs/distill.py:small,few,teacher=exports/guided \
        --config.data.path=runs/data/default --workdir=runs/distill4
    python -m ns2_jax.export --workdir=runs/distill4 --out=exports/few

`teacher=DIR`, a run or an export, gives kind, numbers, data and `init_from`; without it they are those of the teacher's config at the same size, and
`--config.init_from` must say `{"rest/teacher": DIR, "params": DIR, "rest/codec": CODEC}` (`rest/vocoder` for Grad-StyleSpeech; `params` not for a
smaller student). What is exported is a model of the teacher's kind: `synthesize`, `serve` and `evaluate` take it, `--steps` and `--guidance` too, and
guidance costs nothing.

Sizes are the teacher's: smoke (seconds, for tests), small (two CPU cores), base (a pod). results/few_steps has what has been trained here: 1,500
steps of the first stage from NaturalSpeech 2 `small`.

Variants, as words in the argument:
    few          the second stage: its teacher is a student of the first, and it learns the places of `evaluations=4` alone; of 2 from the student
                 of 4, of 1 from that of 2
    consistency  consistency distillation, in as many segments as `evaluations` (1 without), from any teacher but a student of `few`
    rectified    straight lines between noise and what the teacher makes of it; a quarter of the rows are real pairs
    compress     a smaller student that learns everything: half of every width at small (a quarter of the size), a quarter of it at base (435 M
                 become 53 M with the codec), the teacher's answer point by point
    flow         the teacher was trained with `flow` (only where `teacher=` does not say it)
    grad_stylespeech   of that kind (likewise); its network must predict velocity
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import common, grad_stylespeech, naturalspeech2

WORDS = ("few", "consistency", "rectified", "compress", "flow", "grad_stylespeech")
FIRST = dict(guided=True, guidance=2.0, sampler="sway", evaluations=8)
"""Numbers of the first stage's student that its teacher does not have."""
WIDTHS = ("width", "hidden", "filters", "time_hidden")


def narrowed(numbers: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Every width of the trained networks times `share`, and nothing else."""
    kept = ("codec", "vocoder", "aligner")
    inner = {name: narrowed(value, share) for name, value in numbers.items() if isinstance(value, Mapping) and name not in kept}
    return {name: value for name, value in inner.items() if value} | {name: int(numbers[name] * share) for name in WIDTHS if numbers.get(name)}


def read(folder: str) -> dict[str, Any]:
    """`config.json` of a run or an export, and in `init_from` what a student of it is filled from. Raises ValueError for another folder."""
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise ValueError(f"config argument teacher={folder}: there is no {path}; expected a run or an export")
    with open(path, encoding="utf8") as f:
        about = json.load(f)
    if about.get("system") not in ("naturalspeech2", "grad_stylespeech"):
        raise ValueError(f"config argument teacher={folder} is of system {about.get('system')!r}; expected naturalspeech2 or grad_stylespeech (a run "
                         "of distill is exported first)")
    codec = about.get("codec")
    beside = lambda path: os.path.relpath(os.path.realpath(os.path.join(folder, path)))  # `folder` may be a link
    refers = {f"rest/{codec.get('at', 'codec')}": beside(codec["path"])} if isinstance(codec, Mapping) else {}
    parts = {key: value for key, value in about.get("init_from", {}).items() if key in ("rest/codec", "rest/vocoder")}
    return about | {"init_from": {"rest/teacher": folder, "params": folder} | parts | refers}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, WORDS)
    if "consistency" in words and "rectified" in words:
        raise ValueError(f"config argument {arg!r}: 'consistency' and 'rectified' exclude each other")
    folder = overrides.pop("teacher", "")
    about = read(folder) if folder else {}
    of = about.get("system", "grad_stylespeech" if "grad_stylespeech" in words else "naturalspeech2")
    like = {"naturalspeech2": naturalspeech2, "grad_stylespeech": grad_stylespeech}[of].get_config(size + ",flow" * ("flow" in words))
    numbers = about.get("model") or like.model.to_dict()
    if not about and of == "grad_stylespeech" and "flow" not in words:
        numbers |= dict(prediction="v", weighting="v")
    if not about and "few" in words:
        numbers |= FIRST
    few, whole = "few" in words, "compress" in words
    objective = next((word for word in ("consistency", "rectified") if word in words), "trajectory")

    config = common.defaults(system="distill", size=size)
    student = narrowed(numbers, common.choose(size, smoke=0.5, small=0.5, base=0.25)) if whole else {}
    config.model = ml_collections.ConfigDict(dict(
        of=of, teacher=numbers, student=student, objective=objective, whole=whole, sampler="sway", furthest=0.3, lowest=0.02,
        evaluations=4 if few else 0, guidance=(1.0, 3.0), factor=2.0,
        teacher_steps=1 if whole and objective == "trajectory" else 8 if objective == "rectified" else 2,
        coolest=min(float(numbers.get("temperature", 1.0)), 1.0), huber=objective == "consistency", real_share=0.25,
        strides=common.choose(size, smoke=(0.1, 0.05, 20), small=(0.1, 0.02, 3000), base=(0.1, 0.01, 30_000))))
    data = about.get("data", {})
    config.data.transform = data.get("transform", like.data.transform)
    config.data.sample_rate, config.data.hop = data.get("sample_rate", like.data.sample_rate), data.get("hop", like.data.hop)
    config.data.buckets = tuple(dict(bucket) for bucket in data.get("buckets", like.data.buckets))
    config.optim = like.optim
    config.train = like.train
    if not whole:  # whole students are trained as long as their teachers
        config.train.frozen = ("(?!params/(denoiser|score|guidance)/).*",)
        config.optim.peak = common.choose(size, smoke=1e-3, small=3e-4, base=1e-4) / (4 if few else 1)
        config.optim.warmup = common.choose(size, smoke=5, small=100, base=500)
        config.optim.schedule, config.optim.weight_decay = common.choose(size, smoke="constant", small="cosine", base="cosine"), 0.0
        config.train.steps = common.choose(size, smoke=20, small=3000 if few else 6000, base=10_000 if few else 60_000)
        config.train.save_every = common.choose(size, smoke=10, small=500, base=2000)
    for key, path in about.get("init_from", {}).items():
        if not (whole and key == "params"):
            config.init_from[key] = path
    return common.finish(config, overrides)
