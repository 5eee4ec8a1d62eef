// See the header. What a row's caches hold becomes FixedPlanes, and what a stage asks of them Mask, Limits and levels: from there
// on it is the oracle's arithmetic, in base 2 and in the units of the buffers.
#include "aligned/Reference/Stages.h"

#include "aligned/Reference/Planes.h"
#include "aligned/Storage/Layout.h"

#include "Rule.h"
#include "Softmax.h"

#include <algorithm>
#include <cmath>
#include <iterator>

using namespace aligned;

namespace {

constexpr double kLog2e = 1.4426950408889634;
/// The score of what a query doesn't see, and what is below all others.
constexpr double kHidden = -1e38f, kLowest = -5e37, kLeastOfMask = -1e36;
constexpr double kInfinitelyLow = 0.9 * kHidden; // of a token that is seen: a row of V kept aside may make more of no weight than 0
constexpr double kOctaves = 8;             // codes to an octave
constexpr int kCodeOfOne = 16 * 8;         // facts leave this out of scales instead of the bias
constexpr double kRoomForRefinement = 100; // octaves that finer scores may lie above the largest coarse one
constexpr double kLeastUsual = 0x1p-20;    // A, where no row of V is counted

double widened(const void *data, int64_t element, int64_t index) {
  if (element == ALIGNED_ELEMENT_F32)
    return static_cast<const float *>(data)[index];
  return widen(static_cast<const uint16_t *>(data)[index], element == ALIGNED_ELEMENT_F16 ? Storage::Half : Storage::BFloat16);
}

/// One side of a row, as its cache holds it.
class Side {
public:
  Side(const aligned_cache &cache, int64_t row, int64_t planes)
      : tokens(cache.lengths ? cache.lengths[row / cache.kv_heads] : cache.tokens), cache(cache), row(row),
        levels(levelsOf({std::vector<int>(cache.format.width, cache.format.width + cache.format.planes),
                         int(std::min(planes, cache.planes))})) {}

  const int64_t tokens;
  const aligned_cache &cache;
  const int64_t row;
  const std::vector<int> levels; ///< bits that a read may stop at

  int64_t placeOf(int64_t tile) const {
    const int64_t tiles = cache.capacity / kTileTokens;
    return cache.pages ? cache.pages[row / cache.kv_heads * tiles + tile] * cache.kv_heads + row % cache.kv_heads
                       : row * tiles + tile;
  }

  /// That sums of the cache hold (M1).
  int residentBits() const { return storage::bitsBefore(cache.format, int32_t(cache.planes)); }

  /// n of a value, zeros where a plane is not there.
  int32_t integerAt(int64_t token, int64_t channel) const {
    const aligned_format &format = cache.format;
    uint16_t cut = 0;
    for (int32_t plane = 0; plane < cache.planes; ++plane) {
      const int32_t width = format.width[plane];
      const storage::Bits bits = storage::bitsOf(format, plane, cache.head_dim, token % kTileTokens, channel);
      const auto *tile = static_cast<const uint8_t *>(cache.plane[plane]) +
                         placeOf(token / kTileTokens) * storage::bytesPerTile(width, cache.head_dim);
      cut |= (tile[bits.byte] >> bits.shift & ((1 << width) - 1)) << storage::bitsBelow(format, plane);
    }
    return storage::integerOf(format, cut);
  }

