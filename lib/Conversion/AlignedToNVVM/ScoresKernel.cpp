// Scores of full blocks, coarse or finer, and of the open block; and statistics of them, of each block and split.
//
// A warp takes a block of 64 tokens. Word i of a group of four channels belongs to tokens i (low nibbles) and i + 32 (high ones), so that four words
// of a lane are rows 4 g + j and 4 g + j + 32 of four tiles, and a word is a register of the left operand but for the nibble beside it: two layers make
// a byte. What is read of a channel ends where it need not go on, and with it the loads of the lanes that hold it. As on every machine
//
//   score = step * (sum of W * top bits + sum of W * offset(layers) - sum over a group's places of (sum of W there) * dither(token, place))
//
// where W are the weights as integers. Their step is as fine as the loudest channel of the cache allows, and the same whenever a block is read: a score that is read
// more finely is the one before and what the further layers add, each of which comes from memory once. The weight of a channel and query row is computed by one
// lane, and four lanes exchange bytes until each holds one digit of four channels, as the right operand wants it; the sums that are the same for all tokens fall out
// on the way.
#include "DecodeKernel.h"

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kHalfDepth = kTileDepth / 2; // channels of a half step: four groups, one for each t
constexpr int64_t kHeadroom = 4; // octaves above the loudest token, so that they need not move for each that is a little louder

class ScoresKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();
  void emitRefined();

private:
  Shared query, finest, groupLayers; // scale * q [heads, channels]; 1 / step of weights; layers of coarse scores
  std::vector<Vals> weights;         // weightOfColumn of [tile][half step], where there are registers for them
  Vals stepsOfScores;                // of weights, of the query rows whose scores the lane will have, by tile
  const int64_t ownHeads = tilesPerWarp * kTileHeads; // that a warp has scores of
  bool countsTokens = false;         // whether tokens are counted: coarse scores are, under a budget
  Shared tokenCounts, loudestBins;   // of warps' own heads: tokens by bin, number b at b mod bins, of bins that follow one another; and the number of the last, f32
  Val scores, keyLayers;             // of this row

  int64_t halfSteps() const { return shape.keyDim / kHalfDepth; }
  int64_t groups() const { return shape.keyDim / 4; }
  Val queryAt(Val h, Val channel) { return e.load(query, h * shape.keyDim + channel); }
  /// The lanes of t have `halfSteps` groups that follow one another.
  Val firstGroup() { return t * halfSteps(); }
  Val columnHead(int64_t tile) { return firstHead(tile) + shrLogical(g, number(2)); }
  Val scoreHead(int64_t tile) { return firstHead(tile) + shrLogical(t, number(1)); }
  /// Of the lane's column: scale * q of query row firstHead + g / 4, channel `place` of the lane's group, in steps but for the exponent of the channel.
  Val weightOfColumn(int64_t tile, int64_t half) {
    Val head = columnHead(tile);
    Shared own{e.at(query.base, e.f32(), head * shape.keyDim + firstGroup() * 4 + place), e.f32()}; // one address for all half steps
    return e.loadHere(own, number(half * 4)) * (e.load(finest, head) * kRoom);
  }
  /// Of each of the lane's groups, a word of four exponents.
  Vals exponentsOfGroups(Val exponents);
  void storeLayers(const Vals &layers, Val block);
  Val planeOf(const LayerPlace &at, Val where) { return blockOf(key.plane[at.plane], where, shape.keyDim * 8 * shape.keyPlanes.getWidths()[at.plane]); }

  void prepare(bool isCoarse);
  void planCoarse();
  /// What limits make of the layers of a block (P7).
  Val limited(Val layers, Val block);
  Val digitsAcross(Val digits);
  /// How far a block at `where` is read, of the lane's groups, and how far its scores are known already.
  struct Reading {
    Val where;
    Vals layers, before;
    bool isFresh() const { return before.empty(); } ///< whether nothing is known
  };
  struct Steps {
    int64_t begin, end; ///< half steps
  };
  /// Per column, whose lanes share the channels, sums of W * offset and of W by place, by tile; and products, see `multiply`.
  struct Sums {
    Vals constants, leans, products;
    Vals all() const;
  };
  Sums sumsOf(Vals all);
  Val wants(const Reading &reading, int64_t half, int64_t upper);
  Vals loadLayers(const Reading &reading, Steps steps, int64_t upper);
  Vals multiply(Vals sums, const Vals &loaded, const std::vector<Vals> &digits, int64_t first);
  void prefetchBlock(Val block, const Vals &layers);
  Sums addSteps(Sums sums, const Reading &reading, Steps steps, const std::vector<Vals> &weighed);
  void scoreBlock(Val block, const Reading &reading);
  /// Of scores [tile][4], tokens `token` .. `token` + 3.
  void describeBlock(Val block, Val token, const std::vector<Vals> &scored, const Vals &variances);
  void countTokens(int64_t tile, const Vals &octaves, Val loudest);
  void storeHistogram();
  /// The number of the bin of a log2 of p * scale, but for what all tokens share.
  Val binOf(Val octaves) { return e.nearest(e.smallest(e.largest(octaves * binsPerOctave, real(-kWeightLimit)), real(kWeightLimit))).second; }
  /// Statistics of the split, once all blocks have theirs.
  void summarise();
};

