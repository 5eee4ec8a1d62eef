"""Cuts the file that holds this machine's costs, the only small one of a folder of compiled modules, in half; it has to be whole."""
import pathlib
import sys

(file,) = [path for path in pathlib.Path(sys.argv[1]).iterdir() if path.stat().st_size < 1000]
content = file.read_bytes()
assert len(content) > 300, content
file.write_bytes(content[: len(content) // 2])
