// See the header for the idea.
#include "AppendKernel.h"

#include "GpuKernel.h"
#include "Sidecar.h"

#include "../Common/DecodeShape.h"
#include "../Common/StoredBits.h"

#include "aligned/Runtime/DeviceCache.h"
#include "aligned/Storage/Rotation.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <cmath>
#include <cstddef>

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kWarps = 4;
constexpr int64_t kInfinity = 0x7f800000;     // bits of a float's magnitude from here on are of what is not finite
constexpr int64_t kHalfOverflow = 0x477ff000; // bits of the least float that rounds to an infinite half
constexpr int64_t kNoCode = INT32_MIN / 2;    // of a token of zeros: below all codes, whatever the bias

enum class AppendArgument { Cache, Data, Counts, Stride0, Stride1, Stride2, Stride3 };

SmallVector<Type> argumentTypes(MLIRContext *context) {
  Type pointer = LLVM::LLVMPointerType::get(context, 1), i64 = IntegerType::get(context, 64);
  return {pointer, pointer, pointer, i64, i64, i64, i64};
}

aligned_format formatOf(const AppendShape &shape) {
  aligned_format format = aligned::formatOf(shape.split);
  format.element = shape.element.isF16() ? ALIGNED_ELEMENT_F16 : shape.element.isBF16() ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F32;
  return format;
}

class AppendKernel : public GpuKernel {
public:
  AppendKernel(ModuleOp program, StringRef name, int64_t warps, const AppendShape &shape)
      : GpuKernel(program, name, warps, argumentTypes(program.getContext())), shape(shape), format(formatOf(shape)), dim(shape.headDim),
        registers(llvm::divideCeil(dim, GpuEmitter::kWarp)), isKey(format.role == ALIGNED_ROLE_KEY), isFixed(format.kind == ALIGNED_FORMAT_FIXED) {
    cache = argument(AppendArgument::Cache);
  }

  void emitMeasure();
  void emitPack();
  void emitAdvance();
  void emitForget();
  void emitUnlist();

private:
  const AppendShape &shape;
  const aligned_format format;
  const int64_t dim, registers; ///< a lane has channel 32 r + lane in register r of a token
  const bool isKey, isFixed;
  Val cache, row, batch, kvHead, kvHeads;
  Val before, total;    ///< tokens of the row, without and with those that come, or go
  Val begin, end, base; ///< those of the tile at work that come or go, and its first
  Val place;            ///< where it lies
  Val dataOfRow;
  Shared offsets, flags;

  Val argument(AppendArgument which) { return e.wrap(function.getArgument(static_cast<unsigned>(which))); }
  Val word(int64_t offset, Type type, bool constant = true) { return e.loadGlobal(e.at(cache, e.i8(), number(offset)), type, number(0), constant); }
  void setWord(Val value, int64_t offset) { e.storeGlobal(value, e.at(cache, e.i8(), number(offset)), number(0)); }
  Val wideNumber(int64_t n) { return e.constant(e.i64(), double(n)); }
  Val countOf(Val entry) { return e.loadGlobal(argument(AppendArgument::Counts), e.i32(), entry); }
  Val scalesOf(Val row) { return e.at(addressOf(cache, offsetof(aligned_cache, scales)), e.i8(), wide(row) * sizeof(aligned_scales)); }
  /// The row's part of an array [rows][head_dim] that is a field.
  Val ofRow(int64_t offset, Type element) { return e.at(addressOf(cache, offset), element, wide(row) * dim); }
  void count(Val code, Val tokens) { e.atomicAdd(tokens, e.at(scalesOf(row), e.i8(), number(offsetof(aligned_scales, count))), code); }

  /// Runs `body` where this block of threads has tokens.
  void inTile(function_ref<void()> body);
  /// Runs `body` for the tile's tokens, one for each warp.
  Vals forTokens(Vals state, function_ref<Vals(Val token, Vals state)> body) {
    return e.loop(begin + warp, end, warps, state, body);
  }
  Val dither(Val token) { return ditherSteps(token, format.role) - storage::kDitherSteps / 2; }

