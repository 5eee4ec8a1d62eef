// The stages that every storage format shares; see the header.
#include "RowKernel.h"

#include "../Common/Certificate.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// The row
//===----------------------------------------------------------------------===//

void RowKernel::emit(Val argumentsPointer, Val rowIndex) {
  arguments = argumentsPointer;
  row = rowIndex;
  tokens = tokenCount();
  padded = (tokens + (kTile - 1)) / kTile * kTile;
  auto given = [&](bool isGiven, Slot slot, Type type) { return isGiven ? e.field(arguments, int64_t(slot) * kSlotBytes, type) : Val(); };
  Type indexType = e.types.getIndexType();
  newest = shape.later ? tokens - given(true, Slot::Later, indexType) : tokens;
  sight = Sight(shape.mask, shape.queries, given(shape.mask && shape.mask.hasDynamicWindow(), Slot::Window, indexType),
                given(shape.mask && shape.mask.hasDynamicSinks(), Slot::Sinks, indexType));
  cap = Softcap(shape.softcap, given(shape.dynamicSoftcap, Slot::Softcap, e.f32()));
  if (shape.mask)
    visible = visibleTiles(padded / kTile, newest, sight);
  Val heads = index(shape.heads);
  scratch(w, e.f32(), heads * shape.keyDim);
  scratch(s, e.f32(), heads * padded);
  scratch(p, e.f32(), heads * padded);
  scratch(rowMax, e.f32(), heads);
  scratch(rowSum, e.f32(), heads);
  scratch(out, e.f32(), heads * shape.valueDim);
  tileStride = (padded / kTile + (kTileLanes - 1)) / kTileLanes * kTileLanes;
  if (shape.certified) {
    scratch(certificate, e.f32(), heads * kCertificateNumbers);
    scratch(scoreError, e.f32(), heads * tileStride);
    scratch(growthSum, e.f32(), heads);
  }
  allocate();
  resolveScratch();

  loadQueries();
  if (shape.certified && shape.mask) // tiles that no query sees have no errors
    e.loop(index(0), tileStride * shape.heads, kTileLanes, [&](Val i) { e.store(e.constant(VectorType::get(kTileLanes, e.f32()), 0), scoreError, i); });
  scores();
  forHeads([&](Val h) { e.store(e.constant(VectorType::get(shape.valueDim, e.f32()), 0), out, h * shape.valueDim); });
  values();
  if (shape.certified)
    certify();
  storeState();
  reportReading();
}

void RowKernel::tally(Val keyBits, Val valueBits) {
  auto asI64 = [&](Val number) { return convert(number, e.i64()).value; };
  func::CallOp::create(e.b, "aligned_rt_tally", TypeRange(),
                       ValueRange{attention(), asI64(keyBits), asI64(tokens * shape.keyDim), asI64(valueBits),
                                  asI64(tokens * shape.valueDim)});
}

void RowKernel::resolveScratch() {
  // Every buffer starts on a cache line, with room for one vector past its end.
  Val bytes = index(0);
  Vals offsets;
  for (const Request &request : requests) {
    offsets.push_back(bytes);
    Val size = request.count * (request.element.getIntOrFloatBitWidth() / 8);
    bytes = bytes + (size + 127) / 64 * 64;
  }
  Val base = e.wrap(func::CallOp::create(e.b, "aligned_rt_scratch", TypeRange(e.pointer()), ValueRange{convert(bytes, e.i64()).value}).getResult(0));
  for (auto [request, offset] : llvm::zip(requests, offsets))
    *request.buffer = e.buffer(e.advance(base, offset), request.element);
}

void RowKernel::loadQueries() {
  Buffer query = e.buffer(e.field(arguments, int64_t(Slot::Query) * kSlotBytes, e.pointer()), shape.query);
  Val scale = e.splat(e.field(arguments, int64_t(Slot::Scale) * kSlotBytes, e.f32()), shape.keyDim);
  Val first = row * (shape.heads * shape.keyDim);
  forHeads([&](Val h) {
    Val offset = h * shape.keyDim;
    Val weights = convert(e.load(query, first + offset, shape.keyDim), e.f32()) * scale;
    if (shape.hasSoftcap()) // which would make infinite scores finite
      weights = weights + weights * 0;
    e.store(weights, w, offset);
  });
}

//===----------------------------------------------------------------------===//
// Masks and softcap
//===----------------------------------------------------------------------===//

