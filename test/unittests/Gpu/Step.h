// What tests of steps over fixed planes share: one attention of two kv heads, its kernels, caches of two batch entries, and what
// the reference makes of them.
#ifndef ALIGNED_TEST_UNITTESTS_GPU_STEP_H
#define ALIGNED_TEST_UNITTESTS_GPU_STEP_H

#include "Emulated.h"

#include <algorithm>
#include <cstring>
#include <ostream>
#include <random>

namespace aligned::test {

constexpr int64_t kKvHeads = 2, kBatch = 2, kRows = kKvHeads * kBatch;

/// What values are like.
enum class Content {
  Usual,     ///< probabilities that differ by orders of magnitude, loud channels of K, loud tokens
  Aside,     ///< some are not finite
  LowValues, ///< rows of zeros in V, and a first token that has much weight and a tiny row of V (M3)
};

/// An attention, and what is in its caches.
struct Case {
  std::string policy = "balanced";
  int64_t group = 3, keyDim = 64, valueDim = 64, queries = 1;
  const char *element = "f16", *query = "f16";
  std::vector<int64_t> tokens = {65, 300}; ///< of the first batch entry; the second has a third of them
  // As the op says it, and as the reference is told.
  std::string sight = "", policies = "";
  Mask mask = {};
  double softcap = 0;
  bool maskedZero = false;
  MaskOperand operand = {};
  bool sinks = false; ///< logits without a value
  Limits key[kKvHeads] = {}, value[kKvHeads] = {};
  // Caches.
  Content content = Content::Usual;
  int keyResident = 3, valueResident = 3; ///< planes
  bool paged = false;
  double more = 1.1; ///< than the rule asks for may be read in sum
  bool certified = false;

  int64_t heads() const { return group * queries; } ///< query rows of a kv head
  const char *queryElement() const { return query; }
  float scale() const { return float(1 / std::sqrt(double(keyDim))); }
  bool isExact() const { return policy == "exact"; }
  double tolerance() const { return isExact() ? 0 : aligned_policy_tolerance(policy.c_str()); }
  aligned_format format(int32_t role) const {
    const std::string name = element;
    return {ALIGNED_FORMAT_FIXED,
            role,
            name == "f16"    ? ALIGNED_ELEMENT_F16
            : name == "bf16" ? ALIGNED_ELEMENT_BF16
                             : ALIGNED_ELEMENT_F32,
            3,
            {4, 4, 8}};
  }
};

inline std::ostream &operator<<(std::ostream &os, const Case &c) {
  const char *contents[] = {"", ", some not finite", ", low rows of V"};
  return os << c.policy << ", " << c.query << " queries of " << c.element << ", " << c.group << "x" << c.queries << " rows, "
            << c.keyDim << "/" << c.valueDim << " " << c.sight << " " << c.policies
            << (c.operand.element ? std::string(" attn_mask of ") + c.operand.element : "") << (c.sinks ? " with sinks" : "")
            << contents[int(c.content)] << (c.keyResident + c.valueResident < 6 ? ", planes gone" : "")
            << (c.paged ? ", pages" : "");
}

/// The attention as MLIR.
inline std::string sourceOf(const Case &c) {
  return attentionOf(c, kKvHeads, std::to_string(kBatch), " " + c.policies + (c.maskedZero ? " masked_zero" : ""));
}

/// What the compiler makes of it.
struct Kernels {
  std::string ptx, sidecar;

