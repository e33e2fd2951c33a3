"""A Kaldi data folder: wav.scp, text, utt2spk, and segments and utt2lang where there are.

    python -m data_pipelines.run --config=configs/data/kaldi.py --config.root=data/train_clean_100 --config.out=data/clean_100 \\
        --stages=ingest,normalise,phonemise,align,f0,quality,index,verify,stats

`:lower=True` for transcripts in capitals (LibriSpeech's), which would be read as abbreviations.
"""

from __future__ import annotations

import ml_collections

from configs import common as arguments
from configs.data import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, _, overrides = arguments.parse(arg)
    config = common.defaults("kaldi", dict(lang="en", lower=False))
    return common.finish(config, overrides)
