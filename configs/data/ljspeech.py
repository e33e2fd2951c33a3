"""LJSpeech 1.1: 13,100 utterances, 24 h, one speaker.

    python -m data_pipelines.run --config=configs/data/ljspeech.py --config.root=LJSpeech-1.1 --config.out=data/ljspeech \\
        --stages=ingest,normalise,phonemise,align,f0,quality,index,verify,stats

Every corpus of one speaker with `metadata.csv` and `wavs/` is read with it; `--config.layout.speaker=NAME` names who speaks.
"""

from __future__ import annotations

import ml_collections

from configs import common as arguments
from configs.data import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, _, overrides = arguments.parse(arg)
    config = common.defaults("ljspeech", dict(speaker="LJ"))
    config.split_by = "utterance"
    config.license = "public domain"
    return common.finish(config, overrides)
