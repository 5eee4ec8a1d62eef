"""Writes the page and the picture of a run with torch and of a longer one that lost it, and prints both.

usage: check_bench_page.py BENCHMARKS WITH.json WITHOUT.json FOLDER
"""
import json, pathlib, sys

benchmarks, *paths, folder = sys.argv[1:]
sys.path.append(benchmarks)
from page import write_page

cases = [json.load(open(path)) | {"title": f"case {i}", "tokens": 1024 << i, "copies": 2} for i, path in enumerate(paths)]
write_page(cases, pathlib.Path(folder), "page")
print(*(pathlib.Path(folder, f"page.{kind}").read_text() for kind in ("md", "svg")))
