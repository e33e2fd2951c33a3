"""The report: what may share a column, what is skipped, worst first, and everything inside the one file."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
import soundfile

from ns2_jax.audio import files
from ns2_jax.evals import comparison, markdown, report, scores, statistics

TEXTS = {"u1": "A quiet <morning> & more.", "u2": "Two old friends.", "u3": "Nobody knew."}
ABOUT = {"evaluator": "judge 1", "averaging": "pooled", "items": "abc"}


def write(folder, errors, step=None, audio=False, **about):
    """Scores of three utterances with so many of ten words wrong."""
    rows = [{"id": name, "text": text, "speaker": "ann", "word_error": {"synthesis": {"heard": f"heard {n}", "errors": n, "words": 10}}}
            for (name, text), n in zip(TEXTS.items(), errors)]
    about = {**ABOUT, **about, **({"step": step} if step is not None else {})}
    line = statistics.score("wer_synthesis", [100.0 * n for n in errors], [10.0] * 3, unit="%", **about)
    scores.write(folder, [line], rows)
    if audio:
        (folder / "audio").mkdir()
        for name in TEXTS:
            files.write(folder / "audio" / f"{name}-synthesis.flac", 0.1 * np.sin(np.arange(8000) * 0.05), 16000)
    return folder


class Page(html.parser.HTMLParser):
    """Checks that tags close, and collects sources."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.void = [], [], {"meta", "img", "br"}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in self.void:
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_damaged_log_of_training_is_drawn_without_what_is_damaged(tmp_path):
    folder = write(tmp_path / "a", (1, 2, 3))
    lines = ['{"step": 1, "loss": 2.0}', '{"loss": 9.0}', "{bad}", "[1]", '{"step": 2, "loss": 1.0}', '{"step": 3, "lo']
    (folder / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff")
    (result,), _ = comparison.find([folder])
    assert report._curves(result).count("<polyline") == 1


def test_a_take_that_failed_is_no_other_column(tmp_path):
    whole, failed, fewer = (write(tmp_path / name, (1, 2, 3), takes=takes) for name, takes in (("a", [3]), ("b", [2, 3]), ("c", [2])))
    results, _ = comparison.find([whole, failed, fewer])
    assert len(comparison.columns(results[:2])) == 1 and len(comparison.columns(results)) == 2
    assert comparison.differing(results[0].last[0], results[1].last[0]) == []
    assert comparison.differing(results[0].last[0], results[2].last[0]) == ["takes"]


def test_the_page_is_whole_and_holds_everything(tmp_path):
    path, skipped = report.write([write(tmp_path / "a", (1, 9, 4), audio=True), tmp_path], tmp_path / "out", title="Mine")
    text = path.read_text()
    page = Page(text)
    assert not page.open and skipped == [f"{tmp_path}: no scores.jsonl in it"] and "Skipped" in text
    assert all(source.startswith("data:") for source in page.sources) and "http" not in re.sub("data:[^']*", "", text)
    sounds = [source for source in page.sources if source.startswith("data:audio/flac")]
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0].split(",")[1])))
    assert len(sounds) == 3 and rate == 16000 and len(audio) == 8000
    assert sum(source.startswith("data:image/png") for source in page.sources) == 3
    assert [text.index(word) for word in ("Two old", "Nobody", "A quiet &lt;morning&gt; &amp; more.")] == sorted(
        text.index(word) for word in ("Two old", "Nobody", "A quiet &lt;morning&gt; &amp; more."))  # worst first
    assert "<morning>" not in text and "9 of 10 words wrong: <i>heard 9</i>" in text


@pytest.mark.parametrize("about, shared", [
    ({}, True), ({"model": "other", "seeds": "7"}, True), ({"evaluator": "judge 2"}, False), ({"items": "abd"}, False),
    ({"normaliser": "x"}, False), ({"averaging": "per utterance"}, False)])
def test_only_equal_fingerprints_share_a_column(tmp_path, about, shared):
    results, _ = comparison.find([write(tmp_path / "a", (1, 2, 3)), write(tmp_path / "b", (4, 5, 6), **about)])
    assert len(comparison.columns(results)) == (1 if shared else 2)
    assert ("they do not compare" in report.page(results)) is not shared


