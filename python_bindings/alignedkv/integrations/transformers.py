"""A cache for `generate` of transformers: layers hold a `KVCache`, and attention is asked of it.

    from alignedkv.integrations.transformers import AlignedCache
    model.generate(**inputs, cache=AlignedCache(policy="balanced"))  # of old past_key_values=

The first call with tokens attends by the model's own attention, exactly; later calls read the bits that the policy asks for. transformers hands to attention
what a cache's `update` returned as keys and values, and this one returns a stand-in for both. 'sdpa', which most models attend by, understands it as soon as
this module is imported. A model with scores that sdpa has not, such as Gemma 2 and gpt-oss, needs `model.set_attn_implementation("alignedkv")` once.
"""

import functools
import sys

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .. import Error, KVCache
from ..cache import spelled_format, spelled_policy


class AlignedCache(Cache):
    """Keys and values of all layers of a model, in bit planes.

    policy, tolerance: as in `alignedkv.compile`.
    storage: what else `KVCache` takes, such as `format`. Heads, head_dim, batch and dtype are those of the first tokens.

    `layers[n].kv` is the `KVCache` of a layer. Layers with a sliding window keep all tokens, and read those of the window. Planes are where the model's
    first keys are, on the CPU or a GPU. Raises
    Error with the first tokens if they are of a dtype or head_dim that can't be stored.
    """

    def __init__(self, policy="balanced", tolerance=None, **storage):
        spelled_policy(policy, tolerance, spelled_format(storage.get("format", "auto")))  # refuses what is none
        super().__init__(layer_class_to_replicate=functools.partial(AlignedLayer, policy, tolerance, storage))

    @property
    def nbytes(self):
        """Bytes of memory that keys and values of all layers take."""
        return sum(layer.kv.nbytes for layer in self.layers if layer.kv is not None)

    @property
    def reads(self):
        """What the last attention over each layer read, as `KVCache.reads`, added up; None before."""
        reads = [layer.kv.reads for layer in self.layers if layer.kv is not None and layer.kv.reads]
        return {name: sum(read[name] for read in reads) for name in reads[0]} if reads else None


class AlignedLayer(CacheLayerMixin):
    """Keys and values of one layer: `kv`, a KVCache, or None as long as nothing is known of its tokens."""

    is_croppable = True

    def __init__(self, policy, tolerance, storage):
        super().__init__()
        self.policy, self.tolerance, self.storage, self.kv = policy, tolerance, storage, None

    def lazy_initialization(self, key_states, value_states):
        batch, heads, _, dim = key_states.shape
        self.kv = KVCache(heads, dim, batch=batch, dtype=str(key_states.dtype).removeprefix("torch."), value_dim=value_states.shape[3],
                          **{"device": "cuda" if key_states.is_cuda else "cpu", **self.storage})
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first = len(self.kv) == 0
        self.kv.append(key_states, value_states)
        return (key_states, value_states) if first else (_Stored(self), _Stored(self))

    def get_seq_length(self):
        return len(self.kv) if self.is_initialized else 0

    def get_mask_sizes(self, query_length):
        return self.get_seq_length() + query_length, 0

    def get_max_length(self):
        return -1

    def crop(self, tokens_to_remove):
        """As transformers' own layers: a negative number of tokens, or 0."""
        if tokens_to_remove > 0:
            raise Error(f"expected tokens_to_remove to be 0 or, negative, how many tokens go, got {tokens_to_remove}")
        if self.is_initialized:
            self.kv.truncate(len(self.kv) + tokens_to_remove)

    def reset(self):
        self.kv, self.is_initialized = None, False

    def reorder_cache(self, beam_idx):
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats):
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self.kv.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices):
        if self.is_initialized:
            self.kv.batch_select(torch.arange(self.kv.batch)[indices.cpu()].tolist())  # indices may be a mask or count from behind

    def offload(self):
        """Planes stay where they are."""

    prefetch = offload


class _Stored:
    """Stands for the keys and for the values of a layer. Any attention but the one below fails over it, rather than see the newest tokens alone."""

    def __init__(self, layer):
        self.layer = layer

    def __getattr__(self, name):
        raise Error(f"expected attention by 'sdpa' or 'alignedkv' (model.set_attn_implementation) over an AlignedCache, got one that takes {name} of its keys")


def _attention(dense, module, query, key, value, attention_mask, **kwargs):
    """An attention function of transformers: `dense`, another one, unless the keys are in planes."""
    if not isinstance(key, _Stored):
        return dense(module, query, key, value, attention_mask, **kwargs)
    return _attend(key.layer, module, query, attention_mask, **kwargs)


def _attend(layer, module, query, mask, scaling=None, softcap=None, s_aux=None, dropout=0.0, position_bias=None, is_causal=None, **kwargs):
    """The mask of transformers says all that is seen, windows too; there is none where being causal says it."""
    if dropout or position_bias is not None:
        raise Error(f"expected attention without {'dropout' if dropout else 'position_bias'} over an AlignedCache, got one with it")
    causal = mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    out = layer.kv.attend(query.detach(), policy=layer.policy, tolerance=layer.tolerance, scale=scaling, causal=causal, softcap=softcap, mask=mask,
                          sink_logits=None if s_aux is None else s_aux.detach().float())
    if mask is not None and mask.dtype == torch.bool:
        out.masked_fill_(~mask.any(-1, keepdim=True), 0)  # padding that sees nothing, as in sdpa
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


_sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]


def _own(module, query, key, value, mask, **kwargs):
    """A model's own attention: sdpa, or for scores that sdpa has not, the one called eager in the model's file, whose masks are added."""
    if kwargs.get("softcap") is None and kwargs.get("s_aux") is None:
        return _sdpa(module, query, key, value, mask, **kwargs)
    if mask is None and getattr(module, "is_causal", True):
        queries, tokens = query.shape[2], key.shape[2]
        mask = torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register("sdpa", functools.partial(_attention, _sdpa))
AttentionInterface.register("alignedkv", functools.partial(_attention, _own))
AttentionMaskInterface.register("alignedkv", sdpa_mask)
