"""Codecs over their rates: rows in order, columns by fingerprint, paired differences, the picture, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from commands import refused, run
from PIL import Image

from ns2_jax.evals import rate_distortion, scores, statistics

RATES = {"codec": 12.8, "codec_4": 3.2, "codec_8": 6.4, "opus_12.8": 12.75}


def write(folder, count: int = 100, errors=(1, 2, 3, 4, 5), items: str = "abc", conditions=tuple(RATES)):
    """Each item has 10 words; PESQ is 3, 2, 2.5 and 3.5 in the order of RATES, and a tenth of the items is one better."""
    everywhere = dict(zip(("recording", *RATES), errors))
    quality = {c: [value + (k % 10 == 0) for k in range(count)] for c, value in zip(RATES, (3.0, 2.0, 2.5, 3.5))}
    rows = [{"id": f"u{k}", "text": "x", "speaker": "ann", "word_error": {c: {"heard": "x", "errors": n, "words": 10} for c, n in everywhere.items()},
             "codec_quality": {c: {"pesq": values[k], "stoi": 0.9, "si_sdr": 1.0} for c, values in quality.items()}} for k in range(count)]
    about = {"averaging": "mean", "items": items, "data": "f" * 64}
    lines = [statistics.score("wer_recording", [100.0 * everywhere["recording"]] * count, [10.0] * count, unit="%", evaluator="judge 1", **about)]
    for c in conditions:
        made = {"encoder": "libopus 9", "kbps_with_ogg": 14.9} if c.startswith("opus") else {"model": "abcd"}
        rate = {"kbps": RATES[c]}
        lines += [statistics.score(f"wer_{c}", [100.0 * everywhere[c]] * count, [10.0] * count, unit="%", evaluator="judge 1", **about, **made) | rate,
                  statistics.score(f"pesq_{c}", quality[c], unit="MOS-LQO", evaluator="pesq 0 wideband", **about, **made) | rate]
    lines.append(statistics.score("pesq_codec_unquantised", [3.1] * count, unit="MOS-LQO", evaluator="pesq 0 wideband", **about, model="abcd"))
    lines.append(statistics.score("predictability_quantised", [0.2, 0.4], unit="share", evaluator="table of means", **about))
    lines.append(statistics.score("predictability_power_quantised", [0.6], unit="share", evaluator="table of means", **about))
    scores.write(folder, lines, rows)
    return folder


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| run |")]


def test_rows_go_up_the_rates_and_carry_the_difference_to_the_recordings(tmp_path):
    text, _, skipped = rate_distortion.table([write(tmp_path / "run")], tmp_path / "out")
    rows = rows_of(text)
    assert not skipped and [row.split(" | ")[1:3] for row in rows[:6]] == [
        ["4 levels", "3.20"], ["8 levels", "6.40"], ["all levels", "12.80"], ["opus", "12.75"], ["not quantised", ""], ["recording", ""]]
    assert "| PESQ-WB <sup>1</sup> | word error % <sup>2</sup> |" in text
    assert rows[0].split(" | ")[3].startswith("2.10<br><sub>2.0") and rows[0].endswith("| 30.0<br><sub>30.0 to 30.0</sub> | +20.0<br><sub>+20.0 to +20.0</sub> |")
    assert rows[2].endswith("| +10.0<br><sub>+10.0 to +10.0</sub> |") and rows[5].endswith("| 10.0<br><sub>10.0 to 10.0</sub> |  |")
    assert "* run, opus at 12.75 kbit/s, 14.90 with its container: libopus 9" in text and "* run, ours: abcd" in text
    assert "1. PESQ-WB: 100 utterances; evaluator pesq 0 wideband; averaging mean; data fff" in text
    assert rows[6] == "| run | latents, quantised | 0.300<br><sub>0.200 to 0.400</sub> | 0.600<br><sub>0.600 to 0.600</sub> |"


def test_ours_against_the_other_at_the_same_rate_with_a_verdict_from_a_hundred_on(tmp_path):
    text, *_ = rate_distortion.table([write(tmp_path / "run")], tmp_path / "out")
    assert "* all levels (12.8 kbit/s) minus opus (12.8 kbit/s): -0.50 PESQ-WB (-0.50 to -0.50), 100 utterances, worse" in text
    assert "minus opus (12.8 kbit/s): -30.0 points of word error (-30.0 to -30.0), 100 utterances, better" in text
    text, *_ = rate_distortion.table([write(tmp_path / "run", 99)], tmp_path / "out")
    assert "99 utterances (under 100: no verdict)" in text and "+10.0 to +10.0, only 99 utterances</sub>" in text and "worse" not in text
    text, *_ = rate_distortion.table([write(tmp_path / "run", conditions=("codec_4", "opus_12.8"))], tmp_path / "out")
    assert "No other codec has been scored within 10 % of a rate of ours." in text


def test_what_was_measured_otherwise_has_a_column_of_its_own(tmp_path):
    text, *_ = rate_distortion.table([write(tmp_path / "run"), write(tmp_path / "other", items="abd")], tmp_path / "out")
    assert "| PESQ-WB <sup>1</sup> | PESQ-WB <sup>2</sup> | word error % <sup>3</sup> | word error % <sup>4</sup> |" in text
    assert "1. PESQ-WB: Not to be compared with column 2." in text
    (row,) = [row for row in rows_of(text) if "| 4 levels |" in row]
    assert row.split(" | ")[4] == ""


def test_the_command_writes_a_table_and_a_picture(tmp_path):
    write(tmp_path / "run")
    code, out, err = run("ns2_jax.evaluate", "rate", f"{tmp_path}/run", f"{tmp_path}/nothing", f"--out={tmp_path}/out")
    assert code == 0 and "nothing: no scores.jsonl in it" in out, err
    assert "![the scores over kbit/s](rates.png)" in (tmp_path / "out" / "rates.md").read_text()
    picture = np.asarray(Image.open(tmp_path / "out" / "rates.png").convert("RGB"))
    assert picture.shape[1] > picture.shape[0] > 250
    colors = {tuple(color) for color in picture.reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14), (0, 0, 0)} <= colors  # ours, opus, the recordings' line


def test_a_curve_is_where_its_scores_are(tmp_path):
    """The blue of our PESQ curve climbs from 2.1 to 3.1; without the rival no orange is drawn."""
    results, _ = rate_distortion.read([write(tmp_path / "run", conditions=("codec", "codec_4", "codec_8"))])
    picture = np.asarray(Image.open(io.BytesIO(rate_distortion.plot(results))).convert("RGB")).astype(int)
    blue = np.argwhere(np.abs(picture - (31, 119, 180)).sum(-1) < 30)
    left = blue[(blue[:, 1] < picture.shape[1] / 2) & (blue[:, 0] < 0.7 * picture.shape[0])]
    assert left[left[:, 1].argmin(), 0] > left[left[:, 1].argmax(), 0] + 50
    assert not (np.abs(picture - (255, 127, 14)).sum(-1) < 30).any()


def test_results_without_rates_are_refused(tmp_path):
    write(tmp_path / "run", conditions=())
    with pytest.raises(ValueError, match="no rates: .*no score in it says its kbit/s"):
        rate_distortion.table([tmp_path / "run"], tmp_path)
    assert "--out=DIR is missing" in refused("ns2_jax.evaluate", "rate", str(tmp_path / "run"))
    assert "no rates: no folder is given" in refused("ns2_jax.evaluate", "rate", f"--out={tmp_path}")
