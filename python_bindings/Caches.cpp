#include "Caches.h"
#include "Programs.h"

#include "aligned/Analysis/Costs.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

using namespace nb::literals;

void Cache::lock() {
  if (process == getpid())
    return mutex.lock();
  if (owned && owned->location == ALIGNED_LOCATION_CUDA)
    throw Error("expected a cache of this process, got one on a GPU from process " + std::to_string(process) + ", of which this one was forked");
  if (mutex.try_lock())
    process = getpid(); // a child's own from now on
  else if (process == getpid())
    mutex.lock();
  else // by a thread that this process does not have
    throw Error("expected a cache that nobody used when this process was forked, got one in use by another thread of process " + std::to_string(process));
}

CacheLocks::CacheLocks(std::vector<Cache *> caches, bool hold) {
  std::sort(caches.begin(), caches.end());
  twins = std::adjacent_find(caches.begin(), caches.end()) != caches.end();
  caches.erase(std::unique(caches.begin(), caches.end()), caches.end());
  taken.reserve(caches.size());
  try {
    for (Cache *cache : caches) {
      const bool isOurs = cache->holder == std::this_thread::get_id();
      if (isOurs && (hold || !cache->isHeld || cache->isBusy))
        throw Error("expected a cache that this thread is not using, got one whose call a signal interrupted");
      if (!isOurs)
        cache->lock();
      cache->holder = std::this_thread::get_id();
      cache->isBusy = !hold;
      cache->isHeld = hold || isOurs;
      taken.push_back({cache, isOurs});
    }
  } catch (...) {
    release();
    throw;
  }
}

CacheLocks::~CacheLocks() { release(); }

void CacheLocks::release() {
  for (Taken last; !taken.empty(); taken.pop_back()) {
    last = taken.back();
    last.cache->isBusy = false;
    if (last.isNested)
      continue;
    last.cache->isHeld = false;
    last.cache->holder = std::thread::id();
    last.cache->mutex.unlock();
  }
}