  // Values: their bits as i32, and as floats.
  bool isHalfRegister(int64_t r) { return r == dim / GpuEmitter::kWarp; }
  Val isChannel(int64_t r) { return isHalfRegister(r) ? lane < dim % GpuEmitter::kWarp : e.flag(true); }
  /// Channel 32 r + lane, or another where there is none.
  Val channelOf(int64_t r) { return isHalfRegister(r) ? (lane & (dim % GpuEmitter::kWarp - 1)) + r * GpuEmitter::kWarp : lane + r * GpuEmitter::kWarp; }
  Val patternAt(Val token, Val channel);
  Val floatOf(Val pattern);
  Val magnitudeOf(Val x) { return bitcast(x, e.i32()) & INT32_MAX; }
  int64_t infinity() { return shape.element.isF16() ? 0x7c00 : shape.element.isBF16() ? 0x7f80 : isFixed ? kInfinity : kHalfOverflow; }
  Val isBeyond(Val pattern) { return (pattern & (shape.element.isF32() ? INT32_MAX : 0x7fff)) >= infinity(); }

  // Fixed formats.
  void settleOffset(bool store);
  struct Token {
    Vals patterns, raw, stored;
    Val magnitude; ///< bits of the largest stored
  };
  Token load(Val token);
  void rotate(Vals &x);
  Val eighthsAbove(Val magnitude);
  Val biasFor(Val largest);
  Val bias();
  Val isSettling() { return word(offsetof(aligned_device_cache, bias_is_settled), e.i32(), /*constant=*/false) == 0; }
  Val largestThatComes() { return word(offsetof(aligned_device_cache, largest), e.i32(), /*constant=*/false); }

  void keepAside(Val token, const Token &loaded);
  Val halvesOf(Val low, Val high) { return low | (high << 4); }
  void writePlanes(Shared cut);
  void writeRows(Shared cut, Val plane, int64_t width, int64_t below);
  void writeTiled(Shared cut, Val plane, int64_t width, int64_t below);
  void writeFloatKeys(Shared cut, Val plane, int64_t width, int64_t below);
  void ofPlanes(function_ref<void(int64_t p, Val plane)> body);
};

//===----------------------------------------------------------------------===//
// Where tokens are
//===----------------------------------------------------------------------===//

void AppendKernel::inTile(function_ref<void()> body) {
  row = e.block(gpu::Dimension::y);
  kvHeads = convert(field(cache, offsetof(aligned_cache, kv_heads)), e.i32());
  batch = row / kvHeads;
  kvHead = row % kvHeads;
  before = tokensOf(cache, batch);
  total = before + countOf(batch);
  Val first = min(before, total), tile = shrLogical(first, number(6)) + e.block(gpu::Dimension::x);
  base = tile * kTile;
  begin = max(base, first);
  end = min(base + kTile, max(before, total));
  dataOfRow = e.at(argument(AppendArgument::Data), e.types.getIntegerType(shape.element.getIntOrFloatBitWidth()),
                   wide(batch) * argument(AppendArgument::Stride0) + wide(kvHead) * argument(AppendArgument::Stride1));
  e.when(begin < end, [&] {
    Val tiles = convert(shrLogical(field(cache, offsetof(aligned_cache, capacity)), wideNumber(6)), e.i32());
    place = placeAt(placesOf(cache, tiles, row, batch, kvHeads, kvHead), tile);
    body();
  });
}

Val AppendKernel::patternAt(Val token, Val channel) {
  Type bits = e.types.getIntegerType(shape.element.getIntOrFloatBitWidth());
  Val pattern = e.loadGlobal(dataOfRow, bits, wide(token - before) * argument(AppendArgument::Stride2) + wide(channel) * argument(AppendArgument::Stride3));
  return shape.element.isF32() ? pattern : zext(pattern, e.i32());
}

Val AppendKernel::floatOf(Val pattern) {
  if (shape.element.isF32())
    return bitcast(pattern, e.f32());
  if (shape.element.isBF16())
    return bitcast(pattern << 16, e.f32());
  return convert(bitcast(convert(pattern, e.i16()), shape.element), e.f32());
}

//===----------------------------------------------------------------------===//
// Fixed formats: offset, rotation, scale
//===----------------------------------------------------------------------===//

