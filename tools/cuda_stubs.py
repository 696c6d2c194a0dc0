#!/usr/bin/env python3
"""Builds stand-ins for the CUDA libraries that Candle's backend links with, for machines that have none.

Every function that cudarc names is there under its name and answers with an error, so that programs link and start, and
a call says that there is no device. The libraries carry the names that real ones have at run time: a program that was
linked with a stand-in uses the real library on a machine that has it.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

# Library: (the name at run time, cudarc's module, what a function answers).
# 34 is CUDA_ERROR_STUB_LIBRARY; the others are "not initialized".
LIBRARIES = {
    "cuda": ("libcuda.so.1", "driver", 34),
    "cublas": ("libcublas.so.13", "cublas", 1),
    "cublasLt": ("libcublasLt.so.13", "cublaslt", 1),
    "curand": ("libcurand.so.10", "curand", 101),
}
# Answers that a caller prints or relies on.
WRITTEN_OUT = {
    "cuGetErrorString": 'int cuGetErrorString(int error, const char **text)\n'
    '{ (void)error; *text = "there is no CUDA driver, only the stand-in of tools/cuda-home.sh"; return 0; }',
    "cuGetErrorName": 'int cuGetErrorName(int error, const char **text)\n'
    '{ (void)error; *text = "CUDA_ERROR_STUB_LIBRARY"; return 0; }',
}
FUNCTION = re.compile(r"^pub unsafe fn (cu\w+)\([^)]*\)\s*(?:->\s*([^{]+?))?\s*\{", re.MULTILINE)
STATUS = re.compile(r"^(CUresult|\w*[sS]tatus_t)$")


def cudarc_sources():
    """Where cargo keeps the cudarc of Cargo.lock."""
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--all-features", "--locked", "--quiet"], check=True, capture_output=True
    )
    for package in json.loads(metadata.stdout)["packages"]:
        if package["name"] == "cudarc":
            return pathlib.Path(package["manifest_path"]).parent / "src"
    sys.exit("cuda_stubs: Cargo.lock names no cudarc")


def stub(functions, answer):
    """The C source of a library in which every function gives the answer."""
    lines = []
    for name, result in sorted(functions.items()):
        if name in WRITTEN_OUT:
            lines.append(WRITTEN_OUT[name])
        elif STATUS.match(result):
            lines.append(f"int {name}(void) {{ return {answer}; }}")
        else:
            # Pointers and sizes.
            lines.append(f"void *{name}(void) {{ return 0; }}")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder for the libraries")
    parser.add_argument("--compiler", default="cc", help="the C compiler")
    options = parser.parse_args()

    sources = cudarc_sources()
    options.out.mkdir(parents=True, exist_ok=True)
    for library, (soname, module, answer) in LIBRARIES.items():
        text = (sources / module / "sys" / "mod.rs").read_text(encoding="utf-8")
        functions = {name: (result or "").strip() for name, result in FUNCTION.findall(text)}
        functions.pop("culib", None)
        if len(functions) < 10:
            sys.exit(f"cuda_stubs: found only {len(functions)} functions of {library} in {sources}")
        source = options.out / f"{library}.c"
        code = stub(functions, answer)
        if (options.out / soname).exists() and source.exists() and source.read_text(encoding="utf-8") == code:
            continue
        source.write_text(code, encoding="utf-8")
        command = [options.compiler, "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{soname}"]
        subprocess.run([*command, "-o", str(options.out / soname), str(source)], check=True)
        link = options.out / f"lib{library}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(soname)
        print(f"cuda_stubs: {soname}, {len(functions)} functions")


if __name__ == "__main__":
    main()
