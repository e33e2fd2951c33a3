"""Semantic tokens: what is said, 25 a second, learned from recordings alone. First the encoder (BEST-RQ), then k-means on one of its layers.

    python -m ns2_jax.train --config=configs/semantic.py:small --config.data.path=runs/data/default --workdir=runs/semantic
    python -m ns2_jax.train --config=configs/semantic.py:small,kmeans --config.data.path=runs/data/default \
        --config.init_from='{"rest/encoder": "runs/semantic"}' --workdir=runs/tokens
    python -m data_pipelines.tokens --data=runs/data/default --tokenizer=runs/tokens

Sizes
    smoke  seconds on a laptop: for tests.
    small  3 M, 256 tokens: sized for an hour on two CPU cores, k-means ten minutes; not trained yet.
    base   the dialogue system's kind (SoundStorm, section 4.2): 24 layers of 1024/4096, k-means of 4,096 tokens on layer 13, for thousands of
           hours; not trained here.
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, ("kmeans",))
    config = common.defaults(system="semantic", size=size)
    config.model = common.choose(
        size,
        smoke=dict(network=dict(layers=2, width=32, inner=48, heads=2), targets=64, target_width=8, layer=1, tokens=16, mels=20),
        small=dict(network=dict(layers=4, width=224, inner=448, heads=4, expansion=1), targets=1024, target_width=16, layer=3, tokens=256,
                   mels=80),
        base=dict(network=dict(layers=24, width=1024, inner=4096, heads=16, remat=True), targets=8192, target_width=16, layer=13, tokens=4096, mels=80),
    )
    config.model.stage = "cluster" if words else "predict"
    config.model.rate, config.model.hop, config.model.codebook_decay = config.data.sample_rate, 640, 0.99
    config.data.hop = 640
    config.data.transform = "whole"
    config.data.buckets = common.choose(
        size,
        smoke=(dict(b=8, t=100),),
        small=(dict(b=24, t=64), dict(b=12, t=128), dict(b=6, t=256)),
        base=(dict(b=512, t=160), dict(b=256, t=320), dict(b=128, t=752)),
    )
    config.optim.peak = common.choose(size, smoke=2e-3, small=1e-3, base=4e-4)
    config.optim.warmup = common.choose(size, smoke=5, small=300, base=25_000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="inverse_sqrt")
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.01, base=0.01)
    config.train.steps = common.choose(size, smoke=60, small=8000, base=400_000)
    if words:
        config.optim.warmup, config.train.steps = 0, common.choose(size, smoke=60, small=1500, base=20_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.999, base=0.9999)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=500, base=5000)
    return common.finish(config, overrides)
