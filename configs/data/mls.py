"""Multilingual LibriSpeech, one language (a word of the argument, default english): 44,660 h of English, 16 kHz.

    python -m data_pipelines.run --config=configs/data/mls.py:german --config.root=mls_german --config.out=data/mls_german \\
        --stages=ingest,normalise,phonemise,f0,quality,index,verify,stats

Splits are the corpus's own (dev is our valid), which share no speaker. `config.aligner` needs an aligner for other languages than English.
"""

from __future__ import annotations

import ml_collections

from configs import common as arguments
from configs.data import common

LANGUAGES = {
    "english": "en", "german": "de", "dutch": "nl", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt", "polish": "pl",
}  # fmt: skip


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, words, overrides = arguments.parse(arg, tuple(LANGUAGES))
    if len(words) > 1:
        raise ValueError(f"config argument {arg!r} names {len(words)} languages; one data set has one")
    config = common.defaults("mls", dict(lang=LANGUAGES[words[0] if words else "english"], subsets=("train", "dev", "test")))
    config.split_by = "corpus"
    config.license = "CC BY 4.0"
    config.per_shard = 5000
    return common.finish(config, overrides)
