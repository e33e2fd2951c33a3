"""What is in a data set: `python -m data_pipelines.stats --data=DIR` writes `stats.json`, `DATASHEET.md` and `plots/*.png` into it.

The datasheet has the sections of Gebru et al., "Datasheets for datasets" (Communications of the ACM, 2021): what the files say is filled
in, what they cannot say stands there as a question to whoever made the data set. Lengths, levels and F0 are of every utterance (the columns
of data_pipelines/quality.py, which must be there), phones and codes of at most SAMPLE utterances, evenly spaced.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pathlib
from typing import Any

import numpy as np
from absl import flags, logging

from data_pipelines import quality as measured
from data_pipelines.duplicates import KEYS
from ns2_jax.data import quality, records, speakers
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import phones as inventory

SAMPLE = 20_000  # utterances whose phones and codes are counted
CHUNK = 500  # records read at once
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
CUTS = ({"duplicate": (None, 0)}, {"snr_db": (10, None)}, {"snr_db": (20, None)}, {"rate_z": (-4, 4)}, {"clipped": (None, 0.001)})
EXAMPLES = 3  # of every reason of a reject
UNIT = {"seconds": "s", "level_db": "dB", "peak_db": "dB", "snr_db": "dB", "range_db": "dB", "bandwidth_hz": "Hz", "start_s": "s",
        "end_s": "s", "f0_hz": "Hz"}  # fmt: skip


# Numbers -------------------------------------------------------------------------------------------------------------


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _made(folder: pathlib.Path) -> dict[str, Any]:
    """The command and its settings, from what it left."""
    plan, corpus = _read(folder / "plan.json"), _read(folder / "corpus.json")
    if plan:
        return {key: value for key, value in plan.items() if key not in ("splits", "checksum")}
    return {"command": "synth", **corpus} if corpus else {}


def _rejects(root: pathlib.Path, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Stage or group -> reason -> {"count", "examples"}."""
    found: dict[str, dict[str, Any]] = {}
    lists = {"ingest": [root / "rejects.jsonl"]}
    lists |= {group: sorted((root / "rejects" / group).glob("*.jsonl")) for group in dataset.groups}
    for stage, files in lists.items():
        for row in (json.loads(line) for path in files if path.exists() for line in path.read_text().splitlines()):
            about = found.setdefault(stage, {}).setdefault(row["reason"], {"count": 0, "examples": []})
            about["count"] += 1
            if len(about["examples"]) < EXAMPLES:
                about["examples"].append(f"{row['item']}: {row['detail']}")
    return found