  /// Tokens first .. last - 1; others have no bits.
  FixedPlanes load(int64_t first, int64_t last) const {
    const int64_t dim = cache.head_dim;
    FixedPlanes planes{cache.format.role == ALIGNED_ROLE_KEY ? Role::Key : Role::Value,
                       tokens,
                       dim,
                       int(cache.bias),
                       std::vector<double>(dim, 0),
                       std::vector<int>(tokens, 0),
                       std::vector<double>(tokens, 0),
                       std::vector<int32_t>(tokens * dim, 0),
                       {}};
    if (cache.offset)
      planes.offset.assign(cache.offset + row * dim, cache.offset + (row + 1) * dim);
    for (int64_t t = first; t < last; ++t) {
      planes.codes[t] = cache.code[placeOf(t / kTileTokens) * kTileTokens + t % kTileTokens];
      if (planes.isAside(t))
        continue;
      planes.scales[t] = scaleOf(planes.codes[t], planes.bias);
      for (int64_t c = 0; c < dim; ++c)
        planes.n[t * dim + c] = integerAt(t, c);
    }
    for (int64_t i = 0; i < cache.asides; ++i)
      if (cache.aside[i].row == row)
        planes.aside[cache.aside[i].token].assign(cache.aside_values + i * dim, cache.aside_values + (i + 1) * dim);
    return planes;
  }
};

/// What all stages know of their row.
class Stage {
public:
  Stage(const aligned_stage &stage, const aligned_cache *key, const aligned_cache *value, int64_t row, int64_t later)
      : stage(stage), row(row), rows(stage.group * stage.queries), keySide(*key, row, stage.key_planes),
        valueSide(*value, row, stage.value_planes),
        tokens(keySide.tokens), mask{stage.queries, stage.causal != 0, stage.window, stage.sinks, later} {}

protected:
  const aligned_stage &stage;
  const int64_t row, rows; ///< rows: query rows
  const Side keySide, valueSide;
  const int64_t tokens;
  const Mask mask;
};

//===----------------------------------------------------------------------===//
// Prepare
//===----------------------------------------------------------------------===//

class Prepare : public Stage {
public:
  using Stage::Stage;

