// A decode step for tests of its stages: the heads of an attention as the runtime stores them, and buffers that pass between
// stages.
#ifndef ALIGNED_UNITTESTS_STAGES_STEP_H
#define ALIGNED_UNITTESTS_STAGES_STEP_H

#include "aligned/Reference/Attention.h"
#include "aligned/Reference/Planes.h"
#include "aligned/Reference/Stages.h"
#include "aligned/Storage/Layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

namespace aligned {

constexpr double kLargestOfTwoDigits = 127 * 256 + 127, kLargestOfThree = kLargestOfTwoDigits * 256 + 127;

struct DestroyCache {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
};
using CachePtr = std::unique_ptr<aligned_cache, DestroyCache>;

/// What all rows of an attention share, besides what their HeadInputs say alike.
struct StepOptions {
  int64_t kvHeads = 1;
  double tolerance = 0x1p-9; ///< of policies; 0: exact
  int element = ALIGNED_ELEMENT_F16;
  int64_t pages = 0; ///< of 64 tokens; 0: none
  int maskElement = ALIGNED_MASK_F32;
  int64_t firstTokens = 0; ///< that are appended before all others; a cache of wide type takes its bias from them
};

/// Numbers as an array of f16, bf16, f32 or bytes has them.
inline std::vector<char> narrowed(const std::vector<double> &values, int element) {
  std::vector<char> bytes;
  auto push = [&](auto x) {
    char raw[sizeof x];
    std::memcpy(raw, &x, sizeof x);
    bytes.insert(bytes.end(), raw, raw + sizeof x);
  };
  for (double x : values)
    if (element == ALIGNED_ELEMENT_F32)
      push(static_cast<float>(x));
    else if (element == ALIGNED_MASK_BOOL)
      push(static_cast<uint8_t>(x == 0));
    else
      push(narrow(x, element == ALIGNED_ELEMENT_F16 ? Storage::Half : Storage::BFloat16));
  return bytes;
}

/// Rows are [batch, kv heads]. Their inputs get what the caches settled: biases, offsets, and the integers that query rows
/// become.
class StoredStep {
public:
  std::vector<HeadInputs> rows;
  const StepOptions options;
  CachePtr key, value;
  std::vector<char> query, mask; ///< mask: empty where there is none
  std::vector<float> sinkLogits;
  aligned_stage stage = {};
  std::vector<std::vector<bool>> keyAside, valueAside; ///< tokens of each row

  explicit StoredStep(std::vector<HeadInputs> inputs, const StepOptions &options = {})
      : rows(std::move(inputs)), options(options) {
    const HeadInputs &in = rows.front();
    key = store(ALIGNED_ROLE_KEY, in.keyDim, in.keys, [](const HeadInputs &row) -> const std::vector<double> & { return row.k; });
    value = store(ALIGNED_ROLE_VALUE, in.valueDim, in.values,
                  [](const HeadInputs &row) -> const std::vector<double> & { return row.v; });
    std::vector<double> queries, numbers;
    for (size_t row = 0; row < rows.size(); ++row) {
      HeadInputs &own = rows[row];
      own.keys.bias = int(key->bias);
      own.values.bias = int(value->bias);
      own.offset = std::vector<double>(key->offset + row * in.keyDim, key->offset + (row + 1) * in.keyDim);
      own.scanFullscale = own.finerFullscale = exact() ? kLargestOfThree : kLargestOfTwoDigits;
      own.scale = static_cast<float>(own.scale);
      queries.insert(queries.end(), own.q.begin(), own.q.end());
      for (int64_t h = 0; h < own.heads && !own.additive.empty(); ++h) {
        numbers.insert(numbers.end(), own.additive.begin() + h * own.tokens, own.additive.begin() + (h + 1) * own.tokens);
        numbers.resize(numbers.size() + key->tokens - own.tokens);
      }
      if (row < size_t(options.kvHeads))
        for (int64_t h = 0; h < own.heads && !own.sinkLogits.empty(); h += own.mask.queries)
          sinkLogits.push_back(static_cast<float>(own.sinkLogits[h]));
      keyAside.push_back(
          rewrite(*key, row, packFixed(own.k, own.tokens, own.keyDim, Role::Key, own.storage, own.keys.bias, own.offset)));
      valueAside.push_back(
          rewrite(*value, row, packFixed(own.v, own.tokens, own.valueDim, Role::Value, own.storage, own.values.bias)));
    }
    query = narrowed(queries, options.element);
    mask = narrowed(numbers, options.maskElement);
    describe(in);
  }

