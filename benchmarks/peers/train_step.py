#!/usr/bin/env python3
"""How many tokens/s does a training step reach, and in how much memory, beside plain PyTorch?

usage: .venv/bin/python benchmarks/peers/train_step.py      --help explains the options

Needs PyTorch: python3 -m venv .venv && .venv/bin/pip install torch numpy. Exit status 5 without.

The same model, with as many parameters, from the same kind of start (both are checked), on as many
threads: `longhaul bench train` as one rank and as one rank a thread, and pytorch_llama.py. Every
measurement is a fresh process; all take turns, and medians of the rounds are compared. Memory is
the most that the process had resident, the program itself and its libraries included; what
PyTorch's process has before it makes the model is printed, too.
"""
import argparse
import json
import math
import os
import pathlib
import re
import statistics
import struct
import subprocess
import sys
import tempfile

import common

AIMS = {"tokens/s": 1.5, "memory": 1.0}
HERE = pathlib.Path(__file__).resolve().parent
LOSS_TOLERANCE = 0.15  # of the start, against that of uniform guesses: the output is not zero


def run_measured(command: list[str]) -> tuple[str, int]:
    """Output and most resident bytes of a process. This process must stay small: Linux counts
    what a process had before it became the program."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"exit status {process.returncode}: {' '.join(command)}")
    return output, usage.ru_maxrss * 1024


def program_command(options: argparse.Namespace, *words: str, settings: dict) -> list[str]:
    command = [str(options.program), *words, "--config", str(options.config)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    return command


def resolved_model(config: str) -> dict:
    """The model block of a config.txtpb, as a run has resolved it."""
    block = re.search(r"^model \{\n(.*?)^\}", config, re.MULTILINE | re.DOTALL).group(1)
    if "{" in block:
        sys.exit("models with rope_scaling are not compared: pytorch_llama.py does not scale")
    return {key: json.loads(value) for key, value in re.findall(r"^  (\w+): (\S+)$", block,
                                                                re.MULTILINE)}


def saved_parameters(shards: list[pathlib.Path]) -> int:
    """Elements of the parameters in a checkpoint; entries like adam_m/NAME are the optimizer's."""
    count = 0
    for path in shards:
        with path.open("rb") as file:
            size, = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        count += sum(math.prod(entry["shape"]) for name, entry in header.items()
                     if name != "__metadata__" and "/" not in name)
    return count


