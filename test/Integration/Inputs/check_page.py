"""Reads a page of aligned-run --report back and holds it against what --json printed.

usage: check_page.py PAGE.html RUN.json [--baselines FIGURES.json] [--drawn] [--no-plans] [--text TEXT]
--drawn: of a capture with one layer, kv head and step, so that the picture shows all the bits that the JSON has.
"""
import argparse, html.parser, json, re
import xml.etree.ElementTree as ElementTree

parser = argparse.ArgumentParser()
parser.add_argument("page")
parser.add_argument("json")
parser.add_argument("--baselines")
parser.add_argument("--drawn", action="store_true")
parser.add_argument("--no-plans", action="store_true")
parser.add_argument("--text")
options = parser.parse_args()
source, run = open(options.page, encoding="utf-8").read(), json.load(open(options.json))
HTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"
root = ElementTree.fromstring(source)


class Balance(html.parser.HTMLParser):
    """HTML as browsers read it: what is opened is closed in order, and nothing comes from elsewhere."""
    stack = []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "img", "iframe"), tag
        for name, value in attributes:
            assert name not in ("src", "href") and not name.startswith("on"), (tag, name, value)
        self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, tag


balance = Balance()
balance.feed(source)
balance.close()
assert not balance.stack, balance.stack
assert "url(" not in source and "@import" not in source

# The table, row by row, with every digit.
reports = run["runs"] + run["alternatives"]
rows = root.findall(f".//{HTML}div[@id='figures']//{HTML}tbody/{HTML}tr")
assert len(rows) == len(reports)
for row, report in zip(rows, reports):
    assert report["policy"] in "".join(row.itertext()), report
    values = [data.get("value") for data in row.iter(f"{HTML}data")]
    wanted = [report[key] for key in ("k_bits", "v_bits", "bytes_fraction", "error_mean", "error_max")]
    assert [json.loads(value) for value in values] == wanted, (values, wanted)
assert all((report["step_us"] is None) == (report in run["alternatives"]) for report in reports)
headline = root.find(f".//{HTML}p[@class='headline']")
spoken = [json.loads(data.get("value")) for data in headline.iter(f"{HTML}data")]
assert spoken in [[report[key] for key in ("bytes_fraction", "error_mean", "error_max")] for report in run["runs"]], spoken

# The scatter plot has a mark with a hint and a label for each whose error is known.
figure = root.find(f".//{HTML}figure[@id='bytes-error']")
hints = [hint.text for hint in figure.iter(f"{SVG}title")]
texts = [text.text for text in figure.iter(f"{SVG}text")]
placed = [report for report in reports if report["error_mean"] is not None]
assert len(hints) == len(placed)
for report in placed:
    assert any(hint.startswith(report["policy"]) for hint in hints) and any(text.startswith(report["policy"]) for text in texts), report
assert "relative L2 error" in texts and "bytes read, % of dense attention" in texts

# The pictures.
pictures = root.findall(f".//{HTML}section[@id='plans']/{HTML}details")
assert len(pictures) == (0 if options.no_plans else len(run["runs"]))
assert options.no_plans or sum("open" in picture.attrib for picture in pictures) == 1


def cells(group):
    """Of a heat map: by row, how many cells there are, and their bits together; class b3 means 12 bits."""
    rows = {}
    for path in group.findall(f"{SVG}path"):
        for row, run in re.findall(r"M\d+ (\d+)h(\d+)v1h-\d+z", path.get("d")):
            count, bits = rows.get(int(row), (0, 0))
            rows[int(row)] = count + int(run), bits + int(run) * 4 * int(path.get("class")[1:])
    return rows


def total(group):
    return [sum(numbers) for numbers in zip(*cells(group).values())]


for picture, report in zip(pictures, run["runs"]):
    groups = list(picture.iter(f"{SVG}g"))
    assert len(groups) == 3  # K, V, probabilities
    assert all(path.get("class")[0] == kind for group, kind in zip(groups, "bbp") for path in group)
    titles = [text.text for text in picture.iter(f"{SVG}text") if text.get("class") == "name"]
    tokens = total(groups[2])[0]
    assert total(groups[1])[0] == tokens
    if options.drawn:
        # K of fixed planes is read by token; of float planes by channel of a tile, whose row counts as often as it has tokens.
        fixed = report["policy"] != "alignedkv"
        of_tiles = {row: bits / count * min(64, tokens - 64 * row) for row, (count, bits) in cells(groups[0]).items()}
        key, value = sum(of_tiles.values()) / tokens, total(groups[1])[1] / tokens
        assert total(groups[0])[0] == tokens if fixed else total(groups[0])[0] % -(-tokens // 64) == 0
        assert titles[:2] == [f"K: {key:.2f} bits a value", f"V: {value:.2f} bits a value"], (titles, key, value)
        # The tally counts a byte of scale code for each token and side too; head dims are known from the share that they make up.
        for seen, told in (key, report["k_bits"]), (value, report["v_bits"]):
            codes = told - seen
            assert any(abs(codes - 8 / width) < 1e-9 for width in range(16, 257, 16)) if fixed else abs(codes) < 1e-9, (seen, report)

# Certificates: how many bounds hold, of how many. Nothing is promised of a head whose exact output is not finite.
violations = [report["bound_violations"] for report in run["runs"]]
panel = root.find(f".//{HTML}section[@id='certificates']")
assert (panel is not None) == any(report["error_mean"] is not None for report in run["runs"])
if panel is not None:
    holding, total = (int(data.get("value")) for data in panel.iter(f"{HTML}data"))
    assert total - holding == sum(violations) and total % len(violations) == 0, (holding, total, violations)
    dots = [len(re.findall("M", path.get("d"))) for path in panel.find(f".//{HTML}figure").iter(f"{SVG}path") if "key-dot" not in path.get("class")]
    assert 0 < sum(dots) <= total, (dots, total)

for name, figures in json.load(open(options.baselines)).items() if options.baselines else ():
    (ours,) = [report for report in run["alternatives"] if name in report["policy"]]
    for key, other in ("k_bits", "key_bits"), ("v_bits", "value_bits"), ("error_mean", "error_mean"), ("error_max", "error_max"):
        assert abs(ours[key] - figures[other]) <= (0.05 if name == "flash" else 1e-6) * figures[other], (name, key, ours, figures)

if options.text:
    assert options.text in "".join(root.itertext()), options.text
