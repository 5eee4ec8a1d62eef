// What tests of the CUDA runtime share: the stand-in driver, a program of simple kernels (kernels.c), and caches that are
// compared with the host's.
#ifndef ALIGNED_TEST_UNITTESTS_CUDA_FIXTURE_H
#define ALIGNED_TEST_UNITTESTS_CUDA_FIXTURE_H

#include "aligned/Runtime/Cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace aligned::test {

struct Destroy {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
  void operator()(aligned_program *program) const { aligned_program_destroy(program); }
  void operator()(aligned_graph *graph) const { aligned_graph_destroy(graph); }
};
using CachePtr = std::unique_ptr<aligned_cache, Destroy>;
using ProgramPtr = std::unique_ptr<aligned_program, Destroy>;
using GraphPtr = std::unique_ptr<aligned_graph, Destroy>;

constexpr int64_t kHeads = 2, kGroup = 3, kDim = 16; // as kernels.c has them

inline std::string readFile(const std::string &path) {
  std::ifstream stream(path);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}
inline std::string ptx() { return readFile(ALIGNED_TEST_PTX); }

inline aligned_format formatOf(int kind, int role, int element) {
  if (kind == ALIGNED_FORMAT_FIXED)
    return {kind, role, element, 4, {4, 4, 4, 4}};
  return {kind, role, element, 2, {12, 4, 0, 0}};
}

inline std::string json(const aligned_format &format) {
  const char *kinds[] = {"fixed", "float"}, *roles[] = {"key", "value"}, *elements[] = {"f16", "bf16", "f32"};
  std::string widths;
  for (int p = 0; p < format.planes; ++p)
    widths += (p ? ", " : "") + std::to_string(format.width[p]);
  return std::string("{\"kind\": \"") + kinds[format.kind] + "\", \"role\": \"" + roles[format.role] + "\", \"element\": \"" +
         elements[format.element] + "\", \"widths\": [" + widths + "]}";
}

inline std::string appendJson(const aligned_format &format) {
  const char *elements[] = {"f16", "bf16", "f32"};
  return "{\"format\": " + json(format) + ", \"head_dim\": " + std::to_string(kDim) + R"(,
    "arguments": [{"name": "cache", "kind": "cache"}, {"name": "data", "kind": "input", "type": ")" +
         elements[format.element] + R"(", "shape": []}, {"name": "counts", "kind": "input", "type": "i32", "shape": ["batch"]},
      {"name": "stride0", "kind": "scalar", "type": "i64"}, {"name": "stride1", "kind": "scalar", "type": "i64"},
      {"name": "stride2", "kind": "scalar", "type": "i64"}, {"name": "stride3", "kind": "scalar", "type": "i64"},
      {"name": "is_full", "kind": "scratch", "type": "u32", "shape": ["rows", "touched"]}, {"name": "touched", "kind": "scalar", "type": "i32"}],
    "launch": [{"kernel": "append_split", "grid": ["touched", "rows"]}, {"kernel": "append_commit", "grid": [1, 1]}]})";
}

inline std::string decodeJson() {
  return R"({"site": 4, "kv_heads": 2, "heads": 3, "key_dim": 16, "value_dim": 16, "query": "f16", "certified": 0,
    "key": )" +
         json(formatOf(ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16)) + R"(,
    "value": )" +
         json(formatOf(ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_VALUE, ALIGNED_ELEMENT_F16)) + R"(,
    "arguments": [
      {"name": "query", "kind": "input", "type": "f16", "shape": ["rows", 3, 16]}, {"name": "key", "kind": "cache"}, {"name": "value", "kind": "cache"},
      {"name": "scores", "kind": "scratch", "type": "f32", "shape": ["rows", 3, "capacity"]},
      {"name": "key_layers", "kind": "record", "type": "i8", "shape": ["rows", "blocks", 4]},
      {"name": "value_layers", "kind": "scratch", "type": "i8", "shape": ["rows", "capacity"]},
      {"name": "acc", "kind": "output", "type": "f32", "shape": ["rows", 3, 16]}, {"name": "max", "kind": "output", "type": "f32", "shape": ["rows", 3]},
      {"name": "sum", "kind": "output", "type": "f32", "shape": ["rows", 3]},
      {"name": "scale", "kind": "scalar", "type": "f32"}, {"name": "splits", "kind": "scalar", "type": "i32"}],
    "launch": [{"kernel": "decode_scores", "grid": ["splits", "rows"]}, {"kernel": "decode_values", "grid": [1, "rows"]}]})";
}