def look_at_our_model(options: argparse.Namespace) -> tuple[dict, int, float]:
    """Sizes, parameters and the loss of the first step, from a short run of `longhaul train`."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sizes = {"documents": 4, "tokens": 4096, "vocabulary": 256}
        synthesize = [str(options.program), "data", "synthesize", "--output", str(folder / "data")]
        for key, value in sizes.items():
            synthesize += [f"--{key}", str(value)]
        run_measured(synthesize)
        run_measured(program_command(options, "train", "--ranks", "1", settings={
            "data.path": folder / "data", "data.sequence_length": 1024, "train.batch_tokens": 1024,
            "train.steps": 1, "train.run_directory": folder / "run",
            "checkpoint.directory": folder / "saved"}))
        model = resolved_model((folder / "run/config.txtpb").read_text())
        first = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[0])
        parameters = saved_parameters(sorted(folder.glob("saved/**/*.safetensors")))
    return model, parameters, first["loss"]


def ours(options: argparse.Namespace, dtype: str, length: int, ranks: int) -> dict:
    command = program_command(options, "bench", "train", "--json", "--ranks", str(ranks),
                              "--lengths", str(length), "--steps", str(options.steps), settings={
                                  "parallel.threads": options.threads // ranks,
                                  "train.dtype": dtype.upper(), "train.batch_tokens": length})
    output, memory = run_measured(command)
    row = json.loads(output)
    assert (row["case"]["n"], row["case"]["ranks"], row["case"]["dtype"]) == (length, ranks, dtype)
    return {"tokens_per_second": row["value"], "memory": memory}


def theirs(options: argparse.Namespace, model: dict, dtype: str, length: int) -> dict:
    output, memory = run_measured([sys.executable, str(HERE / "pytorch_llama.py"),
                                   json.dumps(model), dtype, str(length), str(options.threads),
                                   str(options.steps)])
    return json.loads(output) | {"memory": memory}


def check_same_model(model: dict, parameters: int, loss: float, their_first: dict) -> None:
    uniform = math.log(model["vocabulary"])
    if their_first["parameters"] != parameters:
        sys.exit(f"the models differ: {parameters} parameters, theirs {their_first['parameters']}")
    for side, start in (("ours", loss), ("theirs", their_first["first_loss"])):
        if not abs(start - uniform) < LOSS_TOLERANCE:
            sys.exit(f"{side} starts with loss {start:.3f}, not about {uniform:.3f}")


def medians(results: list[dict]) -> tuple[float, float]:
    return (statistics.median(result["tokens_per_second"] for result in results),
            statistics.median(result["memory"] for result in results))


def compare(options: argparse.Namespace, known: tuple[dict, int, float], dtype: str,
            length: int) -> dict[int, float]:
    """Ranks -> ratio of tokens/s; prints a row for each."""
    model, parameters, loss = known
    ranks = sorted({1, options.threads})
    our_results: dict[int, list[dict]] = {count: [] for count in ranks}
    their_results = []
    for _ in range(options.rounds):
        for count in ranks:
            our_results[count].append(ours(options, dtype, length, count))
        their_results.append(theirs(options, model, dtype, length))
        check_same_model(model, parameters, loss, their_results[-1])
    their_speed, their_memory = medians(their_results)
    before_model = their_results[0]["resident_bytes"]
    speeds = {}
    for count in ranks:
        our_speed, our_memory = medians(our_results[count])
        speeds[count] = our_speed / their_speed
        case = {"dtype": dtype, "n": length, "ranks": count, "threads": options.threads // count,
                "their_threads": options.threads, "parameters": parameters}
        if options.json:
            common.print_json({"op": "train_step"} | case, our_speed / their_speed, our_speed,
                              their_speed, "tokens/s", aim=AIMS["tokens/s"])
            common.print_json({"op": "train_memory"} | case, our_memory / their_memory, our_memory,
                              their_memory, "bytes", aim=AIMS["memory"],
                              theirs_before_model=before_model)
        else:
            print(f"{dtype:5s} {length:7d} {count:5d} x {case['threads']:<3d} {our_speed:9.0f} "
                  f"{their_speed:9.0f} {speeds[count]:6.2f}x {our_memory / 2**20:9.0f} "
                  f"{their_memory / 2**20:6.0f} ({before_model / 2**20:4.0f}) "
                  f"{our_memory / their_memory:6.2f}x", flush=True)
    return speeds


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, rounds=3)
    parser.add_argument("--config", type=pathlib.Path,
                        default=common.ROOT / "launch/configs/quickstart.txtpb",
                        help="default: launch/configs/quickstart.txtpb")
    parser.add_argument("--lengths", type=common.number_list, default=[8192, 32768],
                        help="tokens a step, one document; default 8192,32768")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a process; default 3")
    options = common.parse(parser)
    if options.steps < 1:
        parser.error("--steps: 1 or more")
    return options


def main() -> int:
    options = parse_options()
    common.need_pytorch()
    known = look_at_our_model(options)
    if not options.json:
        print(f"# {known[1]} parameters, {options.threads} threads a side; memory in MiB (theirs "
              f"before the model)\n{'dtype':5s} {'tokens':>7s} {'ranks':>5s} x thr "
              f"{'tokens/s':>9s} {'theirs':>9s} {'ratio':>7s} {'memory':>9s} {'theirs':>6s} "
              f"{'':6s} {'ratio':>7s}", flush=True)
    best = [max(compare(options, known, dtype, length).values())
            for dtype in options.dtype for length in options.lengths]
    mean = common.geometric_mean(best)
    if options.json:
        print(json.dumps({"bench": "peer", "case": {"op": "train_step", "ranks": "best"},
                          "value": mean, "unit": "x", "least": min(best),
                          "aim": AIMS["tokens/s"]}))
    else:
        print(f"tokens/s with the better number of ranks: geometric mean {mean:.2f}x, least "
              f"{min(best):.2f}x (aims: {AIMS['tokens/s']}x; memory at most {AIMS['memory']:.0f}x)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
