"""What WaveGrad 2 costs, counted by hand; a test holds it against the compiler's own count."""

from __future__ import annotations

from typing import Any

from ns2_jax.systems.system import Sizes


def forward(system: Any, sizes: Sizes) -> float:
    """FLOPs of one training batch, forward: 2 per multiply-add of every matrix product and convolution. Spectra and what `fold` multiplies
    with zeros are not counted."""
    b, t, p, u, w = (float(x) for x in (*(sizes[a] for a in "btpu"), system.width))
    nets, size = system.networks, float(system.window_of(int(sizes["t"])))

    def lstm(length: float, source: float, width: float) -> float:
        return length * 2 * 4 * width * (source + width)

    text, voice, predictor = nets["encoder"], nets["voice"], nets["duration"]
    phones = p * text.convs * text.kernel * w * w + lstm(p, w, w / 2)
    for source in (w, w + 1):
        phones += sum(lstm(p, 2 * predictor.width if i else source, predictor.width) for i in range(predictor.layers))
    said = u * (system.mels * voice.hidden + voice.blocks * voice.kernel * voice.hidden**2) + (2 * voice.hidden + w) * voice.width
    frames = size * p * w + 3 * size * w * system.phone_position
    if system.mel_weight:
        frames += size * (5 * w * w + w * system.mels)
    net = nets["decoder"]
    films = sum((net.first, *net.down)) * voice.width
    return 2.0 * b * (phones + said + frames + size * net.macs(system.width) + films)