/// A certified site, with sizes among its arguments.
inline std::string echoJson() {
  return R"({"site": 5, "kv_heads": 2, "heads": 3, "key_dim": 16, "value_dim": 16, "query": "f16", "certified": 1,
    "key": )" +
         json(formatOf(ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16)) + R"(,
    "value": )" +
         json(formatOf(ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_VALUE, ALIGNED_ELEMENT_F16)) + R"(,
    "arguments": [
      {"name": "query", "kind": "input", "type": "f16", "shape": ["rows", 3, 16]}, {"name": "key", "kind": "cache"}, {"name": "value", "kind": "cache"},
      {"name": "acc", "kind": "output", "type": "f32", "shape": ["rows", 3, 16]}, {"name": "max", "kind": "output", "type": "f32", "shape": ["rows", 3]},
      {"name": "sum", "kind": "output", "type": "f32", "shape": ["rows", 3]}, {"name": "certificate", "kind": "output", "type": "f32", "shape": ["rows", 3, 6]},
      {"name": "scale", "kind": "scalar", "type": "f32"}, {"name": "rows", "kind": "scalar", "type": "i32"}, {"name": "capacity", "kind": "scalar", "type": "i64"}],
    "launch": [{"kernel": "echo", "grid": [1, "rows"]}]})";
}

/// A site that takes arrays; kernels.c has none that would read them.
inline std::string denseJson() {
  return R"({"site": 6, "kv_heads": 2, "heads": 3, "key_dim": 16, "value_dim": 16, "query": "f32", "certified": 0,
    "key": {"kind": "dense", "role": "key", "element": "f16"}, "value": {"kind": "dense", "role": "value", "element": "bf16"},
    "arguments": [
      {"name": "query", "kind": "input", "type": "f32", "shape": ["rows", 3, 16]}, {"name": "key", "kind": "input", "type": "f16", "shape": ["rows", "capacity", 16]},
      {"name": "value", "kind": "input", "type": "bf16", "shape": ["rows", "capacity", 16]}, {"name": "lengths", "kind": "input", "type": "i64", "shape": ["batch"]},
      {"name": "acc", "kind": "output", "type": "f32", "shape": ["rows", 3, 16]}, {"name": "max", "kind": "output", "type": "f32", "shape": ["rows", 3]},
      {"name": "sum", "kind": "output", "type": "f32", "shape": ["rows", 3]}, {"name": "scale", "kind": "scalar", "type": "f32"}],
    "launch": [{"kernel": "decode_values", "grid": [1, "rows"]}]})";
}

/// The sidecar of kernels.c: its append kernels serve every format.
inline std::string sidecar() {
  std::string appends;
  for (int kind : {ALIGNED_FORMAT_FIXED, ALIGNED_FORMAT_FLOAT})
    for (int role : {ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE})
      for (int element : {ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32})
        appends += (appends.empty() ? "" : ",\n  ") + appendJson(formatOf(kind, role, element));
  return R"({"version": 1, "chip": "sm_70", "ptx": 70,
 "kernels": [{"name": "append_split", "threads": 32}, {"name": "append_commit", "threads": 32}, {"name": "decode_scores", "threads": 32},
             {"name": "decode_values", "threads": 32}, {"name": "echo", "threads": 32}],
 "decode": [)" +
         decodeJson() + ",\n  " + echoJson() + "],\n \"append\": [" + appends + "]}";
}

inline std::string replaced(std::string text, const std::string &what, const std::string &by) {
  size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return at == std::string::npos ? text : text.replace(at, what.size(), by);
}

inline int64_t elementBytes(const aligned_format &format) { return format.element == ALIGNED_ELEMENT_F32 ? 4 : 2; }

/// [rows][tokens][kDim] of the format's element; `special`: some that are not finite.
inline std::vector<char> randomTokens(const aligned_format &format, int64_t rows, int64_t tokens, unsigned seed,
                                      bool special = false) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  int64_t bytes = elementBytes(format), count = rows * tokens * kDim;
  std::vector<char> data(count * bytes + 1);
  for (int64_t i = 0; i < count; ++i) {
    float x = normal(random) * (i % 5 == 0 ? 8 : 1);
    if (special && random() % 211 == 0)
      x = random() % 2 ? -INFINITY : NAN;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (format.element == ALIGNED_ELEMENT_BF16)
      bits >>= 16;
    if (format.element == ALIGNED_ELEMENT_F16) {
      _Float16 half = static_cast<_Float16>(x);
      std::memcpy(&bits, &half, 2);
    }
    std::memcpy(&data[i * bytes], &bits, bytes); // little endian
  }
  return data;
}

inline void expectBytes(const void *actual, const void *expected, int64_t bytes, const std::string &what) {
  if (bytes) {
    ASSERT_EQ(std::memcmp(actual, expected, bytes), 0) << what;
  }
}