  void prepare(const void *query, double scale, double toleranceFactor, int8_t *digits, float *facts, float *mean) const {
    const FixedPlanes key = keySide.load(0, tokens), value = valueSide.load(0, tokens);
    const ScaleCounts keyCounts = countScales(key), valueCounts = countScales(value);
    const ValueSummary known = summarize(value, valueSide.residentBits());
    std::copy(known.mean.begin(), known.mean.end(), mean);

    auto setRow = [&](aligned_row_fact fact, double x) { facts[rows * ALIGNED_FACTS + fact] = static_cast<float>(x); };
    const double valueUnit = unitOf(value), usual = valueCounts.tokens ? known.usual / valueUnit : kLeastUsual;
    setRow(ALIGNED_ROW_FACT_LOG_USUAL, std::log2(usual) + kCodeOfOne / kOctaves);
    setRow(ALIGNED_ROW_FACT_USUAL, usual);
    setRow(ALIGNED_ROW_FACT_VALUE_UNIT, valueUnit);
    setRow(ALIGNED_ROW_FACT_LARGEST_KEY, keyCounts.largest);
    setRow(ALIGNED_ROW_FACT_FLOOR_VALUE, std::max(known.floor, 1));
    setRow(ALIGNED_ROW_FACT_SPREAD, known.spread);
    setRow(ALIGNED_ROW_FACT_FILL, known.fill);

    double largestMass = 0;
    const double median = keyCounts.tokens ? scaleOf(keyCounts.median, key.bias) : 0;
    for (int64_t h = 0; h < rows; ++h) {
      std::vector<double> q(stage.key_dim);
      bool finite = true;
      for (int64_t c = 0; c < stage.key_dim; ++c) {
        q[c] = widened(query, stage.element, (row * rows + h) * stage.key_dim + c) * scale;
        finite &= std::isfinite(q[c]);
      }
      if (!finite)
        q.assign(stage.key_dim, 0); // integers can't carry it
      const std::vector<double> weights = rotated(q);
      double squares = 0, mass = 0, largest = 0, shift = 0;
      for (int64_t c = 0; c < stage.key_dim; ++c) {
        squares += weights[c] * weights[c];
        mass += std::fabs(weights[c]);
        largest = std::max(largest, std::fabs(weights[c]));
        shift += q[c] * key.offset[c];
      }
      double fullscale = 127;
      for (int64_t d = 1; d < stage.digits; ++d)
        fullscale = 256 * fullscale + 127;
      largestMass = std::max(largestMass, mass);
      const double step = largest / fullscale;
      int64_t sum = 0, seen = 0;
      for (int64_t c = 0; c < stage.key_dim; ++c) {
        int64_t v = step ? static_cast<int64_t>(std::nearbyint(weights[c] / step)) : 0;
        sum += v;
        for (int64_t d = stage.digits - 1; d >= 0; --d) { // the last ones from -128 to 127; what is left fits the first
          const int64_t digit = d ? ((v + 128) & 255) - 128 : v;
          digits[(d * rows + h) * stage.key_dim + c] = static_cast<int8_t>(digit);
          v = (v - digit) / 256;
        }
      }
      for (int64_t t = 0; t < tokens; ++t)
        seen += mask.sees(h, t, tokens);
      auto set = [&](aligned_fact fact, double x) { facts[h * ALIGNED_FACTS + fact] = static_cast<float>(x); };
      set(ALIGNED_FACT_UNIT, step * kLog2e * unitOf(key) / 32768);
      set(ALIGNED_FACT_SUM, double(sum));
      set(ALIGNED_FACT_NORM, std::sqrt(squares));
      set(ALIGNED_FACT_MASS, mass);
      set(ALIGNED_FACT_SHRINK, stage.exact ? 0 : logShrink(sigmaOf(median, std::sqrt(squares), keySide.levels.front())) * kLog2e);
      set(ALIGNED_FACT_NOT_FINITE, finite ? 0 : NAN);
      set(ALIGNED_FACT_LOG_SEEN, std::log2(double(std::max<int64_t>(seen, 1))) - 2 * std::log2(double(toleranceFactor)));
      set(ALIGNED_FACT_SHIFT, shift * kLog2e);
    }
    const double largestKey = keyCounts.tokens ? scaleOf(keyCounts.largest, key.bias) : 0;
    setRow(ALIGNED_ROW_FACT_FULL, largestMass * largestKey * std::ldexp(kLog2e, -keySide.levels.front()) > kRoomForRefinement);
  }

private:
  /// The scale that facts leave out.
  static double unitOf(const FixedPlanes &planes) { return scaleOf(kCodeOfOne, planes.bias); }
};

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

/// A split of a row whose queries are prepared.
class Split : public Stage {
public:
  Split(const aligned_stage &stage, const aligned_cache *key, const aligned_cache *value, int64_t row, int64_t split,
        int64_t later, const void *numbers, const int8_t *digits, const float *facts)
      : Stage(stage, key, value, row, later), first(split * ALIGNED_SPLIT_TILES * kTileTokens),
        last(std::max(first, std::min(first + ALIGNED_SPLIT_TILES * kTileTokens, tokens))), numbers(numbers), facts(facts),
        key(keySide.load(first, last)), value(valueSide.load(first, last)),
        weights(rows, std::vector<int64_t>(stage.key_dim, 0)) {
    for (int64_t h = 0; h < rows; ++h)
      for (int64_t c = 0; c < stage.key_dim; ++c)
        for (int64_t d = 0; d < stage.digits; ++d)
          weights[h][c] = weights[h][c] * 256 + digits[(d * rows + h) * stage.key_dim + c];
  }

protected:
  double fact(int64_t h, aligned_fact which) const { return facts[h * ALIGNED_FACTS + which]; }
  double rowFact(aligned_row_fact which) const { return facts[rows * ALIGNED_FACTS + which]; }
  /// Whether the scan knows all of a token's score: no scale says what an error of it would do to a row kept aside.
  bool isScannedInFull(int64_t t) const { return key.isAside(t) || value.isAside(t) || rowFact(ALIGNED_ROW_FACT_FULL) > 0; }

  /// A token's score from so many bits of K, which is in planes.
  double dot(int64_t h, int64_t t, int bits) const {
    double sum = 0;
    for (int64_t c = 0; c < stage.key_dim; ++c)
      sum += double(weights[h][c]) * double(key.readInteger(t, c, bits));
    return sum * fact(h, ALIGNED_FACT_UNIT) * scaleOf(key.codes[t], kCodeOfOne) + fact(h, ALIGNED_FACT_NOT_FINITE);
  }

