// The native half of the package: compiler and caches of the C interface as Python objects.
//
// Arrays come in by DLPack or the buffer protocol and are never copied here; results leave as NumPy arrays that free what they
// hold. Everything that takes time runs without the interpreter lock, so each cache has a lock of its own: a cache that one
// thread appends to must not be read by another.
#include "aligned/Analysis/Costs.h"
#include "aligned/JIT/Module.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

/// alignedkv.Error
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void throwLast() { throw Error(aligned_last_error()); }

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

struct Dtype {
  aligned_dtype value;
  const char *name;
  nb::dlpack::dtype_code code;
  uint8_t bits;
  nb::dlpack::dtype dlpack() const { return {static_cast<uint8_t>(code), bits, 1}; }
};

const Dtype &dtypeOf(aligned_dtype value) {
  using Code = nb::dlpack::dtype_code;
  static const Dtype dtypes[] = {
      {ALIGNED_DTYPE_F16, "float16", Code::Float, 16}, {ALIGNED_DTYPE_BF16, "bfloat16", Code::UInt, 16}, {ALIGNED_DTYPE_F32, "float32", Code::Float, 32},
      {ALIGNED_DTYPE_F64, "float64", Code::Float, 64}, {ALIGNED_DTYPE_I1, "bool", Code::Bool, 8},         {ALIGNED_DTYPE_I8, "int8", Code::Int, 8},
      {ALIGNED_DTYPE_I16, "int16", Code::Int, 16},     {ALIGNED_DTYPE_I32, "int32", Code::Int, 32},       {ALIGNED_DTYPE_I64, "int64", Code::Int, 64}};
  return dtypes[value];
}

constexpr const char *elementNames[] = {"float16", "bfloat16", "float32"}; // by aligned_element
constexpr aligned_dtype elementDtypes[] = {ALIGNED_DTYPE_F16, ALIGNED_DTYPE_BF16, ALIGNED_DTYPE_F32};

std::string nameOf(nb::dlpack::dtype dtype) {
  using Code = nb::dlpack::dtype_code;
  auto code = static_cast<Code>(dtype.code);
  const char *kind = code == Code::Float ? "float" : code == Code::Bfloat ? "bfloat" : code == Code::Int ? "int" : code == Code::UInt ? "uint" : code == Code::Complex ? "complex" : nullptr;
  return code == Code::Bool ? "bool" : kind ? kind + std::to_string(dtype.bits) : "a dtype of " + std::to_string(dtype.bits) + " bits";
}

/// Whether an array of dtype `got` holds what a tensor of this type needs. MLIR's integers have no sign; NumPy has no bfloat16, so its
/// bits come as uint16.
bool fits(const Dtype &dtype, nb::dlpack::dtype got) {
  using Code = nb::dlpack::dtype_code;
  if (got.bits != dtype.bits || got.lanes != 1)
    return false;
  auto code = static_cast<Code>(got.code);
  return code == dtype.code || (dtype.value == ALIGNED_DTYPE_BF16 && code == Code::Bfloat) || (dtype.code == Code::Int && code == Code::UInt);
}

std::string shapeText(int32_t rank, const int64_t *shape) {
  std::string text = "[";
  for (int32_t dim = 0; dim < rank; ++dim)
    text += (dim ? ", " : "") + (shape[dim] == ALIGNED_DYNAMIC ? "?" : std::to_string(shape[dim]));
  return text + "]";
}

/// fixed<4,4,8> key, resident = 2
std::string formatText(const aligned_format &format, int64_t resident) {
  std::string text = format.kind == ALIGNED_FORMAT_FIXED ? "fixed<" : "float<";
  for (int32_t plane = 0; plane < format.planes; ++plane)
    text += (plane ? "," : "") + std::to_string(format.width[plane]);
  text += format.role == ALIGNED_ROLE_KEY ? "> key" : "> value";
  return resident < format.planes ? text + ", resident = " + std::to_string(resident) : text;
}

std::string typeText(const aligned_type &type) {
  std::string text = dtypeOf(type.dtype).name + shapeText(type.rank, type.shape);
  return type.is_cache ? text + " " + formatText(type.format, type.resident) : text;
}

//===----------------------------------------------------------------------===//
// Arrays
//===----------------------------------------------------------------------===//

