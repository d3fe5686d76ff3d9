#!/usr/bin/env python3
"""Stands before nvcc: fails a compilation whose device code is not as it should be.

usage: gate.py LAUNCHER... NVCC ARGUMENTS...     compiles; writes what ptxas said to OBJECT.ptxas
       gate.py --table BUILD_FOLDER              prints a table of all kernels of a build

A kernel may not spill registers beyond BOUND bytes (some general instances of attention save a few
registers once a step), and ptxas may not serialise wgmma (C7510,
C7512). Needs `-Xptxas=-v` among the arguments.
"""
import pathlib
import re
import subprocess
import sys

BOUND = 64  # bytes of spill stores and loads together

KERNEL = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:, used \d+ barriers)?(?:.*?(\d+) bytes smem)?")
SERIALISED = re.compile(r"\(C751[02]\)")


def kernels(text):
    """[kernel, architecture, registers, stack, spilled, static shared] of ptxas' output."""
    found = []
    for line in text.splitlines():
        if match := KERNEL.search(line):
            found.append([match[1], match[2], 0, 0, 0, 0])
        elif found and (match := SPILLS.search(line)):
            found[-1][3:5] = int(match[1]), int(match[2]) + int(match[3])
        elif found and (match := USED.search(line)):
            found[-1][2], found[-1][5] = int(match[1]), int(match[2] or 0)
    return found


def readable(names):
    result = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True,
                            text=True, check=True)
    return [re.sub(r"longhaul::kernels::cuda::|\(anonymous namespace\)::", "", name)
            for name in result.stdout.splitlines()]


def compile_one(command):
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    remarks = [line for line in result.stderr.splitlines() if "ptxas info" in line
               or SPILLS.search(line)]
    others = [line for line in result.stderr.splitlines() if line not in remarks]
    print("\n".join(others), end="\n" if others else "", file=sys.stderr)
    if result.returncode != 0:
        return result.returncode
    faults = [line for line in result.stderr.splitlines() if SERIALISED.search(line)]
    listing = kernels(result.stderr)
    for (_, arch, *_, spilled, _), name in zip(listing, readable([k[0] for k in listing])):
        if spilled > BOUND:
            faults.append(f"{name} ({arch}) spills {spilled} bytes of registers; {BOUND} are allowed")
    for fault in faults:
        print(f"gate: {fault}", file=sys.stderr)
    if "-o" in command:
        output = pathlib.Path(command[command.index("-o") + 1])
        if faults:
            output.unlink(missing_ok=True)
        else:
            output.with_name(output.name + ".ptxas").write_text("\n".join(remarks) + "\n")
    return 1 if faults else 0


def table(build):
    rows = []
    for path in sorted(pathlib.Path(build).rglob("*.ptxas")):
        listing = kernels(path.read_text())
        rows += [(path.name.removesuffix(".o.ptxas"), name, *kernel[1:])
                 for name, kernel in zip(readable([k[0] for k in listing]), listing)]
    if not rows:
        sys.exit(f"gate.py: no kernels below {build}: build the preset `cuda` first")
    print(f"{'file':28} {'arch':8} {'registers':>9} {'stack':>6} {'spilled':>7} {'shared':>7}  kernel")
    for file, name, arch, registers, stack, spilled, shared in rows:
        print(f"{file:28} {arch:8} {registers:9} {stack:6} {spilled:7} {shared:7}  {name}")
    print(f"{len(rows)} kernels, {sum(row[5] > 0 for row in rows)} with spills")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--table":
        table(sys.argv[2])
    else:
        sys.exit(compile_one(sys.argv[1:]))