/// S2: what is taken off the row, to shared memory; an empty row that gets a tile's tokens settles it as the mean of the finite ones among them. Every block of threads finds it by
/// itself, in the same order.
void AppendKernel::settleOffset(bool store) {
  if (!isKey)
    return;
  offsets = shared("offset", e.f32(), dim);
  flags = shared("finite", e.i32(), kTile);
  Val there = ofRow(offsetof(aligned_cache, offset), e.f32());
  Val settles = (before == 0) & (total >= kTile) & (word(offsetof(aligned_device_cache, offset_is_set), e.i32()) == 0);
  e.when(settles, [&] {
    e.loop(warp, number(kTile), warps, [&](Val t) {
      Val beyond = isBeyond(patternAt(t, channelOf(0)));
      for (int64_t r = 1; r < registers; ++r)
        beyond = beyond | isBeyond(patternAt(t, channelOf(r)));
      Val some = e.any(beyond);
      e.when(lane == 0, [&] { e.store(select(some, number(0), number(1)), flags, t); });
    });
    e.barrier();
    forThreads(dim, [&](Val channel) {
      Type f64 = e.types.getF64Type();
      Vals sum = e.loop(number(0), number(kTile), 1, {e.constant(f64, 0), number(0)}, [&](Val t, Vals sum) -> Vals {
        Val finite = e.load(flags, t), x = convert(floatOf(patternAt(t, channel)), f64);
        return {select(finite != 0, sum[0] + x, sum[0]), sum[1] + finite};
      });
      Val mean = convert(sum[0] / convert(max(sum[1], 1), f64), e.f32());
      e.store(mean, offsets, channel);
      if (store)
        e.when(e.block(gpu::Dimension::x) == 0, [&] { e.storeGlobal(mean, there, channel); });
    });
  });
  e.when(invert(settles), [&] { forThreads(dim, [&](Val channel) { e.store(get(there, channel), offsets, channel); }); });
  e.barrier();
}

AppendKernel::Token AppendKernel::load(Val token) {
  Token loaded;
  for (int64_t r = 0; r < registers; ++r) {
    Val channel = channelOf(r), pattern = select(isChannel(r), patternAt(token, channel), number(0));
    loaded.patterns.push_back(pattern);
    loaded.raw.push_back(floatOf(pattern));
    loaded.stored.push_back(!isFixed || !isKey ? loaded.raw[r] : select(isChannel(r), e.addUnfused(loaded.raw[r], -e.load(offsets, channel)), real(0)));
  }
  if (!isFixed)
    return loaded;
  if (isKey)
    rotate(loaded.stored);
  loaded.magnitude = magnitudeOf(loaded.stored[0]);
  for (int64_t r = 1; r < registers; ++r)
    loaded.magnitude = max(loaded.magnitude, magnitudeOf(loaded.stored[r]));
  loaded.magnitude = e.warpMaxAll(loaded.magnitude);
  return loaded;
}

/// What storage::rotate does, with the same additions in the same order of butterflies: those between lanes, then between registers.
void AppendKernel::rotate(Vals &x) {
  auto flip = [&](Val x, Val sign) { return bitcast(bitcast(x, e.i32()) ^ sign, e.f32()); };
  for (int64_t r = 0; r < registers; ++r) {
    uint32_t signs = 0;
    for (int64_t i = 0; i < GpuEmitter::kWarp; ++i)
      signs |= uint32_t(storage::signOf(r * GpuEmitter::kWarp + i) < 0) << i;
    x[r] = flip(x[r], shrLogical(number(int32_t(signs)), lane) << 31);
    for (int64_t half = 1; half < std::min(GpuEmitter::kWarp, dim - r * GpuEmitter::kWarp); half *= 2)
      x[r] = e.addUnfused(e.shuffleXor(x[r], half), flip(x[r], (lane & half) << (31 - llvm::Log2_64(half))));
  }
  for (int64_t first = 0; first < dim;) {
    int64_t size = storage::blockAt(first, dim), from = first / GpuEmitter::kWarp, count = size / GpuEmitter::kWarp;
    for (int64_t half = 1; half < count; half *= 2)
      for (int64_t i = from; i < from + count; i += 2 * half)
        for (int64_t j = i; j < i + half; ++j) {
          Val a = x[j], b = x[j + half];
          x[j] = e.addUnfused(a, b);
          x[j + half] = e.addUnfused(a, -b);
        }
    for (int64_t r = from; r < from + std::max<int64_t>(count, 1); ++r)
      x[r] = e.multiplyUnfused(x[r], real(float(1 / std::sqrt(double(size)))));
    first += size;
  }
}

/// S3: the least k with 2^(k/8) >= 16/15 x, of the bits of a finite x >= 0: eight times the exponent, and how many of the fractions it passes after which k is one more.
Val AppendKernel::eighthsAbove(Val magnitude) {
  constexpr double powers[] = {1.0905077326652577, 1.1892071150027210, 1.2968395546510096, 1.4142135623730951,
                               1.5422108254079408, 1.6817928305074290, 1.8340080864093424, 2};
  Val isSubnormal = magnitude < 0x00800000; // its bits count units of 2^-149
  Val bits = select(isSubnormal, bitcast(convert(magnitude, e.f32()), e.i32()), magnitude);
  Val exponent = (bits >> 23) - select(isSubnormal, number(127 + 149), number(127)), fraction = bits & 0x7fffff;
  Val k = exponent * storage::kStepsPerOctave + 1;
  for (double power : powers)
    k = k + zext(fraction > double(int32_t((power * 15 / 16 - 1) * 0x1p23)), e.i32());
  return select(magnitude == 0, number(kNoCode), k);
}

