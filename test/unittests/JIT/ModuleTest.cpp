// The C interface of compiled modules: what is refused, who owns what, and attention against the oracle.
#include "aligned/JIT/Module.h"
#include "aligned/Reference/Attention.h"
#include "aligned/Runtime/Kernel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace {

using Module = std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)>;

Module compile(const std::string &source, const char *options = "", const char *function = nullptr) {
  return {aligned_module_compile(source.c_str(), options, function), aligned_module_destroy};
}

std::string lastError() { return aligned_last_error(); }

aligned_value arrayOf(std::vector<float> &data, std::vector<int64_t> shape) {
  aligned_value value = {};
  value.array.data = data.data();
  int64_t stride = 1;
  for (size_t dim = shape.size(); dim-- > 0; stride *= shape[dim]) {
    value.array.shape[dim] = shape[dim];
    value.array.strides[dim] = stride;
  }
  return value;
}

const char *const kDouble = R"(
func.func @double(%a: tensor<?x3xf32>) -> tensor<?x3xf32> {
  %zero = arith.constant 0 : index
  %n = tensor.dim %a, %zero : tensor<?x3xf32>
  %empty = tensor.empty(%n) : tensor<?x3xf32>
  %sum = linalg.add ins(%a, %a : tensor<?x3xf32>, tensor<?x3xf32>) outs(%empty : tensor<?x3xf32>) -> tensor<?x3xf32>
  return %sum : tensor<?x3xf32>
})";

const char *const kAttention = R"(
func.func @step(%q: tensor<1x6x1x32xf32>, %k: tensor<1x2x?x32xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x6x1x16xf32> {
  %scale = arith.constant 0.25 : f32
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x1x32xf32>, tensor<1x2x?x32xf32>, tensor<1x2x?x16xf32> -> tensor<1x6x1x16xf32>
  return %out : tensor<1x6x1x16xf32>
})";

TEST(Transform, GivesTextOrTheDiagnostics) {
  char *text = aligned_transform(kAttention, "aligned-pipeline{to=fuse policy=tight}");
  ASSERT_NE(text, nullptr) << lastError();
  EXPECT_NE(std::string(text).find("aligned.decode_attention"), std::string::npos);
  aligned_text_free(text);
  EXPECT_EQ(aligned_transform("func.func @f(", "canonicalize"), nullptr);
  EXPECT_NE(lastError().find("line 1"), std::string::npos) << lastError();
  EXPECT_EQ(aligned_transform(kAttention, "no-such-pass"), nullptr);
  EXPECT_NE(lastError().find("no-such-pass"), std::string::npos) << lastError();
}

TEST(Compile, RefusesWhatItCannotCall) {
  EXPECT_EQ(compile(kDouble, "policy=best"), nullptr);
  EXPECT_NE(lastError().find("got 'best'"), std::string::npos) << lastError();
  EXPECT_EQ(compile(kDouble, "", "triple"), nullptr);
  EXPECT_NE(lastError().find("expected a function 'triple'"), std::string::npos) << lastError();
  EXPECT_EQ(compile("func.func @f(%a: index) { return }"), nullptr);
  EXPECT_NE(lastError().find("got 'index'"), std::string::npos) << lastError();
  EXPECT_EQ(compile("module {}"), nullptr);
  EXPECT_NE(lastError().find("found 0"), std::string::npos) << lastError();
}

TEST(Compile, TellsProbesFromCertificates) {
  auto counts = [](const char *options, const std::string &source) {
    Module module = compile(source, options);
    EXPECT_TRUE(module) << lastError();
    return module ? std::pair(aligned_module_results(module.get()), aligned_module_probes(module.get())) : std::pair(0, 0);
  };
  std::string source = kAttention;
  EXPECT_EQ(counts("", source), std::pair(1, 0));
  EXPECT_EQ(counts("probe", source), std::pair(2, 1));
  EXPECT_EQ(counts("certify", source), std::pair(3, 0));
  EXPECT_EQ(counts("probe certify", source), std::pair(4, 1));
  EXPECT_EQ(counts("probe certify format=dense", source), std::pair(4, 1));
  EXPECT_EQ(counts("probe certify", kDouble), std::pair(1, 0));
}

TEST(Call, TakesStridesAndGivesMemoryOfItsOwn) {
  Module module = compile(kDouble);
  ASSERT_TRUE(module) << lastError();
  EXPECT_EQ(aligned_module_attentions(module.get()), 0);
  std::vector<float> data{1, 2, 3, 4, 5, 6};
  aligned_value argument = arrayOf(data, {2, 3}), result = {};
  argument.array.strides[0] = 1; // column-major
  argument.array.strides[1] = 2;
  ASSERT_EQ(aligned_module_call(module.get(), &argument, &result), 0) << lastError();
  EXPECT_EQ(result.array.shape[0], 2);
  const float *out = static_cast<float *>(result.array.data);
  EXPECT_EQ(std::vector<float>(out, out + 6), (std::vector<float>{2, 6, 10, 4, 8, 12}));
  EXPECT_NE(result.array.data, argument.array.data);
  aligned_array_free(&result.array);

  argument = arrayOf(data, {3, 2});
  EXPECT_NE(aligned_module_call(module.get(), &argument, &result), 0);
  EXPECT_NE(lastError().find("expected shape [?, 3] of argument 0, got [3, 2]"), std::string::npos) << lastError();
}