  bool exact() const { return options.tolerance == 0; }
  int64_t queryRows() const { return rows.front().heads; }
  int64_t splits() const { return std::max<int64_t>(1, (key->tokens + kSplit - 1) / kSplit); }
  const void *maskData() const { return mask.empty() ? nullptr : mask.data(); }
  const float *sinks() const { return sinkLogits.empty() ? nullptr : sinkLogits.data(); }

  static constexpr int64_t kSplit = ALIGNED_SPLIT_TILES * 64;

private:
  std::vector<aligned_stage_side> sides;
  std::vector<aligned_stage_age> ages;

  template <typename Values> CachePtr store(int role, int64_t dim, const SideStorage &side, Values valuesOf) const {
    aligned_format format = {ALIGNED_FORMAT_FIXED, role, options.element, int32_t(side.widths.size()), {}};
    std::copy(side.widths.begin(), side.widths.end(), format.width);
    const int64_t heads = options.kvHeads, batch = int64_t(rows.size()) / heads;
    int64_t longest = 0;
    for (const HeadInputs &row : rows)
      longest = std::max(longest, row.tokens);
    CachePtr cache(options.pages ? aligned_cache_create_paged(&format, batch, heads, dim, options.pages, longest + 64)
                                 : aligned_cache_create(&format, batch, heads, dim, 0));
    EXPECT_TRUE(cache) << aligned_last_error();
    // All batch entries get what they have of `count` tokens.
    auto append = [&](int64_t first, int64_t count) {
      std::vector<double> part(rows.size() * count * dim, 0);
      std::vector<int64_t> counts;
      for (size_t row = 0; row < rows.size(); ++row) {
        const int64_t own = std::clamp<int64_t>(rows[row].tokens - first, 0, count);
        std::copy_n(valuesOf(rows[row]).begin() + std::min(first, rows[row].tokens) * dim, own * dim,
                    part.begin() + row * count * dim);
        if (row % heads == 0)
          counts.push_back(own);
      }
      const int64_t strides[] = {heads * count * dim, count * dim, dim, 1};
      const std::vector<char> data = narrowed(part, options.element);
      const bool alike = std::all_of(counts.begin(), counts.end(), [&](int64_t own) { return own == count; });
      EXPECT_EQ(alike && !cache->lengths ? aligned_cache_append(cache.get(), data.data(), count, strides)
                                         : aligned_cache_append_ragged(cache.get(), data.data(), counts.data(), strides),
                0)
          << aligned_last_error();
    };
    if (options.firstTokens)
      append(0, options.firstTokens);
    append(options.firstTokens, longest - options.firstTokens);
    if (side.resident < int(side.widths.size()))
      EXPECT_EQ(aligned_cache_drop_planes(cache.get(), side.resident), 0);
    return cache;
  }

  /// The runtime rotates in f32, so that here and there an integer, or at an edge a scale, is the neighbour of the oracle's: the
  /// oracle's take their place.
  static std::vector<bool> rewrite(aligned_cache &cache, int64_t row, const FixedPlanes &planes) {
    std::vector<uint16_t> patterns;
    for (int64_t t = 0; t < planes.tokens; ++t)
      for (int64_t c = 0; c < planes.dim; ++c)
        patterns.push_back(planes.isAside(t) ? 0 : planes.pattern(t, c));
    const std::vector<int> widths(cache.format.width, cache.format.width + cache.format.planes);
    const PlaneBytes bytes = packPlanes(patterns, planes.tokens, planes.dim, {Kind::Fixed, planes.role, widths});
    int64_t differ = 0;
    std::vector<bool> aside;
    for (int64_t tile = 0; tile * 64 < planes.tokens; ++tile) {
      const int64_t tiles = cache.capacity / 64;
      const int64_t place = cache.pages ? cache.pages[row / cache.kv_heads * tiles + tile] * cache.kv_heads + row % cache.kv_heads
                                        : row * tiles + tile;
      for (int64_t p = 0; p < cache.planes; ++p) {
        const int64_t size = 64 * planes.dim * widths[p] / 8;
        std::memcpy(static_cast<char *>(cache.plane[p]) + place * size, bytes[p].data() + tile * size, size);
      }
      for (int64_t t = tile * 64; t < std::min((tile + 1) * 64, planes.tokens); ++t) {
        uint8_t &code = cache.code[place * 64 + t % 64];
        EXPECT_EQ(code == 0, planes.isAside(t)) << "token " << t;
        aside.push_back(planes.isAside(t));
        differ += code != planes.codes[t];
        code = static_cast<uint8_t>(planes.codes[t]);
      }
    }
    EXPECT_LE(differ, 1 + planes.tokens / 500);
    const ScaleCounts counts = countScales(planes);
    aligned_scales &scales = cache.scales[row];
    scales = {counts.largest, counts.median, counts.below, counts.tokens, {}};
    std::copy(counts.count.begin(), counts.count.end(), scales.count);
    if (cache.sum) {
      const std::vector<int64_t> sums = sumChannels(planes, storage::bitsBefore(cache.format, int32_t(cache.planes)));
      std::copy(sums.begin(), sums.end(), cache.sum + row * planes.dim);
    }
    return aside;
  }

