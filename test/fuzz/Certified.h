// Attention over one kv head through compiled kernels, with the certificate (P4) held against float64: what the property suite and the fuzzer share.
#ifndef ALIGNED_TEST_FUZZ_CERTIFIED_H
#define ALIGNED_TEST_FUZZ_CERTIFIED_H

#include "aligned/JIT/Module.h"
#include "aligned/Reference/Attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace aligned {

/// What is compiled: element type, shape, pipeline options. `merged` splits the tokens into two caches, the second of them dense, and merges the states.
struct Subject {
  std::string element; // f16, bf16 or f32
  int64_t heads, keyDim, valueDim;
  std::string options, format; // format of a merged subject, whose ops are fused already
  std::string policy = "";
  bool merged = false;
  std::string result = "f32"; // f32, or the element type
  std::string scoring = "";   // what the op says of mask and softcap
  Mask mask = {};             // of whose queries `heads` is a multiple
  double softcap = 0;

  double scale() const { return float(1 / std::sqrt(double(keyDim))); }
  std::string name() const {
    std::string shape = std::to_string(heads) + "x" + std::to_string(keyDim) + "x" + std::to_string(valueDim);
    return element + " " + shape + " " + options + format + policy + scoring + " -> " + result;
  }
};

inline std::vector<Subject> subjects() {
  return {
      {"f16", 3, 32, 16, "policy=exact", "", "", false},
      {"f16", 2, 16, 48, "policy=tight", "", "", false},
      {"f16", 3, 64, 32, "policy=balanced", "", "", false},
      {"f16", 1, 16, 16, "policy=fast", "", "", false},
      {"f16", 2, 32, 32, "policy=budget tolerance=0.2 format=fixed<8,8>", "", "", false},
      {"f16", 2, 32, 16, "policy=fast isa=portable", "", "", false},
      {"bf16", 3, 32, 16, "policy=balanced", "", "", false},
      {"f32", 2, 16, 32, "policy=tight format=fixed<16>", "", "", false},
      {"f32", 1, 32, 16, "policy=exact", "", "", false},
      {"f32", 1, 16, 32, "policy=fast", "", "", false},
      {"f16", 2, 32, 32, "policy=alignedkv", "", "", false},
      {"f16", 1, 16, 16, "policy=exact format=float<8,4,4>", "", "", false},
      {"bf16", 3, 32, 16, "policy=alignedkv", "", "", false},
      {"f32", 2, 16, 16, "policy=alignedkv", "", "", false},
      {"bf16", 2, 16, 16, "policy=exact format=dense", "", "", false},
      {"f16", 2, 32, 16, "", "fixed<4, 4, 4, 4>", "<budget, tolerance = 0.01>", true},
      {"f16", 2, 16, 16, "", "float<8, 4, 4>", "<alignedkv>", true},
      {"f16", 3, 16, 32, "policy=fast", "", "", false, "f16"},
      {"bf16", 2, 32, 16, "policy=tight", "", "", false, "bf16"},
      {"f16", 2, 32, 16, "", "fixed<4, 4, 4, 4>", "<budget, tolerance = 0.01, key = <bits = 0 to 8>, value = <bits = 4 to 12, newest = 20, sinks = 3>>", true},
  };
}

/// The same with masks (A11) and caps (A12).
inline std::vector<Subject> maskedSubjects() {
  return {
      {"f16", 3, 32, 16, "policy=exact", "", "", false, "f32", " softcap 2.0", {}, 2},
      {"f16", 3, 16, 32, "policy=fast", "", "", false, "f32", " softcap 0.5 mask <causal, window = 30>", {3, true, 30}, 0.5},
      {"f16", 4, 32, 16, "policy=balanced", "", "", false, "f32", " mask <causal, window = 70, sinks = 2>", {2, true, 70, 2}},
      {"f32", 2, 16, 16, "policy=tight format=fixed<16>", "", "", false, "f32", " mask <window = 3>", {2, false, 3}},
      {"bf16", 2, 16, 32, "policy=alignedkv", "", "", false, "f32", " softcap 30.0 mask <causal, window = 66>", {1, true, 66}, 30},
      {"f32", 3, 16, 16, "policy=exact format=dense", "", "", false, "f32", " softcap 1000.0 mask <causal>", {3, true}, 1000},
  };
}

/// The larger number, and NaN before any.
inline double worse(double a, double b) { return std::isnan(a) || a >= b ? a : b; }

/// How close the error of the head that came closest was to its bound.
struct Closeness {
  double ratio = 0; ///< of error to bound: infinite where a bound of 0 was exceeded or the output is not finite, NaN where the bound is NaN
  double bound = 0; ///< relative to the largest value of V, to which it can always retreat
};