/// A view of the buffer protocol, or none.
struct Buffer : Py_buffer {
  Buffer() : Py_buffer() {}
  Buffer(Buffer &&other) : Py_buffer(other) { other.obj = nullptr; }
  ~Buffer() { PyBuffer_Release(this); }
};

/// An argument, and what keeps its memory alive.
struct Input {
  Buffer buffer;
  nb::ndarray<nb::ro, nb::device::cpu> owner;
  aligned_array array = {};
};

/// Reads what NumPy and most others export, without DLPack and a look at the dtype's name, which take several times as long. False if it doesn't fit.
bool readBuffer(nb::handle object, const Dtype &dtype, int32_t rank, Input &input) {
  using Code = nb::dlpack::dtype_code;
  Buffer &buffer = input.buffer;
  if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_RECORDS_RO)) {
    PyErr_Clear();
    return false;
  }
  const char kind = buffer.format && !buffer.format[1] ? buffer.format[0] : 0;
  const Code code = kind == '?' ? Code::Bool : strchr("efd", kind) ? Code::Float : strchr("bhilq", kind) ? Code::Int : Code::UInt;
  if (!kind || !strchr("?efdbhilqBHILQ", kind) || buffer.ndim != rank || !fits(dtype, {uint8_t(code), uint8_t(buffer.itemsize * 8), 1}))
    return false;
  input.array.data = buffer.buf;
  for (int32_t dim = 0; dim < rank; ++dim) {
    if (buffer.strides[dim] % buffer.itemsize)
      return false;
    input.array.shape[dim] = buffer.shape[dim];
    input.array.strides[dim] = buffer.strides[dim] / buffer.itemsize;
  }
  return true;
}

Input readArray(nb::handle object, const Dtype &dtype, int32_t rank, const std::string &what) {
  if (Input input; PyObject_CheckBuffer(object.ptr()) && readBuffer(object, dtype, rank, input))
    return input;
  nb::object holder = nb::borrow(object);
  // NumPy exports no dtype that it does not define itself, such as the bfloat16 of ml_dtypes.
  nb::object given = nb::getattr(object, "dtype", nb::none());
  nb::object name = nb::getattr(given, "name", nb::none()), kind = nb::getattr(given, "kind", nb::none());
  if (nb::isinstance<nb::str>(name) && nb::isinstance<nb::str>(kind) && nb::cast<std::string>(name) == "bfloat16")
    holder = object.attr("view")("uint16");
  Input input;
  if (!nb::try_cast(holder, input.owner))
    throw Error("expected an array of " + std::string(dtype.name) + " in memory of the CPU as " + what + ", got " + nb::type_name(object.type()).c_str());
  if (!fits(dtype, input.owner.dtype()))
    throw Error("expected " + std::string(dtype.name) + " of " + what + ", got " + nameOf(input.owner.dtype()));
  if (input.owner.ndim() != size_t(rank))
    throw Error("expected rank " + std::to_string(rank) + " of " + what + ", got " + std::to_string(input.owner.ndim()));
  input.array.data = const_cast<void *>(input.owner.data());
  for (int32_t dim = 0; dim < rank; ++dim) {
    input.array.shape[dim] = input.owner.shape(dim);
    input.array.strides[dim] = input.owner.stride(dim);
  }
  return input;
}

using Numpy = nb::ndarray<nb::numpy>;

/// A NumPy array over a result, which it frees.
nb::object takeArray(const aligned_type &type, const aligned_array &array) {
  nb::capsule owner(array.owner, [](void *memory) noexcept {
    aligned_array freed = {};
    freed.owner = memory;
    aligned_array_free(&freed);
  });
  std::vector<size_t> shape(array.shape, array.shape + type.rank);
  return nb::cast(Numpy(array.data, type.rank, shape.data(), owner, array.strides, dtypeOf(type.dtype).dlpack()), nb::rv_policy::reference);
}

//===----------------------------------------------------------------------===//
// Caches
//===----------------------------------------------------------------------===//

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

//===----------------------------------------------------------------------===//
// Modules
//===----------------------------------------------------------------------===//

/// What a text may hold while this lives.
struct Unregistered {
  explicit Unregistered(bool allow) { aligned_allow_unregistered_dialects(allow); }
  ~Unregistered() { aligned_allow_unregistered_dialects(false); }
};

