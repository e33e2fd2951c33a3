"""An aligner learned from recordings and their phones: 16 kHz, 80 frames/s.

    python -m ns2_jax.train --config=configs/aligner.py:small --config.data.path=runs/data/default --workdir=runs/aligner

A data set of your own gets its phones first, and their times afterwards: `python -m data_pipelines.learned_align`, which see.

Sizes
    smoke  seconds on a laptop: for tests.
    small  0.38 M parameters, 300 steps of about 50 s of speech: four minutes on two CPU cores that others use too; in results/aligner.
           Boundaries against the exact ones of the default corpus: unseen speakers and sentences (split test) median error 7.6 ms, 90 %
           within 20 ms, 99.7 % within 50 ms; a voice never heard (split heldout) 7.2 ms, 91 %, 99.7 %. Trained on phones of the
           texts instead (`learned_align` without times), over the utterances that speak them so: 7.9 ms, 90 %, 99.5 % and 7.3 ms, 90 %,
           99.3 %. Twelve hours are aligned in five minutes.
    base   for thousands of hours on an accelerator; not trained here.
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, _, overrides = common.parse(arg)
    config = common.defaults(system="aligner", size=size)
    config.model = common.choose(
        size,
        smoke=dict(network=dict(width=32, blocks=1, text_width=16, channels=16), mels=20, binarise_from=30),
        small=dict(network=dict(width=192, blocks=2, text_width=96, channels=64), mels=40, binarise_from=150),
        base=dict(network=dict(width=512, blocks=4, text_width=256, channels=128), mels=80, size=800, binarise_from=6000),
    )
    config.model.rate, config.model.hop, config.model.prior = config.data.sample_rate, config.data.hop, 1.0
    config.data.transform = "whole"
    config.data.buckets = common.choose(
        size,
        smoke=(dict(b=8, t=320, p=64),),
        small=(dict(b=14, t=304, p=56), dict(b=6, t=672, p=112), dict(b=3, t=1600, p=240)),
        base=(dict(b=256, t=320, p=80), dict(b=128, t=640, p=160), dict(b=64, t=1280, p=320), dict(b=32, t=2560, p=640)),
    )
    config.data.gain_db = common.choose(size, smoke=0.0, small=6.0, base=6.0)
    config.optim.peak = common.choose(size, smoke=3e-3, small=2e-3, base=5e-4)
    config.optim.warmup = common.choose(size, smoke=5, small=30, base=2000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="cosine")
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.01, base=0.01)
    config.train.steps = common.choose(size, smoke=60, small=300, base=100_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.97, base=0.999)
    config.train.log_every = common.choose(size, smoke=5, small=25, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=50, base=5000)
    return common.finish(config, overrides)
