// What tests of the CUDA runtime share: the stand-in driver, and a program of simple kernels (kernels.c).
#ifndef ALIGNED_TEST_UNITTESTS_CUDA_FIXTURE_H
#define ALIGNED_TEST_UNITTESTS_CUDA_FIXTURE_H

#include "../Handles.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace aligned::test {

constexpr int64_t kHeads = 2, kGroup = 3, kDim = 16; // as kernels.c has them

inline std::string readFile(const std::string &path) {
  std::ifstream stream(path);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}
inline std::string ptx() { return readFile(ALIGNED_TEST_PTX); }

/// What kernels.c can store.
inline aligned_format formatOf(int role) { return {ALIGNED_FORMAT_FIXED, role, ALIGNED_ELEMENT_F16, 3, {4, 4, 8, 0}}; }

inline std::string json(int role) {
  return std::string(R"({"kind": "fixed", "role": ")") + (role == ALIGNED_ROLE_KEY ? "key" : "value") + R"(", "element": "f16", "widths": [4, 4, 8]})";
}

inline std::string appendJson(int role) {
  return R"({"format": )" + json(role) + R"(, "head_dim": 16,
    "arguments": [{"name": "cache", "kind": "cache"}, {"name": "data", "kind": "input", "type": "f16", "shape": []},
      {"name": "counts", "kind": "input", "type": "i32", "shape": ["batch"]},
      {"name": "stride0", "kind": "scalar", "type": "i64"}, {"name": "stride1", "kind": "scalar", "type": "i64"},
      {"name": "stride2", "kind": "scalar", "type": "i64"}, {"name": "stride3", "kind": "scalar", "type": "i64"}],
    "launch": [{"kernel": "append_pack", "grid": [1, "rows"]}, {"kernel": "append_advance", "grid": [1, 1]}],
    "drop": [{"kernel": "append_advance", "grid": [1, 1]}]})";
}

inline std::string decodeJson() {
  return R"({"site": 4, "kv_heads": 2, "heads": 3, "queries": 1, "key_dim": 16, "value_dim": 16, "query": "f16", "certified": 0,
    "key": )" +
         json(ALIGNED_ROLE_KEY) + R"(,
    "value": )" +
         json(ALIGNED_ROLE_VALUE) + R"(,
    "arguments": [
      {"name": "query", "kind": "input", "type": "f16", "shape": ["rows", 3, 16]}, {"name": "key", "kind": "cache"}, {"name": "value", "kind": "cache"},
      {"name": "scores", "kind": "scratch", "type": "f32", "shape": ["rows", 3, "capacity"]},
      {"name": "key_bits", "kind": "record", "type": "u8", "shape": ["rows", "capacity"]},
      {"name": "value_bits", "kind": "scratch", "type": "u8", "shape": ["rows", "capacity"]},
      {"name": "acc", "kind": "output", "type": "f32", "shape": ["rows", 3, 16]}, {"name": "max", "kind": "output", "type": "f32", "shape": ["rows", 3]},
      {"name": "sum", "kind": "output", "type": "f32", "shape": ["rows", 3]},
      {"name": "scale", "kind": "scalar", "type": "f32"}, {"name": "splits", "kind": "scalar", "type": "i32"}],
    "launch": [{"kernel": "decode_scores", "grid": ["splits", "rows"]}, {"kernel": "decode_values", "grid": [1, "rows"]}]})";
}

/// A certified site of three queries, with all that a call may bring, sizes among its arguments, and grids of three dimensions.
inline std::string echoJson() {
  return R"({"site": 5, "kv_heads": 2, "heads": 3, "queries": 3, "key_dim": 16, "value_dim": 16, "query": "f16", "certified": 1,
    "key": )" +
         json(ALIGNED_ROLE_KEY) + R"(,
    "value": )" +
         json(ALIGNED_ROLE_VALUE) + R"(,
    "arguments": [
      {"name": "query", "kind": "input", "type": "f16", "shape": ["rows", 3, 16]}, {"name": "key", "kind": "cache"}, {"name": "value", "kind": "cache"},
      {"name": "sink_logits", "kind": "input", "type": "f32", "shape": [2]},
      {"name": "attn_mask", "kind": "input", "type": "i1", "shape": ["batch", 1, 3, "tokens"]},
      {"name": "acc", "kind": "output", "type": "f32", "shape": ["rows", 3, 16]}, {"name": "max", "kind": "output", "type": "f32", "shape": ["rows", 3]},
      {"name": "sum", "kind": "output", "type": "f32", "shape": ["rows", 3]}, {"name": "certificate", "kind": "output", "type": "f32", "shape": ["rows", 3, 8]},
      {"name": "scale", "kind": "scalar", "type": "f32"}, {"name": "rows", "kind": "scalar", "type": "i32"}, {"name": "capacity", "kind": "scalar", "type": "i64"}],
    "launch": [{"kernel": "echo", "grid": [1, "kv_heads", "batch"]}]})";
}

/// A site that takes arrays.
inline std::string denseJson() {
  return R"({"site": 6, "kv_heads": 2, "heads": 3, "queries": 1, "key_dim": 16, "value_dim": 16, "query": "f32", "certified": 0,
    "key": {"kind": "dense", "role": "key", "element": "f16"}, "value": {"kind": "dense", "role": "value", "element": "bf16"},
    "arguments": [
      {"name": "query", "kind": "input", "type": "f32", "shape": ["rows", 3, 16]}, {"name": "key", "kind": "input", "type": "f16", "shape": ["rows", "capacity", 16]},
      {"name": "value", "kind": "input", "type": "bf16", "shape": ["rows", "capacity", 16]}, {"name": "lengths", "kind": "input", "type": "i64", "shape": ["batch"]},
      {"name": "acc", "kind": "output", "type": "f32", "shape": ["rows", 3, 16]}, {"name": "max", "kind": "output", "type": "f32", "shape": ["rows", 3]},
      {"name": "sum", "kind": "output", "type": "f32", "shape": ["rows", 3]}, {"name": "scale", "kind": "scalar", "type": "f32"},
      {"name": "kv_heads", "kind": "scalar", "type": "i32"}, {"name": "capacity", "kind": "scalar", "type": "i32"}],
    "launch": [{"kernel": "dense", "grid": [1, "rows"]}]})";
}

/// The sidecar of kernels.c.
inline std::string sidecar() {
  return R"({"version": 2, "chip": "sm_70", "ptx": 70,
 "kernels": [{"name": "append_pack", "threads": 32}, {"name": "append_advance", "threads": 32}, {"name": "decode_scores", "threads": 32},
             {"name": "decode_values", "threads": 32}, {"name": "dense", "threads": 32}, {"name": "echo", "threads": 32, "shared": 65536}],
 "decode": [)" +
         decodeJson() + ",\n  " + echoJson() + "],\n \"append\": [" + appendJson(ALIGNED_ROLE_KEY) + ",\n  " + appendJson(ALIGNED_ROLE_VALUE) + "]}";
}

inline std::string replaced(std::string text, const std::string &what, const std::string &by) {
  size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return at == std::string::npos ? text : text.replace(at, what.size(), by);
}

/// Halves, [rows][tokens][kDim].
inline std::vector<char> randomTokens(int64_t rows, int64_t tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  int64_t count = rows * tokens * kDim;
  std::vector<char> data(count * 2 + 1); // so that no tokens have an address, too
  for (int64_t i = 0; i < count; ++i) {
    auto half = static_cast<_Float16>(normal(random) * (i % 5 == 0 ? 8 : 1));
    std::memcpy(&data[i * 2], &half, 2);
  }
  return data;
}

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