Val AppendKernel::biasFor(Val largest) {
  constexpr int64_t least = -storage::biasFor(INT32_MIN) + storage::kFirstCode, most = -storage::biasFor(INT32_MAX) + storage::kFirstCode;
  return number(storage::kFirstCode) - min(max(eighthsAbove(largest), least), most);
}

/// Of the tokens that come.
Val AppendKernel::bias() {
  Val there = convert(field(cache, offsetof(aligned_cache, bias)), e.i32());
  if (shape.element.isF16())
    return there;
  Val largest = largestThatComes();
  return select(isSettling() & (largest > 0), biasFor(largest), there);
}

//===----------------------------------------------------------------------===//
// Measure
//===----------------------------------------------------------------------===//

void AppendKernel::emitMeasure() {
  e.when(isSettling(), [&] {
    inTile([&] {
      settleOffset(/*store=*/false);
      Val largest = forTokens({number(0)}, [&](Val token, Vals largest) -> Vals {
        Val magnitude = load(token).magnitude;
        return {max(largest[0], select(magnitude < kInfinity, magnitude, number(0)))};
      })[0];
      e.when((lane == 0) & (largest > 0), [&] { e.atomicMax(largest, e.at(cache, e.i8(), number(offsetof(aligned_device_cache, largest))), number(0)); });
    });
  });
  finish();
}

//===----------------------------------------------------------------------===//
// Pack
//===----------------------------------------------------------------------===//

/// S7. What finds no room is counted all the same: the host sees that some is missing.
void AppendKernel::keepAside(Val token, const Token &loaded) {
  Val slot = e.choose(
      lane == 0, [&]() -> Vals { return {convert(e.atomicAdd(wideNumber(1), e.at(cache, e.i8(), number(offsetof(aligned_cache, asides))), number(0)), e.i32())}; },
      [&]() -> Vals { return {number(0)}; })[0];
  slot = e.shuffleFrom(slot, number(0));
  e.when(wide(slot) < field(cache, offsetof(aligned_device_cache, aside_capacity)), [&] {
    e.when(lane == 0, [&] {
      Val list = addressOf(cache, offsetof(aligned_cache, aside));
      e.storeGlobal(wide(row), list, slot * 2);
      e.storeGlobal(wide(token), list, slot * 2 + 1);
    });
    Val values = addressOf(cache, offsetof(aligned_cache, aside_values)), patterns = addressOf(cache, offsetof(aligned_device_cache, aside_patterns));
    for (int64_t r = 0; r < registers; ++r)
      e.when(isChannel(r), [&] {
        Val channel = channelOf(r), at = wide(slot) * dim + wide(channel);
        e.storeGlobal(isFixed && isKey ? e.addUnfused(loaded.raw[r], -e.load(offsets, channel)) : loaded.raw[r], values, at);
        e.storeGlobal(shape.element.isF32() ? loaded.patterns[r] : convert(loaded.patterns[r], e.i16()), patterns, at);
      });
  });
}

/// Runs `body` for the planes that are there (S9), with the tile's address.
void AppendKernel::ofPlanes(function_ref<void(int64_t, Val)> body) {
  Val resident = field(cache, offsetof(aligned_cache, planes));
  for (int32_t p = 0; p < format.planes; ++p)
    e.when(resident > double(p), [&] {
      body(p, tileOf(addressOf(cache, offsetof(aligned_cache, plane) + p * sizeof(void *)), place, storage::bytesPerTile(format.width[p], dim)));
    });
}