RowKernel::Stretches RowKernel::stretchesOf(Val begin, Val end) {
  Val last = max(min(end, visible.end), begin), sinks = min(max(visible.sinks, begin), last);
  return {begin, sinks, min(max(visible.begin, sinks), last), last};
}

Vals RowKernel::forTiles(Val begin, Val end, Vals initial, function_ref<Vals(Val, Vals)> body) {
  if (!shape.mask)
    return e.loop(begin, end, 1, initial, body);
  Stretches seen = stretchesOf(begin, end);
  Val gap = seen.window - seen.sinks, none = index(0);
  return e.loop(begin, seen.end - gap, 1, initial, [&](Val tile, Vals state) { return body(tile + select(tile < seen.sinks, none, gap), state); });
}

void RowKernel::forTiles(Val begin, Val end, function_ref<void(Val)> body) {
  forTiles(begin, end, {}, [&](Val tile, Vals) -> Vals {
    body(tile);
    return {};
  });
}

Vals RowKernel::forTokens(Val begin, Val end, Vals initial, function_ref<Vals(Val, Vals)> body) {
  if (!shape.mask)
    return e.loop(begin, end, kTile, initial, body);
  return forTiles(begin / kTile, (end + (kTile - 1)) / kTile, initial, [&](Val tile, Vals state) { return body(tile * kTile, state); });
}

void RowKernel::forTokens(Val begin, Val end, function_ref<void(Val)> body) {
  forTokens(begin, end, {}, [&](Val t, Vals) -> Vals {
    body(t);
    return {};
  });
}

Val RowKernel::countTiles(Val end) {
  if (!shape.mask)
    return end;
  Stretches seen = stretchesOf(index(0), end);
  return seen.sinks + seen.end - seen.window;
}

Val RowKernel::areSeen(Val t) {
  Val each = e.splat(convert(t, e.i32()), kTile) + e.iota(e.i32(), kTile);
  return areVisible(each, each, newest, sight);
}

void RowKernel::finishScores(Val tile) {
  Val each = e.splat(convert(tile * kTile, e.i32()), kTile) + e.iota(e.i32(), kTile), there = each < e.splat(convert(tokens, e.i32()), kTile);
  auto finish = [&] {
    forHeads([&](Val h) {
      Val at = h * padded + tile * kTile, score = e.load(s, at, kTile);
      if (shape.hasSoftcap())
        score = softcapped(score, cap);
      if (shape.attnMask)
        score = underMask(score, h, tile);
      Val seen = shape.mask ? there & sees(h, each) : there;
      e.store(select(seen, score, e.constant(score.type(), -INFINITY)), s, at);
    });
  };
  if (shape.mask || shape.hasSoftcap() || shape.attnMask)
    return finish();
  e.when((tile + 1) * kTile > tokens, finish); // lanes behind the last token
}

std::pair<Buffer, Val> RowKernel::maskOf(Val h) {
  MemRefType type = shape.attnMask;
  Buffer memory = e.buffer(e.field(arguments, int64_t(Slot::AttnMask) * kSlotBytes, e.pointer()), type.getElementType().isInteger(1) ? e.i8() : type.getElementType());
  auto along = [&](int64_t dim, Val at, Val coordinate, int64_t extent) { return type.getDimSize(dim) == 1 ? at : at * extent + coordinate; };
  Val at = along(0, index(0), row / index(shape.kvHeads), 1);
  at = along(1, at, headOf(h), shape.heads / shape.queries * shape.kvHeads);
  return {memory, along(2, at, h % index(shape.queries), shape.queries) * tokens};
}

Val RowKernel::takesPart(Val h, Val t) {
  Val seen = shape.mask ? sees(h, t) : e.constant(e.types.getI1Type(), 1);
  if (!shape.attnMask)
    return seen;
  auto [memory, first] = maskOf(h);
  return seen & invert(hides(e.load(memory, first + t)));
}

