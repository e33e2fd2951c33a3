"""LibriTTS and LibriTTS-R: 585 h of English, 2,456 speakers, 24 kHz (brought to `rate`).

    python -m data_pipelines.run --config=configs/data/libritts.py --config.root=LibriTTS --config.out=data/libritts \\
        --stages=ingest,normalise,phonemise,align,f0,quality,index,verify,stats

All subsets that are there, or `--config.layout.subsets="('train-clean-100','dev-clean')"`. Splits are the corpus's own.
"""

from __future__ import annotations

import ml_collections

from configs import common as arguments
from configs.data import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, _, overrides = arguments.parse(arg)
    config = common.defaults("libritts", dict(subsets=(), text="normalized"))
    config.split_by = "corpus"
    config.license = "CC BY 4.0"
    return common.finish(config, overrides)
