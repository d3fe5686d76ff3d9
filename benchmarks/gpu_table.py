#!/usr/bin/env python3
"""What a run of benchmarks/gpu.sh has found, as one table.

usage: gpu_table.py FOLDER

Reads doctor.json, stages.jsonl and what benchmarks printed (*.log) in FOLDER; prints Markdown, and
writes it to FOLDER/table.md and all figures to FOLDER/results.json.
"""
import datetime
import json
import pathlib
import sys


def objects_in(path: pathlib.Path) -> list[dict]:
    """The lines of a log that are JSON objects."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        if not line.startswith("{"):
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off by a time limit
    return found


def case_name(case: dict) -> str:
    """Of a benchmark: what tells it from its neighbours."""
    left_out = {"threads", "isa", "device", "ranks", "data", "sequence", "servers", "layout",
                "strategy", "batch_tokens", "steps", "pattern"}
    return " ".join(str(value) if isinstance(value, str) else f"{name}={value}"
                    for name, value in case.items() if name not in left_out)


def quantity(value: float | None, unit: str) -> str:
    """In units that read well: of rates in G, those above a thousand in T. None: not a number."""
    if value is None:
        return "not a number"
    if unit.startswith("G") and value >= 1000:
        value, unit = value / 1000, "T" + unit[1:]
    return f"{value:.4g} {unit}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    return ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header),
            *("| " + " | ".join(row) + " |" for row in rows)]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    doctor = json.loads((folder / "doctor.json").read_text())
    # Stages that have run again replace what they were.
    stages = list({s["stage"]: s for s in objects_in(folder / "stages.jsonl")}.values())
    benches = [row for stage in ("kernels", "steps") for row in objects_in(folder / f"{stage}.log")]
    peers = objects_in(folder / "peers.log")
    date = datetime.date.today().isoformat()

    lines = [f"{date}, {'; '.join(doctor['gpus']) or 'no GPU'}; "
             + ", ".join(f"{name} {value}" if name == "Protobuf" else str(value)
                         for name, value in doctor["versions"].items()) + "."]
    lines += table(["stage", "result", "s"],
                   [[s["stage"], s["result"], str(s["seconds"])] for s in stages])
    lines += table(
        ["benchmark", "case", "reached", "limit", "of the limit"],
        [[row["bench"], case_name(row["case"]),
          quantity(row["value"], row["unit"]),
          f"{quantity(row['limit'], row['unit'])} ({row['limit_name']})", "" if row["ratio"] is None else f"{row['ratio']:.1%}"]
         for row in benches])
    names = sorted({name for row in peers for name in row["ratios"]})
    lines += table(
        ["beside PyTorch", *(f"of {name}" for name in names), "ours"],
        [[case_name(row["case"]), *(f"{row['ratios'][name]:.2f}" for name in names),
          quantity(row["value"], row["unit"])] for row in peers])

    text = "\n".join(lines) + "\n"
    print(text, end="")
    (folder / "table.md").write_text(text)
    (folder / "results.json").write_text(json.dumps(
        {"date": date, "doctor": doctor, "stages": stages, "benchmarks": benches, "peers": peers},
        indent=1) + "\n")


if __name__ == "__main__":
    main()
