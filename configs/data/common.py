"""Every default of a corpus config once. A file is one `get_config(arg)`: `defaults(layout, options)`, its own numbers, `finish`.

The argument is `key=value` overrides, and for MLS the language: `configs/data/mls.py:german,valid=5`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import common


def defaults(corpus: str, options: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The whole config with every default; `options` are the arguments of the layout `corpus` (data_pipelines/corpora.py)."""
    config = ml_collections.ConfigDict()
    config.corpus = corpus
    config.root = ""  # where the corpus is
    config.out = ""  # the data set to make
    config.layout = ml_collections.ConfigDict(dict(options))

    # What these say is fixed when the data set is begun.
    config.rate = 16000  # Hz
    config.min_seconds = 0.5
    config.max_seconds = 30.0
    config.trim = 0.0  # dB below the loudest 20 ms: quieter ends are cut but for 50 ms; 40 is usual, 0 cuts nothing
    config.split_seconds = 0.0  # recordings without text or times of their own that are longer are cut at their pauses; 0 cuts none
    config.level = True  # bring every recording to one loudness, that of prompts at synthesis
    config.transcribed = True  # False: recordings without text are welcome
    config.split_by = "speaker"  # what decides on the split: speaker | utterance (one speaker) | corpus (its own, else speaker)
    config.valid = 10  # thousandths of the speakers (utterances)
    config.test = 10
    config.per_shard = 1000  # utterances

    config.max_rejects = 0.05  # share of the utterances, by reason, beyond which ingest or align ends with an error
    config.license = ""  # of the corpus, for its datasheet

    # What these say can be changed: the groups made with it are made again, and nothing else.
    config.lexicon = ""  # a file of `word  PH OW1 N Z` lines
    config.aligner = "pocketsphinx"  # or the run or export of an aligner; a folder of TextGrids; "" for provisional times to train one on
    config.codec = ""  # the run or export whose codes are written
    config.semantic = ""  # the run or export of a tokenizer whose semantic tokens are written
    config.pack = False  # ten bits a code instead of sixteen, for codebooks of at most 1024 entries
    config.batch_seconds = 60.0  # audio at once, of the stages that use an accelerator
    config.tokenizer = ml_collections.ConfigDict(dict(size=512, kind="unigram"))
    return config


def finish(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> ml_collections.ConfigDict:
    """Applies overrides and locks the config. Raises ValueError as `configs.common.finish`."""
    common.override(config, overrides)
    return config.lock()
