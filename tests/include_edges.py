#!/usr/bin/env python3
"""Checks that the sources keep to the architecture.

usage: include_edges.py [ROOT]      exit status 1 and one line per offence
       include_edges.py --self-test

1. #include follows the arrows between folders (ARROWS below); includes name files from the root.
2. No preprocessor conditionals in logic: CMake chooses files, tables choose kernels, the
   configuration chooses strategies. Left: markers of compilers for other devices, and of Highway,
   which compiles a file once per instruction set.
"""
import pathlib
import re
import sys
import tempfile
import unittest

# Folder -> what it may include: folders, or single files. Longer names win: kernels/core is a
# folder of its own, not a part of kernels.
ARROWS = {
    "kernels/core": ["kernels/core"],
    "kernels": ["kernels/core", "kernels"],
    "dist": ["kernels/core", "dist"],
    "parallel": ["kernels/core", "kernels", "dist", "parallel"],
    "checkpoint": ["kernels/core", "dist", "checkpoint"],
    "model": ["kernels/core", "kernels", "parallel", "checkpoint/state.h", "model"],
    "launch": ["kernels/core", "kernels", "dist", "parallel", "checkpoint", "model", "launch"],
}
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
CONDITIONAL = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b(.*)")
ALLOWED_CONDITION = re.compile(r"__CUDACC__|__CUDA_ARCH__|__HIPCC__|HWY_|_INL_H_")


def folder_of(path):
    """The folder of ARROWS that a path from the root belongs to, or None."""
    inside = [folder for folder in ARROWS if path.startswith(folder + "/")]
    return max(inside, key=len, default=None)


def may_include(folder, path):
    allowed = ARROWS[folder]
    return path in allowed or folder_of(path) in allowed


def offences_in(root, path):
    folder = folder_of(path)
    for number, line in enumerate((root / path).read_text().splitlines(), 1):
        where = f"{path}:{number}"
        include = INCLUDE.match(line)
        if include:
            quote, target = include.groups()
            if quote == '"' and (root / path).parent.joinpath(target).exists():
                yield f"{where}: \"{target}\": name includes from the root of the repository"
            elif folder_of(target) is not None and not may_include(folder, target):
                yield (f"{where}: {folder} may not include {target}; it may include "
                       + ", ".join(ARROWS[folder]))
        condition = CONDITIONAL.match(line)
        if condition and not ALLOWED_CONDITION.search(condition.group(2)):
            yield f"{where}: #{condition.group(1)}{condition.group(2)}: no conditionals in logic"


def offences(root):
    found, files = [], 0
    for top in sorted({folder.split("/")[0] for folder in ARROWS}):
        for path in sorted((root / top).rglob("*")):
            if path.suffix in SUFFIXES:
                files += 1
                found.extend(offences_in(root, path.relative_to(root).as_posix()))
    return found, files


class SelfTest(unittest.TestCase):
    def check(self, path, text):
        with tempfile.TemporaryDirectory() as name:
            root = pathlib.Path(name)
            (root / path).parent.mkdir(parents=True)
            (root / path).write_text(text + "\n")
            (root / "dist/group.h").parent.mkdir(exist_ok=True)
            (root / "dist/group.h").write_text("#pragma once\n")
            return offences(root)[0]

    def test_arrows(self):
        for path, target, allowed in [
                ("kernels/core/a.h", "kernels/gemm.h", False),
                ("kernels/cpu/a.cc", "kernels/core/a.h", True),
                ("kernels/cpu/a.cc", "dist/group.h", False),
                ("dist/mpi/a.cc", "kernels/core/a.h", True),
                ("dist/mpi/a.cc", "kernels/gemm.h", False),
                ("parallel/plan/a.cc", "dist/group.h", True),
                ("parallel/plan/a.cc", "model/config.h", False),
                ("checkpoint/a.cc", "dist/group.h", True),
                ("checkpoint/a.cc", "parallel/plan/plan.h", False),
                ("model/a.cc", "checkpoint/state.h", True),
                ("model/a.cc", "checkpoint/checkpoint.h", False),
                ("model/a.cc", "dist/group.h", False),
                ("model/a.cc", "launch/config/config.h", False),
                ("launch/train/a.cc", "checkpoint/checkpoint.h", True)]:
            for quotes in ('"%s"', "<%s>"):
                found = self.check(path, "#include " + quotes % target)
                self.assertEqual(found == [], allowed, f"{path} -> {target}: {found}")

    def test_relative_includes(self):
        self.assertEqual(len(self.check("dist/a.cc", '#include "group.h"')), 1)
        self.assertEqual(len(self.check("dist/a.cc", '#include "../dist/group.h"')), 1)
        self.assertEqual(self.check("dist/a.cc", '#include "dist/group.h"'), [])
        self.assertEqual(self.check("dist/a.cc", '#include "mpi.h"'), [])
        self.assertEqual(self.check("dist/a.cc", '#include "absl/strings/str_cat.h"'), [])
        self.assertEqual(self.check("dist/a.cc", "#include <vector>"), [])

    def test_conditionals(self):
        for line, allowed in [("#ifdef USE_CUDA", False), ("  #  if defined(X)", False),
                              ("#ifndef X", False), ("#ifdef __CUDACC__", True),
                              ("#if HWY_ONCE", True), ("#pragma once", True)]:
            self.assertEqual(self.check("kernels/a.cc", line) == [], allowed, line)


def main():
    if sys.argv[1:] == ["--self-test"]:
        unittest.main(argv=sys.argv[:1])
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    found, files = offences(root)
    print("\n".join(found + [f"{files} files, {len(found)} offences"]))
    # A wrong root would find nothing to complain about.
    return 1 if found or files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