Vals ScoresKernel::Sums::all() const {
  Vals all = constants;
  all.append(leans);
  all.append(products);
  return all;
}

ScoresKernel::Sums ScoresKernel::sumsOf(Vals all) {
  ArrayRef<Val> rest(all);
  return {Vals(rest.take_front(tilesPerWarp)), Vals(rest.slice(tilesPerWarp, tilesPerWarp)), Vals(rest.drop_front(2 * tilesPerWarp))};
}

/// w = scale * q, and the finest step of weights: the loudest channel must not leave the digits.
void ScoresKernel::prepare(bool isCoarse) {
  query = shared("query", e.f32(), paddedHeads * shape.keyDim);
  finest = shared("finest", e.f32(), paddedHeads);
  scores = rowOf(Argument::Scores, key.stride * (shape.heads * ALIGNED_BLOCK));
  keyLayers = rowOf(Argument::KeyLayers, key.stride * groups(), e.i8());
  Val rows = rowOf(Argument::Query, shape.heads * shape.keyDim, shape.query), scale = argument(Argument::Scale);
  forThreads(paddedHeads * shape.keyDim, [&](Val i) {
    Val x = e.choose(i < shape.heads * shape.keyDim, [&]() -> Vals { return {convert(e.loadGlobal(rows, shape.query, i), e.f32()) * scale}; },
                     [&]() -> Vals { return {real(0)}; })[0];
    e.store(x, query, i);
  });
  e.barrier();
  forHeadsOfWarp(paddedHeads, [&](Val h) {
    Val loudest = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(kTiny)}, [&](Val c, Vals top) -> Vals {
      return {e.largest(abs(e.load(query, h * shape.keyDim + c)) * unitScale(exponentOf(get(key.channelMax, c))), top[0])};
    })[0];
    loudest = warpMax(loudest);
    e.when(lane == 0, [&] { e.store(real(kWeightLimit) / loudest, finest, h); });
  });
  if (isCoarse)
    planCoarse();
  e.barrier();
  for (int64_t i = 0; i < tilesPerWarp; ++i) {
    stepsOfScores.push_back(real(1) / e.load(finest, scoreHead(i)));
    if (isWide(shape) || !isCoarse)
      continue;
    weights.emplace_back();
    for (int64_t half = 0; half < halfSteps(); ++half)
      weights[i].push_back(weightOfColumn(i, half));
  }
}

/// Each group of channels is read so that its largest addend anywhere in the cache is known to half a logit.
void ScoresKernel::planCoarse() {
  groupLayers = shared("layers", e.i32(), groups());
  forThreads(groups(), [&](Val group) {
    Val layers = key.layers;
    if (!shape.exact()) {
      Val reach = real(0);
      for (int64_t c = 0; c < 4; ++c) {
        Val channel = group * 4 + c, scale = unitScale(exponentOf(get(key.channelMax, channel))) * 32768.0;
        Val loudest = e.loop(number(0), number(shape.heads), 1, {real(0)}, [&](Val h, Vals top) -> Vals {
          return {e.largest(abs(e.load(query, h * shape.keyDim + channel)), top[0])};
        })[0];
        reach = e.largest(loudest * scale, reach);
      }
      layers = wholePlanes(layersFor(reach * (1 / kCoarse), kUnread), key.layers, shape.keyPlanes);
    }
    e.store(layers, groupLayers, group);
  });
}

Val ScoresKernel::limited(Val layers, Val block) {
  if (!policies.isLimited(CacheRole::Key))
    return layers;
  Val first = block * ALIGNED_BLOCK;
  return policies.limit(layers, CacheRole::Key, key.layers, key.tokens, first, first + (ALIGNED_BLOCK - 1));
}

Vals ScoresKernel::exponentsOfGroups(Val exponents) {
  int64_t together = halfSteps() % 4 == 0 ? 4 : halfSteps() % 2 == 0 ? 2 : 1; // words of 32 bits
  Val first = e.at(exponents, e.i32(), firstGroup());
  Vals words;
  for (int64_t half = 0; half < halfSteps(); half += together) {
    Val loaded = e.loadGlobal(first, together == 1 ? e.i32() : Type(VectorType::get(together, e.i32())), number(half));
    for (int64_t i = 0; i < together; ++i)
      words.push_back(together == 1 ? loaded : aligned::lane(loaded, i));
  }
  return words;
}

