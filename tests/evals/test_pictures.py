"""Alignments, and what is drawn of them: places and widths in time, the durations' plot."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from ns2_jax.evals import pictures
from ns2_jax.text import phones

ALIGNED = {"phones": [["sil", 0.0, 0.25], ["dh", 0.25, 0.5], ["ah", 0.5, 1.0]], "words": [["<the>", 0.25, 1.0]]}


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    t = np.arange(int(16000 * seconds)) / 16000
    return sum(0.2 / k * np.sin(2 * np.pi * hz * k * t) for k in range(1, 6)).astype(np.float32)


def test_alignments_are_seconds_of_names():
    made = pictures.aligned(("sil", "dh", "ah"), np.array([4000, 8000, 16000]), 16000, (("<the>", 4000, 16000),))
    assert made == ALIGNED
    by_id = pictures.aligned(phones.ids(["sil", "dh", "ah"]), [4000, 8000, 16000], 16000)
    assert by_id == {"phones": ALIGNED["phones"]}
    pictures.check_alignment(made)
    for wrong in ({"phones": [["dh", 0.5, 0.25]]}, {"phones": [[3, 0, 1]]}, {"phones": [["dh", "x", 1]]}):
        with pytest.raises(ValueError):
            pictures.check_alignment(wrong)


def test_a_figure_has_its_parts_where_they_are_in_time():
    text = pictures.figure(tone(200), "synthesis", ALIGNED, longest=2.0)
    assert "width:50.00%" in text and f"min-width:{2 * pictures.WIDTH}px" in text  # one second of two
    cells = re.findall(r"left:([\d.]+)%;width:([\d.]+)%' title='([^']+)'", text)
    assert [(float(a), float(b), name) for a, b, name in cells] == [
        (0, 25, "sil, 250 ms"), (25, 25, "dh, 250 ms"), (50, 50, "ah, 500 ms"), (25, 75, "&lt;the&gt;, 750 ms")]
    assert "<b></b>" in text and "<b>dh</b>" in text and "<the>" not in text  # silence has no label
    assert "M250 0V100M500 0V100'" in text  # between phones, none at the end
    heights = [float(y) for y in re.findall(r"[ML]\d+ ([\d.]+)", text.split("class=f0")[1])]
    assert len(heights) > 50 and abs(np.median(heights) - pictures._height(200)) < 1  # the pitch lies on its line
    assert "class=phones" not in pictures.figure(tone(200), "synthesis") and "min-width:0px" in pictures.figure(tone(200), "x")


def test_a_spectrogram_is_a_pixel_a_frame_and_band_with_the_low_tones_below():
    image = np.asarray(Image.open(io.BytesIO(pictures.spectrogram(tone(200, 0.5)))))
    assert image.shape == (80, 40) and image[60:].mean() > 2 * image[:20].mean()


def test_durations_pair_the_same_phones_without_silences():
    other = {"phones": [["dh", 0.0, 0.1], ["sil", 0.1, 0.4], ["ah", 0.4, 0.8]]}
    assert pictures.durations(ALIGNED, other) == [pytest.approx((0.25, 0.1)), pytest.approx((0.5, 0.4))]
    assert pictures.durations(ALIGNED, {"phones": [["dh", 0.0, 0.1]]}) == []
    plot = pictures.scatter([(0.25, 0.1), (0.5, 0.4)], "a <b>")
    assert "a &lt;b&gt;" in plot and "500 ms" in plot
    (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", plot))
    assert (x2 - 44) == pytest.approx(2 * (x1 - 44), abs=0.2) and (210 - y2) == pytest.approx(4 * (210 - y1), abs=0.3)


def test_a_curve_has_its_interval_as_a_band_around_it():
    text = pictures.curve([(5, 20, 10, 30), (10, 40, 35, 50)], "a")
    band, line = ([tuple(map(float, point.split(","))) for point in re.search(rf"<{tag} points='([^']*)'", text)[1].split()]
                  for tag in ("polygon", "polyline"))
    assert [x for x, _ in band] == [50, 276, 276, 50] and [x for x, _ in line] == [50, 276]
    assert band[0][1] == 92 and band[2][1] == 8 and band[0][1] > line[0][1] > band[3][1] and band[1][1] > line[1][1] > band[2][1]
    assert ">10</text>" in text and ">50</text>" in text  # the axis holds the band
    assert "polygon" not in pictures.curve([(5, 20), (10, 40)], "a")