def test_a_result_within_a_result_is_named_by_both(tmp_path):
    results, _ = comparison.find([write(tmp_path / "a", (1, 2, 3)), write(tmp_path / "a" / "hard", (4, 5, 6)), write(tmp_path / "b", (4, 5, 6))])
    assert [result.name for result in results] == ["a", "a/hard", "b"]


def test_differences_are_paired_on_the_utterances_of_both(tmp_path):
    results, _ = comparison.find([write(tmp_path / "a", (4, 5, 6)), write(tmp_path / "b", (1, 2, 3))])
    (pair,) = comparison.paired(results)
    assert pair["value"] == pytest.approx(30) and pair["interval"] == [30, 30] and pair["n"] == 3
    assert "a minus b: +30.0 points of word error (+30.0 to +30.0), 3 utterances (under 100: no verdict)" in report.page(results)
    results, _ = comparison.find([tmp_path / "a", write(tmp_path / "c", (1, 2, 3), evaluator="judge 2")])
    assert comparison.paired(results) == []  # measured otherwise


def test_more_similarity_is_better_and_less_error_is(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "FEWEST", 3)
    results, _ = comparison.find([write(tmp_path / "a", (4, 5, 6)), write(tmp_path / "b", (1, 2, 3))])
    for result, own in zip(results, (0.8, 0.7)):
        result.lines.append(statistics.score("secs_own_synthesis", [own] * 3, unit="cosine", evaluator="ear"))
        for item in result.items.values():
            item["speaker_similarity"] = {"synthesis": {"own": own}}
    words, voice = comparison.paired(results)
    assert (words["measure"], voice["measure"]) == ("wer", "secs_own") and voice["value"] == pytest.approx(0.1)
    assert comparison.difference(words)[1] == "worse" and comparison.difference(voice)[1] == "better"
    assert comparison.difference(voice)[0] == "a minus b: +0.100 SECS (+0.100 to +0.100), 3 utterances"


def add(result, evaluator, measure, condition, rows):
    """Rows of an evaluator, and a score line that says they were measured alike."""
    result.lines.append(statistics.score(f"{measure}_{condition}", [1.0], evaluator=evaluator))
    for item, row in zip(result.items.values(), rows):
        item.setdefault(evaluator, {})[condition] = row


def test_what_is_made_stands_beside_its_ceilings(tmp_path):
    results, _ = comparison.find([write(tmp_path / "a", (4, 5, 6))])
    rows = {"codec": (2, 2, 4), "recording": (1, 2, 2)}
    for condition, errors in rows.items():
        line = next(line for line in results[0].lines if line["name"] == "wer_synthesis")
        results[0].lines.append({**line, "name": f"wer_{condition}"})
        for item, wrong in zip(results[0].items.values(), errors):
            item["word_error"][condition] = {**item["word_error"]["synthesis"], "errors": wrong}
    pairs = comparison.paired(results)
    assert all(pair["within"] for pair in pairs)
    found = {(pair["a"], pair["b"]): pair["value"] for pair in pairs}
    assert found == {("a synthesis", "a codec"): pytest.approx(70 / 3), ("a synthesis", "a recording"): pytest.approx(100 / 3)}
    results[0].lines[:] = [line for line in results[0].lines if "synthesis" not in line["name"]]  # a codec's own result
    assert [(pair["a"], pair["b"], pair["value"]) for pair in comparison.paired(results)] == [("a codec", "a recording", pytest.approx(10))]


def test_two_results_that_do_not_compare_are_refused_though_each_has_its_ceilings(tmp_path):
    for name, judge in (("a", "judge 1"), ("b", "judge 2")):
        (line,), rows = scores.read(write(tmp_path / name, (4, 5, 6), evaluator=judge)), [
            json.loads(row) for row in (tmp_path / name / "items.jsonl").read_text().splitlines()]
        for row in rows:
            row["word_error"]["codec"] = row["word_error"]["synthesis"]
        scores.write(tmp_path / name, [line, {**line, "name": "wer_codec"}], rows)
    assert markdown.differences([tmp_path / "a"])[0] == ["a synthesis minus a codec: 0.0 points of word error (0.0 to 0.0), 3 utterances "
                                                         "(under 100: no verdict)"]
    with pytest.raises(ValueError, match="nothing was measured alike"):
        markdown.differences([tmp_path / "a", tmp_path / "b"])