class CertifiedAttention {
public:
  explicit CertifiedAttention(const Subject &subject)
      : subject(subject), module(aligned_module_compile(text().c_str(), (subject.options + (subject.merged ? "" : " certify")).c_str(), nullptr),
                                  aligned_module_destroy) {}

  bool compiled() const { return module != nullptr; }

  /// Among the heads whose exact output is finite. Values must be such as the element type holds. Dropping planes first leaves `planes` of them, 0 keeps all.
  Closeness closest(const HeadInputs &in, int planes) {
    int64_t split = subject.merged ? in.tokens / 2 : in.tokens;
    std::vector<char> q = encode(in.q), k = encode(in.k), v = encode(in.v);
    std::vector<aligned_value> arguments{arrayOf(q, 0, subject.heads / subject.mask.queries, subject.mask.queries, in.keyDim)};
    std::vector<std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>> caches;
    auto pass = [&](std::vector<char> &data, int64_t first, int64_t tokens, int64_t dim) {
      aligned_value value = arrayOf(data, first * dim, 1, tokens, dim);
      aligned_type type;
      aligned_module_argument(module.get(), int32_t(arguments.size()), &type);
      if (type.is_cache) {
        caches.emplace_back(aligned_cache_create(&type.format, 1, 1, dim, 0), aligned_cache_destroy);
        aligned_cache_append(caches.back().get(), value.array.data, tokens, value.array.strides);
        if (planes)
          aligned_cache_drop_planes(caches.back().get(), std::min(planes, type.format.planes));
        value.cache = caches.back().get();
      }
      arguments.push_back(value);
    };
    pass(k, 0, split, in.keyDim);
    pass(v, 0, split, in.valueDim);
    if (subject.merged) {
      pass(k, split, in.tokens - split, in.keyDim);
      pass(v, split, in.tokens - split, in.valueDim);
    }
    aligned_value results[3] = {};
    if (aligned_module_call(module.get(), arguments.data(), results))
      return {NAN, NAN};
    std::vector<double> exact(in.heads * in.valueDim);
    exactAttention(in.q.data(), in.heads, in.k.data(), in.v.data(), in.tokens, in.keyDim, in.valueDim, in.scale, false, exact.data(), subject.mask,
                   subject.softcap);
    const float *bounds = static_cast<const float *>(results[1].array.data);
    bool overflows = mayOverflow(in);
    Closeness worst;
    for (int64_t h = 0; h < in.heads; ++h) {
      double error = 0;
      bool promised = true;
      for (int64_t i = h * in.valueDim; i < (h + 1) * in.valueDim; ++i) {
        double difference = std::fabs(decode(results[0].array.data, i) - exact[i]);
        promised &= std::isfinite(exact[i]);
        error = worse(error, difference);
      }
      bool known = !std::isnan(bounds[h]);
      if (!promised || (overflows && !std::isfinite(bounds[h])))
        continue;
      double ratio = !known ? NAN : !std::isfinite(error) ? INFINITY : error > 0 ? error / bounds[h] : 0;
      if (worse(ratio, worst.ratio) != worst.ratio)
        worst = {ratio, bounds[h] / largestOf(in.v)};
    }
    for (aligned_value &result : results)
      aligned_array_free(&result.array);
    return worst;
  }

  const Subject subject;

private:
  std::string tensor(int64_t heads, const std::string &tokens, int64_t dim, const std::string &element, const std::string &encoding = "") const {
    return "tensor<1x" + std::to_string(heads) + "x" + tokens + "x" + std::to_string(dim) + "x" + element + encoding + ">";
  }

