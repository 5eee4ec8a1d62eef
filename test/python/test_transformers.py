"""AlignedCache in transformers: tiny models with random weights against themselves, in float64 and with their own cache, and attention against NumPy."""

import copy

import numpy as np
import pytest
from conftest import errors_of_usual, exact_attention

import alignedkv

torch = pytest.importorskip("torch", reason="torch can't be imported", exc_type=ImportError)
transformers = pytest.importorskip("transformers", reason="transformers can't be imported", exc_type=ImportError)

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

from alignedkv.integrations.transformers import AlignedCache  # noqa: E402

torch.set_num_threads(1)  # threads that wait for each other take longer than these models

# Whether a model attends by sdpa, and then needs nothing but the cache, and what its configuration says.
MODELS = {
    "Llama": (True, {}),
    "Mistral": (True, {"sliding_window": 20}),
    "Qwen2": (True, {}),
    "Qwen3": (True, {}),
    "Gemma2": (False, {"sliding_window": 20, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 3.0}),
    "Gemma3": (True, {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]}),
    "GptOss": (False, {"sliding_window": 20, "num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
}
# The most that logits of a decode step may be off, relative to their L2 norm. Tolerances are of attention, from which these networks go on.
OFF = {"exact": 2e-3, "tight": 1e-2, "balanced": 1e-1}


def tiny(name, seed=0, dtype=torch.float32, head_dim=32, layers=2, **changes):
    """Large weights, so that attention has something to choose from."""
    sdpa, options = MODELS[name]
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(**{
        "vocab_size": 97, "hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": layers, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": head_dim, "max_position_embeddings": 512, "initializer_range": 0.3, "tie_word_embeddings": False,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, **options, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().to(dtype)
    assert (model.config._attn_implementation == "sdpa") == sdpa
    if not sdpa:
        model.set_attn_implementation("alignedkv")
    if name == "GptOss":
        model.set_experts_implementation("eager")  # the only ones for float64
    return model


def ids(*shape, seed=0):
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(seed))


def generate(model, tokens, cache=None, new=21, **options):
    return model.generate(tokens, cache=cache, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True, **options)


def steps(model, cache, *parts, **options):
    """Logits [batch, tokens, vocabulary] of tokens that come in parts."""
    return torch.cat([model(part, cache=cache, **options).logits for part in parts], 1)


def off(logits, expected):
    """The largest relative L2 error of a token's logits."""
    assert logits.shape == expected.shape
    return ((logits.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)).max().item()


# Models


@pytest.mark.parametrize("name", MODELS)
def test_greedy_generation_is_the_models_own(name):
    model, prompt = tiny(name), ids(1, 45)
    own = generate(model, prompt)
    exact = generate(model.double(), prompt)
    model.float()
    bits = {}
    for policy, most in OFF.items():
        cache = AlignedCache(policy=policy)
        got = generate(model, prompt, cache)
        assert torch.equal(got.logits[0], own.logits[0])  # the prompt sees the model's own attention
        if policy != "balanced":
            assert torch.equal(got.sequences, own.sequences)
            assert 0 < off(torch.stack(got.logits), torch.stack(exact.logits)) < most
        bits[policy] = cache.reads["key_bits"] + cache.reads["value_bits"]
        assert cache.get_seq_length() == 65 and cache.nbytes == sum(layer.kv.nbytes for layer in cache.layers) > 0
    assert bits["exact"] > bits["tight"] > bits["balanced"]


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_given_tokens_against_float64(name):
    model, tokens = tiny(name), ids(2, 70, seed=1)
    last = 11 if name == "Llama" else 3  # 11 queries of 3 heads are more than one kernel takes
    parts = tokens.split([64 - last, 1, 1, 3, 1, last], 1)
    exact = steps(copy.deepcopy(model).double(), None, tokens)
    errors = {policy: off(steps(model, AlignedCache(policy=policy), *parts), exact) for policy in OFF}
    assert all(errors[policy] < most for policy, most in OFF.items()), errors
    assert errors["exact"] < errors["balanced"]


@pytest.mark.parametrize("window", [1, 5, 64, 65, 200])
def test_windows_shorter_and_longer_than_the_text(window):
    model, tokens = tiny("Mistral", sliding_window=window), ids(1, 150, seed=2)
    parts, exact = tokens.split([130] + [1] * 16 + [4], 1), steps(copy.deepcopy(model).double(), None, tokens)
    cache = AlignedCache(policy="exact")
    assert off(steps(model, cache, *parts), exact) < OFF["exact"]
    everything = AlignedCache(policy="exact")
    steps(tiny("Llama"), everything, *parts)
    read = cache.reads["key_bits"] / everything.reads["key_bits"]
    assert read < 0.7 if window < 100 else read == 1  # tiles of 64 tokens that no query sees are not read


def test_bfloat16_is_as_close_as_the_models_own_cache():
    model, tokens = tiny("Llama", dtype=torch.bfloat16), ids(1, 60, seed=3)
    parts, exact = tokens.split([41] + [1] * 19, 1), steps(copy.deepcopy(model).double(), None, tokens)
    cache = AlignedCache(policy="tight")
    logits = steps(model, cache, *parts)
    assert logits.dtype == torch.bfloat16 and cache.layers[0].kv.dtype == "bfloat16"
    assert off(logits, exact) < 1.5 * off(steps(model, transformers.DynamicCache(), *parts), exact)


# What generation does with a cache


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2"])
def test_left_padding_is_not_seen(name, chunk):
    model, prompt = tiny(name), ids(3, 30, seed=4)
    padded, mask = prompt.clone(), torch.ones_like(prompt)
    for row, padding in enumerate([0, 11, 29]):
        padded[row, :padding], mask[row, :padding] = 0, 0
    batch = generate(model, padded, AlignedCache(policy="exact"), attention_mask=mask, prefill_chunk_size=chunk)
    for row, padding in enumerate([0, 11, 29]):
        alone = generate(model, prompt[row:row + 1, padding:])
        assert torch.equal(batch.sequences[row, 30:], alone.sequences[0, 30 - padding:])
        assert off(torch.stack(batch.logits)[:, row], torch.stack(alone.logits)[:, 0]) < OFF["exact"]


def test_beam_search_reorders():
    model, prompt = tiny("Llama"), ids(2, 19, seed=5)
    options = {"num_beams": 4, "num_return_sequences": 3}
    assert torch.equal(generate(model, prompt, AlignedCache(policy="exact"), **options).sequences, generate(model, prompt, **options).sequences)


@pytest.mark.parametrize("how", ["assistant", "lookup"])
@pytest.mark.parametrize("name", ["Llama", "Gemma2"])
def test_assisted_generation_crops(name, how, monkeypatch):
    model, prompt = tiny(name), ids(1, 12, seed=6).repeat(1, 3)
    options = {"assistant_model": tiny(name, seed=1, layers=1)} if how == "assistant" else {"prompt_lookup_num_tokens": 4}
    crops, crop = [], AlignedCache.crop
    monkeypatch.setattr(AlignedCache, "crop", lambda self, tokens: (crops.append(tokens), crop(self, tokens)))
    cache = AlignedCache(policy="exact")
    got = generate(model, prompt, cache, **options)
    assert torch.equal(got.sequences, generate(model, prompt).sequences)
    assert min(crops) < 0 and cache.get_seq_length() < got.sequences.shape[1]


def test_models_side_by_side_do_not_meet():
    models, tokens = [tiny("Llama"), tiny("Qwen3", seed=1), tiny("Llama", seed=2)], ids(1, 40, seed=7)
    parts = tokens.split([20] + [1] * 20, 1)
    alone = [steps(model, AlignedCache(), *parts) for model in models]
    caches = [AlignedCache() for _ in models]
    turns = [[steps(model, cache, part) for model, cache in zip(models, caches)] for part in parts]
    for logits, turn in zip(alone, zip(*turns)):
        assert torch.equal(logits, torch.cat(turn, 1))


def test_a_conversation_goes_on_in_one_cache():
    model, cache, text = tiny("Llama"), AlignedCache(policy="exact"), ids(1, 17, seed=8)
    for turn in range(3):
        got = generate(model, text, cache, new=6).sequences
        assert torch.equal(got, generate(model, text, new=6).sequences)
        text = torch.cat([got, ids(1, 37 + turn, seed=turn)], 1)
    cache.reset()
    assert cache.get_seq_length() == 0 and torch.equal(generate(model, ids(2, 9), cache).sequences, generate(model, ids(2, 9)).sequences)


CHANGES = {  # what is done to a cache of 3 texts, and how many it holds then
    "crop": (3, lambda cache: cache.crop(-9)),
    "crop nothing": (3, lambda cache: cache.crop(0)),
    "crop all": (3, lambda cache: cache.crop(-50)),
    "reorder": (3, lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0]))),
    "select": (1, lambda cache: cache.batch_select_indices(torch.tensor([1]))),
    "select by a mask": (2, lambda cache: cache.batch_select_indices(torch.tensor([True, False, True]))),
    "repeat": (6, lambda cache: cache.batch_repeat_interleave(2)),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_caches_change_as_the_models_own(change):
    model, tokens, later = tiny("Llama"), ids(3, 50, seed=9), ids(6, 4, seed=10)
    batch, change = CHANGES[change]
    logits = []
    for cache in (AlignedCache(policy="exact"), transformers.DynamicCache()):
        change(cache)  # an empty one stays as it is
        steps(model, cache, tokens[:, :47], tokens[:, 47:])
        twin = copy.deepcopy(cache)
        change(cache)
        logits += [steps(model, cache, *later[:batch].split(1, 1)), steps(model, twin, later[:3])]
    assert off(logits[0], logits[2]) < OFF["exact"] and off(logits[1], logits[3]) < OFF["exact"]


