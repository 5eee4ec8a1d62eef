// What the tests of this folder attend to: random heads, and those of a captured cache with the figures that array formulas gave on it.
#ifndef ALIGNED_UNITTESTS_REFERENCE_HEADS_H
#define ALIGNED_UNITTESTS_REFERENCE_HEADS_H

#include "aligned/Reference/Attention.h"
#include "aligned/Storage/Rotation.h"
#include "aligned/Support/Npy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <random>
#include <string>

namespace aligned {

inline HeadInputs randomHead(int64_t tokens, int64_t heads, int64_t keyDim, int64_t valueDim, Storage storage = Storage::Half) {
  std::mt19937 random(uint32_t(tokens * 131 + heads * 7 + keyDim));
  std::normal_distribution<double> normal;
  auto fill = [&](int64_t count) {
    std::vector<double> values(count);
    for (double &x : values)
      x = widen(narrow(normal(random), storage), storage);
    return values;
  };
  return {heads, tokens, keyDim, valueDim, fill(heads * keyDim), fill(tokens * keyDim), fill(tokens * valueDim), 1 / std::sqrt(keyDim), storage};
}

inline std::vector<double> exact(const HeadInputs &in, bool maskedZero = false) {
  HeadInputs copy = in;
  copy.maskedZero = maskedZero;
  return exactAttention(copy);
}

/// The mean length of a row of V.
inline double usualRow(const HeadInputs &in) {
  double usual = 0;
  for (int64_t t = 0; t < in.tokens; ++t) {
    const double *row = &in.v[t * in.valueDim];
    usual += std::sqrt(std::inner_product(row, row + in.valueDim, row, 0.0)) / in.tokens;
  }
  return usual;
}

/// L2 error of each row's output, relative to that: what tolerances are about.
inline std::vector<double> errorsOfRows(const HeadInputs &in, const PolicyResult &result) {
  std::vector<double> errors, want = exactAttention(in);
  for (int64_t h = 0; h < in.heads; ++h) {
    double squares = 0;
    for (int64_t i = h * in.valueDim; i < (h + 1) * in.valueDim; ++i)
      squares += std::pow(result.out[i] - want[i], 2);
    errors.push_back(std::sqrt(squares) / usualRow(in));
  }
  return errors;
}

/// Caches made to mislead, as in the reference's `synthetic`.
inline const std::vector<std::string> kFamilies = {"gauss",
                                                   "peaky",
                                                   "peaky x16",
                                                   "flat",
                                                   "outlier channel",
                                                   "biased channel",
                                                   "outlier V channel",
                                                   "V with mean",
                                                   "huge token",
                                                   "silent sink",
                                                   "one token repeated",
                                                   "64 tokens repeated",
                                                   "one row of V zero",
                                                   "a quarter of V zero",
                                                   "just below the cut",
                                                   "aligned to rotation"};
inline HeadInputs family(const std::string &name, int64_t tokens, int64_t dim, int64_t heads = 4) {
  HeadInputs in = randomHead(tokens, heads, dim, dim);
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  auto forKeys = [&](auto change) {
    for (int64_t i = 0; i < tokens * dim; ++i)
      change(in.k[i], i / dim, i % dim);
  };
  auto forValues = [&](auto change) {
    for (int64_t i = 0; i < tokens * dim; ++i)
      change(in.v[i], i / dim, i % dim);
  };
  double louder = name == "peaky" ? 4 : name == "peaky x16" ? 16 : name == "flat" ? 0.05 : 1;
  for (double &x : in.q)
    x *= louder;
  if (name == "outlier channel")
    forKeys([](double &x, int64_t, int64_t c) { x *= c == 3 ? 50 : 1; });
  if (name == "biased channel")
    forKeys([](double &x, int64_t, int64_t c) { x += c == 3 ? 80 : 0; });
  if (name == "outlier V channel")
    forValues([](double &x, int64_t, int64_t c) { x *= c == 5 ? 100 : 1; });
  if (name == "V with mean")
    forValues([](double &x, int64_t, int64_t) { x += 3; });
  if (name == "huge token") {
    forKeys([&](double &x, int64_t t, int64_t) { x *= t == tokens / 3 ? 20 : 1; });
    forValues([&](double &x, int64_t t, int64_t) { x *= t == tokens / 3 ? 1000 : 1; });
  }
  if (name == "silent sink") {
    forKeys([&](double &x, int64_t t, int64_t c) {
      if (t)
        return;
      x = 0;
      for (int64_t h = 0; h < heads; ++h)
        x += in.q[h * dim + c] * 8 / heads;
    });
    forValues([](double &x, int64_t t, int64_t) { x *= t ? 1 : 1e-3; });
  }
  int64_t repeated = name == "one token repeated" ? 1 : name == "64 tokens repeated" ? 64 : tokens;
  forKeys([&](double &x, int64_t t, int64_t c) { x = in.k[t % repeated * dim + c]; });
  forValues([&](double &x, int64_t t, int64_t c) { x = in.v[t % repeated * dim + c]; });
  if (name == "one row of V zero")
    forValues([&](double &x, int64_t t, int64_t) { x *= t != 7; });
  if (name == "a quarter of V zero")
    forValues([&](double &x, int64_t t, int64_t) { x *= t % 4 != 0; });
  if (name == "just below the cut") {
    forKeys([](double &x, int64_t, int64_t) { x = std::copysign(std::exp2(std::floor(std::log2(std::fabs(x) + 1e-9))) * 0.999, x); });
    for (double &x : in.q)
      x = std::fabs(x) * 2;
  }
  if (name == "aligned to rotation") // one channel is all that a key has
    for (int64_t t = 0; t < tokens; ++t) {
      std::fill_n(&in.k[t * dim], dim, 0);
      in.k[t * dim + t % 4] = 8 * normal(random);
      storage::rotateBack(&in.k[t * dim], dim);
    }
  for (std::vector<double> *values : {&in.q, &in.k, &in.v})
    for (double &x : *values)
      x = widen(narrow(x, Storage::Half), Storage::Half);
  return in;
}

inline const std::string folder = ALIGNED_TEST_DATA "/smollm2-slice";

/// A number of a file of figures, which has no nesting but policy -> figure.
inline double figure(const std::string &file, const std::string &policy, const std::string &name) {
  std::ifstream stream(folder + "/" + file);
  std::string text((std::istreambuf_iterator<char>(stream)), {});
  size_t at = text.find('"' + policy + '"');
  at = at == text.npos ? at : text.find('"' + name + "\":", at);
  EXPECT_NE(at, text.npos) << policy << " " << name;
  return at == text.npos ? NAN : std::strtod(text.c_str() + text.find(':', at) + 1, nullptr);
}

/// The heads of the captured slice: q [layers, heads, 1, 64], k and v [layers, 1, tokens, 64].
inline std::vector<HeadInputs> slice() {
  std::string error;
  auto load = [&](const char *name) { return readNpy(folder + "/" + name + ".npy", error); };
  std::optional<NpyArray> q = load("q"), k = load("k"), v = load("v");
  std::vector<HeadInputs> heads;
  if (!q || !k || !v) {
    ADD_FAILURE() << error;
    return heads;
  }
  auto part = [](const NpyArray &array, int64_t index) {
    int64_t count = array.count() / array.shape[0];
    std::vector<double> values;
    for (int64_t i = index * count; i < (index + 1) * count; ++i)
      values.push_back(widen(array.data<uint16_t>()[i], Storage::Half));
    return values;
  };
  for (int64_t layer = 0; layer < k->shape[0]; ++layer)
    heads.push_back({q->shape[1], k->shape[2], k->shape[3], v->shape[3], part(*q, layer), part(*k, layer), part(*v, layer), 0.125});
  return heads;
}

template <typename Policy> void compareFigures(const std::string &file, const std::string &name, Policy policy) {
  SCOPED_TRACE(name);
  double keyBits = 0, valueBits = 0;
  std::vector<double> errors;
  std::vector<HeadInputs> heads = slice();
  ASSERT_EQ(heads.size(), 2u);
  for (const HeadInputs &in : heads) {
    PolicyResult result = policy(in);
    keyBits += result.keyBits / heads.size();
    valueBits += result.valueBits / heads.size();
    std::vector<double> own = relativeErrors(result.out, exact(in), in.valueDim);
    errors.insert(errors.end(), own.begin(), own.end());
  }
  std::sort(errors.begin(), errors.end());
  auto near = [&](double actual, const char *what, double tolerance) {
    double expected = figure(file, name, what);
    EXPECT_NEAR(actual, expected, expected * tolerance) << what;
  };
  near(keyBits, "key_bits", 0.005);
  near(valueBits, "value_bits", 0.005);
  near(std::accumulate(errors.begin(), errors.end(), 0.0) / errors.size(), "error_mean", 0.05);
  near((errors[2] + errors[3]) / 2, "error_median", 0.05);
  near(errors.back(), "error_max", 0.05);
}

} // namespace aligned

#endif // ALIGNED_UNITTESTS_REFERENCE_HEADS_H