  ProgramPtr load() const {
    ProgramPtr program(aligned_program_load(ptx.c_str(), sidecar.c_str()));
    EXPECT_TRUE(program) << aligned_last_error();
    return program;
  }
  /// To be launched while the kernels before them end.
  Kernels chained() const {
    const std::string no = "\"chained\": 0";
    Kernels other = *this;
    const size_t at = other.sidecar.find(no);
    EXPECT_NE(at, std::string::npos) << sidecar;
    if (at != std::string::npos)
      other.sidecar.replace(at, no.size(), "\"chained\": 1");
    return other;
  }
};

/// Compiled once for all tests that want them, which takes longer than to run.
inline const Kernels &kernelsOf(const Case &c) {
  static std::map<std::string, Kernels> all;
  const std::string source = sourceOf(c), options = "policy=" + c.policy + (c.certified ? " certify=true" : "");
  auto [found, isNew] = all.try_emplace(options + "\n" + source);
  Kernels &kernels = found->second;
  if (isNew) {
    char *ptx = nullptr, *sidecar = nullptr;
    EXPECT_EQ(aligned_compile_kernels(source.c_str(), options.c_str(), &ptx, &sidecar), 0) << aligned_last_error() << source;
    kernels.ptx = ptx ? ptx : "";
    kernels.sidecar = sidecar ? sidecar : "";
    aligned_text_free(ptx);
    aligned_text_free(sidecar);
  }
  return kernels;
}

/// Numbers for a case. K and V: [batch][kv heads][tokens][dim].
struct Inputs {
  int64_t tokens;
  std::vector<int64_t> lengths;
  Values q, k, v, mask, sinks;

  Inputs(const Case &c, int64_t tokens) : tokens(tokens), lengths{tokens, tokens / 3} {
    std::mt19937 random(uint32_t(tokens * 31 + c.keyDim));
    std::normal_distribution<double> normal;
    const int64_t heads = kKvHeads * c.group, perEntry = heads * c.queries * c.keyDim;
    q = Values(c.query, kBatch * perEntry, [&](int64_t i) {
      const double x = normal(random) * (i % c.keyDim % 5 ? 2 : 0.125) / double(1 + i / c.keyDim % 3);
      return c.content != Content::Aside ? x : i == 5 ? INFINITY : i == perEntry + c.keyDim + 1 ? NAN : x;
    });
    k = Values(c.element, kRows * tokens * c.keyDim, [&](int64_t i) {
      const int64_t token = i / c.keyDim % tokens, channel = i % c.keyDim;
      const double x = normal(random) * (channel == 3 ? 4 : 1) * (token % 64 == 5 ? 1.5 : 1);
      if (c.content == Content::LowValues && token == 0)
        return 0.3 * q.exact[i / c.keyDim / tokens * c.heads() * c.keyDim + channel]; // what the first query row looks for
      return c.content == Content::Aside && token % 37 == 11 && channel == 9 ? (token % 2 ? -INFINITY : INFINITY) : x;
    });
    v = Values(c.element, kRows * tokens * c.valueDim, [&](int64_t i) {
      const int64_t token = i / c.valueDim % tokens, channel = i % c.valueDim;
      const double x = normal(random) * (token % 17 ? 1 : 4);
      if (c.content == Content::LowValues)
        return token == 0 ? x * 1e-3 : token % 5 == 3 ? 0 : x + 1; // of which the mean is not zero
      const double specials[] = {NAN, INFINITY, -INFINITY};
      return c.content == Content::Aside && token % 29 == 7 && channel % 9 == 2 ? specials[token % 3] : x;
    });
    if (c.operand.element)
      mask = c.operand.random(tokens);
    if (c.sinks)
      sinks = Values("f32", heads, [](int64_t head) { return 2.0 * double(head % 4) - 3; });
  }