void ScoresKernel::storeLayers(const Vals &layers, Val block) {
  Val first = block * groups() + firstGroup();
  for (int64_t half = 0; half < halfSteps(); ++half) {
    if (halfSteps() % 4) {
      e.storeGlobal(convert(layers[half], e.i8()), keyLayers, first + half);
    } else if (half % 4 == 0) {
      Val word = layers[half];
      for (int64_t byte = 1; byte < 4; ++byte)
        word = word | (layers[half + byte] << (8 * byte));
      e.storeGlobal(word, keyLayers, shrLogical(first + half, number(2)));
    }
  }
}

/// From the four digits of one channel, each lane's own, to one digit of four channels: a transpose among the lanes that differ in `place`, where place p has digit
/// p - 1, as upper bytes of values want it. The last digit is 0.
Val ScoresKernel::digitsAcross(Val digits) {
  Val oddPlace = (place & 1) == 1, upperPlace = (place & 2) == 2;
  digits = e.permuteBytes(digits, e.shuffleXor(digits, 4), select(oddPlace, number(0x2604), number(0x5173)));
  return e.permuteBytes(digits, e.shuffleXor(digits, 8), select(upperPlace, number(0x3276), number(0x5410)));
}

/// Whether a lane wants one of the layers `upper` and `upper` + 1 of a half step.
Val ScoresKernel::wants(const Reading &reading, int64_t half, int64_t upper) {
  Val layers = reading.layers[half];
  return reading.isFresh() ? layers > upper : (layers > max(reading.before[half], number(upper))) & (reading.before[half] < upper + 2);
}

/// Four words of the layers `upper` and `upper` + 1 of each half step, in turns; 0 where they are not wanted.
Vals ScoresKernel::loadLayers(const Reading &reading, Steps steps, int64_t upper) {
  Type four = VectorType::get(4, e.i32());
  Val nothing = e.constant(four, 0);
  Vals loaded;
  for (int64_t half = steps.begin; half < steps.end; ++half)
    for (int64_t layer : {upper, upper + 1}) {
      if (layer >= residentLayers(shape.keyPlanes)) {
        loaded.push_back(nothing);
        continue;
      }
      LayerPlace at = placeOf(shape.keyPlanes, layer);
      // The lane's own address, and from there numbers that are known: many addresses would be many registers.
      Val first = e.at(planeOf(at, reading.where), e.i32(), firstGroup() * (at.planeLayers * kWords) + g * 4), wanted = reading.layers[half] > layer;
      if (!reading.isFresh())
        wanted = wanted & (reading.before[half] <= layer);
      loaded.push_back(e.choose(wanted, [&]() -> Vals { return {e.loadGlobal(first, four, number((half * at.planeLayers + at.index) * kWords))}; }, [&]() -> Vals { return {nothing}; })[0]);
    }
  return loaded;
}

/// Adds their products with digits from half step `first` on: sums [tile][j][4], of columns 2 t and 2 t + 1 for token 4 g + j, then for 4 g + j + 32.
Vals ScoresKernel::multiply(Vals sums, const Vals &loaded, const std::vector<Vals> &digits, int64_t first) {
  int64_t halves = loaded.size() / 2;
  Val none = number(0);
  for (int64_t half = 0; half < halves; half += 2) {
    int64_t count = std::min<int64_t>(2, halves - half);
    for (int64_t j = 0; j < 4; ++j) {
      Vals a(4, none);
      for (int64_t i = 0; i < count; ++i)
        std::tie(a[2 * i], a[2 * i + 1]) = bytesOf(aligned::lane(loaded[2 * (half + i)], j), aligned::lane(loaded[2 * (half + i) + 1], j));
      for (int64_t i = 0; i < tilesPerWarp; ++i) {
        Val *c = &sums[(i * 4 + j) * 4];
        Vals product = e.multiply(a, {digits[i][first + half], count > 1 ? digits[i][first + half + 1] : none}, {c[0], c[1], c[2], c[3]});
        std::copy(product.begin(), product.end(), c);
      }
    }
  }
  return sums;
}