  std::string text() const {
    auto [element, rows, keyDim, valueDim, options, format, policy, merged, result, scoring, mask, softcap] = subject;
    int64_t heads = rows / mask.queries;
    auto split = [&](const char *role) { return subject.merged ? ", #aligned.planes<" + subject.format + ", " + role + ">" : std::string(); };
    char bits[16];
    float factor = float(subject.scale());
    uint32_t pattern;
    std::memcpy(&pattern, &factor, 4);
    std::snprintf(bits, sizeof(bits), "0x%08X", pattern);
    std::string queries = std::to_string(mask.queries), q = tensor(heads, queries, keyDim, element), out = tensor(heads, queries, valueDim, merged ? "f32" : result), row = "tensor<1x" + std::to_string(heads) + "x1xf32>",
                k = tensor(1, "?", keyDim, element, split("key")), v = tensor(1, "?", valueDim, element, split("value")), dk = tensor(1, "?", keyDim, element),
                dv = tensor(1, "?", valueDim, element), certificate = tensor(heads, "1", 6, "f32"), scale = "  %s = arith.constant " + std::string(bits) + " : f32\n";
    if (!merged)
      return "func.func @f(%q: " + q + ", %k: " + k + ", %v: " + v + ") -> " + out + " {\n" + scale + "  %o = aligned.attention %q, %k, %v scale %s" + scoring + " : " + q + ", " + k +
             ", " + v + " -> " + out + "\n  return %o : " + out + "\n}\n";
    std::string state = out + ", " + row + ", " + row + " certified " + certificate;
    return "func.func @f(%q: " + q + ", %k: " + k + ", %v: " + v + ", %k1: " + dk + ", %v1: " + dv + ") -> (" + out + ", " + row + ", " + row + ") {\n" + scale +
           "  %a:4 = aligned.decode_attention %q, %k, %v scale %s policy " + policy + " : " + q + ", " + k + ", " + v + " -> " + state +
           "\n  %b:4 = aligned.decode_attention %q, %k1, %v1 scale %s policy <exact> : " + q + ", " + dk + ", " + dv + " -> " + state +
           "\n  %m:4 = aligned.merge (%a#0, %a#1, %a#2, %a#3), (%b#0, %b#1, %b#2, %b#3) : " + out + ", " + row + " certified " + certificate +
           "\n  %o:3 = aligned.finish %m#0, %m#2 certificate %m#3 : " + out + ", " + row + ", " + certificate + " -> " + out + " certified " + row + ", " + row +
           "\n  return %o#0, %o#1, %o#2 : " + out + ", " + row + ", " + row + "\n}\n";
  }

  /// The largest finite magnitude.
  static double largestOf(const std::vector<double> &values) {
    return std::accumulate(values.begin(), values.end(), 0.0, [](double top, double x) { return std::isfinite(x) ? std::max(top, std::fabs(x)) : top; });
  }
  /// Whether scores or values are beyond what sums and squares of f32 hold. A bound may then be no number, but what is one must hold.
  static bool mayOverflow(const HeadInputs &in) {
    return largestOf(in.q) * largestOf(in.k) * in.scale * in.keyDim > 0x1p60 || largestOf(in.v) * in.tokens > 0x1p60;
  }

  double decode(const void *values, int64_t i) const {
    if (subject.result == "f32")
      return static_cast<const float *>(values)[i];
    return widen(static_cast<const uint16_t *>(values)[i], storage());
  }

  std::vector<char> encode(const std::vector<double> &values) const {
    int64_t width = subject.element == "f32" ? 4 : 2;
    std::vector<char> bytes(values.size() * width);
    for (size_t i = 0; i < values.size(); ++i) {
      float single = float(values[i]);
      uint16_t narrowed = width == 2 ? narrow(values[i], storage()) : 0;
      std::memcpy(&bytes[i * width], width == 4 ? static_cast<const void *>(&single) : &narrowed, width);
    }
    return bytes;
  }

  aligned_value arrayOf(std::vector<char> &bytes, int64_t first, int64_t heads, int64_t tokens, int64_t dim) const {
    static char none[4]; // no tokens are memory too
    aligned_value value = {};
    value.array = {bytes.empty() ? none : bytes.data() + first * (subject.element == "f32" ? 4 : 2), {1, heads, tokens, dim}, {heads * tokens * dim, tokens * dim, dim, 1}, nullptr};
    return value;
  }

public:
  Storage storage() const { return subject.element == "bf16" ? Storage::BFloat16 : Storage::Half; }
  /// The nearest value of the element type.
  double held(double x) const { return subject.element == "f32" ? double(float(x)) : widen(narrow(x, storage()), storage()); }

private:
  std::unique_ptr<aligned_module, void (*)(aligned_module *)> module;
};

/// A value of token t that lies at the edge of the cell that its top `bits` bits name, the lower edge or the upper, where all that a reader leaves out
/// is off in one direction (S1 with E = 1).
inline double atEdge(int64_t t, int bits, bool upper, std::mt19937_64 &random) {
  int64_t cell = int64_t(1) << (16 - bits), dither = t * 2531 % 4096 - 2048;
  int64_t stored = 4096 + int64_t(random() % (14 * 4096));
  stored = stored / cell * cell + (upper ? cell - 1 : 0);
  return double(std::clamp<int64_t>(stored - 32768 - dither, -30719, 30719)) / 32768 * 2 * 16 / 15;
}