class Module {
public:
  Module(const std::string &source, const std::string &options, const std::optional<std::string> &function, bool allowUnregistered) {
    nb::gil_scoped_release release;
    Unregistered allowed(allowUnregistered);
    module = aligned_module_compile(source.c_str(), options.c_str(), function ? function->c_str() : nullptr);
    if (!module)
      throwLast();
    arguments.resize(aligned_module_arguments(module));
    results.resize(aligned_module_results(module));
    for (size_t index = 0; index < arguments.size(); ++index)
      aligned_module_argument(module, index, &arguments[index]);
    for (size_t index = 0; index < results.size(); ++index)
      aligned_module_result(module, index, &results[index]);
  }
  Module(const Module &) = delete;
  ~Module() { aligned_module_destroy(module); }

  nb::object call(const nb::args &given) {
    auto [value, tally] = callAndTally(given);
    lastTally = std::move(tally);
    return value;
  }

  /// For callers that share a module, each of whom wants to know what its own call read.
  nb::tuple callWithReads(const nb::args &given) {
    auto [value, tally] = callAndTally(given);
    return nb::make_tuple(value, listOf(tally));
  }

  std::unique_ptr<Cache> newCache(int32_t index) const {
    aligned_cache *cache = aligned_module_create_cache(module, index, 0);
    if (!cache)
      throwLast();
    return std::make_unique<Cache>(cache);
  }

  nb::list reads() const { return listOf(lastTally); }

  static std::vector<std::string> describe(const std::vector<aligned_type> &types) {
    std::vector<std::string> texts;
    for (const aligned_type &type : types)
      texts.push_back(typeText(type));
    return texts;
  }

  aligned_module *module;
  std::vector<aligned_type> arguments, results;

private:
  using Tally = std::vector<aligned_tally>; // by the attention's number

  std::pair<nb::object, Tally> callAndTally(const nb::args &given) const {
    if (given.size() != arguments.size())
      throw Error("expected " + std::to_string(arguments.size()) + " arguments, got " + std::to_string(given.size()));
    std::vector<aligned_value> in(arguments.size()), out(results.size());
    std::vector<Input> inputs; // keeps the arrays alive
    std::vector<Cache *> caches;
    for (size_t index = 0; index < arguments.size(); ++index) {
      const aligned_type &type = arguments[index];
      std::string what = "argument " + std::to_string(index);
      if (!type.is_cache) {
        inputs.push_back(readArray(given[index], dtypeOf(type.dtype), type.rank, what));
        in[index].array = inputs.back().array;
      } else if (Cache *cache = nullptr; nb::try_cast(given[index], cache) && cache) {
        caches.push_back(cache);
        in[index].cache = cache->cache;
      } else {
        throw Error("expected an alignedkv.Cache as " + what + ", got " + nb::type_name(given[index].type()).c_str());
      }
    }
    Tally tally(aligned_module_attentions(module), aligned_tally{});
    run(caches, in, out, tally);

    nb::list values;
    for (size_t index = 0; index < results.size(); ++index)
      values.append(results[index].is_cache ? takeCache(out[index].cache, given) : takeArray(results[index], out[index].array));
    nb::object value = values.size() == 0 ? nb::none() : values.size() == 1 ? nb::object(values[0]) : nb::object(nb::tuple(values));
    return {value, std::move(tally)};
  }

  void run(std::vector<Cache *> &caches, std::vector<aligned_value> &in, std::vector<aligned_value> &out, Tally &tally) const {
    std::sort(caches.begin(), caches.end()); // one order for all threads
    if (std::adjacent_find(caches.begin(), caches.end()) != caches.end())
      throw Error("expected a cache to be passed once, got it twice");
    nb::gil_scoped_release release;
    std::vector<std::unique_lock<std::mutex>> locks;
    for (Cache *cache : caches)
      locks.emplace_back(cache->mutex);
    aligned_rt_record(tally.data(), tally.size());
    int failed = aligned_module_call(module, in.data(), out.data());
    aligned_rt_record(nullptr, 0);
    if (failed)
      throwLast();
  }

