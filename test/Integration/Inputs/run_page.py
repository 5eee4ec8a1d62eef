"""Runs the commands of a section of a document as they stand, where names lead into this tree, and compares what they print with what the section says:
`run_page.py DOCUMENT HEADING ROOT BUILD FOLDER`."""
import pathlib
import re
import subprocess
import sys


def main():
    document, heading, root, build, folder = sys.argv[1:]
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", pathlib.Path(document).read_text(), re.MULTILINE | re.DOTALL)
    if not section:
        sys.exit(f"expected a section '{heading}' in {document}, found none")
    commands = re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```", "", section[1], flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    said = "".join(re.findall(r"^```text\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL))
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    for name, target in {"build": build, **{name: pathlib.Path(root) / name for name in ("include", "lib", "examples")}}.items():
        (folder / name).symlink_to(target)
    done = subprocess.run(["sh", "-ec", "\n".join(commands)], cwd=folder, text=True, stdout=subprocess.PIPE)
    if done.returncode or not said or done.stdout != said:
        sys.exit(f"expected status 0 and\n{said}got {done.returncode} and\n{done.stdout}")
    print(f"{len(commands)} commands print what the section says")


if __name__ == "__main__":
    main()