/// Rows of tokens, word by word. Of float formats, a layer after another.
void AppendKernel::writeRows(Shared cut, Val plane, int64_t width, int64_t below) {
  int64_t layers = isFixed ? 1 : width / 4, words = storage::rowBytes(int32_t(width), dim) / layers / 4;
  e.loop((begin - base) * words + thread, (end - base) * words, threads, [&](Val i) {
    Val t = i / words, own = i % words;
    auto bits = [&](Val channel, int64_t shift, int64_t mask) { return shrLogical(zext(e.load(cut, t * dim + channel), e.i32()), number(shift)) & mask; };
    for (int64_t layer = 0; layer < layers; ++layer) {
      int64_t shift = isFixed ? below : below + width - 4 - 4 * layer;
      Val all = number(0);
      for (int64_t byte = 0; byte < 4; ++byte) {
        Val one = own * 4 + byte;
        if (!isFixed)
          one = halvesOf(bits(one, shift, 15), bits(one + dim / 2, shift, 15));
        else
          one = width == 4 ? halvesOf(bits(one * 2, shift, 15), bits(one * 2 + 1, shift, 15)) : bits(one, shift, 255);
        all = all | (one << (8 * byte));
      }
      e.storeGlobal(all, plane, (t * layers + layer) * words + own);
    }
  });
}

/// Plane 0 of fixed keys: words of one token lie apart.
void AppendKernel::writeTiled(Shared cut, Val plane, int64_t width, int64_t below) {
  int64_t group = width == 4 ? 8 : 4;
  forThreads(dim / group * kTile, [&](Val i) {
    Val t = i & (kTile - 1), first = t * dim + shrLogical(i, number(6)) * group;
    e.when((t >= begin - base) & (t < end - base), [&] {
      auto bits = [&](int64_t c, int64_t mask) { return shrLogical(zext(e.load(cut, first + c), e.i32()), number(below)) & mask; };
      Val all = number(0);
      for (int64_t byte = 0; byte < 4; ++byte)
        all = all | ((width == 4 ? halvesOf(bits(byte, 15), bits(byte + 4, 15)) : bits(byte, 255)) << (8 * byte));
      e.storeGlobal(all, plane, i);
    });
  });
}

/// Bytes of channels, which tokens 32 apart share: what is there of others stays.
void AppendKernel::writeFloatKeys(Shared cut, Val plane, int64_t width, int64_t below) {
  constexpr int64_t words = kTile / 2 / 4;
  int64_t layers = width / 4;
  forThreads(dim * layers * words, [&](Val i) {
    Val channel = i / (layers * words), shift = number(below + width - 4) - (i / words % layers) * 4, bits = number(0), own = number(0);
    for (int64_t byte = 0; byte < 4; ++byte)
      for (int64_t high = 0; high < 2; ++high) {
        Val t = i % words * 4 + (byte + high * kTile / 2);
        Vals one = e.choose(
            (t >= begin - base) & (t < end - base),
            [&]() -> Vals { return {shrLogical(zext(e.load(cut, t * dim + channel), e.i32()), shift) & 15, number(15)}; },
            [&]() -> Vals { return {number(0), number(0)}; });
        bits = bits | (one[0] << (8 * byte + 4 * high));
        own = own | (one[1] << (8 * byte + 4 * high));
      }
    e.when(own != 0, [&] { e.storeGlobal(bits | (e.loadGlobal(plane, e.i32(), i, /*constant=*/false) & (own ^ number(-1))), plane, i); });
  });
}

void AppendKernel::writePlanes(Shared cut) {
  ofPlanes([&](int64_t p, Val plane) {
    int64_t width = format.width[p], below = storage::bitsBelow(format, int32_t(p));
    if (!storage::isTiled(format, int32_t(p)))
      writeRows(cut, plane, width, below);
    else if (isFixed)
      writeTiled(cut, plane, width, below);
    else
      writeFloatKeys(cut, plane, width, below);
  });
}