def test_a_changed_voice_is_not_to_be_that_of_its_source(tmp_path):
    (result,), _ = comparison.find([write(tmp_path / "a", (4, 5, 6))])
    for condition in ("synthesis", "recording"):
        for item in result.items.values():
            item.setdefault("speaker_similarity", {})[condition] = {"own": 0.8}
    for task, expected in (("convert", []), ("enhance", [("a synthesis", "a recording")])):
        result.lines[:] = [statistics.score(f"secs_own_{c}", [0.8] * 3, unit="cosine", evaluator="ear", **({"task": task} if c == "synthesis" else {}))
                           for c in ("synthesis", "recording")]
        assert [(pair["a"], pair["b"]) for pair in comparison.paired([result])] == expected


def test_pairs_are_counted_and_other_files_are_held_against_ours(tmp_path):
    results, _ = comparison.find([write(tmp_path / "a", (4, 5, 6)), write(tmp_path / "b", (1, 2, 3))])
    a, b = results
    add(a, "acoustic_distance", "mcd", "synthesis", [{"mcd": 5.0}, None, {"mcd": 6.0}])
    add(b, "acoustic_distance", "mcd", "synthesis", [{"mcd": 4.0}, {"mcd": 1.0}, {"mcd": 5.0}])
    add(a, "robustness", "skips", "synthesis", [{"skipped": [1], "repeated": [2], "words": 10}] * 3)
    add(a, "robustness", "skips", "wavs", [{"skipped": [], "repeated": [], "words": 10}] * 3)
    b.items["u4"] = {**b.items["u1"], "id": "u4"}
    found = {(pair["measure"], pair["a"], pair["b"]): pair for pair in comparison.paired(results)}
    assert set(found) == {("wer", "a", "b"), ("mcd", "a", "b"), ("skips", "a synthesis", "a wavs")}
    distance = found["mcd", "a", "b"]
    assert (distance["value"], distance["n"], distance["left"], found["wer", "a", "b"]["left"]) == (pytest.approx(1), 2, 2, 1)
    text = report.page(results)
    assert "a minus b: +1.0 dB of MCD (+1.0 to +1.0), 2 utterances, 2 left out (under 100: no verdict)" in text
    assert "a synthesis minus a wavs: +20.0 points of words skipped or repeated (+20.0 to +20.0), 3 utterances (under" in text


def test_left_out_items_do_not_take_the_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "FEWEST", 2)
    results, _ = comparison.find([write(tmp_path / "a", (4, 5, 6)), write(tmp_path / "b", (1, 2, 3))])
    del results[0].items["u1"]
    assert comparison.difference(comparison.paired(results)[0]) == (
        "a minus b: +30.0 points of word error (+30.0 to +30.0), 2 utterances, 1 left out", "worse")


def test_codecs_are_paired_level_by_level(tmp_path):
    results, _ = comparison.find([write(tmp_path / name, (1, 1, 1)) for name in ("a", "b")])
    for result, best in zip(results, (3.0, 2.0)):
        for condition in ("codec_8", "codec"):
            for measure in ("pesq", "stoi"):
                add(result, "codec_quality", measure, condition, [{"pesq": best, "stoi": best / 4}] * 3)
    add(results[1], "codec_quality", "pesq", "wavs", [{"pesq": 1.0}] * 3)
    found = {(pair["measure"], pair["a"], pair["b"]): pair["value"] for pair in comparison.paired(results) if pair["measure"] != "wer"}
    assert found == {("pesq", "a codec", "b codec"): 1, ("pesq", "a codec_8", "b codec_8"): 1, ("pesq", "b codec", "b wavs"): 1,
                     ("stoi", "a codec", "b codec"): 0.25, ("stoi", "a codec_8", "b codec_8"): 0.25}


def test_checkpoints_make_curves_and_the_table_has_the_last(tmp_path):
    out = tmp_path / "run" / "evaluation"
    for step, errors in ((5, (9, 9, 9)), (10, (5, 5, 5))):
        write(out / str(step), errors, step)
    scores.gather(out)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps({"step": k, "loss": 1 / k}) + "\n" for k in range(1, 9)))
    (result,), _ = comparison.find([tmp_path / "run"])
    assert result.name == "run" and result.steps == [5, 10] and result.last[0]["value"] == 50
    text = report.page([result])
    assert "aria-label='wer_synthesis'" in text and "training: loss" in text and "step 10" in text and "5 of 10 words" in text