  /// A score with what a mask that is an operand adds.
  double withNumber(double x, int64_t h, int64_t t) const {
    if (!numbers)
      return x;
    const int64_t kvHeads = stage.kv_heads, heads = kvHeads * stage.group;
    int64_t at = stage.mask_batch ? row / kvHeads : 0;
    at = stage.mask_heads ? at * heads + row % kvHeads * stage.group + h / stage.queries : at;
    at = stage.mask_queries ? at * stage.queries + h % stage.queries : at;
    at = at * keySide.cache.tokens + t;
    if (stage.mask_element == ALIGNED_MASK_BOOL)
      return static_cast<const uint8_t *>(numbers)[at] ? x : kHidden;
    const double number = widened(numbers, stage.mask_element, at);
    return number == -INFINITY || x <= kHidden ? kHidden : x + kLog2e * (number < kLeastOfMask ? kLeastOfMask : number);
  }

  /// A score in the buffer as softmax sees it.
  double final(double x, int64_t h, int64_t t) const {
    if (!stage.softcap || x < kLowest)
      return x;
    return withNumber(capped(x + fact(h, ALIGNED_FACT_SHIFT), stage.softcap * kLog2e), h, t);
  }

  int64_t scoreAt(int64_t h, int64_t t) const { return (((t - first) / kTileTokens) * rows + h) * kTileTokens + t % kTileTokens; }

  /// Whether any query row sees a token of a tile, by position and by the mask's numbers.
  bool isTileSeen(int64_t tile) const {
    if (!mask.isTileSeen(tile, tokens))
      return false;
    for (int64_t h = 0; h < rows && numbers; ++h)
      for (int64_t t = tile * kTileTokens; t < std::min((tile + 1) * kTileTokens, tokens); ++t)
        if (!(withNumber(0, h, t) <= kHidden)) // NaN is no -inf
          return true;
    return !numbers;
  }

  template <typename Body> void forTiles(Body body) const {
    for (int64_t tile = first / kTileTokens; tile * kTileTokens < last; ++tile)
      if (isTileSeen(tile))
        body(tile);
  }
  /// Tokens of those tiles.
  template <typename Body> void forTokens(Body body) const {
    forTiles([&](int64_t tile) {
      for (int64_t t = tile * kTileTokens; t < std::min((tile + 1) * kTileTokens, last); ++t)
        body(t);
    });
  }

  const int64_t first, last; ///< tokens
  const void *const numbers; ///< of the mask
  const float *const facts;
  const FixedPlanes key, value;
  std::vector<std::vector<int64_t>> weights; ///< v of [query row][channel]
};

//===----------------------------------------------------------------------===//
// Scan
//===----------------------------------------------------------------------===//

class Scan : public Split {
public:
  using Split::Split;

  void scan(const void *query, double scale, float *scores, float *tops, float *part) const {
    std::vector<double> references(rows, kLowest), sums(rows, 0);
    std::vector<std::pair<int64_t, double>> seen; // [query row], score
    forTiles([&](int64_t tile) {
      for (int64_t h = 0; h < rows; ++h) {
        double top = kHidden;
        for (int64_t t = tile * kTileTokens; t < (tile + 1) * kTileTokens; ++t) {
          double x = kHidden;
          if (t < tokens && mask.sees(h, t, tokens)) {
            x = score(query, scale, h, t);
            const double with = withNumber(x, h, t);
            x = !stage.softcap || with < kLowest ? with : x;
          }
          scores[scoreAt(h, t)] = static_cast<float>(x);
          if (x < kLowest)
            continue;
          x = final(x, h, t);
          seen.emplace_back(h, x);
          top = std::fmax(top, x + std::max(value.codes[t] / kOctaves, rowFact(ALIGNED_ROW_FACT_LOG_USUAL)));
          references[h] = std::fmax(references[h], x);
        }
        float *lanes = tops + ((tile - first / kTileTokens) * rows + h) * ALIGNED_TOP_LANES;
        std::fill_n(lanes, ALIGNED_TOP_LANES, static_cast<float>(kHidden));
        lanes[0] = static_cast<float>(top);
      }
    });
    for (double &reference : references)
      reference = static_cast<float>(reference); // the one that others go by
    for (auto [h, x] : seen)
      sums[h] += std::exp2(x - references[h]);
    for (int64_t h = 0; h < rows; ++h) {
      part[h] = static_cast<float>(references[h]);
      part[rows + h] = static_cast<float>(sums[h]);
    }
  }

private:
  double score(const void *query, double scale, int64_t h, int64_t t) const {
    if (!key.isAside(t))
      return dot(h, t, isScannedInFull(t) ? keySide.levels.back() : keySide.levels.front());
    const std::vector<double> &values = key.aside.at(t);
    double sum = fact(h, ALIGNED_FACT_NOT_FINITE);
    for (int64_t c = 0; c < stage.key_dim; ++c)
      sum += widened(query, stage.element, (row * rows + h) * stage.key_dim + c) * scale * values[c];
    // An infinity below is capped, or leaves no weight.
    return std::isnan(sum) ? sum : std::max(sum * kLog2e, stage.softcap ? kLowest / 2 : kInfinitelyLow);
  }
};

//===----------------------------------------------------------------------===//
// Attend
//===----------------------------------------------------------------------===//

class Attend : public Split {
public:
  using Split::Split;

