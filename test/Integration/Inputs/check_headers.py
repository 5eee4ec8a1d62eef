"""Compiles each header of an installed package by itself: `check_headers.py INCLUDE CC CXX`.

Those that open with a C comment are C's, and C++'s, and find nothing of LLVM. TableGen's output (.inc) is no header, but each file stands in one.
"""
import pathlib
import subprocess
import sys

MLIR = "/usr/lib/llvm-22/include"
NEEDED = {"Runtime/Cache.h", "Runtime/Kernel.h", "Runtime/Call.h", "Runtime/Cuda.h", "JIT/Module.h", "Pipelines/Pipelines.h", "Dialect/Aligned/IR/Aligned.h", "Storage/Format.h"}


def complaints(compiler, language, header, include, *options):
    command = [compiler, "-fsyntax-only", "-Wall", "-Wextra", "-Wno-unused-parameter", "-x", language, f"-I{include}", *options, "-include", header, "/dev/null"]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    first = done.stdout.strip().splitlines()[:3]
    return [f"expected {header.relative_to(include)} to compile by itself as {language}, got: " + "\n".join(first)] if done.returncode or first else []


def main():
    include, cc, cxx = pathlib.Path(sys.argv[1]), *sys.argv[2:]
    headers = sorted(include.rglob("*.h"))
    names = {str(header.relative_to(include / "aligned")) for header in headers}
    wrong = [f"expected aligned/{name} in the package, found none" for name in sorted(NEEDED - names)]
    for header in headers:
        if header.read_text().startswith("/*"):
            wrong += complaints(cc, "c", header, include, "-std=c99") + complaints(cxx, "c++", header, include, "-std=c++17")
        else:
            wrong += complaints(cxx, "c++", header, include, "-std=c++17", "-isystem", MLIR)
    included = "\n".join(path.read_text() for path in headers)
    wrong += [f"expected a header that includes {name}, found none" for name in
              (str(path.relative_to(include)) for path in include.rglob("*.inc")) if f'"{name}"' not in included]
    print("\n".join(wrong) or f"{len(headers)} headers compile by themselves")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
