"""A CSV or TSV file of recordings with a header.

    python -m data_pipelines.run --config=configs/data/manifest.py --config.root=recordings.tsv --config.out=data/mine \\
        --config.layout.columns="{'path': 'audio_filepath', 'text': 'sentence', 'speaker': 'client_id'}" \\
        --stages=ingest,normalise,phonemise,align,f0,quality,index,verify,stats

Only `path` is needed; `text`, `id`, `speaker`, `book`, `lang`, `start` and `end` (seconds), and `split` are taken where there are.
"""

from __future__ import annotations

import ml_collections

from configs import common as arguments
from configs.data import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, _, overrides = arguments.parse(arg)
    config = common.defaults("manifest", dict(columns={}, speaker="speaker", lang="en"))
    config.split_by = "corpus"
    return common.finish(config, overrides)
