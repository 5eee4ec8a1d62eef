// What the tests of this folder attend to: random heads, and those of a captured cache with the figures that array formulas gave on it.
#ifndef ALIGNED_UNITTESTS_REFERENCE_HEADS_H
#define ALIGNED_UNITTESTS_REFERENCE_HEADS_H

#include "aligned/Reference/Attention.h"
#include "aligned/Support/Npy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <random>

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
  std::vector<double> out(in.heads * in.valueDim);
  exactAttention(in.q.data(), in.heads, in.k.data(), in.v.data(), in.tokens, in.keyDim, in.valueDim, in.scale, maskedZero, out.data(), in.mask,
                 in.softcap);
  return out;
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
