"""A data set of TensorFlow Datasets, prepared with `file_format="array_record"`; this is its LibriTTS.

    python -m data_pipelines.run --config=configs/data/tfds.py --config.root=tensorflow_datasets --config.out=data/libritts \\
        --stages=ingest,normalise,phonemise,align,f0,quality,index,verify,stats

Another one: `--config.layout.name=ljspeech --config.layout.columns="{'audio': 'speech', 'text': 'text_normalized'}"
--config.layout.splits="{'train': ''}"`. TensorFlow is not needed to read it.
"""

from __future__ import annotations

import ml_collections

from configs import common as arguments
from configs.data import common

SPLITS = {
    "train_clean100": "train", "train_clean360": "train", "train_other500": "train", "dev_clean": "valid", "dev_other": "valid",
    "test_clean": "test", "test_other": "test",
}  # fmt: skip
COLUMNS = {"audio": "speech", "text": "text_normalized", "id": "id", "speaker": "speaker_id", "book": "chapter_id"}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    _, _, overrides = arguments.parse(arg)
    options = dict(name="libritts", splits=SPLITS, columns=COLUMNS, speaker="speaker", lang="en", rate=0)
    config = common.defaults("tfds", options)
    config.split_by = "corpus"
    return common.finish(config, overrides)
