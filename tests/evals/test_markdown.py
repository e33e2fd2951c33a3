"""The tables: results/README.md and each system's scores.md are what the tool makes of results/, and keep the report's rule."""

from __future__ import annotations

import json
import pathlib
import re
import shlex

import pytest
from commands import refused, run

from ns2_jax.evals import markdown, scores, statistics

ROOT = pathlib.Path(__file__).parents[2]


def write(folder, errors, items="abc", **about):
    rows = [{"id": f"u{k}", "text": "x", "speaker": "ann", "word_error": {"synthesis": {"heard": "x", "errors": n, "words": 10}}}
            for k, n in enumerate(errors)]
    about = {"evaluator": "judge 1", "averaging": "pooled", "items": items, "data": "f" * 64, **about}
    lines = [statistics.score("wer_synthesis", [100.0 * n for n in errors], [10.0] * len(rows), unit="%", **about),
             statistics.score("cer_synthesis", [1.0], unit="%", **about)]
    scores.write(folder, lines, rows)
    return folder


PAGES = [ROOT / "results" / "README.md", *sorted(ROOT.glob("results/*/scores.md"))]


def command(page: pathlib.Path) -> tuple[list[str], str]:
    """(the folders, the page) of the command that a committed table says it is made by."""
    words = shlex.split(re.search(r"`(python -m ns2_jax.evaluate table [^`]*)`", page.read_text(encoding="utf8"))[1])
    return words[4:-1], words[-1].removeprefix("--out=")


@pytest.mark.parametrize("page", PAGES, ids=[page.parent.name for page in PAGES])
def test_a_committed_table_is_what_the_tool_makes_of_the_committed_results(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    there, (folders, out) = page.read_text(encoding="utf8"), command(page)
    text, skipped = markdown.table(folders, out)
    assert out == page.relative_to(ROOT).as_posix() and not skipped
    assert there == text, f"{out} is made by the command in its third line: run that instead of editing it"
    for target in re.findall(r"\]\(([^)]+)\)", there):
        assert (page.parent / target).is_file() and not target.startswith("/")


def test_everything_that_was_scored_is_in_a_committed_table():
    """Each system's own folder in the table of all, each of what else it was asked in the table of its folder."""
    where = lambda pattern: {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
    assert set(command(PAGES[0])[0]) == where("results/*/scores.jsonl")
    assert {folder for page in PAGES for folder in command(page)[0]} == where("results/**/scores.jsonl")


def test_columns_rows_notes_and_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (write(tmp_path / "one", (1, 3), missing=1, model="abcd", sampler={"steps": 20}, seeds="0 + index") / "README.md").write_text("x")
    write(tmp_path / "two two", (2, 2))
    write(tmp_path / "other|<list>", (5, 5), items="abd")
    code, out, _ = run("ns2_jax.evaluate", "table", str(tmp_path / "one"), "two two", "other|<list>", "nowhere", "--out=out/table.md")
    assert code == 0 and "skipped nowhere: no scores.jsonl in it" in out
    text = (tmp_path / "out" / "table.md").read_text()
    assert "`python -m ns2_jax.evaluate table one 'two two' 'other|<list>' --out=out/table.md`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "<sub>" in line]
    assert rows[0].startswith("| [one](../one/README.md) | synthesis | 20.0<br><sub>10.0 to 30.0, 1 missing</sub> |  |")
    assert rows[1].startswith("| two two | synthesis | 20.0<br><sub>20.0 to 20.0</sub> |  |")
    assert rows[2].startswith("| other\\|&lt;list&gt; | synthesis |  | 50.0<br>")
    assert "word error % <sup>1</sup> | word error % <sup>2</sup> |" in text and "<sup>3</sup>" not in text  # cer is no main measure
    assert "1. word error %: Not to be compared with column 2 (items). 2 utterances; evaluator judge 1; averaging pooled; data fff" in text
    assert "* [one](../one/README.md): model abcd; sampler steps 20; seeds 0 + index; 2 utterances in items.jsonl" in text
    assert "No two have 100 utterances in common." in text


def test_differences_from_a_hundred_utterances_on(tmp_path):
    folders = [write(tmp_path / name, [n] * 100) for name, n in (("a", 3), ("b", 2))]
    text, _ = markdown.table(folders, tmp_path / "t.md")
    assert "* a minus b: +10.0 points of word error (+10.0 to +10.0), 100 utterances, worse" in text
    folders = [write(tmp_path / name, [n] * 99) for name, n in (("a", 3), ("b", 2))]
    assert "minus" not in markdown.table(folders, tmp_path / "t.md")[0]
    code, out, err = run("ns2_jax.evaluate", "table", *map(str, folders))  # asked for them alone, they are said, without a verdict
    assert code == 0 and out == "a minus b: +10.0 points of word error (+10.0 to +10.0), 99 utterances (under 100: no verdict)\n", err


def test_no_result_and_no_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no table: .*no scores.jsonl"):
        markdown.write_table([tmp_path], tmp_path / "t.md")
    assert not (tmp_path / "t.md").exists()
    assert "no differences: " in refused("ns2_jax.evaluate", "table", str(tmp_path))
    write(tmp_path / "a", (1,))
    assert "nothing was measured alike" in refused("ns2_jax.evaluate", "table", str(tmp_path / "a"))
    assert "is not a Markdown file" in refused("ns2_jax.evaluate", "table", str(tmp_path / "a"), f"--out={tmp_path}")
    json.loads((tmp_path / "a" / "items.jsonl").read_text())  # untouched
