"""Text to semantic tokens (SPEAR-TTS, SoundStorm's first stage): an encoder reads phones, a decoder writes the tokens of `configs/semantic.py`.

    python -m data_pipelines.tokens --data=runs/data/default --tokenizer=runs/tokens
    python -m ns2_jax.train --config=configs/text_to_semantic.py:small --config.data.path=runs/data/default --workdir=runs/text
    python -m ns2_jax.synthesize --model=runs/soundstorm,runs/tokens,runs/text --text="Good morning." --prompt=voice.wav --out=out.wav

`runs/soundstorm` is `configs/soundstorm.py:small,semantic`, trained on the same tokens.

Sizes
    smoke  seconds on a laptop: for tests.
    small  4 M, float32: 8,000 steps, sized for an hour or two on two CPU cores; not trained yet.
    base   the layout of SoundStorm's ByT5-large (36 layers of encoder, 12 of decoder, 1536/3840 gated, 16 heads of 64; 1.23 B) and the tokens
           of `configs/semantic.py:base` (SoundStorm then wants `semantic=4096`). The paper gives no batch and no rate, these are ours, and its
           encoder had read text before. For a pod; not trained here.

Variants, as words in the argument:
    bpe    text in SentencePiece units instead of phones: `--config.data.units=FILE`, the model that stage `tokenizer` of `data_pipelines.run`
           writes.
"""

from __future__ import annotations

import ml_collections

from configs import common

WORDS = ("bpe",)


def model_numbers(size: str) -> dict:
    """The fields of `systems.text_to_semantic.System` that a size decides."""
    if size == "base":
        stack = dict(hidden=3840, heads=16, inner=1024, gated=True, remat=True)
        return dict(tokens=4096, vocabulary=512, width=1536, encoder=dict(layers=36, **stack), decoder=dict(layers=12, **stack))
    if size == "small":
        stack = dict(hidden=768, heads=4, unroll=2)
        return dict(tokens=256, vocabulary=128, width=192, encoder=dict(layers=4, **stack), decoder=dict(layers=4, **stack))
    stack = dict(hidden=48, heads=2)
    return dict(tokens=16, vocabulary=128, width=32, encoder=dict(layers=1, inner=16, gated=True, **stack), decoder=dict(layers=2, **stack))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, WORDS)
    config = common.defaults(system="text_to_semantic", size=size)
    config.model = ml_collections.ConfigDict(model_numbers(size) | {
        "text": "phones", "dropout": 0.1, "tied": True, "rate": config.data.sample_rate, "hop": 640, "temperature": 0.9, "top_k": 125,
        "frames_per_phone": 2.0})
    config.data.hop = 640
    config.data.tokenizer = ""  # whose semantic tokens, 12 hex digits; "" means the only ones there
    config.data.units = ""  # variant bpe: the SentencePiece model's file
    if "bpe" in words:
        config.model.update(text="bpe", vocabulary=512, frames_per_phone=5.0)
    config.data.transform = "whole"
    config.data.buckets = common.choose(  # as long as those of configs/soundstorm.py; u is the longest prompt, 3 s
        size,
        smoke=(dict(b=8, t=40, p=32, u=10),),
        small=(dict(b=32, t=65, p=40, u=75), dict(b=20, t=100, p=64, u=75), dict(b=12, t=160, p=104, u=75), dict(b=8, t=255, p=168, u=75),
               dict(b=4, t=395, p=224, u=75)),
        base=(dict(b=512, t=160, p=128, u=75), dict(b=320, t=256, p=192, u=75), dict(b=160, t=504, p=400, u=75),
              dict(b=96, t=752, p=600, u=75)))
    config.optim.peak = common.choose(size, smoke=2e-3, small=1e-3, base=3e-4)
    config.optim.warmup = common.choose(size, smoke=10, small=400, base=10_000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="cosine")
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.01, base=0.01)
    config.train.steps = common.choose(size, smoke=60, small=8000, base=200_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.999, base=0.9999)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=500, base=5000)
    return common.finish(config, overrides)