  /// What a kv head of a batch entry is to the reference, with what its caches have settled.
  HeadInputs of(const Case &c, int64_t row, const aligned_cache &key, const aligned_cache &value) const {
    const int64_t length = lengths[row / kKvHeads], kvHead = row % kKvHeads;
    auto part = [](const Values &values, int64_t first, int64_t count) {
      return std::vector<double>(values.exact.begin() + first, values.exact.begin() + first + count);
    };
    HeadInputs in{c.heads(),
                  length,
                  c.keyDim,
                  c.valueDim,
                  part(q, row * c.heads() * c.keyDim, c.heads() * c.keyDim),
                  part(k, row * tokens * c.keyDim, length * c.keyDim),
                  part(v, row * tokens * c.valueDim, length * c.valueDim),
                  c.scale()};
    in.storage = c.element == std::string("bf16") ? Storage::BFloat16 : Storage::Half;
    in.mask = c.mask;
    in.mask.queries = c.queries;
    in.softcap = c.softcap;
    in.maskedZero = c.maskedZero;
    in.keyLimits = c.key[kvHead];
    in.valueLimits = c.value[kvHead];
    in.keys.resident = c.keyResident;
    in.values.resident = c.valueResident;
    in.keys.bias = int(key.bias);
    in.values.bias = int(value.bias);
    in.offset = std::vector<double>(key.offset + row * c.keyDim, key.offset + (row + 1) * c.keyDim);
    for (int64_t h = 0; h < in.heads; ++h) {
      const int64_t head = kvHead * c.group + h / c.queries;
      for (int64_t t = 0; t < length && c.operand.element; ++t)
        in.additive.push_back(c.operand.at(mask, tokens, row / kKvHeads, head, h % c.queries, t));
      if (c.sinks)
        in.sinkLogits.push_back(sinks.exact[head]);
    }
    return in;
  }
};

/// A key and a value, on the host or on the device.
struct Caches {
  CachePtr key, value;

  template <typename Body> void both(const Body &body) const {
    ASSERT_EQ(body(key.get()), 0) << aligned_last_error();
    ASSERT_EQ(body(value.get()), 0) << aligned_last_error();
  }
  Caches fork() const { return {CachePtr(aligned_cache_fork(key.get())), CachePtr(aligned_cache_fork(value.get()))}; }
  Caches upload(const ProgramPtr &program) const {
    Caches there{CachePtr(aligned_cuda_cache_upload(program.get(), key.get())),
                 CachePtr(aligned_cuda_cache_upload(program.get(), value.get()))};
    EXPECT_TRUE(there.key && there.value) << aligned_last_error();
    return there;
  }
  /// Tokens from `begin` on, as many as counts say of each batch entry.
  void append(const Case &c, const Inputs &in, int64_t begin, const std::vector<int64_t> &counts) const {
    for (const auto &[cache, values, dim] :
         {std::tuple(key.get(), &in.k, c.keyDim), std::tuple(value.get(), &in.v, c.valueDim)}) {
      const int64_t strides[] = {kKvHeads * in.tokens * dim, in.tokens * dim, dim, 1};
      const int64_t bytes = int64_t(values->bytes.size()) / std::max<int64_t>(kRows * in.tokens * dim, 1);
      ASSERT_EQ(aligned_cache_append_ragged(cache, values->bytes.data() + begin * dim * bytes, counts.data(), strides), 0)
          << aligned_last_error();
    }
  }
};

/// Caches of the host with all tokens, which are not all appended at once.
inline Caches packed(const Case &c, const Inputs &in) {
  auto make = [&](int32_t role) {
    const aligned_format format = c.format(role);
    const int64_t dim = role == ALIGNED_ROLE_KEY ? c.keyDim : c.valueDim;
    CachePtr cache(c.paged ? aligned_cache_create_paged(&format, kBatch, kKvHeads, dim, 2 * (in.tokens / 64 + 3), in.tokens + 200)
                           : aligned_cache_create(&format, kBatch, kKvHeads, dim, in.tokens + 70));
    EXPECT_TRUE(cache) << aligned_last_error();
    return cache;
  };
  Caches caches{make(ALIGNED_ROLE_KEY), make(ALIGNED_ROLE_VALUE)};
  std::vector<int64_t> first, rest;
  for (int64_t length : in.lengths) {
    first.push_back(std::min<int64_t>(length, 70));
    rest.push_back(length - first.back());
  }
  caches.append(c, in, 0, {first[0], 0}); // so that pages of entries take turns
  caches.append(c, in, 0, {0, first[1]});
  if (rest[0] + rest[1])
    caches.append(c, in, 70, rest);
  EXPECT_EQ(aligned_cache_drop_planes(caches.key.get(), c.keyResident), 0) << aligned_last_error();
  EXPECT_EQ(aligned_cache_drop_planes(caches.value.get(), c.valueResident), 0) << aligned_last_error();
  return caches;
}

/// Bits that were read of the tokens of a row.
struct Plan {
  std::vector<int> key, value;
};

/// What a step gives.
struct State {
  std::vector<float> acc, max, sum, certificate;
  std::vector<Plan> plans = std::vector<Plan>(kRows);
  aligned_tally tally = {};
  std::string error; ///< what failed, if anything did

