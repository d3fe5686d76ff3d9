"""What the comparisons with PyTorch share: finding it, medians, ratios, output."""
import argparse
import importlib.util
import json
import math
import os
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NO_PYTORCH = 5  # exit status


def need_pytorch() -> None:
    """Ends the program if PyTorch is not installed; does not import it, which takes memory."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not importable: python3 -m venv .venv && .venv/bin/pip install torch"
              " numpy, then run this with .venv/bin/python", file=sys.stderr)
        sys.exit(NO_PYTORCH)


def number_list(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def dtype_list(text: str) -> list[str]:
    words = text.split(",")
    if not set(words) <= {"f32", "bf16"}:
        raise argparse.ArgumentTypeError(f"{text}: of f32 and bf16")
    return words


def add_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/release/longhaul",
                        help="default: build/release/longhaul")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of each side; default: all cores this process may use")
    parser.add_argument("--rounds", type=int, default=rounds,
                        help=f"both sides in turns, so often; medians count; default {rounds}")
    parser.add_argument("--dtype", type=dtype_list, default=["f32", "bf16"],
                        help="default f32,bf16")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads: 1 or more")
    if not os.access(options.program, os.X_OK):
        parser.error(f"{options.program} cannot be run: cmake --preset release && cmake --build "
                     "--preset release, or name another --program")
    return options


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def print_json(case: dict, ratio: float, ours: float, theirs: float, unit: str, **more) -> None:
    print(json.dumps({"bench": "peer", "case": case, "value": ratio, "unit": "x", "ours": ours,
                      "theirs": theirs, "unit_rates": unit, **more}), flush=True)