/// What the next block will be asked for, a line of 128 bytes for each lane: `layers` are those of groups lane, lane + 32, ...
void ScoresKernel::prefetchBlock(Val block, const Vals &layers) {
  Val where = physical(key, block);
  for (auto [i, wanted] : llvm::enumerate(layers)) {
    Val group = lane + int64_t(i) * GpuEmitter::kWarp, count = wanted;
    for (int64_t layer = 0; layer < residentLayers(shape.keyPlanes); ++layer) {
      LayerPlace at = placeOf(shape.keyPlanes, layer);
      e.when(count > layer, [&] { e.prefetch(e.at(planeOf(at, where), e.i32(), (group * at.planeLayers + at.index) * kWords)); });
    }
  }
  e.when(lane == 0, [&] {
    for (int64_t line = 0; line < shape.keyDim; line += 128)
      e.prefetch(e.at(blockOf(key.exponent, where, shape.keyDim), e.i8(), number(line)));
    e.prefetch(blockOf(value.exponent, physical(value, block), ALIGNED_BLOCK));
  });
}

/// Adds some half steps: to what all tokens share, and to products.
ScoresKernel::Sums ScoresKernel::addSteps(Sums sums, const Reading &reading, Steps steps, const std::vector<Vals> &weighed) {
  Vals loaded; // on their way while weights are made, where there are registers for them
  if (reading.isFresh() && !isWide(shape))
    loaded = loadLayers(reading, steps, 0);
  auto offset = [&](Val layers) { return select(layers > 0, offsetOf(layers), real(0)); };
  auto counted = [&](Val layers) { return select(layers > 0, real(1), real(0)); };
  std::vector<Vals> digits(tilesPerWarp); // for the upper bytes of values [tile][half step]
  for (int64_t half = steps.begin; half < steps.end; ++half) {
    Val offsets = offset(reading.layers[half]), counts = counted(reading.layers[half]);
    if (!reading.isFresh()) {
      offsets = offsets - offset(reading.before[half]);
      counts = counts - counted(reading.before[half]);
    }
    for (int64_t i = 0; i < tilesPerWarp; ++i) {
      auto [whole, rounded] = e.nearest(weighed[i][half]);
      sums.constants[i] = fma(rounded, offsets, sums.constants[i]);
      sums.leans[i] = fma(rounded, counts, sums.leans[i]);
      digits[i].push_back(digitsAcross(digitsOf(whole)));
    }
  }
  auto anyWants = [&](int64_t upper) {
    Val any = e.constant(e.types.getI1Type(), 0);
    for (int64_t half = steps.begin; half < steps.end; ++half)
      any = any | wants(reading, half, upper);
    return e.ballot(any) != 0;
  };
  // Two half steps make a product's depth.
  auto addPairs = [&](Vals products, int64_t upper, const std::vector<Vals> &digits) {
    for (int64_t half = steps.begin; half < steps.end; half += 2) {
      Steps pair{half, std::min(half + 2, steps.end)};
      products = multiply(products, loadLayers(reading, pair, upper), digits, half - steps.begin);
    }
    return products;
  };
  if (!loaded.empty())
    sums.products = multiply(sums.products, loaded, digits, 0);
  else
    sums.products = e.choose(anyWants(0), [&] { return addPairs(sums.products, 0, digits); }, [&] { return sums.products; });
  if (residentLayers(shape.keyPlanes) > 2)
    sums.products = e.choose(
        anyWants(2),
        [&] {
          // For the lower bytes, a column wants the digit of its own place: that of the next column.
          std::vector<Vals> lower(tilesPerWarp);
          for (int64_t i = 0; i < tilesPerWarp; ++i)
            for (Val upper : digits[i])
              lower[i].push_back(e.shuffleFrom(upper, (lane & 19) | ((lane + 4) & 12)));
          return addPairs(sums.products, 2, lower);
        },
        [&] { return sums.products; });
  return sums;
}