  double out(int64_t row, int64_t channel, int64_t dim) const {
    return sum[row] == 0 ? 0 : double(acc[row * dim + channel]) / sum[row];
  }
};

inline void expectSame(const State &got, const State &want) {
  auto same = [](const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  };
  EXPECT_TRUE(same(got.acc, want.acc)) << "outputs differ";
  EXPECT_TRUE(same(got.max, want.max)) << "references differ";
  EXPECT_TRUE(same(got.sum, want.sum)) << "sums differ";
  for (int64_t row = 0; row < kRows; ++row) {
    EXPECT_EQ(got.plans[row].key, want.plans[row].key) << "row " << row;
    EXPECT_EQ(got.plans[row].value, want.plans[row].value) << "row " << row;
  }
}

/// All that the interpreter can find fault with, by chance in what order.
class Steps : public Emulated {
protected:
  static void SetUpTestSuite() {
    setenv("ALIGNED_EMULATOR_UNINITIALISED", "1", /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_SHUFFLE", "1", /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_ACQUIRE", "1", /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_RESIDENT", "3", /*overwrite=*/0);
    Emulated::SetUpTestSuite();
  }
  /// A fault sticks; it is for one test to report.
  void TearDown() override {
    EXPECT_EQ(aligned_cuda_synchronize(), 0) << aligned_last_error();
    reset();
  }
  static void reset() {
    static void *driver = dlopen(ALIGNED_CUDA_EMULATOR, RTLD_NOW | RTLD_LOCAL);
    reinterpret_cast<void (*)()>(dlsym(driver, "aligned_emulator_reset"))();
  }

  /// A call with arrays on the host.
  static aligned_decode_call callOf(const Case &c, const Caches &caches, const Inputs &in, State &state, int32_t splits = 0) {
    const int64_t rows = kRows * c.heads();
    state.acc.assign(rows * c.valueDim, 7);
    state.max.assign(rows, 7);
    state.sum.assign(rows, 7);
    aligned_decode_call call = {};
    call.batch = kBatch;
    call.key = caches.key.get();
    call.value = caches.value.get();
    call.query = in.q.bytes.data();
    setOperands(call, in.mask, in.sinks);
    call.scale = c.scale();
    call.splits = splits;
    call.acc = state.acc.data();
    call.max = state.max.data();
    call.sum = state.sum.data();
    if (c.certified) {
      state.certificate.assign(rows * ALIGNED_CERTIFICATE_NUMBERS, 7);
      call.certificate = state.certificate.data();
    }
    return call;
  }

  /// Over caches of the device.
  static State decode(const Case &c, const ProgramPtr &program, const Caches &caches, const Inputs &in, int32_t splits = 0) {
    State state;
    const aligned_decode_call call = callOf(c, caches, in, state, splits);
    aligned_rt_record(&state.tally, 1);
    aligned_rt_record_bits(listen, &state.plans);
    if (aligned_program_decode(program.get(), 0, &call))
      state.error = aligned_last_error();
    aligned_rt_record_bits(nullptr, nullptr);
    aligned_rt_record(nullptr, 0);
    return state;
  }

private:
  static void listen(void *context, int32_t, int64_t row, int64_t, int64_t tokens, int64_t, const uint8_t *key,
                     const uint8_t *value) {
    (*static_cast<std::vector<Plan> *>(context))[row] = {{key, key + tokens}, {value, value + tokens}};
  }
};

} // namespace aligned::test

#endif // ALIGNED_TEST_UNITTESTS_GPU_STEP_H