def test_a_checkpoint_that_is_being_scored_hides_nothing(tmp_path):
    out = tmp_path / "evaluation"
    write(out / "5", (9, 9, 9), 5, audio=True)
    scores.gather(out)
    (out / "10" / "audio").mkdir(parents=True)  # its audio is there, its scores are not
    (result,), _ = comparison.find([out])
    assert result.folder == out / "5" and len(result.items) == 3 and report.page([result]).count("<audio") == 3


def test_a_curve_joins_only_what_one_judge_said(tmp_path):
    for step, judge in ((5, "judge 1"), (10, "judge <2>"), (15, "judge 1"), (20, "judge <2>"), (25, "judge 3")):
        write(tmp_path / str(step), (step, 2, 3), step, evaluator=judge)
    scores.gather(tmp_path)
    text = report.page(comparison.find([tmp_path])[0])
    assert len(re.findall("<polyline", text)) == len(re.findall("<polygon", text)) == 2  # one checkpoint is no curve
    for judge in ("1", "&lt;2&gt;"):
        (line,) = re.findall(rf"aria-label='wer_synthesis, evaluator judge {judge}'.*?<polyline points='([^']*)'", text)
        assert len(line.split()) == 2


def cells(text):
    """Rows of the table under the folded checkpoints, as their texts."""
    table = re.search(r"<summary>(\d+) checkpoints of .*?<table>(.*?)</table>(.*?)</details>", text)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", table[2])], table[3]


