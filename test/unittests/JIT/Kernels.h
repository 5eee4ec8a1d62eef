// What the tests of this folder share: one attention, compiled, over caches of heads that the reference attends to as well.
#ifndef ALIGNED_UNITTESTS_JIT_KERNELS_H
#define ALIGNED_UNITTESTS_JIT_KERNELS_H

#include "aligned/JIT/Module.h"
#include "aligned/Reference/Attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

namespace aligned {

using CachePointer = std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>;
using ModulePointer = std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)>;

/// One step of attention as a model states it.
inline constexpr const char *kAttention = R"(
func.func @step(%q: tensor<1x2x1x32xf32>, %k: tensor<1x2x?x32xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x2x1x16xf32> {
  %scale = arith.constant 0.25 : f32
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x2x1x32xf32>, tensor<1x2x?x32xf32>, tensor<1x2x?x16xf32> -> tensor<1x2x1x16xf32>
  return %out : tensor<1x2x1x16xf32>
})";

/// What kernels make of query weights that are read under a tolerance: two signed digits, a byte each.
constexpr double kDigits = 127 * 256 + 127;

/// What is compiled: op and storage.
struct Spec {
  int64_t keyDim = 64, valueDim = 64, group = 1, queries = 1, kvHeads = 1, batch = 1;
  std::string said = "";    // softcap, mask, policies and masked_zero of the op
  std::string options = ""; // of the pipeline
  std::string before = "";  // a pipeline that the module has been through when it is compiled
  std::string element = "f16", result = "f32";
  std::string keys = "fixed<4, 4, 8>", values = "fixed<4, 4, 8>"; // empty: as the pipeline has it
  int keyResident = 4, valueResident = 4;                         // more than there are: all

  int64_t rows() const { return group * queries; } // of a kv head
  int64_t heads() const { return batch * kvHeads; }
  float scale() const { return float(1 / std::sqrt(double(keyDim))); }
  Storage storage() const { return element == "bf16" ? Storage::BFloat16 : Storage::Half; }
  /// The nearest value of the element type.
  double held(double x) const { return element == "f32" ? double(float(x)) : widen(narrow(x, storage()), storage()); }
  std::string name() const {
    std::ostringstream os;
    os << element << " " << keyDim << "/" << valueDim << ", " << group << "x" << queries << " rows, " << batch << "x" << kvHeads << " heads, " << keys << " " << keyResident
       << ", " << values << " " << valueResident << ", " << before << options << said << " -> " << result;
    return os.str();
  }
};

inline std::vector<int> widthsOf(const std::string &format) {
  std::vector<int> widths;
  for (size_t at = 0; at < format.size(); ++at)
    if (std::isdigit(format[at]) && !std::isdigit(format[at - 1]))
      widths.push_back(std::atoi(format.c_str() + at));
  return widths;
}

/// Bits that kernels told of one kv head. K: of tokens; of float planes of [tiles, channels].
struct Plan {
  std::vector<int> key, value;
};

/// What one call gave, of each kv head of each batch entry.
struct Outcome {
  bool failed = true;
  std::vector<std::vector<double>> out;             // [rows, valueDim]
  std::vector<std::vector<double>> bound, estimate; // [rows]
  std::vector<Plan> plans;
  aligned_tally tally = {};
};

struct Caches {
  CachePointer key{nullptr, aligned_cache_destroy}, value{nullptr, aligned_cache_destroy};

  Caches fork() const {
    Caches other;
    other.key.reset(aligned_cache_fork(key.get()));
    other.value.reset(aligned_cache_fork(value.get()));
    return other;
  }
};

class Kernel {
public:
  const Spec spec;

  explicit Kernel(const Spec &spec) : spec(spec), module(aligned_module_compile(source().c_str(), spec.options.c_str(), nullptr), aligned_module_destroy) {}

  /// Or what is wrong is in aligned_last_error().
  explicit operator bool() const { return module != nullptr; }
  bool isCertified() const { return (spec.before + spec.options).find("certify") != std::string::npos; }

