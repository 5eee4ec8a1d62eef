"""The page and the picture of what bench.py measured."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 60, 170, 30, 50


def ratio(quartiles):
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def write_page(results, folder, name):
    lines = ["# Kernels of the CPU in turn", "",
             f"Written by `make bench CAPTURE=DIR GGML=FOLDER TORCH=PYTHON` ([what they are](../../docs/Measurements.md#beside-other-kernels)). CPU: {results[0]['cpu']}. Time is a step's, beside that of this project's dense f16 kernel in the same round: the median, and the middle half of the",
             "rounds in brackets. Bytes are beside a cache of 16 bits. Errors are relative L2 of a head's output against attention in float64, mean. `read` only reads the dense cache.",
             "Every contestant's memory is in large pages where it is large. Threads share kv heads, and the tokens of one kv head. With `dense-up-to=auto` a short cache is read as it was appended as long as that is faster on this machine.", "",
             f"![time against error]({name}.svg)", ""]
    for case in results:
        dense = case["contestants"][0]["microseconds"][1]
        rate = case["dense_megabytes"] / case["layers"] / case["copies"] / dense * 1e3
        lines += [f"## {case['title']}", "",
                  f"{case['tokens']} tokens, head_dim {case['head_dim']}, {case['kv_heads']} kv heads of {case['group']} query heads, {case['layers'] * case['copies']} layers in turn "
                  f"({case['dense_megabytes']:.0f} MB of f16), threads: {case['threads']}. A dense step takes {dense:.0f} us ({rate:.1f} GB/s).", "",
                  "| kernel | time beside dense | bytes | error |", "|---|---|---|---|"]
        for c in case["contestants"]:
            error = f"{c['error_mean']:.1e}" if c["error_mean"] is not None else ""
            note = f" ({c['note']})" if "note" in c else ""
            lines.append(f"| {c['name']}{note} | {ratio(c['beside_dense'])} | {c['bytes']:.3f} | {error} |")
        lines.append("")
    (folder / f"{name}.md").write_text("\n".join(lines))
    (folder / f"{name}.svg").write_text(picture(results))


def picture(results):
    """Time beside dense over context, a line for each kernel."""
    import math
    cases = sorted((case for case in results if case["threads"] == 1 and case["head_dim"] == results[0]["head_dim"] and case["group"] == results[0]["group"]
                    and (case["copies"] > 1 or case["tokens"] > 8192)), key=lambda case: case["tokens"])
    names = [name for name in dict.fromkeys(c["name"] for case in cases for c in case["contestants"]) if name not in ("dense", "read")]
    value = {(case["tokens"], c["name"]): c["beside_dense"][1] for case in cases for c in case["contestants"]}
    xs = [math.log2(case["tokens"]) for case in cases]
    ys = [math.log2(v) for (_, name), v in value.items() if name in names] + [0]
    low, high = math.floor(min(ys)), math.ceil(max(ys))

    def x(tokens):
        return LEFT + (math.log2(tokens) - xs[0]) / max(xs[-1] - xs[0], 1e-9) * (WIDTH - LEFT - RIGHT)

    def y(v):
        return TOP + (high - math.log2(v)) / max(high - low, 1) * (HEIGHT - TOP - BOTTOM)

    colours = ["#666666", "#b2182b", "#d6604d", "#2166ac", "#4393c3", "#8c6d31", "#bd9e39", "#1b7837", "#5aae61", "#a6dba0"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="18">time of a step beside the dense f16 kernel, over tokens (lower is faster)</text>']
    for power in range(low, high + 1):
        bold = ' stroke-width="2"' if power == 0 else ""
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(2**power):.1f}" y2="{y(2**power):.1f}" stroke="#bbbbbb"{bold}/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(2**power) + 4:.1f}" text-anchor="end">{2**power:g}</text>')
    for case in cases:
        out.append(f'<text x="{x(case["tokens"]):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{case["tokens"]}</text>')
    taken = []
    for colour, name in zip(colours, names):
        points = [(x(case["tokens"]), y(value[case["tokens"], name])) for case in cases if (case["tokens"], name) in value]
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
        at = points[-1][1] + 4
        while any(abs(at - other) < 13 for other in taken):
            at += 1
        taken.append(at)
        out.append(f'<text x="{WIDTH - RIGHT + 8}" y="{at:.1f}" fill="{colour}">{name}</text>')
    return "\n".join(out + ["</svg>", ""])
