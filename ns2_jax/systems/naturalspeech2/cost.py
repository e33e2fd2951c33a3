"""What NaturalSpeech 2 costs, counted by hand; a test holds it against the compiler's own count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ns2_jax.systems.system import Sizes


def forward(system: Any, sizes: Sizes) -> float:
    """FLOPs of one training batch, forward: 2 per multiply-add of every matrix product and convolution."""
    b, t, p, u, w, c = (float(x) for x in (*(sizes[a] for a in "btpu"), system.width, system.sizes["c"]))

    def attention(length: float, keys: float, width: float, from_width: float) -> float:
        return length * 2 * width**2 + keys * 2 * from_width * width + 2 * length * keys * width

    def encoder(numbers: Mapping[str, Any], length: float) -> float:
        hidden, kernel = numbers["hidden"], numbers.get("kernel", 9)
        return numbers["layers"] * (attention(length, length, w, w) + length * w * hidden * (kernel + 1))

    def predictor(net: Any, length: float) -> float:
        attended = net.layers // net.every * attention(length, u, net.width, w)
        change = length * w * net.width * (net.width != w)
        return change + net.layers * length * net.kernel * net.width**2 + attended + length * net.width * net.outputs

    nets = system.networks
    net = nets["denoiser"]
    d, f, keys = net.width, net.filters, net.queries or u
    film = 3 * d * d + 6 * d * f if net.film == "conv" else 2 * d * f
    block = t * (net.kernel * d * f + w * f + f * d) + d * d
    listening = attention(t, keys, d, d if net.queries else w) + t * film
    denoiser = net.blocks * block + net.blocks // len(net.dilations) * listening
    denoiser += t * (2 * c * d + d * d) + 2 * d * net.time_hidden
    denoiser += attention(net.queries, u, d, w) if net.queries else 0
    phones = encoder(system.phone_encoder, p) + system.prenet * p * 5 * w * w + p * t * w + 3 * t * w * system.phone_position
    prompt = encoder(system.prompt_encoder, u) + u * c * w
    voice = 0
    if system.pools:
        v = nets["voice"]
        voice = u * (c * v.hidden + v.blocks * v.kernel * v.hidden**2) + 2 * v.hidden * w
    phase = 2 * t * (c + 2 * t + system.phase_harmonics * w) if system.phase_harmonics else 0
    levels = system.ce_depth if system.ce_weight else 0
    macs = phones + prompt + voice + phase + predictor(nets["duration"], p) + predictor(nets["pitch"], t) + denoiser + levels * t * system.codes * c
    return 2.0 * b * macs