  /// Values of tokens first .. first + count - 1 of every head, contiguous, as bytes.
  std::vector<char> encode(const std::vector<HeadInputs> &heads, std::vector<double> HeadInputs::*side, int64_t dim, int64_t first, int64_t count) const {
    const int64_t width = spec.element == "f32" ? 4 : 2;
    std::vector<char> bytes(heads.size() * count * dim * width + 1); // no tokens are memory too
    int64_t at = 0;
    for (const HeadInputs &head : heads)
      for (int64_t i = first * dim; i < (first + count) * dim; ++i, at += width) {
        double x = i < int64_t((head.*side).size()) ? (head.*side)[i] : 0;
        float single = float(x);
        uint16_t half = width == 2 ? narrow(x, spec.storage()) : 0;
        std::memcpy(&bytes[at], width == 4 ? static_cast<const void *>(&single) : &half, width);
      }
    return bytes;
  }

  Caches empty() const {
    Caches caches;
    for (int side : {1, 2}) {
      aligned_type type = typeOf(side);
      EXPECT_TRUE(type.is_cache);
      auto &cache = side == 1 ? caches.key : caches.value;
      cache.reset(aligned_cache_create(&type.format, spec.batch, spec.kvHeads, side == 1 ? spec.keyDim : spec.valueDim, 0));
      if (type.resident < type.format.planes) {
        EXPECT_EQ(aligned_cache_drop_planes(cache.get(), type.resident), 0) << aligned_last_error();
      }
    }
    return caches;
  }
  void append(Caches &caches, const std::vector<HeadInputs> &heads, int64_t first, int64_t count) const {
    if (!count)
      return;
    for (int side : {1, 2}) {
      int64_t dim = side == 1 ? spec.keyDim : spec.valueDim, strides[] = {spec.kvHeads * count * dim, count * dim, dim, 1};
      std::vector<char> bytes = encode(heads, side == 1 ? &HeadInputs::k : &HeadInputs::v, dim, first, count);
      ASSERT_EQ(aligned_cache_append((side == 1 ? caches.key : caches.value).get(), bytes.data(), count, strides), 0) << aligned_last_error();
    }
  }
  /// As many tokens of each batch entry as its heads have, those from `first` on.
  void appendRagged(Caches &caches, const std::vector<HeadInputs> &heads, int64_t first = 0) const {
    std::vector<int64_t> counts;
    for (int64_t n = 0; n < spec.batch; ++n)
      counts.push_back(std::max<int64_t>(heads[n * spec.kvHeads].tokens - first, 0));
    int64_t most = *std::max_element(counts.begin(), counts.end());
    for (int side : {1, 2}) {
      int64_t dim = side == 1 ? spec.keyDim : spec.valueDim, strides[] = {spec.kvHeads * most * dim, most * dim, dim, 1};
      std::vector<char> bytes = encode(heads, side == 1 ? &HeadInputs::k : &HeadInputs::v, dim, first, most);
      ASSERT_EQ(aligned_cache_append_ragged((side == 1 ? caches.key : caches.value).get(), bytes.data(), counts.data(), strides), 0) << aligned_last_error();
    }
  }
  Caches pack(const std::vector<HeadInputs> &heads) const {
    Caches caches = empty();
    append(caches, heads, 0, heads[0].tokens);
    return caches;
  }

