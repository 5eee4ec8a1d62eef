// Caches made to find what a bound of the error (P4) overlooks, and how close errors come: what the property suite and the fuzzer share.
#ifndef ALIGNED_UNITTESTS_JIT_CERTIFIED_H
#define ALIGNED_UNITTESTS_JIT_CERTIFIED_H

#include "../Reference/Heads.h"
#include "Kernels.h"

#include "aligned/Reference/Planes.h"
#include "aligned/Storage/Rotation.h"

#include <random>

namespace aligned {

struct Subject {
  const char *element;
  int64_t rows, keyDim, valueDim;
  const char *options, *keys = "fixed<4, 4, 8>", *values = "fixed<4, 4, 8>";
  const char *said = "";
  int keyResident = 4, valueResident = 4;
  Mask mask = {};
  double softcap = 0;
  const char *result = "f32";

  Spec spec() const {
    Spec spec{keyDim, valueDim, rows / mask.queries, mask.queries};
    spec.element = element;
    spec.options = std::string(options) + " certify";
    spec.keys = keys;
    spec.values = values;
    spec.said = said;
    spec.keyResident = keyResident;
    spec.valueResident = valueResident;
    spec.result = result;
    return spec;
  }
};

inline const std::vector<Subject> &subjects() {
  static const std::vector<Subject> &all = *new std::vector<Subject>{ // never destroyed: what is told at the end names them
      {"f16", 1, 32, 16, "policy=exact"},
      {"f16", 2, 16, 48, "policy=tight"},
      {"f16", 1, 64, 32, "policy=balanced"},
      {"f16", 1, 48, 80, "policy=budget tolerance=0.2", "fixed<8, 8>", "fixed<8, 8>"},
      {"f16", 1, 32, 16, "policy=fast isa=portable"},
      {"bf16", 1, 32, 16, "policy=balanced isa=avx2"},
      {"f32", 1, 16, 32, "policy=tight", "fixed<4, 8, 4>", "fixed<4, 4, 4, 4>"},
      {"f16", 1, 32, 32, "policy=exact", "fixed<4, 4, 8>", "fixed<4, 4, 8>", "", 2, 1},
      {"f16", 1, 32, 32, "policy=balanced", "fixed<4, 4, 8>", "fixed<4, 4, 8>", "", 1, 2},
      {"f16", 2, 32, 32, "policy=alignedkv", "float<8, 4, 4>", "float<8, 4, 4>"},
      {"f16", 1, 16, 16, "policy=exact", "float<8, 4, 4>", "float<8, 4, 4>", "", 2, 2},
      {"bf16", 3, 32, 16, "policy=alignedkv", "float<12, 4>", "float<12, 4>"},
      {"f32", 2, 16, 16, "policy=alignedkv", "float<8, 4, 4>", "float<8, 4, 4>"},
      {"bf16", 2, 16, 16, "format=dense", "", ""},
      {"bf16", 2, 32, 16, "policy=tight", "fixed<4, 4, 8>", "fixed<4, 4, 8>", "", 4, 4, {}, 0, "bf16"},
      {"f16", 2, 32, 16, "", "fixed<4, 4, 4, 4>", "fixed<4, 4, 4, 4>",
       "policy <budget, tolerance = 0.01, key = <bits = 0 to 8>, value = <bits = 4 to 12, newest = 20, sinks = 3>>"},
  };
  return all;
}

/// The same with masks (A11) and caps (A12).
inline const std::vector<Subject> &maskedSubjects() {
  static const std::vector<Subject> &all = *new std::vector<Subject>{ // never destroyed: what is told at the end names them
      {"f16", 1, 32, 16, "policy=exact", "fixed<4, 4, 8>", "fixed<4, 4, 8>", "softcap 2.0", 4, 4, {}, 2},
      {"f16", 2, 16, 32, "policy=fast", "fixed<4, 4, 8>", "fixed<4, 4, 8>", "softcap 0.5 mask <causal, window = 30>", 4, 4, {2, true, 30}, 0.5},
      {"f16", 2, 32, 16, "policy=balanced", "fixed<4, 4, 8>", "fixed<8, 8>", "mask <causal, window = 70, sinks = 2>", 4, 4, {2, true, 70, 2}},
      {"f32", 2, 16, 16, "policy=tight", "fixed<8, 8>", "fixed<8, 8>", "mask <window = 3>", 4, 4, {2, false, 3}},
      {"bf16", 2, 16, 32, "policy=alignedkv", "float<12, 4>", "float<12, 4>", "softcap 30.0 mask <causal, window = 66>", 4, 4, {1, true, 66}, 30},
      {"f32", 3, 16, 16, "format=dense", "", "", "softcap 1000.0 mask <causal>", 4, 4, {3, true}, 1000},
  };
  return all;
}

/// The larger number, and NaN before any.
inline double worse(double a, double b) { return std::isnan(a) || a >= b ? a : b; }

/// A row, rotated where it is a key's, whose values lie at the edge of the cells that their top `bits` bits name, the lower one or the upper, where all that a reader leaves out
/// is off in one direction.
inline std::vector<double> atEdge(Role role, int64_t t, int64_t dim, int bits, const std::function<bool(int64_t)> &upper, std::mt19937_64 &random) {
  int64_t cell = int64_t(1) << (16 - bits), dither = ditherOf(role, t);
  std::vector<double> row;
  for (int64_t c = 0; c < dim; ++c) {
    int64_t stored = 4096 + int64_t(random() % (14 * 4096));
    stored = stored / cell * cell + (upper(c) ? cell - 1 : 0);
    row.push_back(double(std::clamp<int64_t>(stored - 32768 - dither, -30719, 30719)) / 32768 * 2 * 16 / 15);
  }
  if (role == Role::Key)
    storage::rotateBack(row.data(), dim);
  return row;
}

/// Caches of every kind, made to find what a bound overlooks.
inline HeadInputs makeCase(const Spec &s, const Subject &subject, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  auto below = [&](int64_t n) { return int64_t(random() % uint64_t(n)); };
  constexpr int64_t lengths[] = {1, 2, 15, 63, 64, 65, 127, 128, 130, 191, 200};
  int64_t tokens = lengths[below(std::size(lengths))], kind = below(18);
  if (seed % 197 == 0)
    tokens = 2047 + below(60);
  HeadInputs in{s.rows(), tokens, s.keyDim, s.valueDim, {}, {}, {}, s.scale(), s.storage()};
  in.mask = subject.mask;
  in.softcap = subject.softcap;
  double loudness = std::exp2(double(below(12)) - 6), keySize = std::exp2(double(below(9)) - 4), valueSize = std::exp2(double(below(25)) - 12);
  auto draw = [&](std::vector<double> &values, int64_t count, double size) {
    for (int64_t i = 0; i < count; ++i)
      values.push_back(normal(random) * size);
  };
  draw(in.q, in.heads * s.keyDim, loudness / keySize);
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
      case 9: key(t, c) *= std::exp2(double(t % 64) / 4 - 8); break;                          // sizes that differ within a tile
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
  std::vector<double> rotatedQuery = rotated(std::vector<double>(in.q.begin(), in.q.begin() + s.keyDim));
  for (int64_t t = 0; kind >= 14 && t < tokens; ++t) {
    if (kind != 15) {
      std::vector<double> row = atEdge(Role::Key, t, s.keyDim, bits, [&](int64_t c) { return (rotatedQuery[c] > 0) == bool(t % 2); }, random);
      std::copy(row.begin(), row.end(), &key(t, 0));
    }
    std::vector<double> row = atEdge(Role::Value, t, s.valueDim, bits, [&](int64_t c) { return kind == 17 && c % 2; }, random);
    for (int64_t c = 0; c < s.valueDim; ++c)
      value(t, c) = kind == 14 ? (t % 2 ? valueSize : -valueSize) : row[c];
  }
  if (kind >= 14) // all tokens about as likely, so that nothing else counts
    for (double &x : in.q)
      x *= (kind % 2 ? 1e-4 : 0.4) * keySize / loudness;
  for (std::vector<double> *values : {&in.q, &in.k, &in.v})
    for (double &x : *values) {
      x = s.held(x);
      if (!std::isfinite(x))
        x = s.held(std::copysign(60000.0, x));
    }
  return in;
}

/// How close the error of the row that came closest was to its bound.
struct Closeness {
  double ratio = 0; ///< of its largest error to the bound: infinite where a bound of 0 was exceeded or the output is not finite, NaN where the bound is NaN
  double bound = 0; ///< relative to the largest value of V, to which it can always retreat
};

/// The largest finite magnitude.
inline double largestOf(const std::vector<double> &values) {
  double top = 0;
  for (double x : values)
    top = std::isfinite(x) ? std::max(top, std::fabs(x)) : top;
  return top;
}

/// Among the rows whose exact output is finite. Nothing is promised of scores beyond 2^60. Beyond that for values, sums of f32 may overflow: a bound may then be no number, but
/// what is one must hold.
inline Closeness closeness(const HeadInputs &in, const Outcome &outcome) {
  const std::vector<double> want = exactAttention(in);
  const double largest = largestOf(in.v);
  if (largestOf(in.q) * largestOf(in.k) * in.scale * double(in.keyDim) > 0x1p60)
    return {};
  const bool mayOverflow = largest * double(in.tokens) > 0x1p60;
  Closeness closest;
  for (int64_t h = 0; h < in.heads; ++h) {
    double error = 0, bound = outcome.bound[0][h];
    bool promised = !mayOverflow || std::isfinite(bound);
    for (int64_t i = h * in.valueDim; i < (h + 1) * in.valueDim; ++i) {
      promised &= std::isfinite(want[i]);
      error = worse(error, std::fabs(outcome.out[0][i] - want[i]));
    }
    const double ratio = std::isnan(bound) ? NAN : !std::isfinite(error) ? INFINITY : error > 0 ? error / bound : 0;
    if (promised && worse(ratio, closest.ratio) != closest.ratio)
      closest = {ratio, bound / largest};
  }
  return closest;
}

} // namespace aligned

#endif // ALIGNED_UNITTESTS_JIT_CERTIFIED_H
