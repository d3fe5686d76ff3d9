#!/usr/bin/env python3
"""kernels/cuda/gate.py lets good kernels pass and stops others; nvcc is a script here.

usage: gate_test.py GATE
"""
import pathlib
import subprocess
import sys
import tempfile
import unittest

GATE = sys.argv[1]
GOOD = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addPf' for 'sm_90a'
ptxas info    : Function properties for _Z3addPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 128 bytes smem
"""


class Gate(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def compile(self, said, status=0):
        compiler = self.folder / "nvcc"
        compiler.write_text(f"#!/bin/sh\ntouch \"$2\"\ncat >&2 <<'END'\n{said}END\nexit {status}\n")
        compiler.chmod(0o755)
        self.output = self.folder / "add.cu.o"
        return subprocess.run([sys.executable, GATE, str(compiler), "-o", str(self.output)],
                              capture_output=True, text=True)

    def test_a_good_kernel_passes_and_is_listed(self):
        result = self.compile(GOOD)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertTrue(self.output.exists())
        table = subprocess.run([sys.executable, GATE, "--table", str(self.folder)],
                               capture_output=True, text=True, check=True).stdout
        self.assertRegex(table, r"add\.cu +sm_90a +24 +0 +0 +128  add")
        self.assertIn("1 kernels, 0 with spills", table)

    def test_spills_stop_the_build(self):
        result = self.compile(GOOD.replace("0 bytes spill stores", "80 bytes spill stores"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("add (sm_90a) spills 80 bytes", result.stderr)
        self.assertFalse(self.output.exists())

    def test_serialised_wgmma_stops_the_build(self):
        for code in ["C7510", "C7512"]:
            result = self.compile(GOOD + f"ptxas info    : ({code}) Potential Performance Loss\n")
            self.assertEqual(result.returncode, 1, code)
            self.assertIn(code, result.stderr)

    def test_errors_of_the_compiler_stay(self):
        result = self.compile("add.cu(3): error: no\n", status=2)
        self.assertEqual(result.returncode, 2)
        self.assertIn("add.cu(3): error: no", result.stderr)

    def test_an_empty_build_has_no_table(self):
        result = subprocess.run([sys.executable, GATE, "--table", str(self.folder)],
                                capture_output=True, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("preset `cuda`", result.stderr)


if __name__ == "__main__":
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Gate)
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
