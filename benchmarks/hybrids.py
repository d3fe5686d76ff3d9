#!/usr/bin/env python3
"""What do linear layers cost in loss? Models that differ in their pattern of layers alone, trained on
the same tokens, several seeds each: softmax attention everywhere, one layer in 2, 4 and 8, nowhere.

    benchmarks/hybrids.py text --program build/release/longhaul --corpus data/quickstart
    benchmarks/hybrids.py copy --program build/release/longhaul

text: validation loss by position in the sample. copy: every document is random tokens and then the
same again; the second half's loss, 0 for a model that looks back and ln(vocabulary) for one that
cannot. Means and standard deviations over seeds. A seed is also an order of the data, which moves all
models' losses alike; so the difference from softmax is that of runs with the same seed, and a pattern is
marked where its mean is more than 2 of its standard deviations from 0. Linear layers have a projection
more (the output's gate), so models with them have narrower MLPs: parameters are equal to 1 %.

Runs are kept below --runs, and what is finished is not done again. Prints Markdown.
"""
import argparse
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys

PATTERNS = {"softmax": "N", "1/2 softmax": "LN", "1/4 softmax": "LLLN", "1/8 softmax": "LLLLLLLN",
            "linear": "L"}
TASKS = {
    "text": {"length": 2048, "batch": 8192, "rate": 2e-3, "decay": 0.1, "tokens": 3_000_000,
             "vocabulary": 256, "layers": 8, "width": 64, "heads": 2, "mlp": 192},
    "copy": {"length": 512, "batch": 8192, "rate": 3e-3, "decay": 0.01, "tokens": 3_200_000,
             "vocabulary": 64, "layers": 4, "width": 128, "heads": 4, "mlp": 256},
}


def mlp_width(task, pattern):
    """Such that a gate of width x width in each linear layer adds no parameters."""
    layers = task["layers"]
    linear = sum((pattern * layers)[layer] == "L" for layer in range(layers)) / layers
    return round(task["mlp"] - linear * task["width"] / 3)


def train(options, task, corpus, name, pattern, seed):
    """The validation at the end of a run, and its number of parameters."""
    folder = options.runs / f"{options.task}-{name.replace('/', '_').replace(' ', '-')}-{seed}"
    tokens = options.tokens or task["tokens"]
    steps = math.ceil(tokens / task["batch"])
    settings = {
        "model.architecture": "llama", "model.vocabulary": task["vocabulary"],
        "model.layers": task["layers"], "model.width": task["width"], "model.heads": task["heads"],
        "model.kv_heads": task["heads"], "model.head_dim": task["width"] // task["heads"],
        "model.mlp_width": mlp_width(task, pattern),
        "model.pattern": pattern, "data.path": corpus, "data.sequence_length": task["length"],
        "train.steps": steps, "train.batch_tokens": task["batch"],
        "train.learning_rate": task["rate"], "train.weight_decay": task["decay"],
        "train.seed": seed, "data.seed": seed,
        # All of them: the same for every seed.
        "train.validation_samples": 1_000_000 if options.task == "text" else 32,
        "train.run_directory": folder,
        "parallel.data": options.ranks, "checkpoint.keep": 1,
    }
    config = options.runs / "empty.txtpb"
    config.write_text("")
    command = [options.program, "train", "--config", config, "--ranks", options.ranks]
    for field, value in settings.items():
        command += ["--set", f"{field}={value}"]
    log = folder.with_suffix(".log")
    with open(log, "a", encoding="utf-8") as output:
        result = subprocess.run([str(part) for part in command], stdout=output, stderr=output,
                                check=False)
    if result.returncode != 0:
        sys.exit(f"hybrids.py: {log} ended with status {result.returncode}")
    parameters = re.search(r"([\d.]+\w?) parameters", log.read_text(encoding="utf-8")).group(1)
    with open(folder / "metrics.jsonl", encoding="utf-8") as file:
        validations = [line for line in map(json.loads, file) if "loss_by_position" in line]
    return validations[-1]["loss_by_position"], parameters


def moments(values):
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def show(of):
    return f"{of[0]:.3f} ± {of[1]:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--program", type=pathlib.Path, default="build/release/longhaul")
    parser.add_argument("--corpus", default="data/quickstart", help="of task text")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/hybrids"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, help="of each run; default: the task's")
    parser.add_argument("--ranks", type=int, default=2, help="replicas, as threads")
    options = parser.parse_args()
    task = TASKS[options.task]
    options.program = options.program.resolve()  # also where its name has no folder
    options.runs.mkdir(parents=True, exist_ok=True)
    corpus = options.corpus
    if options.task == "copy":
        corpus = options.runs / "copy"
        if not corpus.with_suffix(".idx").exists():
            subprocess.run([options.program, "data", "synthesize", "--output", corpus, "--tokens",
                            str(task["length"]), "--documents", "20000", "--vocabulary",
                            str(task["vocabulary"])], check=True, stdout=subprocess.DEVNULL)

    rows, reference = [], None
    for name, pattern in PATTERNS.items():
        if len(pattern) > task["layers"]:
            continue
        runs = [train(options, task, corpus, name, pattern, seed)
                for seed in range(1, options.seeds + 1)]
        by_position = [loss for loss, _ in runs]
        parts = len(by_position[0])
        totals = [statistics.mean(loss[parts // 2:] if options.task == "copy" else loss)
                  for loss in by_position]
        reference = reference or totals
        difference = moments([a - b for a, b in zip(totals, reference)])
        apart = abs(difference[0]) > 2 * difference[1]
        columns = [moments([loss[part] for loss in by_position]) for part in range(parts)]
        rows.append([name, pattern, runs[0][1], show(moments(totals)), show(difference),
                     "yes" if apart else "no"] + [show(column) for column in columns])
        print(f"{name}: {rows[-1][3]}", file=sys.stderr, flush=True)
    what = "second half" if options.task == "copy" else "loss"
    header = ["model", "pattern", "parameters", what, "minus softmax", "differs"]
    header += [f"part {part + 1}" for part in range(len(rows[0]) - len(header))]
    for cells in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
