"""A vocoder, mel spectrogram to waveform: what Grad-StyleSpeech speaks through.

    python -m ns2_jax.train --config=configs/vocoder.py:small --config.data.path=runs/data/default --workdir=runs/vocoder
    python -m ns2_jax.evaluate --model=runs/vocoder --data=runs/data/default --evals=codec_quality,spectral_distance --out=runs/vocoder-scores

`evaluate` scores copy synthesis: the mel of a recording back to audio, beside the recording (its lines say `codec`). `python -m ns2_jax.bench sample
--config=configs/vocoder.py:small` says how much faster than real time it is on this machine.

Sizes
    smoke  seconds on a laptop: for tests.
    small  16 kHz, hop 200, 3.6 M at frame rate with an inverse STFT at the end, for two CPU cores. results/vocoder has one of
           6,000 steps.
    base   HiFi-GAN V1 (13.9 M), 22.05 kHz, hop 256, mel to 8 kHz, with its losses, rates and decays (batch 16 clips of 8,192 samples, AdamW
           2e-4 with b1 0.8; the paper lowers the rate by 0.999 an epoch, we along a cosine). Wants a data set made at 22.05 kHz. Not trained here.

Variant `hifigan`: HiFi-GAN's generator and judges at the rate and hop of `smoke` and `small` (strides 5-5-4-2, a quarter of its width), the
judges from the first step on as in the paper. The losses keep `small`'s weights, 15 : 0.3 : 0.6 for the paper's 45 : 1 : 2, and its mels at four
resolutions. One core of a slow CPU decodes 20 s with it in a second, and 120 s with `small`; what an hour and a half of training gave is in
results/vocoder.
"""

from __future__ import annotations

import ml_collections

from configs import common


def vocoder_numbers(size: str, words: tuple[str, ...] = ()) -> dict:
    """The fields of `layers.vocoder.Vocoder` for a size: what every system that speaks through this vocoder must be told."""
    if size == "base":
        return dict(kind="hifigan", rate=22050, hop=256, size=1024, mels=80, fmax=8000.0, floor=1e-5, width=512, strides=(8, 8, 2, 2),
                    kernels=(3, 7, 11), dilations=(1, 3, 5))
    mel = dict(rate=16000, hop=200, size=800, mels=80 if size == "small" else 20, fmax=0.0, floor=1e-5)
    if "hifigan" in words:
        small = dict(width=128, kernels=(3, 7, 11), dilations=(1, 3, 5)) if size == "small" else dict(width=16, kernels=(3, 5), dilations=(1, 2))
        return mel | dict(kind="hifigan", strides=(5, 5, 4, 2)) | small
    return mel | dict(kind="istft") | (dict(width=256, blocks=8) if size == "small" else dict(width=32, blocks=1))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, ("hifigan",))
    common.check_needed(arg, words, ("hifigan",) if size == "base" else ())
    config = common.defaults(system="vocoder", size=size)
    config.model = common.choose(
        size,
        smoke=dict(mel_scales=((256, 20), (800, 20)), judge="1d", judge_sizes=(256,), judge_filters=16, mel_weight=15.0, adversarial_from=10),
        small=dict(mel_scales=((256, 20), (512, 40), (800, 80), (2048, 128)), judge="1d", judge_sizes=(256, 512, 1024), judge_filters=192,
                   mel_weight=15.0, adversarial_from=5000, adversarial_weight=0.3, feature_weight=0.6),
        base=dict(mel_scales=((1024, 80),), judge="hifigan", judge_sizes=(1, 2, 4), judge_filters=32, mel_weight=45.0, adversarial_from=0),
    )
    if "hifigan" in words and size != "base":
        config.model.judge, config.model.judge_sizes, config.model.judge_filters = "hifigan", (1, 2, 4), common.choose(size, smoke=2, small=8)
        config.model.adversarial_from = common.choose(size, smoke=10, small=0)
    config.model.vocoder = vocoder_numbers(size, words)
    config.data.transform = "crop"
    config.data.sample_rate, config.data.hop = config.model.vocoder.rate, config.model.vocoder.hop
    config.data.gain_db = common.choose(size, smoke=0.0, small=3.0, base=0.0)
    config.data.buckets = common.choose(size, smoke=(dict(b=8, t=32),), small=(dict(b=12, t=64),), base=(dict(b=16, t=32),))
    config.optim.peak = common.choose(size, smoke=2e-3, small=7e-4, base=2e-4)
    config.optim.warmup = common.choose(size, smoke=10, small=100, base=1000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="cosine")
    config.optim.b1, config.optim.b2 = 0.8, 0.99
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.0, base=0.01)
    config.optim.clip = common.choose(size, smoke=10.0, small=10.0, base=0.0)
    config.optim.by_key = {"disc": {"peak": common.choose(size, smoke=1e-3, small=3e-4, base=2e-4)}}
    config.train.steps = common.choose(size, smoke=60, small=20_000, base=2_500_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.999, base=0.999)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=1000, base=5000)
    return common.finish(config, overrides)