  void describe(const HeadInputs &in) {
    for (int64_t head = 0; head < options.kvHeads; ++head)
      for (const Limits *limits : {&rows[head].keyLimits, &rows[head].valueLimits}) {
        sides.push_back({limits->tolerance.value_or(options.tolerance), limits->least, limits->most, limits->newest,
                         limits->sinks, int64_t(limits->ages.size())});
        for (auto [age, bits] : limits->ages)
          ages.push_back({age, bits});
      }
    stage.group = in.heads / in.mask.queries;
    stage.queries = in.mask.queries;
    stage.kv_heads = options.kvHeads;
    stage.key_dim = in.keyDim;
    stage.value_dim = in.valueDim;
    stage.key_planes = key->planes;
    stage.value_planes = value->planes;
    stage.element = options.element;
    stage.digits = exact() ? 3 : 2;
    stage.exact = exact();
    stage.causal = in.mask.causal;
    stage.window = in.mask.window;
    stage.sinks = in.mask.sinks;
    stage.softcap = in.softcap;
    stage.masked_zero = in.maskedZero;
    stage.mask_element = options.maskElement;
    stage.mask_batch = stage.mask_heads = stage.mask_queries = 1;
    stage.sides = sides.data();
    stage.ages = ages.data();
  }
};

/// What passes between the stages of one row, with room for nothing else; NaN where nobody wrote.
struct Buffers {
  int64_t rows, keyDim, valueDim;
  std::vector<int8_t> digits;
  std::vector<float> facts, mean, scores, tops, parts, acc, max, sum, certificate;
  std::vector<uint8_t> keyBits, valueBits;

  explicit Buffers(const StoredStep &step) : rows(step.queryRows()), keyDim(step.stage.key_dim), valueDim(step.stage.value_dim) {
    const int64_t tiles = (step.key->tokens + 63) / 64, splits = step.splits();
    digits.assign(step.stage.digits * rows * keyDim, 85);
    auto fill = [](std::vector<float> &buffer, int64_t size) { buffer.assign(size, NAN); };
    fill(facts, (rows + 1) * ALIGNED_FACTS);
    fill(mean, valueDim);
    fill(scores, tiles * rows * 64);
    fill(tops, tiles * rows * ALIGNED_TOP_LANES);
    fill(parts, splits * 2 * rows);
    fill(acc, splits * rows * valueDim);
    fill(max, splits * rows);
    fill(sum, splits * rows);
    fill(certificate, splits * rows * ALIGNED_CERTIFICATE_NUMBERS);
    keyBits.assign(splits * StoredStep::kSplit, 0);
    valueBits.assign(splits * StoredStep::kSplit, 0);
  }