  /// `leastKey` and `leastValue`: null, or bits of each token.
  void attend(const float *mean, const float *scores, const float *parts, const float *sinkLogits, const uint8_t *leastKey,
              const uint8_t *leastValue) {
    this->mean = mean;
    join(parts, sinkLogits);
    keyBits.assign(last - first, 0);
    valueBits.assign(last - first, 0);
    auto leastOf = [&](const uint8_t *least, int64_t t) { return least ? int(least[t - first]) : 0; };
    x.assign(rows, std::vector<double>(last - first, kHidden));
    forTokens([&](int64_t t) {
      bool isSeen = false;
      for (int64_t h = 0; h < rows; ++h) {
        x[h][t - first] = scores[scoreAt(h, t)];
        isSeen |= sees(h, t);
      }
      if (isSeen) {
        readKey(t, leastOf(leastKey, t));
        readValue(t, leastOf(leastValue, t));
      }
    });
  }

  void writeState(float *acc, float *max, float *sum) const {
    for (int64_t h = 0; h < rows; ++h) {
      double total = 0;
      std::vector<double> row(stage.value_dim, 0);
      forTokens([&](int64_t t) {
        if (!sees(h, t) && !(value.isAside(t) && x[h][t - first] > kHidden))
          return;
        const double w = weight(h, t);
        total += w;
        for (int64_t c = 0; c < stage.value_dim; ++c)
          row[c] += w * valueAt(t, c);
      });
      const bool isIdentity = static_cast<float>(total) == 0;
      for (int64_t c = 0; c < stage.value_dim; ++c)
        acc[h * stage.value_dim + c] = isIdentity ? 0 : static_cast<float>(row[c]);
      const double shared =
          stage.softcap ? 0 : fact(h, ALIGNED_FACT_SHIFT); // no matter of softmax, but of what its state is merged with
      max[h] = isIdentity ? -INFINITY : static_cast<float>((references[h] + shared) / kLog2e);
      sum[h] = nothing[h] && tokens && !stage.masked_zero ? NAN : static_cast<float>(total);
    }
  }