  /// The object of the argument that was appended to in place, or a new cache.
  static nb::object takeCache(aligned_cache *cache, const nb::args &given) {
    for (nb::handle argument : given)
      if (Cache *known = nullptr; nb::try_cast(argument, known) && known && known->cache == cache)
        return nb::borrow(argument);
    return nb::cast(std::make_unique<Cache>(cache));
  }

  static nb::list listOf(const Tally &tally) {
    nb::list reads;
    for (const aligned_tally &read : tally) {
      nb::dict entry;
      entry["key_bits"] = read.key_bits;
      entry["key_values"] = read.key_values;
      entry["value_bits"] = read.value_bits;
      entry["value_values"] = read.value_values;
      reads.append(entry);
    }
    return reads;
  }

  Tally lastTally;
};

std::string transform(const std::string &source, const std::string &pipeline, bool allowUnregistered) {
  nb::gil_scoped_release release;
  Unregistered allowed(allowUnregistered);
  std::unique_ptr<char, decltype(&aligned_text_free)> text(aligned_transform(source.c_str(), pipeline.c_str()), aligned_text_free);
  if (!text)
    throwLast();
  return text.get();
}

std::vector<std::string> lines(const char *text) {
  std::vector<std::string> result;
  std::string rest = text;
  for (size_t begin = 0, end; (end = rest.find('\n', begin)) != std::string::npos; begin = end + 1)
    result.push_back(rest.substr(begin, end - begin));
  return result;
}

} // namespace

NB_MODULE(_alignedkv, m) {
  nb::exception<Error>(m, "Error", PyExc_ValueError).doc() =
      "What the compiler or the runtime refuses: MLIR's diagnostics, or what was expected of an argument and what was found.";

  m.def("transform", &transform, "text"_a, "pipeline"_a, "allow_unregistered_dialect"_a = false,
        R"(Runs an MLIR pass pipeline over a module's text and returns the text that it becomes.

pipeline: as on aligned-opt's command line, 'aligned-pipeline{to=store}' or 'builtin.module(aligned-raise-attention)'.
allow_unregistered_dialect: as in compile.
Raises Error with the diagnostics if the text, the pipeline or a pass fails.)");

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

  nb::class_<Module>(m, "Module", R"(A compiled function. Call it with one argument for each entry of `arguments`.

A tensor is any array in CPU memory with that dtype and shape; one that is contiguous is not copied. A cache tensor is a Cache.
Returns None, one result, or a tuple of them: NumPy arrays that own their memory, and caches. A cache that the function appends to
is appended to in place: the result is the Cache that was passed.

Raises Error for arguments that do not fit, before anything happens, and for what the function finds wrong while it runs; by then it may
have appended.)")
      .def("__init__", [](Module *self, const std::string &text, const std::string &options, const std::optional<std::string> &function, bool allowUnregistered) {
        new (self) Module(text, options, function, allowUnregistered);
      }, "text"_a, "options"_a, "function"_a = nb::none(), "allow_unregistered_dialect"_a = false)
      .def("__call__", &Module::call)
      .def("_call_with_reads", &Module::callWithReads)
      .def("new_cache", &Module::newCache, "index"_a, R"(An empty cache for the argument with this index: of its type, with the planes that it reads, and with the offset of keys that the model says,
if any (aligned.key_offset). Raises Error if the argument is no cache.)")
      .def_prop_ro("arguments", [](const Module &module) { return Module::describe(module.arguments); }, "Types of the arguments, as text.")
      .def_prop_ro("results", [](const Module &module) { return Module::describe(module.results); }, "Types of the results, as text.")
      .def_prop_ro("attentions", [](const Module &module) { return aligned_module_attentions(module.module); }, "How many attentions were found.")
      .def_prop_ro("dense_up_to", [](const Module &module) { return aligned_module_dense_up_to(module.module); },
                   "Tokens up to which some attention reads caches as they were appended, where these hold that, too; new_cache() makes such caches.")
      .def_prop_ro("remarks", [](const Module &module) { return lines(aligned_module_remarks(module.module)); },
                   "Remarks of the compiler, a list of lines: what was not recognised as attention, or stays dense, and why.")
      .def_prop_ro("reads", &Module::reads, R"(What the last call read, one dict for each attention, summed over batch and kv heads.

key_bits and value_bits were read; key_values and value_values are held, so that key_bits / key_values is the mean number of bits a value.)");
}