  /// `caches` hold what `heads` attend to; where the module wants arrays, they are made of `heads`.
  Outcome run(const Caches &caches, const std::vector<HeadInputs> &heads, bool plans = true) const {
    Outcome outcome;
    std::vector<std::vector<char>> bytes;
    aligned_value arguments[3] = {}, results[3] = {};
    auto pass = [&](int which, std::vector<double> HeadInputs::*side, int64_t inner, int64_t tokens, int64_t dim) {
      bytes.push_back(encode(heads, side, dim, 0, inner * tokens));
      arguments[which].array = {bytes.back().data(), {spec.batch, spec.kvHeads * inner, tokens, dim}, {spec.kvHeads * inner * tokens * dim, tokens * dim, dim, 1}, nullptr};
    };
    pass(0, &HeadInputs::q, spec.group, spec.queries, spec.keyDim);
    if (caches.key) {
      arguments[1].cache = caches.key.get();
      arguments[2].cache = caches.value.get();
    } else {
      pass(1, &HeadInputs::k, 1, heads[0].tokens, spec.keyDim);
      pass(2, &HeadInputs::v, 1, heads[0].tokens, spec.valueDim);
    }
    outcome.plans.resize(heads.size());
    Listener listener{this, &outcome.plans};
    aligned_rt_record(&outcome.tally, 1);
    if (plans)
      aligned_rt_record_bits(&Listener::listen, &listener);
    outcome.failed = aligned_module_call(module.get(), arguments, results) != 0;
    aligned_rt_record_bits(nullptr, nullptr);
    aligned_rt_record(nullptr, 0);
    EXPECT_FALSE(outcome.failed) << aligned_last_error();
    if (outcome.failed)
      return outcome;
    auto take = [&](aligned_value &value, int64_t dim, std::vector<std::vector<double>> &to) {
      bool isFloat = dim == 1 || spec.result == "f32";
      for (size_t head = 0; head < heads.size(); ++head) {
        to.emplace_back();
        for (int64_t i = head * spec.rows() * dim; i < int64_t(head + 1) * spec.rows() * dim; ++i)
          to.back().push_back(isFloat ? double(static_cast<float *>(value.array.data)[i]) : widen(static_cast<uint16_t *>(value.array.data)[i], spec.storage()));
      }
      aligned_array_free(&value.array);
    };
    take(results[0], spec.valueDim, outcome.out);
    if (isCertified()) {
      take(results[1], 1, outcome.bound);
      take(results[2], 1, outcome.estimate);
    }
    return outcome;
  }
  Outcome run(const std::vector<HeadInputs> &heads, bool plans = true) const {
    return run(typeOf(1).is_cache ? pack(heads) : Caches(), heads, plans);
  }

  /// How the caches store this, for the reference: of the two sides, and of query rows.
  HeadInputs stored(HeadInputs in, const Caches &caches) const {
    for (int side : {1, 2}) {
      const aligned_cache *cache = (side == 1 ? caches.key : caches.value).get();
      aligned_type type = typeOf(side);
      SideStorage &to = side == 1 ? in.keys : in.values;
      to.widths.assign(type.format.width, type.format.width + type.format.planes);
      to.resident = type.resident;
      if (cache->code)
        to.bias = int(cache->bias);
    }
    in.scanFullscale = in.finerFullscale = kDigits;
    return in;
  }

  aligned_type typeOf(int32_t argument) const {
    aligned_type type = {};
    EXPECT_EQ(aligned_module_argument(module.get(), argument, &type), 0);
    return type;
  }

  std::string text() const {
    auto tensor = [&](int64_t heads, const std::string &tokens, int64_t dim, const std::string &element, const std::string &encoding) {
      return "tensor<" + std::to_string(spec.batch) + "x" + std::to_string(heads) + "x" + tokens + "x" + std::to_string(dim) + "x" + element + encoding + ">";
    };
    auto planes = [&](const std::string &format, const char *role, int resident) {
      if (format.empty())
        return std::string();
      bool all = resident >= int(widthsOf(format).size());
      return ", #aligned.planes<" + format + ", " + role + (all ? "" : ", resident = " + std::to_string(resident)) + ">";
    };
    std::string queries = std::to_string(spec.queries), q = tensor(spec.kvHeads * spec.group, queries, spec.keyDim, spec.element, ""),
                k = tensor(spec.kvHeads, "?", spec.keyDim, spec.element, planes(spec.keys, "key", spec.keyResident)),
                v = tensor(spec.kvHeads, "?", spec.valueDim, spec.element, planes(spec.values, "value", spec.valueResident)),
                out = tensor(spec.kvHeads * spec.group, queries, spec.valueDim, spec.result, "");
    float scale = spec.scale();
    uint32_t pattern;
    std::memcpy(&pattern, &scale, 4);
    char bits[16];
    std::snprintf(bits, sizeof(bits), "0x%08X", pattern);
    return "func.func @step(%q: " + q + ", %k: " + k + ", %v: " + v + ") -> " + out + " {\n  %scale = arith.constant " + bits +
           " : f32\n  %out = aligned.attention %q, %k, %v scale %scale " + spec.said + " : " + q + ", " + k + ", " + v + " -> " + out + "\n  return %out : " + out + "\n}";
  }

  std::string source() const {
    if (spec.before.empty())
      return text();
    char *transformed = aligned_transform(text().c_str(), spec.before.c_str());
    EXPECT_TRUE(transformed) << aligned_last_error();
    std::string source = transformed ? transformed : "";
    aligned_text_free(transformed);
    return source;
  }

private:
  struct Listener {
    const Kernel *kernel;
    std::vector<Plan> *plans;
    std::mutex mutex = {}; // it is told from any thread