def test_all_checkpoints_are_in_a_folded_table_and_a_column_has_one_fingerprint(tmp_path):
    for step, errors, judge in ((5, 9, "judge 1"), (100, 5, "judge 2"), (20, 7, "judge 1")):
        write(tmp_path / str(step), (errors, errors, 9), step, evaluator=judge)
        extra = [statistics.score(f"{name}_{c}", [0.25, 0.75], step=step) for name in ("secs_own", "odd") for c in ("recording", "codec", "wavs")]
        with open(tmp_path / str(step) / "scores.jsonl", "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in extra))
    scores.gather(tmp_path)
    (head, *rows), notes = cells(report.page(comparison.find([tmp_path])[0]))
    assert [re.sub("<[^>]*>", "", cell).strip() for cell in head] == [
        "step", "wer&nbsp;1synthesis %", "wer&nbsp;2synthesis %", "secs own&nbsp;3wavs"]  # no odd one, no recording, no copy
    assert [row[0] for row in rows] == ["100", "20", "5"]
    assert rows[0][1] == rows[1][2] == rows[2][2] == "" and rows[0][2].startswith("63.3<small>50.0 to 90.0")
    assert [row[1].split("<")[0] for row in rows[1:]] == ["76.7", "90.0"] and rows[2][3] == "0.500<small>0.250 to 0.750</small>"
    assert "Measured otherwise than column 2 (evaluator)" in notes
    assert "checkpoints of" not in report.page(comparison.find([write(tmp_path / "one", (1, 1, 1), 5)])[0])


def test_hundreds_of_checkpoints_take_seconds(tmp_path):
    line = statistics.score("wer_synthesis", [10.0, 20.0], unit="%")
    lines = [{**line, "name": f"{measure}_synthesis", "fingerprint": {"step": step}} for step in range(300) for measure in scores.MEASURES[:20]]
    scores.write(tmp_path, lines, [])
    began = time.perf_counter()
    (_, *rows), _ = cells(report.page(comparison.find([tmp_path])[0]))
    assert len(rows) == 300 and time.perf_counter() - began < 20


def test_a_codec_has_its_checkpoints_too(tmp_path):
    for step in (5, 10):
        scores.write(tmp_path / str(step), [statistics.score("pesq_codec_8", [2.0], unit="MOS-LQO", step=step)], [])
    scores.gather(tmp_path)
    (head, *rows), _ = cells(report.page(comparison.find([tmp_path])[0]))
    assert "codec 8 MOS-LQO" in head[1] and len(rows) == 2


def test_names_are_told_apart_by_their_parents(tmp_path):
    results, _ = comparison.find([write(tmp_path / x / "scores", (1, 1, 1)).parent for x in ("a", "b")] + [write(tmp_path / "c" / "a", (1, 1, 1))])
    assert [result.name for result in results] == [f"{tmp_path.name}/a", "b", "c/a"]


def test_what_is_not_a_result_is_skipped_and_nothing_is_an_error(tmp_path):
    (tmp_path / "broken").mkdir()
    for line in ("null", "[]", "no json"):
        (tmp_path / "broken" / "scores.jsonl").write_text(line + "\n")
        assert comparison.find([tmp_path / "broken"])[0] == []
    (tmp_path / "broken" / "scores.jsonl").write_text('{"name": "wer"}\n')
    results, skipped = comparison.find([tmp_path / "broken", tmp_path / "nowhere"])
    twice = write(tmp_path / "twice", (1, 1, 1))
    again, why = comparison.find([twice, tmp_path / "broken" / ".." / "twice"])
    assert len(again) == 1 and "the same scores again" in why[0]
    assert not results and "lacks name" in skipped[0] and "no scores.jsonl" in skipped[1]
    with pytest.raises(ValueError, match="nothing to report: .*broken"):
        report.write([tmp_path / "broken"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_silent_output_and_a_line_separator_do_not_end_the_page(tmp_path):
    folder = write(tmp_path / "a", (1, 2, 3), audio=True)
    files.write(folder / "audio" / "u2-synthesis.flac", np.zeros(8000, np.float32), 16000)
    (folder / "items.jsonl").write_text((folder / "items.jsonl").read_text().replace("Nobody knew.", "Nobody\u2028knew."))
    text = report.page(comparison.find([folder])[0])
    assert "<b>silent</b>" in text and "Nobody\u2028knew." in text and text.count("data:image/png") == 2


def test_alignments_are_drawn_and_durations_plotted(tmp_path):
    folder = write(tmp_path / "a", (1, 2, 3), audio=True)
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    said = lambda *ends: {"phones": [["k", 0.0, ends[0]], ["ae", ends[0], ends[1]]]}
    rows[0]["alignment"] = {"recording": said(0.1, 0.4), "synthesis": said(0.2, 0.5) | {"words": [["<ca>", 0.0, 0.5]]}}
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report.page(comparison.find([folder])[0])
    assert "title='ae, 300 ms'" in text and "<b>&lt;ca&gt;</b>" in text and "Phone durations against the recording" in text
    assert text.count("class=phones") == 1 and "a, synthesis: 2 phones" in text
    rows[0]["alignment"]["synthesis"] = [["k", 0, 1]]  # not its shape
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results, skipped = comparison.find([folder])
    assert not results and "an alignment has phones (and words), not [['k', 0, 1]]" in skipped[0]


def test_utterances_with_audio_come_first(tmp_path):
    folder = write(tmp_path / "a", (9, 1, 5), audio=True)
    (folder / "audio" / "u1-synthesis.flac").unlink()
    text = report.page(comparison.find([folder])[0], utterances=2, drawn=False)
    assert "Nobody knew." in text and "Two old" in text and "A quiet" not in text and "2 of 3, 2 with audio" in text
    assert text.index("Nobody knew.") < text.index("Two old")


def test_groups_leave_out_rows_without_a_measure_and_say_what_differs(tmp_path):
    a, b = write(tmp_path / "a", (1, 2, 3)), write(tmp_path / "b", (1, 2, 3), normaliser="other", items="abd")
    with open(b / "scores.jsonl", "a") as file:
        file.write(json.dumps(statistics.score("pesq_codec", [1.0], unit="MOS-LQO")) + "\n")
    text = report.page(comparison.find([a, b])[0])
    words, sound = text.index("<h3>Words</h3>"), text.index("<h3>Sound</h3>")
    assert text[words:sound].count("scope=row") == 2 and text[sound:].count("scope=row") == 1 and "<h3>Voice</h3>" not in text
    assert "Measured otherwise than column 2 (normaliser, items): they do not compare." in text
    assert report.group("prosody_pitch_mean") == "Prosody" and report.group("predictability") == "Other"


def test_why_an_output_is_missing_stands_under_its_condition(tmp_path):
    folder = write(tmp_path / "a", (1, 2, 3))
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    rows[0]["failures"] = {"synthesis": "too <long>", "wavs": "no file"}
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report.page(comparison.find([folder])[0])
    said = dict(re.findall("<h4>(synthesis|wavs) <small>a</small></h4><p>([^\n]*?)</p>", text[text.index("A quiet"):]))
    assert said["synthesis"].endswith("<br><b>too &lt;long&gt;</b>") and said["wavs"] == "<b>no file</b>" and text.count("no file") == 1
    (folder / "items.jsonl").write_text(json.dumps(rows[0] | {"failures": "no file"}) + "\n")
    assert comparison.find([folder])[0] == []


HARDWARE = {"device": "TPU v5e", "devices": 4, "machine": "x86_64", "cores": 2, "jax": "0.10.2", "weights": ["float32"], "compute": "float32",
            "products": "default", "rate": 16000, "takes": [2]}


@pytest.mark.parametrize("other, shared", [({"wavs": "abc"}, True), *(({name: ["another"]}, False) for name in HARDWARE)])
def test_speeds_of_other_hardware_do_not_share_a_column(tmp_path, other, shared):
    for name, about in (("a", HARDWARE), ("b", HARDWARE | other)):
        scores.write(tmp_path / name, [statistics.score("rtf_synthesis", [0.1, 0.2], evaluator="clock", **about)], [])
    results, _ = comparison.find([tmp_path / "a", tmp_path / "b"])
    assert len(comparison.columns(results)) == (1 if shared else 2)


def test_one_id_of_two_texts_has_two_cards(tmp_path):
    a, b = write(tmp_path / "a", (1, 2, 3), audio=True), write(tmp_path / "b", (4, 5, 6), items="abd")
    (b / "items.jsonl").write_text((b / "items.jsonl").read_text().replace("Two old friends.", "Another text."))
    text = report.page(comparison.find([a, b])[0], drawn=False)
    assert text.count("<section") == 4 and "4 of 4, 3 with audio" in text and text.count("<p class=dim>u2, ann</p>") == 2
    other = text[text.index("Another text."):].split("</section>")[0]
    assert "heard 5" in other and "heard 2" not in other and "<audio" not in other


EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"`"


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_in_a_browser(tmp_path):
    """Texts do nothing, heads sort (blanks last), and at 400 pixels nothing but the tables' own boxes scrolls sideways."""
    for name, n in (("x" * 90, 4), ("b", 9), ("c", 1)):
        folder = write(tmp_path / name, (n, n, n), evaluator=EVIL)
        rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
        rows[0] |= {"text": EVIL + "w" * 200, "speaker": EVIL, "failures": {"synthesis": EVIL}}
        rows[0]["word_error"]["synthesis"]["heard"] = EVIL
        scores.write(folder, [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()] + [
            statistics.score(f"{measure}_{EVIL}", [1.0], unit=EVIL, averaging=EVIL) for measure in ("odd", *scores.MEASURES)], rows)
    page, _ = report.write([tmp_path / name for name in ("x" * 90, "b", "c")], tmp_path / "out", title=EVIL)
    probe = """<body><iframe src='out/index.html' style='width:400px;height:900px'></iframe><script>onload = () => {
      const page = document.querySelector('iframe').contentDocument
      const head = [...page.querySelectorAll('thead button')].find(b => b.textContent.startsWith('wer\u00a0'))
      const order = () => [...head.closest('table').tBodies[0].rows].map(row => row.cells[head.parentNode.cellIndex].dataset.v || '')
      head.click(); const up = order(); head.click()
      const box = page.documentElement
      document.body.textContent = JSON.stringify({up, down: order(), title: page.title, images: page.images.length,
        wide: box.scrollWidth > box.clientWidth, sort: head.parentNode.ariaSort})}</script>"""
    (tmp_path / "probe.html").write_text(probe)
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--allow-file-access-from-files",
               "--dump-dom", f"--user-data-dir={tmp_path}/browser")
    done = subprocess.run(["chromium", *options, (tmp_path / "probe.html").as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"<body>(\{.*\})</body>", done.stdout)[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert [value for value in found["up"] if value] == found["up"][:3] == ["10.0", "40.0", "90.0"] and len(found["up"]) > 3
    assert found["down"][:3] == ["90.0", "40.0", "10.0"] and found["sort"] == "descending"
    assert found["title"] == EVIL and found["images"] == 0 and not found["wide"]