  void writeCertificate(float *certificate) const {
    double largestMean = 0;
    for (int64_t c = 0; c < stage.value_dim; ++c)
      largestMean = std::max<double>(largestMean, std::fabs(mean[c]));
    const double spread = rowFact(ALIGNED_ROW_FACT_SPREAD), fill = rowFact(ALIGNED_ROW_FACT_FILL),
                 rounding = (stage.key_dim + 8) * kRounding;
    for (int64_t h = 0; h < rows; ++h) {
      const double step = fact(h, ALIGNED_FACT_UNIT) * 32768 / kLog2e / scaleOf(kCodeOfOne, key.bias);
      double grown = 0, grownReach = 0, reach = 0, off = 0, variance = 0, scores = 0, largest = 0, common = 0;
      forTokens([&](int64_t t) {
        if (!sees(h, t))
          return;
        const int bits = keyBits[t - first], read = valueBits[t - first];
        const double w = weight(h, t), m = size(t), k = key.scales[t]; // 0 where it is kept aside
        double b = k * ((reachOf(bits) + rounding) * fact(h, ALIGNED_FACT_MASS) + step / 2 * stage.key_dim * (1 + 0x1p-16));
        b = std::expm1(std::min(b + 8 * 0x1p-23 * stage.softcap, 200.0));
        grown += w * b;
        grownReach += w * b * m;
        reach += w * m;
        largest = std::max(largest, m);
        const double sigma = sigmaOf(k, fact(h, ALIGNED_FACT_NORM), bits);
        const double byScores = std::pow(w * fill * misledBy(sigma), 2);
        variance += byScores * m * m;
        scores += byScores;
        if (!value.isAside(t)) {
          off += w * (read ? m * reachOf(read) : m + (isLow(t) ? 0 : largestMean));
          variance += std::pow(w * m * (read ? std::ldexp(1, -read) / std::sqrt(3.0) : spread), 2);
        }
        common += read ? 0 : kCommonUnread * w * m;
        common += bits > keySide.levels.front() ? 0 : kCommonScan * w * fill * m * std::min(sigma * sigma, 1.0);
      });
      const double numbers[] = {grown, grownReach, reach, off + 4 * kRounding * reach, variance, largest, common, scores};
      static_assert(std::size(numbers) == ALIGNED_CERTIFICATE_NUMBERS);
      std::copy(std::begin(numbers), std::end(numbers), certificate + h * ALIGNED_CERTIFICATE_NUMBERS);
    }
  }

  std::vector<int> keyBits, valueBits; ///< of the split's tokens

private:
  const float *mean;
  std::vector<double> references, sums; ///< M, and Z as thresholds take it
  std::vector<bool> nothing;            ///< whether the row's scores are all -inf
  std::vector<std::vector<double>> x;   ///< [query row][token of the split]

  /// The splits' sums (P5).
  void join(const float *parts, const float *sinkLogits) {
    const int64_t splits = (tokens + ALIGNED_SPLIT_TILES * kTileTokens - 1) / (ALIGNED_SPLIT_TILES * kTileTokens);
    for (int64_t h = 0; h < rows; ++h) {
      const double shift = stage.softcap ? 0 : fact(h, ALIGNED_FACT_SHIFT); // what other scores lack
      const double sink =
          sinkLogits ? sinkLogits[row % stage.kv_heads * stage.group + h / stage.queries] * kLog2e - shift : -INFINITY;
      double reference = std::max(sink, kLowest), sum = 0;
      for (int64_t i = 0; i < splits; ++i)
        reference = std::fmax(reference, parts[2 * i * rows + h]);
      for (int64_t i = 0; i < splits; ++i)
        sum += parts[(2 * i + 1) * rows + h] * std::exp2(parts[2 * i * rows + h] - reference);
      nothing.push_back(sum == 0 && sink == -INFINITY);
      references.push_back(reference);
      sums.push_back((sum + std::exp2(sink - reference)) * std::exp2(fact(h, ALIGNED_FACT_SHRINK)));
    }
  }

  bool sees(int64_t h, int64_t t) const { return !(x[h][t - first] < kLowest); }
  double weight(int64_t h, int64_t t) const { return std::exp2(final(x[h][t - first], h, t) - references[h]); }
  /// p v / A; v is 0 of a row that is kept aside.
  double share(int64_t h, int64_t t) const {
    return value.isAside(t) ? 0
                            : weight(h, t) / sums[h] * std::exp2(value.codes[t] / kOctaves - rowFact(ALIGNED_ROW_FACT_LOG_USUAL));
  }
  double tau(int64_t h, const aligned_stage_side &side) const {
    return side.tolerance * std::exp2(-fact(h, ALIGNED_FACT_LOG_SEEN) / 2);
  }

  const aligned_stage_side &side(bool ofValues) const { return stage.sides[row % stage.kv_heads * 2 + ofValues]; }
  /// What limits (P7) leave of `bits`, in whole planes.
  int limited(int bits, int64_t t, bool ofValues) const {
    const aligned_stage_side &own = side(ofValues);
    Limits limits{own.tolerance, int(own.least), int(own.most), own.newest, own.sinks};
    const aligned_stage_age *age = stage.ages;
    for (const aligned_stage_side *before = stage.sides; before != &own; ++before)
      age += before->ages;
    for (int64_t i = 0; i < own.ages; ++i)
      limits.ages.emplace_back(age[i].age, int(age[i].bits));
    return roundUp(limits.apply(bits, t, t, tokens), (ofValues ? valueSide : keySide).levels);
  }