void AppendKernel::emitPack() {
  inTile([&] {
    Shared cut = shared("cut", e.i16(), kTile * dim), codes = shared("codes", e.i32(), kTile); // of the tile's tokens; code 0: kept aside
    if (isFixed)
      settleOffset(/*store=*/true);
    Val itsBias = isFixed ? bias() : number(0);

    Vals maxima = forTokens(Vals(registers, number(0)), [&](Val token, Vals maxima) {
      Token loaded = load(token);
      Val t = token - base, aside, addend, factor;
      if (isFixed) {
        Val code = select(loaded.magnitude < kInfinity, min(max(eighthsAbove(loaded.magnitude) + itsBias, storage::kLeastCode), storage::kLargestCode + 1),
                          number(storage::kLargestCode + 1));
        aside = code > storage::kLargestCode;
        e.when(lane == 0, [&] { e.store(select(aside, number(storage::kAside), code), codes, t); });
        // 2^15 / scale, a float whatever the bias. The sum with `one` has integers for bits, the lower 16 those of n + 2^15.
        Val eighths = code - itsBias, step = number(0);
        for (int64_t k = 0; k < storage::kStepsPerOctave; ++k)
          step = select((eighths & 7) == double(k), number(llvm::bit_cast<int32_t>(float(std::exp2(-double(k) / 8)))), step);
        factor = bitcast(step + ((number(15) - (eighths >> 3)) << 23), e.f32());
        addend = dither(token) + (isKey ? 0 : 0x8000);
      } else {
        aside = isBeyond(loaded.patterns[0]);
        for (int64_t r = 1; r < registers; ++r)
          aside = aside | isBeyond(loaded.patterns[r]);
        aside = e.any(aside);
      }
      for (int64_t r = 0; r < registers; ++r) {
        constexpr double one = 0x1.8p23 + 0x8000;
        Val bits = loaded.patterns[r];
        if (isFixed)
          bits = bitcast(e.addUnfused(e.multiplyUnfused(loaded.stored[r], factor), real(one)), e.i32()) + addend;
        else if (shape.element.isF32())
          bits = zext(bitcast(convert(loaded.raw[r], e.types.getF16Type()), e.i16()), e.i32());
        e.when(isChannel(r), [&] { e.store(convert(select(aside, number(0), bits), e.i16()), cut, t * dim + channelOf(r)); });
        maxima[r] = max(maxima[r], select(aside, number(0), magnitudeOf(loaded.raw[r])));
      }
      e.when(aside, [&] { keepAside(token, loaded); });
      return maxima;
    });
    for (int64_t r = 0; r < registers; ++r)
      e.when(isChannel(r) & (maxima[r] > 0), [&] { e.atomicMax(maxima[r], ofRow(offsetof(aligned_cache, channel_max), e.i32()), channelOf(r)); });
    e.barrier();

    writePlanes(cut);
    if (!isFixed)
      return;
    Val codesOfTile = tileOf(addressOf(cache, offsetof(aligned_cache, code)), place, kTile), first = begin - base, last = end - base;
    e.loop(first + thread, last, threads, [&](Val t) {
      Val code = e.load(codes, t);
      e.storeGlobal(convert(code, e.i8()), codesOfTile, t);
      e.when(code != storage::kAside, [&] { count(code, number(1)); });
    });
    if (isKey)
      return;
    // M1, of the bits that are resident.
    Val mask = number(0), resident = field(cache, offsetof(aligned_cache, planes));
    for (int32_t p = 0; p < format.planes; ++p)
      mask = select(resident > double(p), number(-(1 << storage::bitsBelow(format, p))), mask);
    forThreads(dim, [&](Val channel) {
      Val sum = e.loop(first, last, 1, {number(0)}, [&](Val t, Vals sum) -> Vals {
        Val n = (convert(e.load(cut, t * dim + channel), e.i32()) & mask) - dither(base + t);
        return {sum[0] + select(e.load(codes, t) != storage::kAside, n, number(0))};
      })[0];
      e.atomicAdd(wide(sum), ofRow(offsetof(aligned_cache, sum), e.i64()), channel);
    });
  });
  finish();
}

//===----------------------------------------------------------------------===//
// Advance
//===----------------------------------------------------------------------===//