/// Caches of every kind, made to find what a bound overlooks.
struct Case {
  HeadInputs in;
  int planes; ///< that are kept, 0: all
};
inline Case makeCase(const CertifiedAttention &attention, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  auto below = [&](int64_t n) { return int64_t(random() % uint64_t(n)); };
  const Subject &s = attention.subject;
  constexpr int64_t lengths[] = {1, 2, 15, 63, 64, 65, 127, 128, 130, 191, 200};
  int64_t tokens = lengths[below(std::size(lengths))], kind = below(18);
  if (kind >= 14) // whole blocks: open tokens are exact
    tokens = 64 * (1 + below(2));
  HeadInputs in{s.heads, tokens, s.keyDim, s.valueDim, {}, {}, {}, s.scale(), attention.storage()};
  double loudness = std::exp2(double(below(12)) - 6), keySize = std::exp2(double(below(9)) - 4), valueSize = std::exp2(double(below(25)) - 12);
  auto draw = [&](std::vector<double> &values, int64_t count, double size) {
    for (int64_t i = 0; i < count; ++i)
      values.push_back(normal(random) * size);
  };
  draw(in.q, s.heads * s.keyDim, loudness / keySize);
  draw(in.k, tokens * s.keyDim, keySize);
  draw(in.v, tokens * s.valueDim, valueSize);
  auto key = [&](int64_t t, int64_t c) -> double & { return in.k[t * s.keyDim + c]; };
  auto value = [&](int64_t t, int64_t c) -> double & { return in.v[t * s.valueDim + c]; };
  int64_t some = below(tokens), channel = below(s.keyDim);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < s.keyDim; ++c)
      switch (kind) {
      case 1: key(t, c) *= c == channel ? 64 : 1; break;                                      // an outlier channel
      case 2: key(t, c) += c == channel ? 80 * keySize : 0; break;                            // a biased channel
      case 3: key(t, c) = key(0, c); break;                                                   // one token repeated
      case 4: key(t, c) = std::copysign(std::exp2(std::floor(std::log2(std::fabs(key(t, c)) + 1e-9))) * 0.999, key(t, c)); break; // just below the cut
      case 5: key(t, c) *= 0x1p-20; break;                                                    // subnormal halves
      case 6: key(t, c) = t % 2 ? -key(t - t % 2, c) : key(t, c); break;                      // sign flips
      case 7: key(t, c) = 0; break;
      case 8: key(t, c) = t == some ? in.q[c] * 8 : key(t, c); break;                         // one token takes all
      case 9: key(t, c) *= std::exp2(double(t % 64) / 4 - 8); break;                          // sizes that differ within a block
      default: break;
      }
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < s.valueDim; ++c)
      switch (kind) {
      case 3: value(t, c) = value(0, c); break;
      case 4: value(t, c) = std::fabs(value(t, c)); break;                                    // errors that do not cancel
      case 5: value(t, c) *= 0x1p-14; break;
      case 8: value(t, c) *= t == some ? 0x1p-10 : 1; break;                                  // a silent sink
      case 10: value(t, c) *= t == some ? 1000 : 1; break;                                    // a huge token
      case 11: value(t, c) = valueSize * (c % 2 ? 1 : -1) + value(t, c) / 16; break;          // a common mean
      case 12: value(t, c) *= std::exp2(double(t % 32) / 2 - 8); break;
      case 13: value(t, c) = c == some % s.valueDim ? value(t, c) * 200 : value(t, c); break;
      default: break;
      }
  // All errors push one way: those of keys towards the values of one sign, those of values upwards.
  int bits = 4 + 4 * int(below(3));
  for (int64_t t = 0; kind >= 14 && t < tokens; ++t) {
    for (int64_t c = 0; kind != 15 && c < s.keyDim; ++c)
      key(t, c) = atEdge(t, bits, (in.q[c] > 0) == bool(t % 2), random);
    for (int64_t c = 0; c < s.valueDim; ++c)
      value(t, c) = kind == 14 ? (t % 2 ? valueSize : -valueSize) : atEdge(t, bits, kind == 17 && c % 2, random);
  }
  if (kind >= 14) // all tokens about as likely, so that nothing else counts
    for (double &x : in.q)
      x *= (kind % 2 ? 1e-4 : 0.4) * keySize / loudness;
  for (std::vector<double> *values : {&in.q, &in.k, &in.v})
    for (double &x : *values) {
      x = attention.held(x);
      if (!std::isfinite(x))
        x = attention.held(std::copysign(60000.0, x));
    }
  return {in, kind >= 14 ? bits / 4 : below(5) ? 0 : 1 + int(below(3))};
}

} // namespace aligned

#endif // ALIGNED_TEST_FUZZ_CERTIFIED_H