  // Of a split.
  float *scoresOf(int64_t split) { return scores.data() + split * ALIGNED_SPLIT_TILES * rows * 64; }
  float *topsOf(int64_t split) { return tops.data() + split * ALIGNED_SPLIT_TILES * rows * ALIGNED_TOP_LANES; }
  float *partOf(int64_t split) { return parts.data() + split * 2 * rows; }
  float *accOf(int64_t split) { return acc.data() + split * rows * valueDim; }
  float *maxOf(int64_t split) { return max.data() + split * rows; }
  float *sumOf(int64_t split) { return sum.data() + split * rows; }
  float *certificateOf(int64_t split) { return certificate.data() + split * rows * ALIGNED_CERTIFICATE_NUMBERS; }
};

inline void prepare(const StoredStep &step, int64_t row, Buffers &b) {
  aligned_reference_prepare(&step.stage, step.query.data(), step.key.get(), step.value.get(), float(step.rows[row].scale), row,
                            step.rows[row].mask.later, 1, b.digits.data(), b.facts.data(), b.mean.data());
}
inline void scan(const StoredStep &step, int64_t row, Buffers &b) {
  for (int64_t split = 0; split < step.splits(); ++split)
    aligned_reference_scan(&step.stage, step.query.data(), step.key.get(), step.value.get(), float(step.rows[row].scale), row,
                           split, step.rows[row].mask.later, step.maskData(), b.digits.data(), b.facts.data(), b.scoresOf(split),
                           b.topsOf(split), b.partOf(split));
}
inline void attend(const StoredStep &step, int64_t row, Buffers &b) {
  for (int64_t split = 0; split < step.splits(); ++split)
    aligned_reference_attend(&step.stage, step.query.data(), step.key.get(), step.value.get(), row, split,
                             step.rows[row].mask.later, step.maskData(), step.sinks(), b.digits.data(), b.facts.data(),
                             b.mean.data(), b.scoresOf(split), b.topsOf(split), b.parts.data(), b.accOf(split), b.maxOf(split),
                             b.sumOf(split), b.certificateOf(split), b.keyBits.data() + split * StoredStep::kSplit,
                             b.valueBits.data() + split * StoredStep::kSplit);
}

/// A row's states, merged and finished.
struct Finished {
  std::vector<double> out, logSum, bound, estimate; ///< logSum: of e^score; estimate: absolute L2
};
inline Finished finish(const StoredStep &step, int64_t row, Buffers &b) {
  Finished result;
  const std::vector<float> &sinks = step.sinkLogits;
  for (int64_t h = 0; h < b.rows; ++h) {
    double max = -INFINITY, sum = 0;
    std::vector<double> acc(b.valueDim, 0), c(ALIGNED_CERTIFICATE_NUMBERS, 0);
    auto merge = [&](double otherMax, double otherSum, const float *otherAcc, const float *other) {
      const double top = std::fmax(max, otherMax);
      auto weight = [&](double of) { return top == -INFINITY ? 1 : std::exp(of - top); };
      const double a = weight(max), b = weight(otherMax);
      max = top;
      sum = sum * a + otherSum * b;
      for (size_t i = 0; i < acc.size() && otherAcc; ++i)
        acc[i] = acc[i] * a + otherAcc[i] * b;
      for (size_t i = 0; i < c.size() && other; ++i)
        c[i] = i == 5 ? std::max<double>(c[i], other[i]) : i == 4 || i == 7 ? c[i] * a * a + other[i] * b * b : c[i] * a + other[i] * b;
    };
    if (!sinks.empty())
      merge(sinks[(row % step.options.kvHeads * b.rows + h) / step.stage.queries], 1, nullptr, nullptr);
    for (int64_t split = 0; split < step.splits(); ++split)
      merge(b.maxOf(split)[h], b.sumOf(split)[h], b.accOf(split) + h * b.valueDim,
            b.certificateOf(split) + h * ALIGNED_CERTIFICATE_NUMBERS);
    double largest = 0;
    for (double x : acc) {
      result.out.push_back(sum == 0 ? 0 : x / sum);
      largest = std::max(largest, std::fabs(result.out.back()));
    }
    result.logSum.push_back(sum == 0 ? -INFINITY : std::log(sum) + max);
    const double u = c[0] / sum;
    result.bound.push_back(sum == 0 ? 0 : std::min(((1 + u) * c[1] + u * c[2] + c[3]) / sum, c[5] + largest));
    result.estimate.push_back(sum == 0 ? 0 : std::sqrt((c[4] + c[7] * std::pow(c[2] / sum, 2) + c[6] * c[6]) * b.valueDim) / sum);
  }
  return result;
}

} // namespace aligned

#endif // ALIGNED_UNITTESTS_STAGES_STEP_H
