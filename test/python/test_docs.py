"""The documents say what is there: links lead somewhere, IR is the compiler's own, Python runs."""
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(text):
    """Of headings, as hosting sites derive them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(document):
    text, dead = document.read_text(), []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            dead.append(link)
    return dead


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links(document):
    assert dead_links(document) == []


def test_dead_links_are_found(tmp_path):
    document = tmp_path / "a.md"
    document.write_text("# One, two\n[a](a.md#one-two) [b](b.md) [c](#three) [d](https://example.org/x)\n")
    assert dead_links(document) == ["b.md", "#three"]


def blocks(language, document="README.md"):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def test_ir_is_the_compilers():
    """Each stretch of IR stands in a phase file; `...` leaves out, line breaks are free."""
    shown = [" ".join(part.split()) for block in blocks("mlir") for part in block.split("\n...\n")]
    written = [" ".join(path.read_text().split()) for path in (ROOT / "test" / "Pipelines" / "decode").glob("*.mlir")]
    assert shown
    assert [part for part in shown if not any(part in text for text in written)] == []


@pytest.mark.parametrize("document", ["README.md", "docs/Python.md"])
def test_python_runs(monkeypatch, document):
    monkeypatch.chdir(ROOT)
    scope = {}
    for block in blocks("python", document):
        exec(block, scope)
    assert scope["out"].ndim == 4 and scope["out"].dtype.name == "float32"
    assert scope["model"].attentions == 1


@pytest.mark.parametrize("document, folder, least", [("docs/Integration.md", "test/Integration/consumer", 4), ("docs/Ahead.md", "examples/c", 2)])
def test_code_for_others_is_tested(document, folder, least):
    """Each stretch of code stands in the project that a test builds; `...` leaves out, indentation is free. A prototype is the compiler's, which another test looks at."""
    written = [" ".join(path.read_text().split()) for path in (ROOT / folder).iterdir()]
    shown = [" ".join(part.split()) for language in ("cmake", "cpp", "c") for block in blocks(language, document) for part in block.split("\n...\n")]
    shown = [part for part in shown if not part.startswith("int step(")]
    assert len(shown) >= least
    assert [part for part in shown if not any(part in text for text in written)] == []