Val RowKernel::underMask(Val score, Val h, Val tile) {
  const std::pair<Buffer, Val> mask = maskOf(h);
  const Buffer memory = mask.first;
  Val at = mask.second + tile * kTile;
  Buffer tail = e.local(memory.element, kTile);
  Val number = e.choose((tile + 1) * kTile <= tokens, [&]() -> Vals { return {e.load(memory, at, kTile)}; },
                        [&]() -> Vals { // nothing lies behind the last token
                          e.store(e.constant(VectorType::get(kTile, memory.element), 0), tail, index(0));
                          e.loop(index(0), tokens - tile * kTile, 1, [&](Val i) { e.store(e.load(memory, at + i), tail, i); });
                          return {e.load(tail, index(0), kTile)};
                        })[0];
  return select(hides(number), e.constant(score.type(), -INFINITY), number.isFloat() ? score + convert(number, e.f32()) : score); // a score that is no number says nothing there
}

void RowKernel::softmax() {
  constexpr double kLowest = -3.4028234663852886e38;
  Type vector = VectorType::get(kTile, e.f32());
  forHeads([&](Val h) {
    // A score that is NaN is no maximum, but its weight and with it the sum are NaN.
    Val base = h * padded;
    Val top = forTokens(index(0), padded, {e.constant(vector, -INFINITY)}, [&](Val t, Vals m) -> Vals {
      return {larger(e.load(s, base + t, kTile), m[0])};
    })[0];
    Val m = reduceMax(top);
    Val sink;
    if (shape.sinkLogits) {
      sink = e.load(e.buffer(e.field(arguments, int64_t(Slot::SinkLogits) * kSlotBytes, e.pointer()), e.f32()), headOf(h));
      m = larger(sink, m);
    }
    // A row of -inf must not turn into -inf - -inf.
    Val shift = e.splat(max(m, kLowest), kTile);
    Val sums = forTokens(index(0), padded, {e.constant(vector, 0)}, [&](Val t, Vals sum) -> Vals {
      Val weight = exp(e.load(s, base + t, kTile) - shift);
      e.store(weight, p, base + t);
      return {sum[0] + weight};
    })[0];
    Val sum = reduceAdd(sums);
    if (shape.sinkLogits)
      sum = sum + exp(sink - max(m, kLowest));
    else if (!shape.maskedZero) // softmax of nothing but -inf is 0 / 0
      sum = select(m == -INFINITY, select(tokens > 0, f32(NAN), f32(0)), sum);
    e.store(m, rowMax, h);
    e.store(sum, rowSum, h);
  });
}

void RowKernel::storeState() {
  auto result = [&](Slot slot) { return e.buffer(e.field(arguments, int64_t(slot) * kSlotBytes, e.pointer()), e.f32()); };
  Buffer acc = result(Slot::Acc), maxima = result(Slot::Max), sums = result(Slot::Sum);
  Val first = row * shape.heads;
  forHeads([&](Val h) {
    // A row without weight has the identity as its state, whatever its scales were.
    Val sum = e.load(out, h * shape.valueDim, shape.valueDim), zero = e.constant(sum.type(), 0);
    e.store(select(e.load(rowSum, h) == 0, zero, sum), acc, (first + h) * shape.valueDim);
    e.store(e.load(rowMax, h), maxima, first + h);
    e.store(e.load(rowSum, h), sums, first + h);
    if (shape.certified)
      for (int64_t number = 0; number < kCertificateNumbers; ++number)
        e.store(e.load(certificate, h * kCertificateNumbers + number), result(Slot::Certificate), (first + h) * kCertificateNumbers + number);
  });
}

//===----------------------------------------------------------------------===//
// The certificate
//===----------------------------------------------------------------------===//