    static void listen(void *context, int32_t, int64_t row, int64_t first, int64_t tokens, int64_t channels, const uint8_t *keyBits, const uint8_t *valueBits) {
      auto *self = static_cast<Listener *>(context);
      std::lock_guard<std::mutex> lock(self->mutex);
      if (!tokens) // beyond the end of a shorter batch entry
        return;
      Plan &plan = (*self->plans)[row];
      // Each stretch of queries tells its own: what any of them reads.
      auto merge = [](std::vector<int> &all, int64_t at, const uint8_t *bits, int64_t count) {
        all.resize(std::max<size_t>(all.size(), at + count), 0);
        for (int64_t i = 0; i < count; ++i)
          all[at + i] = std::max<int>(all[at + i], bits[i]);
      };
      if (channels == 1)
        merge(plan.key, first, keyBits, tokens);
      else
        merge(plan.key, first / 64 * channels, keyBits, (tokens + 63) / 64 * channels);
      merge(plan.value, first, valueBits, tokens);
    }
  };

  ModulePointer module;
};

//===----------------------------------------------------------------------===//
// Heads
//===----------------------------------------------------------------------===//

/// Heads with a loud channel of K, loud tokens, and probabilities that differ by orders of magnitude. `loudness` is that of queries.
inline HeadInputs structuredHead(const Spec &spec, int64_t tokens, uint32_t seed, double loudness = 2) {
  uint64_t state = (seed * 7919ull + uint64_t(tokens)) * 0x9e3779b97f4a7c15 + 1;
  auto normal = [&] { // about: the sum of eight uniform numbers, which takes less time than a logarithm
    double sum = 0;
    for (int i = 0; i < 2; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      uint64_t bits = (state >> 29 ^ state) * 0xbf58476d1ce4e5b9ull;
      bits ^= bits >> 32;
      for (int part = 0; part < 64; part += 16)
        sum += double(bits >> part & 0xffff);
    }
    return (sum / 65536 - 4) * 1.2247448713915890; // variance 8 / 12
  };
  auto fill = [&](int64_t rows, int64_t dim, auto scale) {
    std::vector<double> values;
    values.reserve(rows * dim);
    for (int64_t i = 0; i < rows * dim; ++i)
      values.push_back(spec.held(normal() * scale(i / dim, i % dim)));
    return values;
  };
  HeadInputs in{spec.rows(), tokens, spec.keyDim, spec.valueDim, {}, {}, {}, spec.scale(), spec.storage()};
  in.q = fill(spec.rows(), spec.keyDim, [&](int64_t h, int64_t c) { return (c % 5 ? loudness : loudness / 16) / (1 + h % 3); });
  in.k = fill(tokens, spec.keyDim, [](int64_t t, int64_t c) { return (c == 3 ? 4.0 : 1.0) * (t % 64 == 5 ? 1.5 : 1); });
  in.v = fill(tokens, spec.valueDim, [](int64_t t, int64_t) { return t % 17 ? 1.0 : 4.0; });
  in.mask.queries = spec.queries;
  return in;
}

inline std::vector<HeadInputs> structuredHeads(const Spec &spec, int64_t tokens, uint32_t seed = 1, double loudness = 2) {
  std::vector<HeadInputs> heads;
  for (int64_t head = 0; head < spec.heads(); ++head)
    heads.push_back(structuredHead(spec, tokens, seed + uint32_t(head), loudness));
  return heads;
}

/// What tolerances are about: the usual length of a row of V. Like A (M2) of all tokens, whatever a mask hides, or the mean of those that are seen, where that is more.
inline double usualLength(const HeadInputs &in) {
  double sum = 0, inverse = 0;
  int64_t seen = 0, all = 0;
  for (int64_t t = 0; t < in.tokens; ++t) {
    const double *row = &in.v[t * in.valueDim];
    double length = 0; // of what is finite of it
    for (int64_t c = 0; c < in.valueDim; ++c)
      length += std::isfinite(row[c]) ? row[c] * row[c] : 0;
    length = std::sqrt(length);
    if (length == 0)
      continue;
    ++all;
    inverse += 1 / length;
    if (in.mask.isSeen(t, in.tokens)) {
      ++seen;
      sum += length;
    }
  }
  return std::max(seen ? sum / seen : 0, all ? all / inverse : 0);
}