  void readKey(int64_t t, int least) {
    int &bits = keyBits[t - first];
    const std::vector<int> &levels = keySide.levels;
    if (isScannedInFull(t)) {
      bits = key.isAside(t) ? 16 : levels.back();
      return;
    }
    size_t level = stage.exact ? levels.size() - 1 : 0;
    for (int64_t h = 0; h < rows; ++h) {
      if (!sees(h, t))
        continue;
      const double lever = weight(h, t) / sums[h] + share(h, t), limit = kKeyPrice * tau(h, side(false));
      while (level + 1 < levels.size() &&
             lever * misledBy(sigmaOf(key.scales[t], fact(h, ALIGNED_FACT_NORM), levels[level])) > limit)
        ++level;
    }
    bits = stage.exact ? levels.back() : std::max({levels.front(), limited(levels[level], t, false), least});
    for (int64_t h = 0; h < rows; ++h)
      if (sees(h, t) && bits > levels.front())
        x[h][t - first] += dot(h, t, bits) - dot(h, t, levels.front());
  }

  void readValue(int64_t t, int least) {
    int bits = 0;
    for (int64_t h = 0; h < rows; ++h)
      if (sees(h, t))
        bits = std::max(bits, valueBitsFor(share(h, t), tau(h, side(true)), valueSide.levels));
    valueBits[t - first] = value.isAside(t) ? 16
                           : stage.exact    ? valueSide.levels.back()
                                            : std::max(limited(bits, t, true), least);
  }

  bool isLow(int64_t t) const { return value.codes[t] < rowFact(ALIGNED_ROW_FACT_FLOOR_VALUE); }

  double valueAt(int64_t t, int64_t c) const {
    if (value.isAside(t))
      return value.aside.at(t)[c];
    const int bits = valueBits[t - first];
    return bits ? value.read(t, c, bits) : isLow(t) ? 0 : mean[c];
  }

  /// Of a row of V: its scale; of one that is kept aside, the largest finite magnitude.
  double size(int64_t t) const {
    double largest = value.scales[t];
    if (value.isAside(t))
      for (double v : value.aside.at(t))
        largest = std::isfinite(v) ? std::max(largest, std::fabs(v)) : largest;
    return largest;
  }
};

} // namespace

void aligned_reference_prepare(const aligned_stage *stage, const void *query, const aligned_cache *key,
                               const aligned_cache *value, float scale, int64_t row, int64_t later, float toleranceFactor, int8_t *digits,
                               float *facts, float *mean) {
  Prepare(*stage, key, value, row, later).prepare(query, scale, toleranceFactor, digits, facts, mean);
}

void aligned_reference_scan(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value,
                            float scale, int64_t row, int64_t split, int64_t later, const void *mask, const int8_t *digits,
                            const float *facts, float *scores, float *tops, float *part) {
  Scan(*stage, key, value, row, split, later, mask, digits, facts).scan(query, scale, scores, tops, part);
}

void aligned_reference_attend(const aligned_stage *stage, const void *, const aligned_cache *key, const aligned_cache *value,
                              int64_t row, int64_t split, int64_t later, const void *mask, const float *sinkLogits,
                              const int8_t *digits, const float *facts, const float *mean, const float *scores, const float *,
                              const float *parts, float *acc, float *max, float *sum, float *certificate, uint8_t *keyBits,
                              uint8_t *valueBits) {
  Attend attend(*stage, key, value, row, split, later, mask, digits, facts);
  attend.attend(mean, scores, parts, sinkLogits, keyBits, valueBits);
  attend.writeState(acc, max, sum);
  if (certificate)
    attend.writeCertificate(certificate);
  if (keyBits)
    std::copy(attend.keyBits.begin(), attend.keyBits.end(), keyBits);
  if (valueBits)
    std::copy(attend.valueBits.begin(), attend.valueBits.end(), valueBits);
}