void RowKernel::certify() {
  // e^x of the softmax is off by less than 2^-21, and x = s - max by its rounding, at most 88 * 2^-24 where e^x is not 0.
  constexpr double kSoftmaxRounding = 0x1p-21 + 88 * 0x1p-24;
  const Val rounding = (cap.rounding + kSoftmaxRounding).as(e, e.f32()); // a cap brings scores closer, and itself rounds
  auto roundingOf = [&](Val h) { return addsMask(shape) ? maskRounding(e.load(rowMax, h), 88) + rounding : rounding; };
  Val zero = e.constant(VectorType::get(kTile, e.f32()), 0), zeroTiles = e.constant(VectorType::get(kTileLanes, e.f32()), 0);
  prepareCertificate();
  Val keyMax = keyChannelMax(), largest = valueMax(), unit = valueUnit(), tiles = inexactTiles();
  auto asFloat = [&](Val count) { return convert(convert(count, e.i64()), e.f32()); };
  Val valueRounding = (asFloat(additions() + padded / kTile) + 160) * 0x1p-24; // of out and of the sum of weights
  Val inflation = asFloat(padded / lanes + 512) * 0x1p-24 + 1;                  // of the sums below, a lane at a time
  forTiles(index(0), tiles, [&](Val tile) { boundScores(tile); });
  forHeads([&](Val h) {
    Val lost = e.loop(index(0), tiles, kTileLanes, {zeroTiles}, [&](Val tile, Vals lost) -> Vals {
      Val at = h * tileStride + tile, grown = growth(e.load(scoreError, at, kTileLanes) + e.splat(roundingOf(h), kTileLanes));
      e.store(grown, scoreError, at);
      Val number = e.splat(convert(tile, e.i32()), kTileLanes) + e.iota(e.i32(), kTileLanes), there = number < e.splat(convert(tiles, e.i32()), kTileLanes);
      return {lost[0] + select(there, grown, zeroTiles) * (kTile * kLeastWeight)};
    })[0];
    e.store(reduceAdd(lost), growthSum, h);
  });
  constexpr int64_t kSums = 6;
  forHeadGroups(kSums, [&](Val head, int64_t heads) {
    // Per query row the sums of w g, w g m, w m, w r, w^2 v and of w m of the rows that are not read.
    Vals sums = forTiles(index(0), tiles, Vals(kSums * heads, e.constant(VectorType::get(lanes, e.f32()), 0)), [&](Val tile, Vals sums) {
      RowBounds rows = boundValues(tile * kTile);
      for (int64_t h = 0; h < heads; ++h) {
        Val grown = e.splat(e.load(scoreError, (head + h) * tileStride + tile), lanes);
        Val *sum = &sums[kSums * h], weighed = e.constant(grown.type(), 0), reached = weighed; // the tile shares g
        for (int64_t lane = 0; lane < kTile; lane += lanes) {
          auto of = [&](Val rows) { return slice(rows, lane, lanes); };
          Val weights = e.load(p, (head + h) * padded + tile * kTile + lane, lanes);
          weighed = weighed + weights;
          reached = reached + weights * of(rows.reach);
          sum[3] = sum[3] + weights * of(rows.error);
          if (rows.variance)
            sum[4] = sum[4] + weights * weights * of(*rows.variance);
          if (rows.unread)
            sum[5] = sum[5] + weights * of(*rows.unread);
        }
        sum[0] = sum[0] + weighed * grown;
        sum[1] = sum[1] + reached * grown;
        sum[2] = sum[2] + reached;
      }
      return sums;
    });
    for (int64_t h = 0; h < heads; ++h) {
      Val total[kSums];
      for (int64_t i = 0; i < kSums; ++i)
        total[i] = reduceAdd(sums[kSums * h + i]);
      // Dense tokens: products and sums of f32.
      Val row = head + h;
      Val scoreRounding = reduceAdd(abs(e.load(w, row * shape.keyDim, shape.keyDim)) * keyMax) * ((shape.keyDim / 8 + 12) * 0x1p-24);
      Val mass = reduceAdd(forTokens(tiles * kTile, padded, {zero}, [&](Val t, Vals sum) -> Vals {
        return {sum[0] + e.load(p, row * padded + t, kTile)};
      })[0]);
      Vals numbers = certificateOf({total[0], total[1], total[2], total[3], total[4], total[5], e.load(growthSum, row), mass, growth(scoreRounding + roundingOf(row)),
                                    unit, largest, weightError(row), scoreVariance(row), e.load(rowSum, row), asFloat(tokens), valueRounding, inflation, commonShare()});
      for (auto [number, value] : llvm::enumerate(numbers))
        e.store(value, certificate, row * kCertificateNumbers + number);
    }
  });
}

//===----------------------------------------------------------------------===//
// Query rows
//===----------------------------------------------------------------------===//

void RowKernel::forHeads(function_ref<void(Val)> body) { e.loop(index(0), index(shape.heads), 1, body); }

void RowKernel::forHeadGroups(int64_t vectorsPerHead, function_ref<void(Val, int64_t)> body) {
  int64_t registers = shape.isa == Isa::AVX512 ? 24 : 12;
  int64_t group = std::clamp<int64_t>(registers / vectorsPerHead, 1, shape.heads), whole = shape.heads / group * group;
  e.loop(index(0), index(whole), group, [&](Val head) { body(head, group); });
  if (whole < shape.heads)
    body(index(whole), shape.heads - whole);
}