namespace {

using CachePtr = std::unique_ptr<Cache>;

/// What a function of the C interface that returns 0 says.
void require(int status) {
  if (status)
    throwLast();
}

/// `tokens` as an array that can be appended to a cache of this shape.
Input readTokens(const aligned_cache &cache, nb::handle tokens, const std::string &name) {
  Input input = readArray(tokens, dtypeOf(elementDtypes[cache.format.element]), 4, name, cache.location == ALIGNED_LOCATION_CUDA);
  int64_t expected[] = {cache.batch, cache.kv_heads, ALIGNED_DYNAMIC, cache.head_dim};
  for (int dim : {0, 1, 3})
    if (input.array.shape[dim] != expected[dim])
      throw Error("expected " + name + " of shape " + shapeText(4, expected) + ", got " + shapeText(4, input.array.shape));
  return input;
}

/// Whether callers list a number of tokens for each batch entry.
void checkLengths(const aligned_cache &cache, const std::vector<int64_t> &lengths, int64_t most, const char *name) {
  if (int64_t(lengths.size()) != cache.batch)
    throw Error("expected " + std::string(name) + " of " + std::to_string(cache.batch) + " batch entries, got " + std::to_string(lengths.size()));
  for (int64_t length : lengths)
    if (length < 0 || length > most)
      throw Error("expected " + std::string(name) + " from 0 to " + std::to_string(most) + ", got " + std::to_string(length));
}

/// An empty cache from the words of the package, which has had the compiler check the format; where the program is, if there is one. `pages`, unless negative: how many, of
/// `reserve` tokens in all.
CachePtr makeCache(const std::string &kind, const std::vector<int32_t> &widths, const std::string &role, const std::string &dtype, int64_t batch, int64_t kvHeads,
                   int64_t headDim, int64_t reserve, int64_t pages, const Program *program) {
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
  nb::gil_scoped_release release;
  if (program)
    return Cache::take(pages < 0 ? aligned_program_create_cache(program->get(), &format, batch, kvHeads, headDim, reserve)
                                 : aligned_program_create_paged_cache(program->get(), &format, batch, kvHeads, headDim, pages, pages * ALIGNED_TILE));
  return Cache::take(pages < 0 ? aligned_cache_create(&format, batch, kvHeads, headDim, reserve)
                               : aligned_cache_create_paged(&format, batch, kvHeads, headDim, pages, pages * ALIGNED_TILE));
}

//===----------------------------------------------------------------------===//
// One cache
//===----------------------------------------------------------------------===//

void append(Cache &cache, nb::handle tokens) {
  Input input = readTokens(locked({&cache}, [&] { return *cache.get(); }), tokens, "tokens");
  locked({&cache}, [&] { require(aligned_cache_append(cache.get(), input.array.data, input.array.shape[2], input.array.strides)); });
}

void setOffset(Cache &cache, nb::handle offset, const std::string &name) {
  Input input = readArray(offset, dtypeOf(ALIGNED_DTYPE_F32), 2, name);
  locked({&cache}, [&] {
    int64_t expected[] = {cache.get()->kv_heads, cache.get()->head_dim};
    const int64_t *shape = input.array.shape, *strides = input.array.strides;
    if (!std::equal(expected, expected + 2, shape))
      throw Error("expected " + name + " of shape " + shapeText(2, expected) + ", got " + shapeText(2, shape));
    std::vector<float> values;
    for (int64_t head = 0; head < shape[0]; ++head)
      for (int64_t channel = 0; channel < shape[1]; ++channel)
        values.push_back(static_cast<const float *>(input.array.data)[head * strides[0] + channel * strides[1]]);
    if (aligned_cache_set_offset(cache.get(), values.data()))
      throw Error("expected " + name + " to fit the cache: " + aligned_last_error());
  });
}

/// All tokens of a cache that is locked.
aligned_array unpacked(const aligned_cache *cache, int bits, aligned_type &type) {
  type = {};
  type.dtype = elementDtypes[cache->format.element];
  type.rank = 4;
  aligned_array array = {};
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
  return array;
}

nb::object toNumpy(Cache &cache, int bits) {
  aligned_type type;
  aligned_array array = locked({&cache}, [&] { return unpacked(cache.get(), bits, type); });
  return takeArray(type, array);
}

CachePtr copyOf(Cache &cache) {
  return locked({&cache}, [&] { return Cache::take(aligned_cache_fork(cache.get())); });
}

std::string repr(Cache &cache) {
  return locked({&cache}, [&] {
    const aligned_cache &held = *cache.get();
    int64_t shape[] = {held.batch, held.kv_heads, held.tokens, held.head_dim};
    return std::string("<alignedkv.Cache ") + elementNames[held.format.element] + shapeText(4, shape) + " " + formatText(held.format, held.planes) + ">";
  });
}

std::string saved(const aligned_cache *cache) {
  if (cache->location == ALIGNED_LOCATION_CUDA) { // comes over once, and not to be counted and again to be written
    const CachePtr host = Cache::take(aligned_cuda_cache_download(cache));
    return saved(host->get());
  }
  const int64_t bytes = aligned_cache_save(cache, nullptr);
  if (bytes < 0)
    throwLast();
  std::string out(bytes, 0);
  aligned_cache_save(cache, out.data());
  return out;
}

nb::bytes save(Cache &cache) {
  std::string out = locked({&cache}, [&] { return saved(cache.get()); });
  return nb::bytes(out.data(), out.size());
}

aligned_cache *loaded(const nb::bytes &bytes) {
  const char *data = bytes.c_str();
  const int64_t size = bytes.size();
  nb::gil_scoped_release release;
  aligned_cache *cache = aligned_cache_load(data, size);
  if (!cache)
    throwLast();
  return cache;
}

//===----------------------------------------------------------------------===//
// Keys and values together: all or nothing
//===----------------------------------------------------------------------===//

/// How many tokens each batch entry of a cache that is locked holds.
std::vector<int64_t> lengthsOf(const aligned_cache *cache) {
  std::vector<int64_t> lengths;
  for (int64_t n = 0; n < cache->batch; ++n)
    lengths.push_back(aligned_cache_length(cache, n));
  return lengths;
}

/// Takes back what an append did.
void undo(aligned_cache *cache, const std::vector<int64_t> &before) {
  for (int64_t n = 0; n < cache->batch && cache->lengths; ++n)
    aligned_cache_truncate_entry(cache, n, before[n]);
  if (!cache->lengths)
    aligned_cache_truncate(cache, before[0]);
}

void appendPair(Cache &key, Cache &value, nb::handle k, nb::handle v, const std::optional<std::vector<int64_t>> &counts, uintptr_t stream) {
  const auto [facts, valueFacts] = locked({&key, &value}, [&] { return std::pair(*key.get(), *value.get()); });
  Input keys = readTokens(facts, k, "k"), values = readTokens(valueFacts, v, "v");
  const int64_t count = keys.array.shape[2];
  if (values.array.shape[2] != count)
    throw Error("expected as many keys as values, got " + std::to_string(count) + " and " + std::to_string(values.array.shape[2]) + " tokens");
  if (counts)
    checkLengths(facts, *counts, count, "lengths");
  auto appendTo = [&](Cache &cache, const Input &input) {
    if (input.isOnDevice)
      return aligned_cuda_cache_append_device(cache.get(), input.array.data, counts ? counts->data() : nullptr, count, input.array.strides);
    return counts ? aligned_cache_append_ragged(cache.get(), input.array.data, counts->data(), input.array.strides)
                  : aligned_cache_append(cache.get(), input.array.data, count, input.array.strides);
  };
  const int64_t batch = facts.batch;
  std::vector<int64_t> before, after;
  locked({&key, &value}, [&] {
    const OnStream on(stream);
    if (key.get()->batch != batch)
      throw Error("expected a cache whose batch stays, got one of which another thread selected entries");
    before = lengthsOf(key.get());
    require(appendTo(key, keys));
    if (appendTo(value, values)) {
      const std::string why = aligned_last_error();
      undo(key.get(), before);
      throw Error(why);
    }
    after = lengthsOf(key.get());
  });
  if (!PyErr_CheckSignals()) // has the handlers run of those that came meanwhile
    return;
  nb::python_error interrupt; // Ctrl-C
  locked({&key, &value}, [&] {
    if (lengthsOf(key.get()) == after) // nobody has appended since
      for (Cache *cache : {&key, &value})
        undo(cache->get(), before);
  });
  throw interrupt;
}

/// tokens: of each batch entry, or one number for all.
void truncatePair(Cache &key, Cache &value, const std::vector<int64_t> &tokens, bool each) {
  locked({&key, &value}, [&] {
    if (!each) {
      // Of as many tokens each: what one side refuses, the other does too.
      require(aligned_cache_truncate(key.get(), tokens.at(0)) || aligned_cache_truncate(value.get(), tokens.at(0)));
      return;
    }
    checkLengths(*key.get(), tokens, key.get()->tokens, "tokens");
    for (int64_t n = 0; n < key.get()->batch; ++n)
      if (int64_t length = aligned_cache_length(key.get(), n); tokens[n] > length)
        throw Error("expected to keep 0 to " + std::to_string(length) + " tokens of batch entry " + std::to_string(n) + ", got " + std::to_string(tokens[n]));
    for (Cache *cache : {&key, &value})
      for (int64_t n = 0; n < key.get()->batch; ++n)
        require(aligned_cache_truncate_entry(cache->get(), n, tokens[n]));
  });
}

void dropPair(Cache &key, Cache &value, int32_t planes) {
  locked({&key, &value}, [&] { require(aligned_cache_drop_planes(key.get(), planes) || aligned_cache_drop_planes(value.get(), planes)); });
}

void keepDensePair(Cache &key, Cache &value, int64_t tokens) {
  locked({&key, &value}, [&] { require(aligned_cache_keep_dense(key.get(), tokens) || aligned_cache_keep_dense(value.get(), tokens)); });
}

/// What is kept is no more than before.
void lowerDensePair(Cache &key, Cache &value, int64_t tokens) {
  locked({&key, &value}, [&] {
    for (Cache *cache : {&key, &value})
      require(tokens < cache->get()->dense_limit && aligned_cache_keep_dense(cache->get(), tokens));
  });
}

nb::tuple copyPair(Cache &key, Cache &value) {
  auto copies = locked({&key, &value}, [&] { return std::pair(Cache::take(aligned_cache_fork(key.get())), Cache::take(aligned_cache_fork(value.get()))); });
  return nb::make_tuple(std::move(copies.first), std::move(copies.second));
}

/// Puts batch entries of the caches in their place.
void selectPair(Cache &key, Cache &value, const std::vector<int64_t> &entries, bool sameBatch) {
  locked({&key, &value}, [&] {
    if (sameBatch && int64_t(entries.size()) != key.get()->batch)
      throw Error("expected indices of " + std::to_string(key.get()->batch) + " batch entries, got " + std::to_string(entries.size()));
    auto selected = [&](Cache &cache) { return Cache::take(aligned_cache_select(cache.get(), entries.data(), entries.size())); };
    CachePtr keys = selected(key), values = selected(value);
    key.swap(*keys);
    value.swap(*values);
  });
}

nb::tuple savePair(Cache &key, Cache &value) {
  auto both = locked({&key, &value}, [&] { return std::pair(saved(key.get()), saved(value.get())); });
  return nb::make_tuple(nb::bytes(both.first.data(), both.first.size()), nb::bytes(both.second.data(), both.second.size()));
}

nb::tuple unpackPair(Cache &key, Cache &value, int bits) {
  aligned_type types[2];
  std::vector<aligned_array> arrays;
  locked({&key, &value}, [&] {
    arrays.push_back(unpacked(key.get(), bits, types[0]));
    try {
      arrays.push_back(unpacked(value.get(), bits, types[1]));
    } catch (...) {
      aligned_array_free(&arrays[0]);
      throw;
    }
  });
  return nb::make_tuple(takeArray(types[0], arrays[0]), takeArray(types[1], arrays[1]));
}

void closePair(Cache &key, Cache &value) {
  locked({&key, &value}, [&] {
    key.close();
    value.close();
  });
}

} // namespace