void ScoresKernel::scoreBlock(Val block, const Reading &reading) {
  const Vals &layers = reading.layers;
  Vals exponents = exponentsOfGroups(blockOf(key.exponent, reading.where, shape.keyDim)), variances;
  std::vector<Vals> weighed(tilesPerWarp); // weights in steps, of [tile][half step]
  Val ownPlace = (place << 12) | 0x444;    // its byte on top of zeros
  for (int64_t i = 0; i < tilesPerWarp; ++i) {
    Val square = real(0);
    for (int64_t half = 0; half < halfSteps(); ++half) {
      Val scale = bitcast(shrLogical(e.permuteBytes(exponents[half], number(0), ownPlace), number(1)), e.f32());
      weighed[i].push_back((weights.empty() ? weightOfColumn(i, half) : weights[i][half]) * scale);
      if (shape.exact())
        continue;
      Val error = weighed[i][half] * remainderOf(layers[half]);
      square = fma(error, error, square);
    }
    variances.push_back(shape.exact() ? square : e.warpAdd(square, {1, 2, 4, 8}) * (32768.0 * 32768.0 / 3));
  }

  // So many half steps at once, or none of them where nothing is wanted: with more, loads that are under way would take more registers than there are.
  const int64_t most = !reading.isFresh() ? 2 : tilesPerWarp > 1 || isWide(shape) ? 4 : 8, atOnce = halfSteps() % most ? 2 : most;
  Sums sums{Vals(tilesPerWarp, real(0)), Vals(tilesPerWarp, real(0)), Vals(tilesPerWarp * 4 * 4, number(0))};
  for (int64_t begin = 0; begin < halfSteps(); begin += atOnce) {
    Steps steps{begin, std::min(begin + atOnce, halfSteps())};
    Val any = e.constant(e.types.getI1Type(), 0);
    for (int64_t half = steps.begin; half < steps.end; ++half)
      any = any | (layers[half] > (reading.isFresh() ? number(0) : reading.before[half]));
    sums = sumsOf(e.choose(e.ballot(any) != 0, [&] { return addSteps(sums, reading, steps, weighed).all(); }, [&] { return sums.all(); }));
  }
  for (int64_t i = 0; i < tilesPerWarp; ++i) {
    sums.constants[i] = e.warpAdd(sums.constants[i], {1, 2, 4, 8});
    sums.leans[i] = e.warpAdd(sums.leans[i], {1, 2});
  }

  // Lanes with odd t take the later half of the block, and give away the other. Lanes 16 r + .. have what query row r of the tile needs, lean by place.
  Val odd = (t & 1) == 1, token = block * ALIGNED_BLOCK + g * 4 + select(odd, number(32), number(0)), source = shrLogical(t, number(1)) * 16;
  Val dithers[4][4];
  for (int64_t j = 0; j < 4; ++j)
    for (int64_t channel = 0; channel < 4; ++channel)
      dithers[j][channel] = dither(token + j, channel);
  Type four = VectorType::get(4, e.f32());
  auto placeOfScores = [&](int64_t i) { return ofHead(scores, scoreHead(i), key.stride * ALIGNED_BLOCK); };
  auto load = [&](int64_t i) -> Vals {
    Val loaded = e.choose(scoreHead(i) < shape.heads, [&]() -> Vals { return {e.loadGlobal(placeOfScores(i), four, token, /*constant=*/false)}; },
                          [&]() -> Vals { return {e.constant(four, 0)}; })[0];
    return {aligned::lane(loaded, 0), aligned::lane(loaded, 1), aligned::lane(loaded, 2), aligned::lane(loaded, 3)};
  };
  auto store = [&](int64_t i, ArrayRef<Val> scored) {
    e.when(scoreHead(i) < shape.heads, [&] { e.storeGlobal(e.vectorOf(scored), placeOfScores(i), token); });
  };
  std::vector<Vals> scored(tilesPerWarp);
  for (int64_t i = 0; i < tilesPerWarp; ++i) {
    Val constant = e.shuffleFrom(sums.constants[i], source), step = stepsOfScores[i];
    // A score whose error has variance s^2 is on average e^(s^2 / 2) times too likely.
    Val excess = real(0);
    if (!shape.exact()) {
      variances[i] = e.shuffleFrom(variances[i], source) * (step * step);
      excess = variances[i] * 0.5;
    }
    Vals lean, known(4, real(0));
    for (int64_t channel = 0; channel < 4; ++channel)
      lean.push_back(e.shuffleFrom(sums.leans[i], source + 4 * channel));
    if (!reading.isFresh()) {
      known = load(i);
      // The lane that will write it says what it was.
      Val head = scoreHead(i), isWriter = (g == 0) & ((t & 1) == 0) & (head < shape.heads);
      Val variance = e.choose(isWriter, [&]() -> Vals { return {get(blockNumbersOf(head), block * kBlockNumbers + kBlockVariance)}; }, [&]() -> Vals { return {real(0)}; })[0];
      excess = excess - e.shuffleFrom(variance, t & 2) * 0.5;
    }
    for (int64_t j = 0; j < 4; ++j) {
      Val *s = &sums.products[(i * 4 + j) * 4];
      Val early = ofColumns(s[0], s[1]), late = ofColumns(s[2], s[3]);
      Val score = select(odd, late, early) + e.shuffleXor(select(odd, early, late), 1) + constant;
      for (int64_t channel = 0; channel < 4; ++channel)
        score = score - lean[channel] * dithers[j][channel];
      scored[i].push_back(fma(score, step, reading.isFresh() ? -excess : known[j] - excess));
    }
  }
  if (reading.isFresh()) { // what is kept aside is added where the scores lie
    Vals all;
    for (const Vals &tile : scored)
      all.append(tile);
    all = e.choose(
        key.escapes > 0,
        [&] {
          for (int64_t i = 0; i < tilesPerWarp; ++i)
            store(i, scored[i]);
          addKeyEscapes([&](Val h, Val channel) { return queryAt(h, channel); }, block, firstHead(0), tilesPerWarp * kTileHeads);
          e.warpBarrier();
          Vals added;
          for (int64_t i = 0; i < tilesPerWarp; ++i)
            added.append(load(i));
          return added;
        },
        [&] { return all; });
    for (int64_t i = 0; i < tilesPerWarp; ++i)
      for (int64_t j = 0; j < 4; ++j)
        scored[i][j] = seenScore(all[i * 4 + j], scoreHead(i), token + j);
  }
  for (int64_t i = 0; i < tilesPerWarp; ++i)
    store(i, scored[i]);
  describeBlock(block, token, scored, variances);
  e.when((g == 0) & ((warp & (warpsPerBlock - 1)) == 0), [&] { storeLayers(layers, block); });
}

