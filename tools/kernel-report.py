#!/usr/bin/env python3
"""Compiles every kernel for every architecture and says what it needs: registers, spills, stack, float atomics.

    tools/kernel-report.py                      all kernels for sm_80, sm_89 and sm_90a
    tools/kernel-report.py --archs 90a neighbors

Fails when a kernel spills registers or has a stack frame, when one has a float atomic (rule 2: the same inputs give the
same bits), and on any warning. The options are those of the build, kernels/nvcc.options.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARCHS = "80,89,90a"
COMPILING = re.compile(r"Compiling entry function '(\w+)' for")
FUNCTION = re.compile(r"Function properties for (\w+)")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# Every way of PTX to add floats in memory, including the bulk and the multicast ones.
FLOAT_ATOMIC = re.compile(r"\b(?:atom|red|multimem\.red|cp\.reduce)\.[\w.:]*\b(?:f16|f16x2|bf16|bf16x2|f32|f64)\b[^;]*")
ENTRY = re.compile(r"\.entry (\w+)\s*\(")


def find_nvcc():
    """As build.rs does, and in .cuda/."""
    candidates = [os.environ.get("NVCC"), os.environ.get("CUDA_HOME") and os.environ["CUDA_HOME"] + "/bin/nvcc"]
    candidates += [str(ROOT / ".cuda/bin/nvcc"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        if candidate and pathlib.Path(candidate).is_file():
            return candidate
    sys.exit("kernel-report: no nvcc in $NVCC, $CUDA_HOME/bin, .cuda/bin or on the PATH; tools/cuda-home.sh installs one")


def resources(text):
    """What ptxas says of each function: {name: [registers, spill bytes, stack bytes, shared bytes]}."""
    found, entry, name = {}, None, None
    for line in text.splitlines():
        if match := COMPILING.search(line):
            entry = match[1]
            found.setdefault(entry, [0, 0, 0, 0])
        elif match := FUNCTION.search(line):
            name = match[1]
            found.setdefault(name, [0, 0, 0, 0])
        elif match := FRAME.search(line):
            found[name][1] = int(match[2]) + int(match[3])
            found[name][2] = int(match[1])
        elif (match := REGISTERS.search(line)) and entry:
            found[entry][0] = int(match[1])
            shared = SHARED.search(line)
            found[entry][3] = int(shared[1]) if shared else 0
    return found


def float_atomics(ptx):
    """The instructions, with the kernel that they are in."""
    found, entry = [], "?"
    for line in ptx.splitlines():
        if match := ENTRY.search(line):
            entry = match[1]
        if match := FLOAT_ATOMIC.search(line.split("//")[0]):
            found.append((entry, match[0].strip()))
    return found


def compile_kernel(nvcc, source, arch):
    """(what ptxas said, PTX, error)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "--options-file", "kernels/nvcc.options", "-cubin", "--keep", "--keep-dir", folder]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", str(source), "-o", f"{folder}/out.cubin"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        said = done.stdout + done.stderr
        if done.returncode != 0:
            return "", "", said
        ptx = "".join(path.read_text(encoding="utf-8") for path in sorted(pathlib.Path(folder).glob("*.ptx")))
        return said, ptx, "" if ".entry" in ptx else f"no kernel in the PTX of {source}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default=ARCHS, help=f"architectures, default {ARCHS}")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at a time")
    parser.add_argument("families", nargs="*", help="kernel files without folder and ending, default all")
    options = parser.parse_args()

    sources = sorted(path.relative_to(ROOT) for path in ROOT.glob("kernels/*.cu"))
    if options.families:
        unknown = set(options.families) - {source.stem for source in sources}
        if unknown:
            sys.exit(f"kernel-report: no kernels/{sorted(unknown)[0]}.cu")
        sources = [source for source in sources if source.stem in options.families]
    if not sources:
        sys.exit("kernel-report: no kernels")
    archs = [arch.strip() for arch in options.archs.split(",") if arch.strip()]
    nvcc = find_nvcc()

    pairs = [(source, arch) for source in sources for arch in archs]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda pair: compile_kernel(nvcc, *pair), pairs))

    faults = []
    rows = []
    for (source, arch), (said, ptx, error) in zip(pairs, results):
        if error:
            faults.append(f"{source} for sm_{arch}:\n{error}")
            continue
        for name, (registers, spills, stack, shared) in sorted(resources(said).items()):
            rows.append((name, f"sm_{arch}", registers, spills, stack, shared))
            if spills or stack:
                faults.append(f"{source}: {name} for sm_{arch}: {spills} bytes of spills, {stack} bytes of stack")
        for name, instruction in float_atomics(ptx):
            faults.append(f"{source}: {name} for sm_{arch}: float atomic `{instruction}`")

    head = ("kernel", "arch", "registers", "spill bytes", "stack bytes", "fixed shared bytes")
    print("| " + " | ".join(head) + " |")
    print("|---|---|---:|---:|---:|---:|")
    for row in sorted(rows):
        print("| " + " | ".join(map(str, row)) + " |")
    print(f"\n{len(rows)} kernels over {len(archs)} architectures, {len(faults)} faults")
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