/// Whatever a reader of the host's cache sees is in the other, downloaded. Pages may have other numbers.
inline void expectSame(const aligned_cache &actual, const aligned_cache &expected) {
  ASSERT_EQ(actual.tokens, expected.tokens);
  ASSERT_EQ(actual.layers, expected.layers);
  ASSERT_EQ(actual.lengths != nullptr, expected.lengths != nullptr);
  ASSERT_EQ(actual.pages != nullptr, expected.pages != nullptr);
  const aligned_format &f = expected.format;
  int64_t d = expected.head_dim, exponentBytes = f.kind == ALIGNED_FORMAT_FLOAT ? 0 : f.role == ALIGNED_ROLE_KEY ? d : 64;
  auto place = [](const aligned_cache &cache, int64_t row, int64_t b) {
    int64_t blocks = cache.capacity / 64;
    return cache.pages ? cache.pages[row / cache.kv_heads * blocks + b] * cache.kv_heads + row % cache.kv_heads
                       : row * blocks + b;
  };
  for (int64_t row = 0; row < expected.rows; ++row) {
    int64_t length = aligned_cache_length(&expected, row / expected.kv_heads);
    ASSERT_EQ(aligned_cache_length(&actual, row / expected.kv_heads), length);
    std::string where = " of row " + std::to_string(row);
    for (int64_t b = 0; b < length / 64; ++b) {
      auto same = [&](const void *a, const void *e, int64_t bytes, const std::string &what) {
        expectBytes(static_cast<const char *>(a) + place(actual, row, b) * bytes,
                    static_cast<const char *>(e) + place(expected, row, b) * bytes, bytes,
                    what + where + ", block " + std::to_string(b));
      };
      for (int p = 0; p < ALIGNED_MAX_PLANES; ++p) {
        ASSERT_EQ(actual.plane[p] != nullptr, expected.plane[p] != nullptr);
        if (expected.plane[p])
          same(actual.plane[p], expected.plane[p], 8 * d * f.width[p], "plane " + std::to_string(p));
      }
      same(actual.exponent, expected.exponent, exponentBytes, "exponents");
    }
    auto ofRow = [&](const void *a, const void *e, int64_t rowBytes, int64_t bytes, const char *what) {
      expectBytes(static_cast<const char *>(a) + row * rowBytes, static_cast<const char *>(e) + row * rowBytes, bytes,
                  what + where);
    };
    ofRow(actual.channel_max, expected.channel_max, d * 4, d * 4, "maxima");
    ofRow(actual.open, expected.open, 64 * d * elementBytes(f), length % 64 * d * elementBytes(f), "open tokens");
    for (int64_t c = 0; c < d && expected.channel_mean; ++c)
      ASSERT_NEAR(actual.channel_mean[row * d + c], expected.channel_mean[row * d + c], 1e-5) << "mean" << where;
    if (testing::Test::HasFatalFailure())
      return;
  }
  auto escapes = [](const aligned_cache &cache) {
    std::vector<std::vector<int64_t>> list;
    for (int64_t i = 0; i < cache.escapes; ++i) {
      const aligned_escape &e = cache.escape[i];
      list.push_back({e.row, e.token, e.channel, e.bits,
                      std::isnan(e.value)     ? 0
                      : std::signbit(e.value) ? -1
                                              : 1}); // a device has NaNs of its own
    }
    std::sort(list.begin(), list.end());
    return list;
  };
  EXPECT_TRUE(escapes(actual) == escapes(expected));
}

inline void expectDevice(const aligned_cache *device, const aligned_cache &expected) {
  ASSERT_EQ(device->location, ALIGNED_LOCATION_CUDA);
  ASSERT_EQ(device->tokens, expected.tokens);
  CachePtr host(aligned_cuda_cache_download(device));
  ASSERT_TRUE(host) << aligned_last_error();
  expectSame(*host, expected);
}

/// Memory on the device, filled.
class DeviceData {
public:
  explicit DeviceData(const std::vector<char> &data) : DeviceData(data.size()) {
    EXPECT_EQ(aligned_cuda_copy_to_device(memory, data.data(), data.size()), 0);
  }
  explicit DeviceData(int64_t bytes) : memory(aligned_cuda_allocate(bytes)) {
    EXPECT_NE(memory, nullptr) << aligned_last_error();
  }
  ~DeviceData() { aligned_cuda_free(memory); }
  DeviceData(const DeviceData &) = delete;
  template <typename T> std::vector<T> get(int64_t count) const {
    std::vector<T> values(count);
    EXPECT_EQ(aligned_cuda_copy_to_host(values.data(), memory, count * sizeof(T)), 0);
    return values;
  }
  void *const memory;
};

class Cuda : public testing::Test {
protected:
  void SetUp() override {
    ASSERT_TRUE(aligned_cuda_available()) << aligned_last_error();
    program.reset(aligned_program_load(ptx().c_str(), sidecar().c_str()));
    ASSERT_TRUE(program) << aligned_last_error();
  }
  ProgramPtr program;
};

} // namespace aligned::test

#endif