def _sampled(dataset: Dataset, group: str) -> Any:
    """Records of `group`, evenly spaced over all splits."""
    every = -(-sum(dataset.records(split) for split in dataset.splits) // SAMPLE)
    for split in dataset.splits:
        rows = range(0, dataset.records(split), every)
        for at in range(0, len(rows), CHUNK):
            yield from dataset.read_many(split, {group: rows[at : at + CHUNK]})[group]


def _phones(dataset: Dataset) -> dict[str, int]:
    """Phone -> how often it is said in the sample, the most frequent first; empty without phones."""
    group = next((name for name in ("align", "phones") if name in dataset.groups), None)
    counts = np.zeros(len(inventory.PHONES), np.int64)
    for record in _sampled(dataset, group) if group else ():
        counts += np.bincount(record["phones"], minlength=len(counts))
    return {inventory.PHONES[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}


def _codes(dataset: Dataset, group: str) -> list[np.ndarray]:
    """How often each code occurs in the sample, `[k]` for every level."""
    levels = [np.zeros(1, np.int64) for _ in range(dataset.manifest["groups"][group]["levels"])]
    for record in _sampled(dataset, group):
        for q, codes in enumerate(record["codes"].T):
            new = np.bincount(codes, minlength=len(levels[q]))
            new[: len(levels[q])] += levels[q]
            levels[q] = new
    return levels


def _usage(counts: np.ndarray) -> dict[str, float]:
    share = counts[counts > 0] / max(counts.sum(), 1)
    return {"used": int((counts > 0).sum()), "bits": round(float(-(share * np.log2(share)).sum()), 3)}


def _spread(values: np.ndarray) -> dict[str, Any]:
    fine = values[~np.isnan(values)]
    if not len(fine):
        return {"measured": 0}
    return {"measured": len(fine), "mean": round(float(fine.mean(dtype=np.float64)), 4),
            **{str(p): round(float(value), 4) for p, value in zip(PERCENTILES, np.percentile(fine, PERCENTILES))}}  # fmt: skip


def collect(root: str | os.PathLike, license: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """(what `stats.json` says, what the plots are drawn from). Raises ValueError, with the command, without quality columns."""
    dataset, folder = Dataset.open(root), pathlib.Path(root)
    columns = {split: quality.columns(dataset, split, measured.COLUMNS) for split in dataset.splits}
    tables = {split: quality.table(dataset, split) for split in dataset.splits}
    splits = {}
    for split in dataset.splits:
        people, seconds = speakers.load(dataset, split), columns[split]["seconds"]
        minutes = np.bincount(people.speaker, seconds, len(people.names)) / 60 if len(seconds) else np.zeros(1)
        hours = round(float(seconds.sum(dtype=np.float64)) / 3600, 4)
        splits[split] = {"utterances": len(seconds), "hours": hours, "speakers": len(people.names),
                         "minutes_per_speaker": {"least": round(float(minutes.min()), 2), "median": round(float(np.median(minutes)), 2),
                                                 "most": round(float(minutes.max()), 2)},
                         "languages": tables[split]["languages"]}  # fmt: skip
    where = collections.Counter(name for names in dataset.speakers.values() for name in set(names))
    everything = {name: np.concatenate([columns[split][name] for split in dataset.splits]) for name in measured.COLUMNS}
    seconds, cuts = everything["seconds"], []
    for cut in CUTS:
        (name, (low, high)), = cut.items()
        values = everything[name]
        if not np.isnan(values).all():
            kept = (values >= (-np.inf if low is None else low)) & (values <= (np.inf if high is None else high))
            cuts.append({"cut": cut, "utterances": int(kept.sum()), "hours": round(float(seconds[kept].sum(dtype=np.float64)) / 3600, 4)})
    codes = {group: _codes(dataset, group) for group in dataset.groups if group.startswith("codes-")}
    said = _phones(dataset)
    stats = {
        "name": dataset.manifest["name"], "fingerprint": dataset.fingerprint, "sample_rate": dataset.sample_rate,
        "license": license or _read(folder / "stats.json").get("license", ""),
        "made": _made(folder),
        "splits": splits, "speakers_in_several_splits": sum(count > 1 for count in where.values()),
        "groups": dataset.manifest["groups"], "rejects": _rejects(folder, dataset),
        "columns": {name: _spread(values) for name, values in everything.items()},
        "copies": tables[dataset.splits[0]]["copies"], "shared_keys": tables[dataset.splits[0]].get("shared_keys"), "cuts": cuts, "phones": said,
        "codes": {group: [_usage(counts) for counts in levels] for group, levels in codes.items()},
    }  # fmt: skip
    return stats, {"columns": columns, "phones": said, "codes": codes}


# Pictures ------------------------------------------------------------------------------------------------------------


def _figure(panels: int, width: float = 5.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, 3.4), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, panels))


def _histogram(axes: Any, columns: dict[str, dict[str, np.ndarray]], name: str, label: str, log: bool = False) -> None:
    """A line per split: share of its utterances in every bin."""
    together = np.concatenate([values[name] for values in columns.values()])
    together = together[~np.isnan(together)]
    if not len(together):
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    low, high = together.min(), together.max() + 1e-6
    edges = np.geomspace(max(low, 1e-3), high, 61) if log else np.linspace(low, high, 61)
    for split, values in columns.items():
        fine = values[name][~np.isnan(values[name])]
        if len(fine):
            axes.stairs(np.histogram(fine, edges)[0] / len(fine) * 100, edges, label=f"{split} ({len(fine):,})", linewidth=1.4)
    axes.set(xlabel=label, ylabel="% of utterances", ylim=(0, None), xscale="log" if log else "linear")
    axes.legend(frameon=False, fontsize=8)


def _clean(figure: Any, path: pathlib.Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    records.write_atomic(path, file.getvalue())


def plots(folder: pathlib.Path, drawn: dict[str, Any]) -> list[str]:
    """Writes the pictures that there is something for and returns their names."""
    folder.mkdir(exist_ok=True)
    columns, done = drawn["columns"], {}
    done["length"], panels = _figure(1)
    _histogram(panels[0], columns, "seconds", "length in seconds")
    done["f0"], panels = _figure(2)
    _histogram(panels[0], columns, "f0_hz", "median F0 of an utterance in Hz")
    _histogram(panels[1], columns, "voiced", "voiced share of an utterance")
    done["loudness"], panels = _figure(3)
    _histogram(panels[0], columns, "level_db", "level of the speech in dB of full scale")
    _histogram(panels[1], columns, "peak_db", "peak in dB of full scale")
    _histogram(panels[2], columns, "snr_db", "WADA-SNR in dB")
    if drawn["phones"]:
        names, counts = list(drawn["phones"]), np.array(list(drawn["phones"].values()), float)
        done["phones"], panels = _figure(1, max(6.0, 0.19 * len(names)))
        panels[0].bar(range(len(names)), 100 * counts / counts.sum(), color="tab:blue")
        panels[0].set_xticks(range(len(names)), names, fontsize=7, rotation=90)
        panels[0].set(ylabel="% of phones", xlim=(-0.8, len(names) - 0.2))
    if drawn["codes"]:
        done["codes"], panels = _figure(len(drawn["codes"]))
        for axes, (group, levels) in zip(panels, drawn["codes"].items()):
            for q, counts in enumerate(levels):
                share = np.sort(counts[counts > 0])[::-1] / counts.sum()
                axes.plot(np.arange(1, len(share) + 1), 100 * share, color=_shade(q, len(levels)), linewidth=1,
                          label=f"level {q + 1}: {len(share)} used, {_usage(counts)['bits']:.1f} bit")
            axes.set(xlabel=f"codes of {group}, most frequent first", ylabel="% of frames", xscale="log", yscale="log")
            axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    for name, figure in done.items():
        _clean(figure, folder / f"{name}.png")
    for name in {"length", "f0", "loudness", "phones", "codes"} - set(done):
        (folder / f"{name}.png").unlink(missing_ok=True)
    return [f"{name}.png" for name in done]


def _shade(q: int, levels: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](q / max(levels, 2))


# The datasheet -------------------------------------------------------------------------------------------------------


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    cell = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(cell, line))} |" for line in lines] + [""]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _bound(cut: dict[str, Any]) -> str:
    (name, (low, high)), = cut.items()
    return f"`{name}` " + " and ".join([f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None))