void bindCaches(nb::module_ &m) {
  nb::class_<Cache>(m, "Cache", R"(One KV cache tensor, [batch, kv_heads, tokens, head_dim], stored in bit planes.

Made by Module.new_cache; KVCache holds a pair of them. Safe to use from several threads, one at a time. Can be pickled.)")
      .def("append", &append, "tokens"_a.none(), R"(Adds tokens of shape [batch, kv_heads, n, head_dim] and the cache's dtype, with any strides.

The array is read, not kept and not copied. bfloat16 comes as an array of ml_dtypes or torch, or of its bits as uint16.
Raises Error if dtype or shape differ; the cache is unchanged then.)")
      .def("to_numpy", &toNumpy, "bits"_a = 16, R"(All tokens as a new array [batch, kv_heads, tokens, head_dim].

bits: how many of each value are read, 1 to 16, rounded up to whole planes that are there. Tokens with a NaN or an infinity are exact.
bfloat16 is returned as its bits, uint16. Raises Error if bits is none of 1 to 16.)")
      .def("drop_planes", [](Cache &cache, int32_t planes) { locked({&cache}, [&] { require(aligned_cache_drop_planes(cache.get(), planes)); }); }, "planes"_a,
           R"(Keeps the `planes` most significant bit planes and returns the memory of the others, for good.

Tokens to come have no more planes either. Raises Error unless 1 to as many as there are. A module that was compiled for more refuses the cache then.)")
      .def("truncate", [](Cache &cache, int64_t tokens) { locked({&cache}, [&] { require(aligned_cache_truncate(cache.get(), tokens)); }); }, "tokens"_a,
           R"(Forgets the newest tokens until `tokens` are left, as if they had never come.

Raises Error unless tokens is 0 to as many as there are; the cache is unchanged then.)")
      .def("copy", &copyOf, "A cache with the same tokens that goes its own way.")
      .def("__copy__", &copyOf)
      .def("__deepcopy__", [](Cache &cache, nb::handle) { return copyOf(cache); }, "memo"_a)
      .def("__getstate__", &save)
      .def("__setstate__", [](Cache &self, const nb::bytes &bytes) { new (&self) Cache(loaded(bytes)); })
      .def("_set_offset", &setOffset, "offset"_a.none(), "name"_a)
      .def("__len__", [](Cache &cache) { return locked({&cache}, [&] { return cache.get()->tokens; }); })
      .def("__bool__", [](Cache &) { return true; }, "A cache is one, also while it holds nothing.")
      .def_prop_ro("batch", [](Cache &cache) { return locked({&cache}, [&] { return cache.get()->batch; }); }, "How many batch entries there are.")
      .def_prop_ro("lengths", [](Cache &cache) {
        return locked({&cache}, [&] { return lengthsOf(cache.get()); });
      }, "How many tokens each batch entry holds.")
      .def_prop_ro("planes", [](Cache &cache) { return locked({&cache}, [&] { return cache.get()->planes; }); }, "How many planes are there, of those of the format.")
      .def_prop_ro("nbytes", [](Cache &cache) { return locked({&cache}, [&] { return aligned_cache_bytes(cache.get()); }); },
                   "Bytes of memory held: planes and scale codes up to the capacity, what is known of rows and channels, tokens kept aside, a dense copy.")
      .def_prop_ro("_free_pages", [](Cache &cache) { return locked({&cache}, [&] { return aligned_cache_free_pages(cache.get()); }); })
      .def("__repr__", &repr);
  nb::class_<CacheHold>(m, "_Hold")
      .def(nb::init<Cache &, Cache &>(), "key"_a, "value"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def("__enter__", &CacheHold::enter)
      .def("__exit__", [](CacheHold &hold, const nb::args &) { hold.exit(); });
  m.def("_cache", &makeCache, "kind"_a, "widths"_a, "role"_a, "dtype"_a, "batch"_a, "kv_heads"_a, "head_dim"_a, "reserve"_a, "pages"_a, "program"_a.none());
  m.def("_load", [](const nb::bytes &bytes) { return Cache::take(loaded(bytes)); }, "bytes"_a);
  m.def("_append", &appendPair, "key"_a, "value"_a, "k"_a.none(), "v"_a.none(), "lengths"_a.none(), "stream"_a);
  m.def("_truncate", &truncatePair, "key"_a, "value"_a, "tokens"_a, "each"_a);
  m.def("_drop_planes", &dropPair, "key"_a, "value"_a, "planes"_a);
  m.def("_keep_dense", &keepDensePair, "key"_a, "value"_a, "tokens"_a);
  m.def("_lower_dense", &lowerDensePair, "key"_a, "value"_a, "tokens"_a);
  m.attr("_most_dense") = aligned::Costs::kMostTokens;
  m.def("_copy", &copyPair, "key"_a, "value"_a);
  m.def("_select", &selectPair, "key"_a, "value"_a, "entries"_a, "same_batch"_a);
  m.def("_save", &savePair, "key"_a, "value"_a);
  m.def("_unpack", &unpackPair, "key"_a, "value"_a, "bits"_a);
  m.def("_close", &closePair, "key"_a, "value"_a);
}
