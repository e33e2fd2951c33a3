"""VALL-E and VALL-E 2: text to speech in the voice of a prompt, by a language model of codec codes.

    python -m ns2_jax.train --config=configs/valle.py:small --config.data.path=runs/data/default \
        --config.init_from='{"rest/codec": "results/codec/model"}' --workdir=runs/valle

Sizes
    smoke  seconds on a laptop: for tests.
    small  7.5 M, float32, the codec's first 6 levels: 5,500 steps, meant for four hours on two CPU cores. Not trained yet.
    base   the paper's layout (AR 152 M, NAR 212 M), batch (16 x 6,000 frames), rate and steps (AdamW to 5e-4 in 32 K steps, then down
           linearly, 800 K steps). For a pod or 16 GPUs; not trained here.

Variants, as words in the argument:
    ar, nar  train one of the two models; the other waits as it is. `--config.init_from='{"rest/codec": "CODEC", "params/ar": "RUN"}'` of the
             second run takes the first one over.
    bpe      text in SentencePiece units (VALL-E 2) instead of phones: `--config.data.units=FILE`, the model that stage `tokenizer` of
             `data_pipelines.run` writes.

Overrides worth knowing: `group=2` (VALL-E 2's grouped codes; 1, 2, 4), `tail=clip` (its way with what does not fill a group), `prefix=false`
(text causal too), `tied=false`, `norms=table|projected`. `small` leaves the paper in `guide_weight`, `norms` and the codec's levels.
"""

from __future__ import annotations

import ml_collections

from configs import common
from configs.codec import codec_numbers

WORDS = ("ar", "nar", "bpe")


def model_numbers(size: str) -> dict:
    """The fields of `systems.valle.System` but the codec's."""
    if size == "base":
        stack = dict(layers=12, hidden=4096, heads=16, remat=True)
        return dict(levels=8, codec_levels=16, codes=1024, vocabulary=512, width=1024, dropout=0.1, norms="projected", guide_weight=0.0,
                    ar=stack, nar=stack)
    if size == "small":
        stack = dict(hidden=1024, heads=4)
        return dict(levels=6, codec_levels=16, codes=1024, vocabulary=128, width=256, dropout=0.1, norms="table", guide_weight=1.0,
                    ar=dict(layers=4, guided=1, unroll=4, **stack), nar=dict(layers=3, unroll=3, **stack))
    stack = dict(layers=2, hidden=48, heads=2)
    return dict(levels=3, codec_levels=4, codes=32, vocabulary=128, width=32, dropout=0.1, norms="table", guide_weight=1.0,
                ar=dict(guided=0, **stack), nar=stack)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, WORDS)
    config = common.defaults(system="valle", size=size)
    parts = tuple(word for word in ("ar", "nar") if word in words) or ("ar", "nar")
    config.model = ml_collections.ConfigDict(model_numbers(size) | {
        "codec": codec_numbers(size), "group": 1, "tail": "end", "prefix": True, "tied": True, "parts": parts, "prompt_weight": 1.0,
        "text": "phones", "temperature": 1.0, "top_p": 0.8, "frames_per_phone": 6.5})
    config.data.transform = "speaker_prefix"
    config.data.units = ""  # variant bpe: the SentencePiece model's file
    if "bpe" in words:
        config.model.update(text="bpe", guide_weight=0.0, vocabulary=512, frames_per_phone=16.0)
        config.data.transform = "prefix"
    config.data.buckets = common.choose(
        size,
        smoke=(dict(b=8, t=160, p=32, u=32),),
        small=(dict(b=8, t=256, p=56, u=240), dict(b=5, t=448, p=96, u=240), dict(b=3, t=800, p=160, u=400)),  # 3 s before short ones too
        base=(dict(b=256, t=400, p=100, u=240), dict(b=128, t=800, p=200, u=240), dict(b=64, t=1600, p=400, u=400)))
    config.train.micro_batches = common.choose(size, smoke=1, small=1, base=2)
    config.train.frozen = tuple(f"params/{part}/.*" for part in ("ar", "nar") if part not in parts)
    config.optim.peak = common.choose(size, smoke=2e-3, small=1e-3, base=5e-4)
    config.optim.warmup = common.choose(size, smoke=10, small=400, base=32_000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="linear")
    config.optim.b1, config.optim.b2 = 0.9, 0.95
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.01, base=0.01)
    config.train.steps = common.choose(size, smoke=60, small=5_500, base=800_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.999, base=0.9999)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=500, base=5000)
    return common.finish(config, overrides)