/// What kernels say of the bits that they read, added up.
struct Reading {
  std::mutex mutex; // rows run on several threads
  int64_t rows = 0, keyBits = 0, valueBits = 0;

  static void listen(void *context, int32_t, int64_t, int64_t blocks, int64_t units, const uint8_t *keyLayers, const uint8_t *valueLayers) {
    auto *reading = static_cast<Reading *>(context);
    std::lock_guard<std::mutex> lock(reading->mutex);
    ++reading->rows;
    reading->keyBits += 4 * 64 * (32 / units) * std::accumulate(keyLayers, keyLayers + blocks * units, int64_t(0));
    reading->valueBits += 4 * 16 * std::accumulate(valueLayers, valueLayers + 64 * blocks, int64_t(0));
  }
};

struct Run {
  const char *options;
  double bound;
};
class Attention : public testing::TestWithParam<Run> {};

TEST_P(Attention, MatchesTheOracleAtEveryLength) {
  Module module = compile(kAttention, GetParam().options);
  ASSERT_TRUE(module) << lastError();
  ASSERT_EQ(aligned_module_attentions(module.get()), 1);
  for (int64_t tokens : {0, 1, 63, 64, 65, 200}) {
    std::mt19937 random(tokens);
    std::normal_distribution<float> normal;
    auto draw = [&](int64_t count) {
      std::vector<float> values(count);
      for (float &x : values)
        x = normal(random);
      return values;
    };
    std::vector<float> q = draw(6 * 32), k = draw(2 * tokens * 32), v = draw(2 * tokens * 16);
    std::vector<double> exact(6 * 16), qd(q.begin(), q.end()), kd(k.begin(), k.end()), vd(v.begin(), v.end());
    for (int64_t head = 0; head < 2; ++head)
      aligned::exactAttention(qd.data() + head * 3 * 32, 3, kd.data() + head * tokens * 32, vd.data() + head * tokens * 16, tokens, 32, 16, 0.25, false,
                              exact.data() + head * 3 * 16);

    aligned_value arguments[3] = {arrayOf(q, {1, 6, 1, 32}), arrayOf(k, {1, 2, tokens, 32}), arrayOf(v, {1, 2, tokens, 16})}, result = {};
    std::vector<aligned_cache *> caches;
    for (int32_t side = 1; side <= 2; ++side) {
      aligned_type type;
      ASSERT_EQ(aligned_module_argument(module.get(), side, &type), 0);
      if (!type.is_cache)
        continue;
      caches.push_back(aligned_cache_create(&type.format, 1, 2, type.shape[3], 0));
      ASSERT_EQ(aligned_cache_append(caches.back(), arguments[side].array.data, tokens, arguments[side].array.strides), 0) << lastError();
      arguments[side].cache = caches.back();
    }
    aligned_tally tally = {};
    Reading reading;
    aligned_rt_record(&tally, 1);
    aligned_rt_record_plan(&Reading::listen, &reading);
    ASSERT_EQ(aligned_module_call(module.get(), arguments, &result), 0) << lastError();
    aligned_rt_record(nullptr, 0);
    aligned_rt_record_plan(nullptr, nullptr);
    if (!caches.empty()) { // exponents and the open block, in f32, come on top
      int64_t blocks = tokens / 64, open = tokens % 64;
      bool fixed = caches[0]->format.kind == ALIGNED_FORMAT_FIXED;
      EXPECT_EQ(reading.rows, 2);
      EXPECT_EQ(reading.keyBits + 2 * (fixed * blocks * 32 * 8 + open * 32 * 32), tally.key_bits) << tokens << " tokens";
      EXPECT_EQ(reading.valueBits + 2 * (fixed * blocks * 64 * 8 + open * 16 * 32), tally.value_bits) << tokens << " tokens";
    }
    const float *out = static_cast<float *>(result.array.data);
    for (double error : aligned::relativeErrors({out, out + 6 * 16}, exact, 16))
      EXPECT_LE(error, GetParam().bound) << tokens << " tokens";
    aligned_array_free(&result.array);
    for (aligned_cache *cache : caches)
      aligned_cache_destroy(cache);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, Attention,
                         testing::Values(Run{"policy=exact", 2e-4}, Run{"policy=tight", 2e-3}, Run{"policy=exact isa=portable", 2e-4}, Run{"policy=alignedkv", 0.2},
                                         Run{"policy=exact format=dense", 1e-5}, Run{"target=reference", 1e-6}),
                         [](const testing::TestParamInfo<Run> &info) {
                           std::string name = info.param.options;
                           for (char &c : name)
                             c = isalnum(c) ? c : '_';
                           return name;
                         });

} // namespace