/// One warp for each row: M2 follows from the counts. The first row's tells how long the cache is, and its bias.
void AppendKernel::emitAdvance() {
  row = e.block(gpu::Dimension::y);
  if (isFixed) {
    constexpr int64_t each = 256 / GpuEmitter::kWarp; // codes of a lane
    Val scales = scalesOf(row);
    auto set = [&](Val value, int64_t offset) { e.storeGlobal(value, e.at(scales, e.i8(), number(offset)), number(0)); };
    Vals counts;
    Val own = number(0), largest = number(0);
    for (int64_t i = 0; i < each; ++i) {
      counts.push_back(e.loadGlobal(e.at(scales, e.i8(), number(offsetof(aligned_scales, count))), e.i32(), lane * each + i, /*constant=*/false));
      own = own + counts[i];
      largest = select(counts[i] != 0, lane * each + i, largest);
    }
    Val upTo = own; // the tokens of this lane's codes and smaller ones
    for (int64_t distance = 1; distance < GpuEmitter::kWarp; distance *= 2)
      upTo = upTo + select(lane >= double(distance), e.shuffleFrom(upTo, max(lane - double(distance), 0)), number(0));
    Val tokens = e.shuffleFrom(upTo, number(GpuEmitter::kWarp - 1)), half = shrLogical(tokens + 1, number(1)), below = upTo - own;
    largest = e.warpMaxAll(largest);
    auto setMedian = [&](Val median, Val below) {
      set(median, offsetof(aligned_scales, median));
      set(wide(below), offsetof(aligned_scales, below));
    };
    for (int64_t i = 0; i < each; ++i) {
      Val next = below + counts[i];
      e.when((below < half) & (next >= half), [&] { setMedian(lane * each + i, below); });
      below = next;
    }
    e.when(lane == 0, [&] {
      e.when(tokens == 0, [&] { setMedian(number(0), number(0)); });
      set(largest, offsetof(aligned_scales, largest));
      set(wide(tokens), offsetof(aligned_scales, tokens));
    });
  }
  e.when((thread == 0) & (row == 0), [&] {
    Val lengths = field(cache, offsetof(aligned_cache, lengths));
    Val longest = e.choose(
        lengths == wideNumber(0), [&]() -> Vals { return {word(offsetof(aligned_cache, tokens), e.i64(), /*constant=*/false) + wide(countOf(number(0)))}; },
        [&]() -> Vals {
          Val entries = convert(field(cache, offsetof(aligned_cache, batch)), e.i32());
          return e.loop(number(0), entries, 1, {wideNumber(0)}, [&](Val n, Vals longest) -> Vals {
            Val length = e.loadGlobal(address(lengths), e.i64(), n, /*constant=*/false) + wide(countOf(n));
            e.storeGlobal(length, address(lengths), n);
            return {max(longest[0], length)};
          });
        })[0];
    setWord(longest, offsetof(aligned_cache, tokens));
    if (!isFixed || shape.element.isF16())
      return;
    Val isEmpty = longest == wideNumber(0), largest = largestThatComes(), settles = isSettling() & (largest > 0);
    e.when(settles, [&] { setWord(wide(biasFor(largest)), offsetof(aligned_cache, bias)); });
    e.when(isEmpty, [&] { setWord(wideNumber(storage::kHalfBias), offsetof(aligned_cache, bias)); });
    e.when(settles | isEmpty, [&] { setWord(select(isEmpty, number(0), number(1)), offsetof(aligned_device_cache, bias_is_settled)); });
    setWord(number(0), offsetof(aligned_device_cache, largest));
  });
  finish();
}

//===----------------------------------------------------------------------===//
// Drop
//===----------------------------------------------------------------------===//

/// A row that is empty then is as new, whatever it held.
void AppendKernel::emitForget() {
  inTile([&] {
    e.when(total > 0, [&] {
      Shared codes = shared("codes", e.i32(), kTile);
      Val codesOfTile = tileOf(addressOf(cache, offsetof(aligned_cache, code)), place, kTile), first = begin - base, last = end - base;
      e.loop(first + thread, last, threads, [&](Val t) {
        Val code = zext(e.loadGlobal(codesOfTile, e.i8(), t), e.i32());
        e.store(code, codes, t);
        e.when(code != storage::kAside, [&] { count(code, number(-1)); });
      });
      if (isKey)
        return;
      e.barrier();
      forThreads(dim, [&](Val channel) {
        Val tokens = e.loop(first, last, 1, {number(0)}, [&](Val t, Vals sum) -> Vals { // those that are not kept aside
          return {sum[0] + select(e.load(codes, t) != storage::kAside, dither(base + t), number(0))};
        })[0];
        Val sums = ofRow(offsetof(aligned_cache, sum), e.i64());
        e.atomicAdd(wide(tokens), sums, channel);
        ofPlanes([&](int64_t p, Val plane) { // in which those that are have zeros
          int64_t width = format.width[p], below = storage::bitsBelow(format, int32_t(p));
          Val sum = e.loop(first, last, 1, {number(0)}, [&](Val t, Vals sum) -> Vals {
            Val bits = width == 8 ? e.loadGlobal(plane, e.i8(), t * dim + channel)
                                  : e.loadGlobal(plane, e.i8(), t * (dim / 2) + shrLogical(channel, number(1)));
            if (width == 4)
              bits = convert(shrLogical(zext(bits, e.i32()), (channel & 1) * 4) << 4, e.i8()) >> 4;
            return {sum[0] + (p == 0 ? convert(bits, e.i32()) : zext(bits, e.i32()) & ((1 << width) - 1)) * double(1 << below)};
          })[0];
          e.atomicAdd(wideNumber(0) - wide(sum), sums, channel);
        });
      });
    });
    e.when((total == 0) & (e.block(gpu::Dimension::x) == 0), [&] {
      Val counts = e.at(scalesOf(row), e.i8(), number(offsetof(aligned_scales, count)));
      forThreads(256, [&](Val code) { e.storeGlobal(number(0), counts, code); });
      e.when(isKey ? word(offsetof(aligned_device_cache, offset_is_set), e.i32()) == 0 : e.flag(true), [&] {
        forThreads(dim, [&](Val channel) {
          if (isKey)
            e.storeGlobal(real(0), ofRow(offsetof(aligned_cache, offset), e.f32()), channel);
          else
            e.storeGlobal(wideNumber(0), ofRow(offsetof(aligned_cache, sum), e.i64()), channel);
        });
      });
    });
  });
  finish();
}

