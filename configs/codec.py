"""The neural audio codec of NaturalSpeech 2: 16 kHz, 80 frames/s, 16 levels x 1024 codes.

    python -m ns2_jax.train --config=configs/codec.py:small --config.data.path=runs/data/default --workdir=runs/codec

Sizes
    smoke  seconds on a laptop: for tests.
    small  5.4 M in the networks, everything at frame rate: two hours on one to two CPU cores give PESQ-WB 3.72 on unseen
           sentences, 22 minutes more with `refine` and half an hour of `decoder` 4.02. The first 6 levels are what text and voice
           predict, the others add the waveform below 1.28 kHz. Export, commands and scores are in results/codec/README.md.
    base   the paper's convolutional layout, 27.0 M with its codebooks (widths ours, the count the paper's), batch and steps of the
           paper (8 x 200 clips, 440 K steps, Adam 2e-4). For a pod or several GPUs; not trained here.

Variants, as words in the argument:
    modern  factorised codes of 8 channels and DAC's discriminators (periods, multi-band complex STFT) instead of the paper's
            Euclidean codebooks; `base,modern` has 27.3 M with its codes.
    causal  convolutions that look back only, for streaming; `small` keeps the look-ahead of its transforms (2 frames to encode
            and 4 to decode, 75 ms).
    decoder trains the decoder alone, from a run's networks and codebooks, which stay: its codes are the run's, though a data set must be encoded
            again, as they are filed under the whole codec's name. It hears coarse latents more often (`quantiser_dropout`), and as smooth as
            a model predicts them (`blur`): what is spoken through it is clearer.

Overrides: `hop=320,levels=12` gives base strides 2-4-5-8 and the 50 Hz codec that SoundStorm's base stands on.
`--config.model.refine=4` lets the last four levels of `small` go on with the coarse channels (why: results/codec/README.md).
`--config.model.balance=True` turns on EnCodec's balance of the losses' gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_collections

from configs import common

STRIDES = {200: (2, 4, 5, 5), 320: (2, 4, 5, 8)}


def codec_numbers(size: str, hop: int = 200, words: tuple[str, ...] = ()) -> dict:
    """The fields of `layers.codec.Codec` for a size: what every system that decodes with this codec must be told."""
    if hop not in STRIDES:
        raise ValueError(f"config argument hop={hop}: the codec's strides are written down for hops {sorted(STRIDES)}")
    modern = "modern" in words
    common_numbers = dict(rate=16000, hop=hop, causal="causal" in words, code_width=8 if modern else 0)
    if size == "base":
        return common_numbers | dict(kind="conv", channels=256, width=32, decoder_width=1152 if modern else 1024, strides=STRIDES[hop])
    frame = common_numbers | dict(kind="frame", size=4 * hop, mels=80)
    if size == "small":
        return frame | dict(channels=76, cepstrum=40, wave=32, coarse=0 if modern else 6, width=256, blocks=(4, 8))
    return frame | dict(channels=16, cepstrum=8, wave=4, coarse=0 if modern else 2, width=32, blocks=(1, 1), mels=40)


DAC_SCALES = tuple((32 * 2**i, 5 * 2**i) for i in range(7))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, ("modern", "causal", "decoder"))
    config = common.defaults(system="codec", size=size)
    hop = int(overrides.pop("hop", 200))
    config.model = common.choose(
        size,
        smoke=dict(
            levels=4, codes=32, mel_scales=((256, 20), (512, 40)), judge="1d", judge_sizes=(256, 512), judge_filters=16,
            adversarial_from=10, commitment_weight=1.0, complex_weight=1.0),
        small=dict(
            levels=16, codes=1024, mel_scales=((256, 20), (512, 40), (1024, 80), (2048, 128)), judge="1d",
            judge_sizes=(512, 1024), judge_filters=192, adversarial_from=8_500, commitment_weight=1.0, complex_weight=4.0,
            adversarial_weight=0.5, feature_weight=1.0),
        base=dict(
            levels=16, codes=1024, mel_scales=((128, 10), (256, 20), (512, 40), (1024, 80), (2048, 128)), judge="2d",
            judge_sizes=(2048, 1024, 512, 256, 128), judge_filters=32, adversarial_from=5000, commitment_weight=0.25, complex_weight=0.0),
    )
    config.model.balance, config.model.refine = False, 0
    if "modern" in words:
        config.model.judge, config.model.commitment_weight = "dac", 0.25
        config.model.judge_filters = common.choose(size, smoke=8, small=8, base=32)
        config.model.judge_sizes = common.choose(size, smoke=(256,), small=(1024, 512), base=(2048, 1024, 512))
        if size == "base":
            config.model.mel_scales = DAC_SCALES
    config.model.codec = codec_numbers(size, hop, words)
    config.data.transform = "crop"
    config.data.hop = hop
    config.data.gain_db = common.choose(size, smoke=0.0, small=3.0, base=3.0)
    config.data.buckets = common.choose(size, smoke=(dict(b=8, t=32),), small=(dict(b=12, t=64),), base=(dict(b=1600, t=40),))
    config.optim.peak = common.choose(size, smoke=2e-3, small=7e-4, base=2e-4)
    config.optim.warmup = common.choose(size, smoke=10, small=100, base=1000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="constant")
    config.optim.b1, config.optim.b2 = 0.8, 0.99
    config.optim.clip = 10.0
    config.optim.by_key = {"disc": {"peak": common.choose(size, smoke=1e-3, small=4e-4, base=2e-4)}}
    config.train.steps = common.choose(size, smoke=60, small=17_000, base=440_000)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=1000, base=5000)
    if "decoder" in words:
        config.train.frozen = ("params/gen/(encoder|quantiser)/.*",)
        config.model.codebook_decay, config.model.adversarial_from = 1.0, 0
        config.model.blur, config.model.quantiser_dropout = 3.0 if config.model.codec.get("coarse") else 0.0, 0.75
        config.optim.peak, config.optim.by_key.disc.peak = (common.choose(size, smoke=2e-3, small=3e-4, base=1e-4),) * 2
        config.train.steps = common.choose(size, smoke=60, small=3000, base=40_000)
    return common.finish(config, overrides)


def get_hyper() -> Iterator[dict[str, Any]]:
    """Learning rates around the paper's, for launch/sweep.py."""
    for peak in (1e-4, 2e-4, 4e-4):
        yield {"optim.peak": peak}
