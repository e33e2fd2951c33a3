"""The config of `run_toy`'s trainings."""

from __future__ import annotations

import ml_collections

from configs import common

ROWS = 16


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, _, overrides = common.parse(arg)
    config = common.defaults(system="toy", size="smoke")
    config.model.inputs, config.model.noise = 512, 0.1
    config.data.path, config.data.buckets = "toy", (dict(b=ROWS),)
    config.optim.peak, config.optim.warmup, config.optim.schedule = 0.01, 2, "constant"
    config.train.steps, config.train.log_every, config.train.save_every, config.train.ema = 14, 1, 3, 0.9
    return common.finish(config, overrides)
