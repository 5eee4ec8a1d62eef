"""The prototype that a document shows is the one that a header holds, as far as it is shown: `check_header.py DOCUMENT HEADER`."""
import pathlib
import re
import sys

document, header = (pathlib.Path(path).read_text() for path in sys.argv[1:])
shown = re.findall(r"^```c\n(int .*?)^```", document, re.MULTILINE | re.DOTALL)
if not shown or any(block not in header for block in shown):
    sys.exit(f"expected the prototypes of {sys.argv[1]} in {sys.argv[2]}, got\n{header}")
print(len(shown), "prototypes")
