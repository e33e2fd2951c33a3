"""A bare folder of recordings; the text of each is in a .txt or .lab beside it, or in one file of `id|text` lines.

    python -m data_pipelines.run --config=configs/data/folder.py --config.root=recordings --config.out=data/mine \\
        --stages=ingest,normalise,phonemise,align,f0,quality,index,verify,stats

The first folder below is the speaker. Without any text (for a codec): `--config=configs/data/folder.py:transcribed=False
--stages=ingest,f0,quality,index,verify,stats`.
"""

from __future__ import annotations

import ml_collections

from configs import common as arguments
from configs.data import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, _, overrides = arguments.parse(arg)
    config = common.defaults("folder", dict(transcripts="", speaker="", lang="en"))
    return common.finish(config, overrides)