void ScoresKernel::describeBlock(Val block, Val token, const std::vector<Vals> &scored, const Vals &variances) {
  Val bytes = e.loadGlobal(blockOf(value.exponent, physical(value, block), ALIGNED_BLOCK), e.i32(), shrLogical(token & (ALIGNED_BLOCK - 1), number(2)));
  constexpr int64_t kLanes[] = {1, 4, 8, 16}; // that have the same query row
  Vals exponents;
  Val top = number(0);
  for (int64_t j = 0; j < 4; ++j) {
    Val exponent = shrLogical(bytes, number(8 * j)) & 255;
    exponents.push_back(convert(exponent, e.f32()));
    top = max(exponent, top);
  }
  top = convert(e.warpMaxAll(top), e.f32());
  for (int64_t i = 0; i < tilesPerWarp; ++i) {
    Val maximum = real(-INFINITY), loudest = real(kLowest), sum = real(0), squares = real(0), reaches = real(0);
    Vals octaves;
    for (int64_t j = 0; j < 4; ++j) {
      octaves.push_back(fma(scored[i][j], real(kLog2e), exponents[j]));
      maximum = e.largest(scored[i][j], maximum);
      loudest = e.largest(octaves[j], loudest);
    }
    maximum = e.warpMax(maximum, kLanes);
    loudest = e.warpMax(loudest, kLanes);
    for (int64_t j = 0; j < 4; ++j) {
      Val weight = weightOf(scored[i][j], maximum);
      sum = sum + weight;
      if (shape.exact())
        continue;
      Val reach = e.exp2(octaves[j] - loudest);
      squares = fma(weight, weight, squares);
      reaches = fma(reach, reach, reaches);
    }
    sum = e.warpAdd(sum, kLanes);
    if (!shape.exact()) {
      squares = e.warpAdd(squares, kLanes);
      reaches = e.warpAdd(reaches, kLanes);
    }
    if (countsTokens)
      countTokens(i, octaves, loudest);
    Val head = scoreHead(i);
    e.when((g == 0) & ((t & 1) == 0) & (head < shape.heads), [&] {
      Val place = e.at(blockNumbersOf(head), e.f32(), block * kBlockNumbers); // in the order of BlockNumber
      e.storeGlobal(e.vectorOf({maximum, sum, squares, loudest}), place, number(0));
      e.storeGlobal(e.vectorOf({reaches, top, variances[i], real(0)}), place, number(4));
    });
  }
}

/// Of the lane's tokens and query row, in a block whose loudest token is known.
void ScoresKernel::countTokens(int64_t tile, const Vals &octaves, Val loudest) {
  auto own = [&](Val second) { return warp * ownHeads + tile * kTileHeads + second; };
  Val mine = own(shrLogical(t, number(1))), before = e.load(loudestBins, mine), reached = binOf(loudest);
  Val last = select(reached > before, reached + kHeadroom * binsPerOctave, before);
  e.when(e.ballot(last > before) != 0, [&] { // bins that nobody counted in so far
    e.warpBarrier(); // all lanes know what was
    for (int64_t second = 0; second < kTileHeads; ++second) {
      Val from = e.shuffleFrom(before, number(2 * second)), to = e.shuffleFrom(last, number(2 * second));
      Val moved = convert(e.smallest(to - from, real(bins)), e.i32()), end = e.nearest(to).first;
      for (int64_t i = 0; i < bins; i += GpuEmitter::kWarp)
        e.when(lane + i < moved, [&] { e.store(number(0), tokenCounts, own(number(second)) * bins + ((end - lane - i) & (bins - 1))); });
    }
    e.when((g == 0) & ((t & 1) == 0), [&] { e.store(last, loudestBins, mine); });
    e.warpBarrier(); // all lanes find them empty
  });
  for (Val octave : octaves) {
    Val position = octave * binsPerOctave;
    e.when(position > last - (bins - 0.5), [&] { e.atomicAdd(number(1), tokenCounts, mine * bins + (e.nearest(position).first & (bins - 1))); });
  }
}

