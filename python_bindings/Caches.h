// KV caches of the C interface as Python objects.
//
// Everything that takes time runs without the interpreter lock, so each cache has a lock of its own: a cache that one
// thread appends to must not be read by another.
#ifndef ALIGNED_PYTHON_CACHES_H
#define ALIGNED_PYTHON_CACHES_H

#include "Arrays.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

class Cache {
public:
  explicit Cache(aligned_cache *cache) : cache(cache) {}
  Cache(const Cache &) = delete;
  ~Cache() { aligned_cache_destroy(cache); }

  static std::unique_ptr<Cache> create(const aligned_format &format, int64_t batch, int64_t kvHeads, int64_t headDim) {
    aligned_cache *cache = aligned_cache_create(&format, batch, kvHeads, headDim, 0);
    if (!cache)
      throwLast();
    return std::make_unique<Cache>(cache);
  }

  /// Runs `body` while this thread holds the cache and not the interpreter.
  template <typename Body> auto locked(Body body) {
    nb::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex);
    return body();
  }

  /// The same of keys and values together: nobody sees one of them changed and not the other.
  template <typename Body> static auto locked(Cache &key, Cache &value, Body body) {
    nb::gil_scoped_release release;
    std::scoped_lock lock(key.mutex, value.mutex);
    return body();
  }

  void append(nb::handle tokens) {
    Input input = check(tokens);
    locked([&] {
      if (aligned_cache_append(cache, input.array.data, input.array.shape[2], input.array.strides))
        throwLast();
    });
  }

  /// `tokens` as an array that can be appended.
  Input check(nb::handle tokens, const std::string &name = "tokens") const {
    Input input = readArray(tokens, dtypeOf(elementDtypes[cache->format.element]), 4, name);
    int64_t expected[] = {cache->batch, cache->kv_heads, ALIGNED_DYNAMIC, cache->head_dim};
    for (int dim : {0, 1, 3})
      if (input.array.shape[dim] != expected[dim])
        throw Error("expected " + name + " of shape " + shapeText(4, expected) + ", got " + shapeText(4, input.array.shape));
    return input;
  }

  void setOffset(nb::handle offset, const std::string &name) {
    Input input = readArray(offset, dtypeOf(ALIGNED_DTYPE_F32), 2, name);
    int64_t expected[] = {cache->kv_heads, cache->head_dim};
    const int64_t *shape = input.array.shape, *strides = input.array.strides;
    if (!std::equal(expected, expected + 2, shape))
      throw Error("expected " + name + " of shape " + shapeText(2, expected) + ", got " + shapeText(2, shape));
    std::vector<float> values;
    for (int64_t head = 0; head < shape[0]; ++head)
      for (int64_t channel = 0; channel < shape[1]; ++channel)
        values.push_back(static_cast<const float *>(input.array.data)[head * strides[0] + channel * strides[1]]);
    locked([&] {
      if (aligned_cache_set_offset(cache, values.data()))
        throw Error("expected " + name + " to fit the cache: " + aligned_last_error());
    });
  }

  nb::object toNumpy(int bits) {
    aligned_type type = {};
    type.dtype = elementDtypes[cache->format.element];
    type.rank = 4;
    aligned_array array = {};
    locked([&] {
      int64_t shape[] = {cache->batch, cache->kv_heads, cache->tokens, cache->head_dim}, count = 1;
      for (int dim = 3; dim >= 0; --dim) {
        array.shape[dim] = shape[dim];
        array.strides[dim] = count;
        count *= shape[dim];
      }
      array.owner = array.data = malloc(std::max<int64_t>(1, count * dtypeOf(type.dtype).bits / 8));
      if (!array.owner)
        throw Error("out of memory: expected room for an array of shape " + shapeText(4, shape));
      if (aligned_cache_unpack(cache, bits, array.data)) {
        aligned_array_free(&array);
        throwLast();
      }
    });
    return takeArray(type, array);
  }

  void dropPlanes(int32_t planes) {
    locked([&] {
      if (aligned_cache_drop_planes(cache, planes))
        throwLast();
    });
  }
  void truncate(int64_t tokens) {
    locked([&] {
      if (aligned_cache_truncate(cache, tokens))
        throwLast();
    });
  }

  int64_t planes() {
    return locked([&] { return cache->planes; });
  }
  int64_t tokens() {
    return locked([&] { return cache->tokens; });
  }
  int64_t bytes() {
    return locked([&] { return aligned_cache_bytes(cache); });
  }
  std::unique_ptr<Cache> copy() {
    return locked([&] { return fork(); });
  }
  std::string repr() {
    int64_t shape[] = {cache->batch, cache->kv_heads, 0, cache->head_dim}, planes = 0;
    locked([&] {
      shape[2] = cache->tokens;
      planes = cache->planes;
    });
    return std::string("<alignedkv.Cache ") + elementNames[cache->format.element] + shapeText(4, shape) + " " + formatText(cache->format, planes) + ">";
  }

  /// What `copy` gives, of a cache that is locked.
  std::unique_ptr<Cache> fork() const {
    aligned_cache *clone = aligned_cache_fork(cache);
    if (!clone)
      throwLast();
    return std::make_unique<Cache>(clone);
  }

  aligned_cache *const cache;
  std::mutex mutex;
};

/// Adds Cache and what works on pairs of them to the module.
void bindCaches(nb::module_ &m);

#endif
