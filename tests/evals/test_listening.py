"""Listening tests: who is hidden, what answers are worth, and the page driven in a real browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil

import numpy as np
import pytest
import scipy.stats
import soundfile

from ns2_jax.audio import files
from ns2_jax.evals import listening

RATE = 16000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two systems with three utterances each, the second much quieter; one utterance only the first has."""
    root = tmp_path_factory.mktemp("systems")
    speech = files.read("tests/evals/sentence.flac", RATE)
    for system, gain, count in (("ours", 0.9, 4), ("theirs", 0.1, 3)):
        (root / system / "audio").mkdir(parents=True)
        rows = [{"id": f"u/{k}", "text": f"Sentence {k}.", "speaker": "ann"} for k in range(count)]
        (root / system / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for k in range(count):
            files.write(root / system / "audio" / f"u_{k}-synthesis.flac", gain * speech[: 8000 + 4000 * k], RATE)
            files.write(root / system / "audio" / f"u_{k}-recording.flac", speech[: 8000 + 4000 * k], RATE)
    return {system: root / system for system in ("ours", "theirs")}


def data(page) -> dict:
    text = page.read_text()
    return json.loads(text.split("type='application/json'>")[1].split("</script>")[0])


def sound(stimulus) -> np.ndarray:
    return soundfile.read(io.BytesIO(base64.b64decode(stimulus.split(",")[1])), dtype="float32")[0]


@pytest.mark.parametrize("kind, trials, stimuli", [("mos", 6, 1), ("smos", 6, 1), ("cmos", 3, 2), ("abx", 3, 2), ("mushra", 3, 4)])
def test_page_and_key(folders, tmp_path, kind, trials, stimuli):
    page = listening.make(folders, tmp_path, kind)
    key, shown = json.loads((tmp_path / "key.json").read_text()), data(page)
    assert len(shown["trials"]) == len(key["trials"]) == trials and all(len(t["stimuli"]) == stimuli for t in shown["trials"])
    text = page.read_text()
    assert "ours" not in text and "theirs" not in text and "anchor" not in text  # nobody can read who is who
    levels = [np.sqrt(np.mean(np.square(sound(s["src"])))) for t in shown["trials"] for s in t["stimuli"]]
    assert max(levels) / min(levels) < 1.25  # one of them was nine times as loud
    assert all((t["reference"] is not None) == (kind in ("smos", "mushra")) for t in shown["trials"])
    assert set(key["trials"].values()) == {"u/0", "u/1", "u/2"}
    again = listening.make(folders, tmp_path / "again", kind, seed=1)
    assert data(again)["test"] != shown["test"]


def test_anchor_has_nothing_above_3500_hz():
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    power = np.abs(np.fft.rfft(listening.anchor(noise))) ** 2
    hz = np.fft.rfftfreq(RATE, 1 / RATE)
    assert power[hz > 3700].mean() < 1e-4 * power[hz < 3300].mean()


def sheet(key, answers, listener="a"):
    return {"test": key["test"], "kind": key["kind"], "listener": listener, "answers": answers}


def stimulus(key, item, system):
    return next(s for s, about in key["stimuli"].items() if about == {"item": item, "system": system})


def test_mean_opinions(folders, tmp_path):
    listening.make(folders, tmp_path, "mos")
    key = json.loads((tmp_path / "key.json").read_text())
    trial = lambda item, system: next(t for t in key["trials"] if key["trials"][t] == item)
    answers = [{"trial": trial(item, system), "order": [stimulus(key, item, system)], "score": score}
               for system, scores in (("ours", (5, 4, 4)), ("theirs", (2, 1, 3))) for item, score in zip(("u/0", "u/1", "u/2"), scores)]
    ours, theirs = listening.analyse(key, [sheet(key, answers), sheet(key, answers, "b")])
    assert ours["system"] == "ours" and ours["mean"] == pytest.approx(13 / 3) and ours["ratings"] == 6 and ours["listeners"] == 2
    assert theirs["mean"] == 2 and theirs["interval"][0] < 2 < theirs["interval"][1] < ours["interval"][0]


def test_comparisons_have_one_sign_whichever_came_first(folders, tmp_path):
    listening.make(folders, tmp_path, "cmos")
    key = json.loads((tmp_path / "key.json").read_text())
    name = {item: trial for trial, item in key["trials"].items()}
    order = lambda item, *systems: [stimulus(key, item, s) for s in systems]
    answers = [{"trial": name["u/0"], "order": order("u/0", "ours", "theirs"), "score": -2},
               {"trial": name["u/1"], "order": order("u/1", "theirs", "ours"), "score": 3}]
    (row,) = listening.analyse(key, [sheet(key, answers)])
    assert row["system"] == "theirs minus ours" and row["mean"] == -2.5


def test_abx_is_a_binomial_test(folders, tmp_path):
    assert listening.binomial(9, 10) == pytest.approx(scipy.stats.binomtest(9, 10, alternative="greater").pvalue)
    listening.make(folders, tmp_path, "abx")
    key = json.loads((tmp_path / "key.json").read_text())
    answers = []
    for trial, item in key["trials"].items():
        a, b = (stimulus(key, item, s) for s in ("ours", "theirs"))
        answers.append({"trial": trial, "order": [a, b], "x": b, "score": "B" if item != "u/2" else "A"})
    (row,) = listening.analyse(key, [sheet(key, answers)])
    assert row["mean"] == pytest.approx(200 / 3) and row["p"] == pytest.approx(0.5)


def test_mushra_screens_listeners_who_miss_the_reference(folders, tmp_path):
    listening.make(folders, tmp_path, "mushra")
    key = json.loads((tmp_path / "key.json").read_text())

    def answers(reference):
        out = []
        for trial, item in key["trials"].items():
            scores = {stimulus(key, item, s): v for s, v in (("ours", 70), ("theirs", 40), ("recording", reference), ("anchor", 20))}
            out.append({"trial": trial, "order": list(scores), "scores": scores})
        return out

    rows = {row["system"]: row for row in listening.analyse(key, [sheet(key, answers(98)), sheet(key, answers(60), "b")])}
    assert rows["recording"]["mean"] == 98 and rows["ours"]["mean"] == 70 and rows["anchor"]["mean"] == 20
    assert rows["ours"]["screened"] == 1 and rows["ours"]["listeners"] == 1
    with pytest.raises(ValueError, match="no answers are left of 1 listeners .1 screened out."):
        listening.analyse(key, [sheet(key, answers(60))])


def test_what_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="cmos compares two systems, 1 are given"):
        listening.make({"ours": folders["ours"]}, tmp_path, "cmos")
    with pytest.raises(ValueError, match="--kind=fun"):
        listening.make(folders, tmp_path, "fun")
    with pytest.raises(FileNotFoundError, match="no items.jsonl"):
        listening.make({"ours": tmp_path}, tmp_path, "mos")
    listening.make(folders, tmp_path, "mos")
    key = json.loads((tmp_path / "key.json").read_text())
    trial, stimulus = next(iter(key["trials"])), next(iter(key["stimuli"]))
    wrong = {"test": key["test"], "answers": [{"trial": trial, "order": [stimulus], "score": 500}]}
    for content, words in (("no json", "can't be read as answers"), ('{"test": "other", "answers": []}', "answers test other, the key is of"),
                           (json.dumps(wrong), "out of range"), ('{"test": 1}', "answers test 1"), ("[]", "can't be read")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            listening.read_answers(key, [tmp_path / "a.json"])


def test_a_failed_synthesis_is_never_another_sound(folders, tmp_path):
    """Its codec copy lies beside it, and a silent one is no sound: both utterances are left out."""
    copies = {name: shutil.copytree(folder, tmp_path / name) for name, folder in folders.items()}
    audio = copies["ours"] / "audio"
    (audio / "u_0-synthesis.flac").rename(audio / "u_0-codec.flac")
    files.write(audio / "u_1-synthesis.flac", np.zeros(8000, np.float32), RATE)
    assert [trial["item"] for trial in listening.gather(copies, "mos", 0)] == ["u/2"]
    rows = (copies["ours"] / "items.jsonl").read_text().replace("Sentence 2.", "Another.")
    (copies["ours"] / "items.jsonl").write_text(rows)
    with pytest.raises(ValueError, match="u/2 has another text"):
        listening.gather(copies, "mos", 0)
    with pytest.raises(ValueError, match="can't be called recording or anchor"):
        listening.gather({"anchor": folders["ours"]}, "mos", 0)


def test_other_audio_is_another_test_and_a_listener_counts_once(folders, tmp_path):
    listening.make(folders, tmp_path / "a", "mos")
    key = json.loads((tmp_path / "a" / "key.json").read_text())
    copies = {name: shutil.copytree(folder, tmp_path / name) for name, folder in folders.items()}
    speech = files.read(copies["ours"] / "audio" / "u_0-synthesis.flac", RATE)
    files.write(copies["ours"] / "audio" / "u_0-synthesis.flac", speech[::-1], RATE)
    listening.make(copies, tmp_path / "b", "mos")
    assert json.loads((tmp_path / "b" / "key.json").read_text())["test"] != key["test"]
    answers = [{"trial": next(t for t, item in key["trials"].items() if item == key["stimuli"][s]["item"]), "order": [s], "score": 3}
               for s in key["stimuli"]]
    for name, some in (("1", answers[:2]), ("2", answers), ("3", answers[:1])):
        (tmp_path / f"{name}.json").write_text(json.dumps(sheet(key, some, "x")))
    (only,) = listening.read_answers(key, [tmp_path / f"{name}.json" for name in "123"])
    assert len(only["answers"]) == len(answers)


def test_intervals_know_that_ratings_of_a_listener_go_together():
    """Two listeners who disagree, a hundred ratings each: the truth lies anywhere between them."""
    low, high = listening.interval([1.0] * 100 + [5.0] * 100, (["a"] * 100 + ["b"] * 100, list(range(100)) * 2), 0)
    assert (low, high) == (1, 5)


@pytest.mark.parametrize("kind", ["mos", "abx", "mushra"])
def test_in_a_browser(folders, tmp_path, kind):
    """By the keyboard alone where the kind allows; the saved file is analysed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    from selenium.webdriver.common.keys import Keys

    page = listening.make(folders, tmp_path / "test", kind)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for word in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--autoplay-policy=no-user-gesture-required"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(page.as_uri())
        count = len(data(page)["trials"])
        for k in range(count):
            body = driver.find_element("tag name", "body")
            if k == 1:
                driver.refresh()  # answers survive
                body = driver.find_element("tag name", "body")
            assert not driver.find_element("css selector", "button.main").is_enabled()
            for _ in range(6):
                body.send_keys("p")
            if kind == "mushra":
                for place, slider in enumerate(driver.find_elements("css selector", "input[type=range]")):
                    slider.send_keys(Keys.ARROW_RIGHT * (place + 1))
            else:
                body.send_keys("2")
            assert driver.find_element("css selector", "button.main").is_enabled()
            body.send_keys(Keys.ENTER)
        driver.find_element("id", "save").click()
        answers = driver.execute_script(f"return JSON.parse(localStorage.getItem('listen-{data(page)['test']}'))")
    finally:
        driver.quit()
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    key = json.loads((tmp_path / "test" / "key.json").read_text())
    sheets = listening.read_answers(key, [tmp_path / "answers.json"])
    assert len(sheets[0]["answers"]) == count and answers["finished"] and len({a["trial"] for a in answers["answers"]}) == count
    if kind == "mos":
        assert {row["mean"] for row in listening.analyse(key, sheets)} == {2.0}
    elif kind == "abx":
        (row,) = listening.analyse(key, sheets)
        assert row["ratings"] == count and math.isfinite(row["p"])
    else:
        assert all(sorted(a["scores"].values()) == [51, 52, 53, 54] for a in answers["answers"])