/// Those of the split's warps together.
void ScoresKernel::storeHistogram() {
  Val histogram = rowOf(Argument::Histogram, splits * (shape.heads * kHistogramNumbers), e.i32());
  forThreads(shape.heads * bins, [&](Val i) {
    Val h = i / bins, bin = i % bins, tile = shrLogical(h, number(1)), last = real(kLowest), count = number(0);
    auto own = [&](int64_t stream) { return (tile / tilesPerWarp + stream * warpsPerBlock) * ownHeads + tile % tilesPerWarp * kTileHeads + (h & 1); };
    for (int64_t stream = 0; stream < warps / warpsPerBlock; ++stream)
      last = e.largest(e.load(loudestBins, own(stream)), last);
    for (int64_t stream = 0; stream < warps / warpsPerBlock; ++stream) {
      Val ownLast = e.load(loudestBins, own(stream)), below = bin - convert(e.smallest(last - ownLast, real(bins)), e.i32());
      count = e.choose((below >= 0) & (ownLast > kLowest), [&]() -> Vals { return {count + e.load(tokenCounts, own(stream) * bins + ((e.nearest(ownLast).first - below) & (bins - 1)))}; },
                       [&]() -> Vals { return {count}; })[0];
    }
    Val at = (split * shape.heads + h) * kHistogramNumbers;
    e.storeGlobal(count, histogram, at + bin);
    e.when(bin == 0, [&] { e.storeGlobal(e.nearest(e.largest(last, real(-kWeightLimit))).first, histogram, at + kBins); });
  });
}

/// A warp for each query row, a lane for each block.
void ScoresKernel::summarise() {
  auto [first, end] = stretch();
  Val begin = first, behind = end, last = select(isLastSplit(), key.tokens, number(0));
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val own = ofHead(scores, h, key.stride * ALIGNED_BLOCK), numbers = blockNumbersOf(h);
    Val poison = poisonOf([&](Val h, Val channel) { return queryAt(h, channel); }, h); // integers could not carry it
    Vals s{real(-INFINITY), poison, real(kLowest), real(0)};
    s = e.loop(begin + lane, behind, GpuEmitter::kWarp, s, [&](Val index, Vals s) -> Vals {
      Val at = blockAt(index) * kBlockNumbers;
      auto of = [&](BlockNumber which) { return get(numbers, at + which); };
      Val maximum = e.largest(of(kBlockMaximum), s[0]);
      Val sum = fma(of(kBlockSum), weightOf(of(kBlockMaximum), maximum), s[1] * weightOf(s[0], maximum));
      return {maximum, sum, e.largest(of(kBlockLoudest), s[2]), e.largest(of(kBlockExponent), s[3])};
    });
    s = e.loop(key.blocks * ALIGNED_BLOCK + lane, last, GpuEmitter::kWarp, s, [&](Val token, Vals s) -> Vals {
      Vals added = addScores(s[0], s[1], {get(own, token)});
      return {added[0], added[1], s[2], s[3]};
    });
    storeStatistics(h, s[0], s[1], s[2], s[3]);
  });
}

void ScoresKernel::emit() {
  prepare(/*isCoarse=*/true);
  e.when(split == 0, [&] {
    Val keyWeights = rowOf(Argument::KeyWeights, shape.heads);
    forThreads(shape.heads, [&](Val h) { e.storeGlobal(e.load(finest, h), keyWeights, h); });
    if (shape.exact())
      return;
    Val plan = rowOf(Argument::Plan, shape.heads * kPlanNumbers);
    forThreads(shape.heads * kPlanNumbers, [&](Val i) { e.storeGlobal(real(0), plan, i); });
  });
  Vals coarse;
  for (int64_t half = 0; half < halfSteps(); ++half)
    coarse.push_back(e.load(groupLayers, firstGroup() + half));
  countsTokens = !shape.exact();
  if (countsTokens) {
    tokenCounts = shared("counts", e.i32(), warps * ownHeads * bins);
    loudestBins = shared("loudest", e.f32(), warps * ownHeads);
    forThreads(warps * ownHeads, [&](Val i) { e.store(real(kLowest), loudestBins, i); });
    e.barrier();
  }
  Vals fetched; // layers of the groups whose lines the lane asks for
  for (int64_t group = 0; group < groups(); group += GpuEmitter::kWarp)
    fetched.push_back(e.choose(lane + group < groups(), [&]() -> Vals { return {e.load(groupLayers, lane + group)}; }, [&]() -> Vals { return {number(0)}; })[0]);
  forBlocksOfWarp([&](Val block, Val next) {
    prefetchBlock(next, fetched);
    Reading reading{physical(key, block), {}, {}};
    for (Val wanted : coarse)
      reading.layers.push_back(limited(wanted, block));
    scoreBlock(block, reading);
  });
  e.when(isLastSplit(), [&] { scoreOpen([&](Val h, Val channel) { return queryAt(h, channel); }); });
  e.barrier(); // scores, counts and numbers are there
  if (countsTokens)
    storeHistogram();
  summarise();
  recordUnseen(groups());
  finish();
}

