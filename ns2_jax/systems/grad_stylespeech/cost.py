"""Analytic forward FLOPs of a training batch."""

from __future__ import annotations

from typing import Any

from ns2_jax.systems.system import Sizes


def transformer(numbers: Any, width: int, places: float, keys: float) -> float:
    """Multiply-adds of a `StyledTransformer` on so many places, each attending to so many keys (its norms not counted)."""
    hidden, kernel = numbers["hidden"], numbers.get("kernel", 9)
    return numbers["layers"] * places * (4 * width**2 + 2 * keys * width + (kernel + 1) * width * hidden)


def unet(score: Any, channels: int, frames: int, style: int) -> float:
    """Multiply-adds of `UNet` on one row."""
    width, multipliers = score.get("width", 64), score.get("multipliers", (1, 2, 4))
    channel = bool(score.get("style_channel"))
    coarse = 2 ** (len(multipliers) - 1)
    places = (frames + -frames % coarse) * channels
    widths = [width * times for times in multipliers]
    attention = lambda c: 4 * 128 * c + 2 * 128 * 32  # one-tap maps; keys by values and queries by those
    total, last = 8.0 * width**2 + style * width, 2 + channel
    total += channel * (4 * style * width + 4 * width * channels)

    def block(i: int, o: int, places: float) -> float:
        return places * (9 * i * o + 9 * o * o + (i != o) * i * o) + width * o

    for k, w in enumerate(widths):
        at = places / 4**k
        total += block(last, w, at) + block(w, w, at) + at * attention(w)
        total += at / 4 * 9 * w * w if k < len(widths) - 1 else 0
        last = w
    at = places / 4 ** (len(widths) - 1)
    total += 2 * block(last, last, at) + at * attention(last)
    for k in range(len(widths) - 1, 0, -1):
        at, w = places / 4**k, widths[k - 1]
        total += block(2 * widths[k], w, at) + block(w, w, at) + at * attention(w) + at * 16 * w * w
    return total + places * (9 * width**2 + width)


def frame_net(score: Any, channels: int, frames: int, style: int) -> float:
    """Multiply-adds of `FrameNet` on one row."""
    w, blocks = score.get("width", 256), score.get("blocks", 6)
    block = score.get("kernel", 7) * w + 2 * score.get("expansion", 3) * w**2
    return frames * (3 * channels * w + blocks * block) + 4 * w**2 + style * w + 2 * blocks * w**2


def forward(system: Any, sizes: Sizes) -> float:
    """2 per multiply-add of every matrix product and convolution of a training batch; mels and alignments not counted."""
    b, t, p, width, channels = sizes["b"], sizes["t"], sizes["p"], system.width, system.sizes["c"]
    u = t if system.own_style else sizes["u"]
    d, taps = system.style.get("width", 128), system.style.get("kernel", 5)
    macs = u * (channels * d + 2 * d * d + 4 * taps * d * d + 4 * d * d + 2 * u * d)  # style
    macs += p * 7 * width**2 + transformer(system.text, width, p, p)
    predictor = system.duration.get("width", 256)
    macs += p * (3 * width * predictor + 3 * predictor**2 + predictor) + 4 * d * predictor
    macs += p * t * width + t * width**2 + transformer(system.prior, width, t, t) + t * width * channels  # expansion, prenet, mu
    macs += system.styled_prior * system.prior["layers"] * 4 * d * width
    frames = min(system.crop or t, t)
    macs += {"unet": unet, "frames": frame_net}[system.score["kind"]](system.score, channels, frames, d)
    if system.aligner:
        net = system.networks["aligner"]
        block = net.kernel * net.width + 2 * net.expansion * net.width**2
        macs += t * (net.input_kernel * channels * net.width + net.blocks * block + net.width * net.channels)
        macs += p * (net.text_kernel * 2 * net.text_width**2 + 2 * net.text_width * net.channels) + t * p * net.channels
    return 2.0 * b * macs
