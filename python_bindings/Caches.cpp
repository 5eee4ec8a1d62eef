#include "Caches.h"

#include "aligned/Analysis/Costs.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

using namespace nb::literals;

namespace {

/// An empty cache from the words of the package, which has had the compiler check the format.
std::unique_ptr<Cache> makeCache(const std::string &kind, const std::vector<int32_t> &widths, const std::string &role, const std::string &dtype, int64_t batch,
                                 int64_t kvHeads, int64_t headDim) {
  aligned_format format = {};
  const char *const *element = std::find(std::begin(elementNames), std::end(elementNames), dtype);
  if (element == std::end(elementNames))
    throw Error("expected dtype 'float16', 'bfloat16' or 'float32', got '" + dtype + "'");
  format.kind = kind == "fixed" ? ALIGNED_FORMAT_FIXED : ALIGNED_FORMAT_FLOAT;
  format.role = role == "key" ? ALIGNED_ROLE_KEY : ALIGNED_ROLE_VALUE;
  format.element = element - std::begin(elementNames);
  if (widths.size() > ALIGNED_MAX_PLANES)
    throw Error("expected at most " + std::to_string(ALIGNED_MAX_PLANES) + " planes, got " + std::to_string(widths.size()));
  format.planes = widths.size();
  std::copy(widths.begin(), widths.end(), format.width);
  return Cache::create(format, batch, kvHeads, headDim);
}

//===----------------------------------------------------------------------===//
// Keys and values together: all or nothing
//===----------------------------------------------------------------------===//

void appendPair(Cache &key, Cache &value, nb::handle k, nb::handle v) {
  Input keys = key.check(k, "k"), values = value.check(v, "v");
  if (keys.array.shape[2] != values.array.shape[2])
    throw Error("expected as many keys as values, got " + std::to_string(keys.array.shape[2]) + " and " + std::to_string(values.array.shape[2]) + " tokens");
  Cache::locked(key, value, [&] {
    const int64_t before = key.cache->tokens, count = keys.array.shape[2];
    if (aligned_cache_append(key.cache, keys.array.data, count, keys.array.strides))
      throwLast();
    if (aligned_cache_append(value.cache, values.array.data, count, values.array.strides)) {
      const std::string why = aligned_last_error();
      aligned_cache_truncate(key.cache, before); // which takes back what the append did
      throw Error(why);
    }
  });
}

void truncatePair(Cache &key, Cache &value, int64_t tokens) {
  Cache::locked(key, value, [&] {
    // Of as many tokens each: what one side refuses, the other does too.
    if (aligned_cache_truncate(key.cache, tokens) || aligned_cache_truncate(value.cache, tokens))
      throwLast();
  });
}

void dropPair(Cache &key, Cache &value, int32_t planes) {
  Cache::locked(key, value, [&] {
    if (aligned_cache_drop_planes(key.cache, planes) || aligned_cache_drop_planes(value.cache, planes))
      throwLast();
  });
}

void keepDensePair(Cache &key, Cache &value, int64_t tokens) {
  Cache::locked(key, value, [&] {
    if (aligned_cache_keep_dense(key.cache, tokens) || aligned_cache_keep_dense(value.cache, tokens))
      throwLast();
  });
}

/// What is kept is no more than before.
void lowerDensePair(Cache &key, Cache &value, int64_t tokens) {
  Cache::locked(key, value, [&] {
    for (aligned_cache *cache : {key.cache, value.cache})
      if (tokens < cache->dense_limit && aligned_cache_keep_dense(cache, tokens))
        throwLast();
  });
}

nb::tuple copyPair(Cache &key, Cache &value) {
  auto copies = Cache::locked(key, value, [&] { return std::pair(key.fork(), value.fork()); });
  return nb::make_tuple(std::move(copies.first), std::move(copies.second));
}

} // namespace

void bindCaches(nb::module_ &m) {
  nb::class_<Cache>(m, "Cache", R"(One KV cache tensor, [batch, kv_heads, tokens, head_dim], stored in bit planes.

Made by Module.new_cache; KVCache holds a pair of them. Safe to use from several threads, one at a time.)")
      .def("append", &Cache::append, "tokens"_a.none(), R"(Adds tokens of shape [batch, kv_heads, n, head_dim] and the cache's dtype, with any strides.

The array is read, not kept and not copied. bfloat16 comes as an array of ml_dtypes, or of its bits as uint16.
Raises Error if dtype or shape differ; the cache is unchanged then.)")
      .def("to_numpy", &Cache::toNumpy, "bits"_a = 16, R"(All tokens as a new array [batch, kv_heads, tokens, head_dim].

bits: how many of each value are read, 1 to 16, rounded up to whole planes that are there. Tokens with a NaN or an infinity are exact.
bfloat16 is returned as its bits, uint16. Raises Error if bits is none of 1 to 16.)")
      .def("drop_planes", &Cache::dropPlanes, "planes"_a, R"(Keeps the `planes` most significant bit planes and returns the memory of the others, for good.

Tokens to come have no more planes either. Raises Error unless 1 to as many as there are. A module that was compiled for more refuses the cache then.)")
      .def("truncate", &Cache::truncate, "tokens"_a, R"(Forgets the newest tokens until `tokens` are left, as if they had never come.

Raises Error unless tokens is 0 to as many as there are; the cache is unchanged then.)")
      .def("copy", &Cache::copy, "A cache with the same tokens that goes its own way.")
      .def("__copy__", &Cache::copy)
      .def("__deepcopy__", [](Cache &cache, nb::handle) { return cache.copy(); }, "memo"_a)
      .def("_set_offset", &Cache::setOffset, "offset"_a.none(), "name"_a)
      .def("__len__", &Cache::tokens)
      .def_prop_ro("planes", &Cache::planes, "How many planes are there, of those of the format.")
      .def_prop_ro("nbytes", &Cache::bytes, "Bytes of memory held: planes and scale codes up to the capacity, what is known of rows and channels, tokens kept aside, a dense copy.")
      .def("__repr__", &Cache::repr);
  m.def("_cache", &makeCache, "kind"_a, "widths"_a, "role"_a, "dtype"_a, "batch"_a, "kv_heads"_a, "head_dim"_a);
  m.def("_append", &appendPair, "key"_a, "value"_a, "k"_a.none(), "v"_a.none());
  m.def("_truncate", &truncatePair, "key"_a, "value"_a, "tokens"_a);
  m.def("_drop_planes", &dropPair, "key"_a, "value"_a, "planes"_a);
  m.def("_keep_dense", &keepDensePair, "key"_a, "value"_a, "tokens"_a);
  m.def("_lower_dense", &lowerDensePair, "key"_a, "value"_a, "tokens"_a);
  m.attr("_most_dense") = aligned::Costs::kMostTokens;
  m.def("_copy", &copyPair, "key"_a, "value"_a);
}