/// Finer scores where the plan asks for them.
void ScoresKernel::emitRefined() {
  Val plan = rowOf(Argument::Plan, shape.heads * kPlanNumbers);
  e.when(isPlanOpen(), [&] {
    prepare(/*isCoarse=*/false);
    Shared wants = shared("wants", e.f32(), warps * GpuEmitter::kWarp); // of the block that a warp has
    forBlocksOfWarp([&](Val block, Val) {
      // Inverse of the precision wanted of addends of each query row; 0 for what is precise enough.
      Val h = clamped(lane), numbers = blockNumbersOf(h), at = block * kBlockNumbers;
      auto of = [&](PlanOf what) { return get(plan, h * kPlanNumbers + what); };
      auto powerOf = [&](Val octaves) { return e.exp2((octaves - of(kNormal)) * 2); };
      Val leverage = sqrt(powerOf(get(numbers, at + kBlockMaximum) * kLog2e) * of(kPower) + powerOf(get(numbers, at + kBlockLoudest) - of(kTop)) * of(kFill));
      Val want = select(leverage * kCoarse > of(kPrecisionK), leverage / of(kPrecisionK), real(0));
      e.when(e.ballot(want > 0) != 0, [&] {
        e.store(want, wants, warp * GpuEmitter::kWarp + lane);
        e.warpBarrier(); // all of them are there
        // The lanes of t share its groups, and say to one another what they found: layers from now on, and as they are.
        constexpr int64_t kSharers = GpuEmitter::kWarp / 4;
        Val where = physical(key, block), exponents = blockOf(key.exponent, where, shape.keyDim), more = number(0);
        Vals found;
        for (int64_t half = 0; half < halfSteps(); half += kSharers) {
          Val group = firstGroup() + min(g + half, number(halfSteps() - 1)), bytes = e.loadGlobal(exponents, e.i32(), group);
          Vals scales;
          for (int64_t c = 0; c < 4; ++c)
            scales.push_back(unitScale(shrLogical(bytes, number(8 * c)) & 255));
          Val reach = e.loop(number(0), number(shape.heads), 1, {real(0)}, [&](Val h, Vals reach) -> Vals {
            Val four = e.load(query, h * shape.keyDim + group * 4, 4), most = real(0);
            for (int64_t c = 0; c < 4; ++c)
              most = e.largest(abs(aligned::lane(four, c)) * scales[c], most);
            return {e.largest(most * e.load(wants, warp * GpuEmitter::kWarp + h), reach[0])};
          })[0];
          Val before = zext(e.loadGlobal(keyLayers, e.i8(), block * groups() + group, /*constant=*/false), e.i32());
          Val layers = max(limited(wholePlanes(layersFor(reach * 32768.0, kUnread), key.layers, shape.keyPlanes), block), before);
          more = more | (layers - before);
          found.push_back(layers | (before << 4));
        }
        e.when(e.ballot(more > 0) != 0, [&] {
          Reading reading{where, {}, {}};
          for (int64_t half = 0; half < halfSteps(); ++half) {
            Val both = e.shuffleFrom(found[half / kSharers], t + half % kSharers * 4);
            reading.layers.push_back(both & 15);
            if (!shape.softcap) // capped scores don't add up
              reading.before.push_back(shrLogical(both, number(4)));
          }
          meetSharers(); // all have read what they are about to write
          scoreBlock(block, reading);
        });
        e.warpBarrier(); // and what was wanted
      });
    });
    e.barrier(); // all numbers are there
    summarise();
  });
  finish();
}

} // namespace

void aligned::emitScores(ModuleOp program, StringRef name, const DecodeShape &shape) { ScoresKernel(program, name, shape).emit(); }
void aligned::emitRefine(ModuleOp program, StringRef name, const DecodeShape &shape) { ScoresKernel(program, name, shape).emitRefined(); }
