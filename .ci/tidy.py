#!/usr/bin/env python3
"""Runs clang-tidy over the sources of a build, skipping files that passed before unchanged.

usage: .ci/tidy.py BUILD_FOLDER

A file counts as unchanged if it, the headers of this repository that it includes (as the compiler
recorded them), its compiler's arguments, .clang-tidy and clang-tidy itself are. What passed is
remembered in ~/.cache/longhaul-tidy (or $LONGHAUL_TIDY_CACHE), for other clones too, as ccache does.
Tests are left out: GoogleTest's macros set off many checks.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def recorded_dependencies(build):
    """Object file -> the files it was made from."""
    listing = subprocess.run(["ninja", "-C", str(build), "-t", "deps"], check=True,
                             capture_output=True, text=True).stdout
    dependencies, current = {}, None
    for line in listing.splitlines():
        if line.startswith("    "):
            dependencies[current].append((build / line.strip()).resolve())
        elif ":" in line:
            current = line.split(":")[0]
            dependencies[current] = []
    return dependencies


def ours(path):
    return path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "build")


def fingerprint(version, command, files):
    digest = hashlib.sha256((ROOT / ".clang-tidy").read_bytes())
    for text in (version, command.replace(str(ROOT), ".")):
        digest.update(text.encode() + b"\0")
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def check(build, source):
    result = subprocess.run(["clang-tidy", "--quiet", "-p", str(build), str(source)],
                            capture_output=True, text=True)
    return result.returncode == 0, result.stdout + result.stderr


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build = pathlib.Path(sys.argv[1]).resolve()
    dependencies = recorded_dependencies(build)
    stamps = pathlib.Path(os.environ.get("LONGHAUL_TIDY_CACHE",
                                         pathlib.Path.home() / ".cache/longhaul-tidy"))
    stamps.mkdir(parents=True, exist_ok=True)
    version = subprocess.run(["clang-tidy", "--version"], check=True, capture_output=True,
                             text=True).stdout
    todo = []
    for command in json.loads((build / "compile_commands.json").read_text()):
        source = pathlib.Path(command["file"])
        if not ours(source) or source.is_relative_to(ROOT / "tests"):
            continue
        objects = [word for word in command["command"].split() if word.endswith(".o")]
        files = {path for name in objects for path in dependencies.get(name, []) if ours(path)}
        stamp = stamps / fingerprint(version, command["command"], files | {source})
        if not stamp.exists():
            todo.append((source, stamp))

    failures = 0
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        runs = {pool.submit(check, build, source): (source, stamp) for source, stamp in todo}
        for run in concurrent.futures.as_completed(runs):
            source, stamp = runs[run]
            passed, output = run.result()
            if passed:
                stamp.touch()
            else:
                failures += 1
                print(f"{source.relative_to(ROOT)}:\n{output}", flush=True)
    print(f"clang-tidy: {len(todo)} files checked, {failures} with findings")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