def datasheet(stats: dict[str, Any], pictures: list[str]) -> str:
    """Markdown; what is not known is a question in italics."""
    ask = lambda question: f"*Question to the owner: {question}*\n"
    splits, hours = stats["splits"], sum(about["hours"] for about in stats["splits"].values())
    total = sum(about["utterances"] for about in splits.values())
    languages: collections.Counter[str] = collections.Counter()
    for about in splits.values():
        languages.update(about["languages"])
    picture = lambda name: [f"![{name}](plots/{name}.png)", ""] if f"{name}.png" in pictures else []
    out = [f"# {stats['name']}", "", f"{hours:,.2f} hours, {total:,} utterances at {stats['sample_rate']} Hz, one channel, 16 bit. "
           f"Fingerprint of the recordings: `{stats['fingerprint']}`.", "",
           "Made by `python -m data_pipelines.stats`; written anew whenever that runs. The sections are those of Gebru et al., "
           "*Datasheets for datasets*.", "", "## Motivation", "",
           ask("for what purpose was the corpus made, by whom, and who paid for it?"), "## Composition", ""]  # fmt: skip
    out += _table(["split", "utterances", "hours", "speakers", "minutes a speaker (least, median, most)"], [
        [split, f"{about['utterances']:,}", f"{about['hours']:,.2f}", f"{about['speakers']:,}",
         ", ".join(_number(about["minutes_per_speaker"][k]) for k in ("least", "median", "most"))] for split, about in splits.items()])
    both = stats["speakers_in_several_splits"]
    out += ["Languages (utterances): " + ", ".join(f"{lang or 'not named'} {count:,}" for lang, count in languages.most_common()) + ".", "",
            "No speaker is in two splits." if not both else f"{both} speakers are in more than one split.", ""]
    copies, keys = stats["copies"], stats["shared_keys"]
    out += [f"Duplicates: {copies['exact']} exact, {copies['near']} near (another gain, rate or coding, or a little trimmed)"
            f"{'; `duplicates.jsonl` lists them. They are flagged, not removed' if any(copies.values()) else ''}." +
            (f" Compared were recordings about as long whose fingerprints share {keys} of {KEYS} keys." if keys else ""), ""]
    out += ["### Quality", "", "Percentiles over all utterances. What a column means is in data_pipelines/quality.py.", ""]
    out += _table(["column", *(f"{p} %" for p in PERCENTILES), "not measured"], [
        [f"`{name}`" + (f" ({UNIT[name]})" if name in UNIT else ""),
         *(_number(about[str(p)]) if about["measured"] else "" for p in PERCENTILES), f"{total - about['measured']:,}"]
        for name, about in stats["columns"].items()])  # fmt: skip
    out += ["What a training would have left after a cut (`config.data.cut`):", ""]
    out += _table(["cut", "utterances", "hours"],
                  [[_bound(row["cut"]), f"{row['utterances']:,}", f"{row['hours']:,.2f}"] for row in stats["cuts"]])
    for name in ("length", "loudness", "f0", "phones", "codes"):
        out += picture(name)
    for group, levels in stats["codes"].items():
        out += [f"Codes of `{group}`: entropy of " + ", ".join(f"{about['bits']:.2f}" for about in levels) + " bit a level.", ""]
    out += [ask("does the corpus hold anything confidential or offensive? Can a speaker be recognised, and did each one consent to "
                "speech being made in their voice?"), "## Collection process", ""]  # fmt: skip
    made = stats["made"]
    out += [f"Brought in by `python -m data_pipelines.{made['command']}` with", "", "```json", json.dumps(made, indent=1), "```",
            ""] if made else [ask("by which command was the data set made?")]
    out += [ask("how were the recordings made (room, microphone, from which years), and how were the speakers found?"),
            "## Preprocessing, cleaning, labelling", ""]  # fmt: skip
    out += _table(["group", "made with", "tools"], [
        [f"`{group}`", ", ".join(f"{key} {value}" for key, value in about.items() if key not in ("bytes", "rejects", "tools", "columns")),
         ", ".join(f"{key} {value}" for key, value in about["tools"].items())] for group, about in stats["groups"].items()])
    rows = [[stage, reason, f"{about['count']:,}", "; ".join(about["examples"])]
            for stage, reasons in stats["rejects"].items() for reason, about in sorted(reasons.items(), key=lambda item: -item[1]["count"])]
    if rows:
        out += ["Left out (by `ingest`) or left empty (in a later group), with the reason and examples:", ""]
        out += _table(["stage", "reason", "count", "examples"], rows)
    else:
        out += ["Nothing was rejected.", ""]
    out += [ask("are the raw recordings kept, and where?"), "## Uses", "", "Made for training and scoring generators of speech (ns2_jax).", "",
            ask("what has it been used for, and what should it not be used for?"), "## Distribution", "",
            f"Licence of the corpus: {stats['license']}.\n" if stats["license"] else
            ask("under which licence may it be used? (config.license, or --license)"),
            "## Maintenance", "", ask("who keeps it, how are they reached, and what becomes of it when a speaker withdraws?")]  # fmt: skip
    return "\n".join(out)


def write(root: str | os.PathLike, license: str = "") -> dict[str, Any]:
    """Writes the three and returns what `stats.json` says. Raises ImportError without matplotlib, and as `collect`."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"the plots need the package {error.name}: pip install -e '.[eval]'") from error
    del matplotlib
    folder = pathlib.Path(root)
    stats, drawn = collect(root, license)
    sheet = datasheet(stats, plots(folder / "plots", drawn))
    records.write_atomic(folder / "stats.json", json.dumps(stats, indent=1).encode() + b"\n")
    records.write_atomic(folder / "DATASHEET.md", sheet.encode())
    logging.info("wrote %s", folder / "DATASHEET.md")
    return stats


def main(argv: list[str]) -> None:
    del argv
    write(flags.FLAGS.data, flags.FLAGS.license)


if __name__ == "__main__":
    from ns2_jax.runtime import cluster

    flags.DEFINE_string("data", "", "the data set (a folder with manifest.json)")
    flags.DEFINE_string("license", "", "of the corpus; empty keeps what an earlier run was told")
    cluster.run(main)