/// A list that some token found no room in stays as it is, and its count tells.
void AppendKernel::emitUnlist() {
  Val there = word(offsetof(aligned_cache, asides), e.i64(), /*constant=*/false), room = field(cache, offsetof(aligned_device_cache, aside_capacity));
  Val heads = field(cache, offsetof(aligned_cache, kv_heads)), list = addressOf(cache, offsetof(aligned_cache, aside));
  Val values = addressOf(cache, offsetof(aligned_cache, aside_values)), patterns = addressOf(cache, offsetof(aligned_device_cache, aside_patterns));
  auto move = [&](Val array, Type type, Val to, Val from) { e.storeGlobal(e.loadGlobal(array, type, from, /*constant=*/false), array, to); };
  Val left = e.loop(wideNumber(0), select(there > room, wideNumber(0), there), 1, {wideNumber(0)}, [&](Val from, Vals to) -> Vals {
    Val itsRow = e.loadGlobal(list, e.i64(), from * 2, /*constant=*/false), token = e.loadGlobal(list, e.i64(), from * 2 + 1, /*constant=*/false);
    Val entry = convert(itsRow / heads, e.i32()), stays = token < wide(tokensOf(cache, entry) + countOf(entry));
    e.warpBarrier(); // all lanes know of the token before another takes its place
    e.when(stays, [&] {
      e.when(lane < 2, [&] { move(list, e.i64(), to[0] * 2 + wide(lane), from * 2 + wide(lane)); });
      e.loop(lane, number(dim), GpuEmitter::kWarp, [&](Val channel) {
        move(values, e.f32(), to[0] * dim + wide(channel), from * dim + wide(channel));
        move(patterns, e.types.getIntegerType(shape.element.getIntOrFloatBitWidth()), to[0] * dim + wide(channel), from * dim + wide(channel));
      });
    });
    e.warpBarrier();
    return {to[0] + zext(stays, e.i64())};
  })[0];
  e.warpBarrier();
  e.when((lane == 0) & (there <= room), [&] { setWord(left, offsetof(aligned_cache, asides)); });
  finish();
}

} // namespace

DictionaryAttr aligned::emitAppend(ModuleOp program, StringRef prefix, const AppendShape &shape) {
  Builder b(program.getContext());
  Sidecar s(b);
  bool isFixed = shape.split.getKind() == FormatKind::Fixed;
  SmallVector<Attribute> append, drop;
  auto kernel = [&](SmallVector<Attribute> &launches, StringRef phase, int64_t warps, void (AppendKernel::*emit)(), ArrayRef<Sidecar::Extent> grid) {
    std::string name = (prefix + "_" + phase).str();
    (AppendKernel(program, name, warps, shape).*emit)();
    launches.push_back(s.launch(name, grid));
  };
  if (isFixed && !shape.element.isF16())
    kernel(append, "measure", kWarps, &AppendKernel::emitMeasure, {"touched", "rows"});
  kernel(append, "pack", kWarps, &AppendKernel::emitPack, {"touched", "rows"});
  kernel(append, "advance", 1, &AppendKernel::emitAdvance, {1, "rows"});
  if (isFixed)
    kernel(drop, "forget", kWarps, &AppendKernel::emitForget, {"touched", "rows"});
  kernel(drop, "unlist", 1, &AppendKernel::emitUnlist, {1, 1});
  drop.push_back(append.back());
  Attribute arguments = b.getArrayAttr({s.cache("cache"), s.array("data", "input", shape.element, {}), s.array("counts", "input", b.getI32Type(), {"batch"}),
                                        s.scalar("stride0", "i64"), s.scalar("stride1", "i64"), s.scalar("stride2", "i64"), s.scalar("stride3", "i64")});
  return b.getDictionaryAttr({s.field("format", s.format(shape.split, shape.split.getRole(), shape.element)), s.field("head_dim", shape.headDim), s.field("arguments", arguments),
                              s.field("launch", b.getArrayAttr(append)), s.field("drop", b.getArrayAttr(drop))});
}
