"""VCTK: 44 h of English in many accents, 110 speakers, 48 kHz (brought to `rate`).

    python -m data_pipelines.run --config=configs/data/vctk.py --config.root=VCTK-Corpus-0.92 --config.out=data/vctk \\
        --stages=ingest,normalise,phonemise,align,f0,quality,index,verify,stats

Release 0.92 has every sentence from two microphones; `--config.layout.microphones="('mic1','mic2')"` takes both.
"""

from __future__ import annotations

import ml_collections

from configs import common as arguments
from configs.data import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, _, overrides = arguments.parse(arg)
    config = common.defaults("vctk", dict(microphones=("mic1",)))
    config.license = "CC BY 4.0"
    config.valid, config.test = 50, 100  # of so few speakers a hundredth may be none
    return common.finish(config, overrides)
