"""WaveGrad 2: phones straight to waveform, by denoising it, in the voice of a prompt.

    python -m ns2_jax.train --config=configs/wavegrad2.py:small --config.data.path=runs/data/default --workdir=runs/wavegrad2
    python -m ns2_jax.evaluate --workdir=runs/wavegrad2 --evals=schedule_search     then: the schedules of few steps
    python -m ns2_jax.evaluate --model=runs/wavegrad2 --evals=window_mismatch --out=DIR     how a window differs from the whole
    python -m ns2_jax.evaluate --model=runs/wavegrad2 --by_steps=6,12,25,50,1000 --true_times --limit=20 --out=steps \
        --evals=word_error,speaker_similarity,codec_quality,spectral_distance     words, voice, PESQ and real-time factor by steps
    python -m ns2_jax.evaluate table steps --out=steps.md

Sizes
    smoke  seconds on a laptop: for tests.
    small  16 kHz, 4.5 M, float32, ten samples folded into channels: 106 to 123 GFLOP a step (16 windows of 0.8 s), by the bucket. At
           the 110 GFLOP/s at which the models in results/ trained on two CPU cores that is a second: three and a half hours for 12,000
           steps. Not trained yet.
    base   24 kHz in the layout of the paper as public sources have it: encoder of 1024 channels (22.0 M), two predictors of
           2 x 512 (12.6 M each), WaveGrad's Base decoder (15.8 M, and 2.2 M for 1024 channels instead of 80 mel bins). Batch
           256 windows of 64 frames, WaveGrad's 1 M steps. For a pod or 16 GPUs; not trained here.

Variant, as a word in the argument:
    large   two upsampling blocks at each scale (WaveGrad Large).

Overrides worth knowing: `window=256` (3.2 s; the paper's better one), `width=2048`, `mel_weight=1`, `mask_count=2`, `fold=1` (the plain
form of the narrow layers), and for `small` the way back to the paper: `emphasis=0,gain=1,phone_position=false`.
"""

from __future__ import annotations

import ml_collections

from configs import common


def model_numbers(size: str) -> dict:
    """The fields of `systems.wavegrad2.System`."""
    if size == "base":
        return dict(
            width=1024, rate=24000, hop=300, window=64, mels=128, mel_size=1200, phone_position=False, mel_weight=0.0, emphasis=0.0, gain=1.0,
            encoder=dict(convs=3, kernel=5, dropout=0.5, zoneout=0.1), predictor=dict(layers=2, width=512),
            voice=dict(width=256, hidden=512, blocks=3),
            decoder=dict(
                up=(5, 5, 3, 2, 2), widths=(512, 512, 256, 128, 128), down=(128, 128, 256, 512), first=32, input=768,
                dilations=((1, 2, 4, 8),) * 3 + ((1, 2, 1, 2),) * 2, repeats=1, patch=1, fold=4, time_scale=5000.0, remat=True))
    if size == "small":
        return dict(
            width=256, rate=16000, hop=200, window=64, mels=80, mel_size=800, phone_position=True, mel_weight=1.0, emphasis=0.9, gain=4.0,
            encoder=dict(convs=3, kernel=5, dropout=0.2, zoneout=0.1), predictor=dict(layers=1, width=64),
            voice=dict(width=128, hidden=128, blocks=2),
            decoder=dict(
                up=(5, 4), widths=(192, 96), down=(192,), first=96, input=192, dilations=((1, 2, 4, 8), (1, 2, 4, 8)), repeats=2, patch=10,
                fold=1, time_scale=5000.0, remat=False))
    return dict(
        width=32, rate=16000, hop=200, window=16, mels=20, mel_size=400, phone_position=True, mel_weight=1.0, emphasis=0.9, gain=4.0,
        encoder=dict(convs=1, kernel=3, dropout=0.1, zoneout=0.1), predictor=dict(layers=1, width=16), voice=dict(width=16, hidden=24, blocks=1),
        decoder=dict(
            up=(5, 2), widths=(32, 24), down=(32,), first=16, input=32, dilations=((1, 2, 1, 2), (1, 2, 1, 2)), repeats=1, patch=20, fold=2,
            time_scale=5000.0, remat=False))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, ("large",))
    config = common.defaults(system="wavegrad2", size=size)
    config.model = ml_collections.ConfigDict(model_numbers(size) | {
        "betas": (1e-6, 0.01, 1000), "schedules": (), "most_signal": 0.3, "cleanest": 5.0, "steps": common.choose(size, smoke=4, small=25, base=50),
        "clamp": 1.0, "duration_weight": 1.0, "mask_count": 0, "mask_frames": 8, "mask_channels": 32, "temperature": 1.0,
        "drop_prompt": 0.1, "drop_text": 0.1})
    if "large" in words:
        config.model.decoder.repeats *= 2
    config.data.transform = "speaker_prompt"
    config.data.sample_rate, config.data.hop = config.model.rate, config.model.hop
    config.data.buckets = common.choose(
        size,
        smoke=(dict(b=8, t=64, p=24, u=32),),
        small=(dict(b=16, t=256, p=56, u=320), dict(b=16, t=448, p=96, u=320), dict(b=16, t=1600, p=240, u=320)),
        base=(dict(b=256, t=400, p=96, u=240), dict(b=256, t=800, p=192, u=240), dict(b=256, t=1600, p=384, u=240)))
    config.optim.peak = common.choose(size, smoke=2e-3, small=1e-3, base=2e-4)
    config.optim.warmup = common.choose(size, smoke=10, small=500, base=5000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="cosine")
    config.optim.b2 = 0.999
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.01, base=0.01)
    config.train.steps = common.choose(size, smoke=60, small=12_000, base=1_000_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.999, base=0.9999)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=1000, base=5000)
    return common.finish(config, overrides)