/// Rows of out against exact attention: where that has numbers, within `error` (L2, relative to the usual row of V); infinities and NaNs where it has them.
inline void expectNear(const HeadInputs &in, const std::vector<double> &out, double error) {
  std::vector<double> want = exactAttention(in);
  ASSERT_EQ(out.size(), want.size());
  double usual = usualLength(in);
  for (int64_t h = 0; h < in.heads; ++h) {
    double squares = 0;
    for (int64_t i = h * in.valueDim; i < (h + 1) * in.valueDim; ++i)
      if (std::isfinite(want[i]))
        squares += std::pow(out[i] - want[i], 2);
      else
        ASSERT_TRUE(std::isnan(want[i]) ? std::isnan(out[i]) : out[i] == want[i]) << "row " << h << ", channel " << i % in.valueDim << ": " << out[i] << ", not " << want[i];
    ASSERT_LE(std::sqrt(squares), error * usual) << "row " << h; // false of NaN
  }
}

/// No channel of a row is off by more than its bound, where the exact one has numbers.
inline void expectBounded(const HeadInputs &in, const std::vector<double> &out, const std::vector<double> &bound) {
  std::vector<double> want = exactAttention(in);
  for (int64_t i = 0; i < int64_t(want.size()); ++i) {
    const double *row = &want[i / in.valueDim * in.valueDim];
    if (std::all_of(row, row + in.valueDim, [](double x) { return std::isfinite(x); })) {
      ASSERT_LE(std::fabs(out[i] - want[i]), bound[i / in.valueDim]) << "row " << i / in.valueDim << ", channel " << i % in.valueDim << ": " << out[i] << ", not " << want[i];
    }
  }
}

inline bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

/// The same numbers, bit for bit, and the same bits read.
inline void expectSame(const Outcome &got, const Outcome &want) {
  ASSERT_FALSE(got.failed || want.failed);
  for (size_t head = 0; head < want.out.size(); ++head) {
    for (size_t i = 0; i < want.out[head].size(); ++i)
      ASSERT_TRUE(same(got.out[head][i], want.out[head][i]))
          << "head " << head << ", number " << i << ": " << got.out[head][i] << ", not " << want.out[head][i];
    EXPECT_EQ(got.plans[head].key, want.plans[head].key) << "head " << head;
    EXPECT_EQ(got.plans[head].value, want.plans[head].value) << "head " << head;
    for (size_t i = 0; i < (want.bound.empty() ? 0 : want.bound[head].size()); ++i) {
      EXPECT_TRUE(same(got.bound[head][i], want.bound[head][i])) << "head " << head << ", row " << i << ": " << got.bound[head][i] << ", not " << want.bound[head][i];
      EXPECT_TRUE(same(got.estimate[head][i], want.estimate[head][i])) << "head " << head << ", row " << i << ": " << got.estimate[head][i] << ", not " << want.estimate[head][i];
    }
  }
  EXPECT_EQ(got.tally.key_bits, want.tally.key_bits);
  EXPECT_EQ(got.tally.value_bits, want.tally.value_bits);
}

/// The first tokens of heads.
inline std::vector<HeadInputs> firstOf(std::vector<HeadInputs> heads, int64_t tokens) {
  for (HeadInputs &in : heads) {
    in.tokens = tokens;
    in.k.resize(tokens * in.keyDim);
    in.v.resize(tokens * in.valueDim);
  }
  return heads;
}

inline std::string identifier(std::string text) {
  for (char &c : text)
    c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return text;
}

/// One kernel for all tests that want it: to compile takes longer than to run.
inline const Kernel &kernelOf(const Spec &spec) {
  static auto &all = *new std::map<std::string, std::unique_ptr<Kernel>>; // what modules stand on may be gone when the program ends
  std::unique_ptr<Kernel> &kernel = all[spec.name()];
  if (!kernel)
    kernel = std::make_unique<Kernel>(spec);
  return *kernel;
}

/// What was compiled last is for an instruction set that this machine has not.
inline bool isForeign(const Kernel &kernel) {
  return !kernel && std::string(aligned_last_error()).find("an instruction set of this machine") != std::string::npos;
}

} // namespace aligned

#endif // ALIGNED_UNITTESTS_JIT_KERNELS_H