# Attention


def random(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


class Module(torch.nn.Module):
    """All that attention asks of a layer of a model."""

    is_causal = True

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("heads, kv_heads, queries", [(6, 2, 1), (7, 7, 3), (5, 1, 2)])
@pytest.mark.parametrize("policy, most", [("exact", 1e-4), ("tight", 2.0**-10), ("balanced", 2.0**-7)])
def test_attention_against_float64(rng, policy, most, heads, kv_heads, queries):
    past, tokens = 97 - queries, 97
    q, k, v = random(rng, 3, heads, queries, 32), random(rng, 3, kv_heads, tokens, 32), random(rng, 3, kv_heads, tokens, 48)
    seen = np.arange(tokens) <= np.arange(past, tokens)[:, None]
    expected = np.concatenate([exact_attention(q[:, :, [i]], k[:, :, :past + 1 + i], v[:, :, :past + 1 + i], 0.3) for i in range(queries)], 2)
    cache = AlignedCache(policy=policy)
    first = cache.update(k[:, :, :past], v[:, :, :past], 0)
    assert torch.equal(first[0], k[:, :, :past]) and torch.equal(first[1], v[:, :, :past])
    held = cache.update(k[:, :, past:], v[:, :, past:], 0)
    added = torch.from_numpy(np.where(seen, 0, -np.inf).astype(np.float32))
    for implementation, mask in [("sdpa", None), ("alignedkv", torch.from_numpy(seen).expand(3, 1, -1, -1)), ("sdpa", added)]:
        out, weights = ALL_ATTENTION_FUNCTIONS[implementation](Module(heads // kv_heads), q, *held, mask, scaling=0.3, sliding_window=None)
        assert out.shape == (3, queries, heads, 48) and out.dtype == torch.float32 and weights is None
        assert errors_of_usual(out.transpose(1, 2).numpy(), expected, v.numpy()).max() < most


def test_a_query_that_sees_nothing_gives_zeros(rng):
    q, k = random(rng, 1, 3, 2, 32), random(rng, 1, 3, 70, 32)
    cache = AlignedCache()
    cache.update(k[:, :, :68], k[:, :, :68], 0)
    mask = torch.ones(1, 1, 2, 70, dtype=torch.bool)
    mask[:, :, 0] = False
    out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](Module(1), q, *cache.update(k[:, :, 68:], k[:, :, 68:], 0), mask)
    assert (out[:, 0] == 0).all() and torch.isfinite(out).all() and (out[:, 1] != 0).all()


def test_formats_and_tolerances_are_those_asked_for(rng):
    model, tokens = tiny("Llama"), ids(1, 40, seed=11)
    parts, exact = tokens.split([30] + [1] * 10, 1), steps(copy.deepcopy(model).double(), None, tokens)
    for options, most in [({"policy": "alignedkv", "format": "float<8,4,4>"}, 1e-1), ({"policy": "budget", "tolerance": 2.0**-12}, OFF["tight"])]:
        cache = AlignedCache(**options)
        assert off(steps(model, cache, *parts), exact) < most
        assert cache.layers[1].kv.format == options.get("format", "fixed<4,4,8>")
    tight = AlignedCache(policy="tight")
    steps(model, tight, *parts)
    assert tight.reads == cache.reads  # 'tight' is that tolerance


@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
def test_other_caches_are_left_alone(name):
    model, tokens = tiny(name), ids(2, 50, seed=12)
    parts = tokens.split([31] + [1] * 19, 1)
    caches = [None, transformers.DynamicCache(), transformers.DynamicCache(config=model.config), transformers.StaticCache(model.config, 64)]
    own = [steps(model, copy.deepcopy(cache), *parts[:1 if cache is None else None]) for cache in caches]
    model.set_attn_implementation("alignedkv")
    assert all(torch.equal(steps(model, cache, *parts[:1 if cache is None else None]), logits) for cache, logits in zip(caches, own))


# Refusals


@pytest.mark.parametrize("options, expected", [
    ({"policy": "best"}, "expected policy .*, got 'best'"), ({"policy": "tight", "tolerance": 0.1}, "expected a tolerance only with policy 'budget'"),
    ({"policy": "budget"}, "expected a tolerance with policy 'budget', got none"), ({"policy": "a b"}, "'draft' or 'budget', got 'a b'"),
    ({"format": "int8"}, "expected a format such as .*, got 'int8'"), ({"policy": "alignedkv"}, "expected a 'float' format under policy 'alignedkv'")])
def test_policies_and_formats_are_refused_at_once(options, expected):
    with pytest.raises(alignedkv.Error, match=expected):
        AlignedCache(**options)


@pytest.mark.parametrize("options, model, expected", [
    ({}, {"head_dim": 40}, "expected a static head_dim that is a multiple of 16"), ({}, {"dtype": torch.float64}, "expected dtype .*, got 'float64'")])
def test_what_cannot_be_stored_is_refused_with_the_first_tokens(options, model, expected):
    with pytest.raises(alignedkv.Error, match=expected):
        generate(tiny("Llama", **model), ids(1, 5), AlignedCache(**options))


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GptOss"])
def test_attention_that_does_not_know_planes_is_refused(name):
    model, cache = tiny(name), AlignedCache()
    model.set_attn_implementation("eager")
    with pytest.raises(alignedkv.Error, match="expected attention by 'sdpa' or 'alignedkv'"):
        generate(model, ids(1, 5), cache)
    model.set_attn_implementation("alignedkv")
    cache.reset()
    assert torch.equal(generate(model, ids(1, 5), cache).sequences, generate(model, ids(1, 5)).sequences)


@pytest.mark.parametrize("options, expected", [({"dropout": 0.1}, "without dropout"), ({"position_bias": torch.zeros(1, 3, 1, 9)}, "without position_bias")])
def test_attention_that_is_not_computed_is_refused(rng, options, expected):
    k, cache = random(rng, 1, 3, 8, 32), AlignedCache()
    cache.update(k, k, 0)
    held = cache.update(k[:, :, :1], k[:, :, :1], 0)
    with pytest.raises(alignedkv.Error, match=expected):
        ALL_ATTENTION_FUNCTIONS["sdpa"](Module(1), k[:, :, :1], *held, None, **options)


def test_calls_that_do_not_fit_change_nothing():
    model, cache, tokens = tiny("Llama"), AlignedCache(), ids(2, 9)
    steps(model, cache, tokens)
    for call, error, expected in [
            (lambda: steps(model, cache, tokens[:1]), alignedkv.Error, r"expected k of shape \[2, 2, \?, 32\]"),
            (lambda: cache.crop(1), alignedkv.Error, "expected tokens_to_remove to be 0 or, negative, .*, got 1"),
            (lambda: cache.crop(-10), alignedkv.Error, "expected tokens to be 0 or more, got -1"),
            (lambda: cache.batch_select_indices(torch.tensor([2])), IndexError, "index 2 is out of bounds")]:
        with pytest.raises(error, match=expected):
            call()
        assert [len(layer.kv) for layer in cache.layers] == [9, 9] and cache.layers[0].kv.batch == 2
