// See the header for the idea.
#include "AppendKernel.h"

#include "DecodeKernel.h"
#include "Sidecar.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kWarps = 4;
constexpr double kHalfOverflow = 65520; // the least float that rounds to an infinite half

enum class AppendArgument { Cache, Data, Counts, Stride0, Stride1, Stride2, Stride3, Sums };

SmallVector<Type> argumentTypes(MLIRContext *context) {
  Type pointer = LLVM::LLVMPointerType::get(context, 1), i64 = IntegerType::get(context, 64);
  return {pointer, pointer, pointer, i64, i64, i64, i64, pointer};
}

class AppendKernel : public GpuKernel {
public:
  AppendKernel(ModuleOp program, StringRef name, const AppendShape &shape)
      : GpuKernel(program, name, kWarps, argumentTypes(program.getContext())), shape(shape), dim(shape.headDim),
        isKey(shape.split.getRole() == CacheRole::Key), isFixed(shape.split.getKind() == FormatKind::Fixed) {
    cache = argument(AppendArgument::Cache);
  }

  void emitSplit();
  void emitMeans();
  void emitAdvance();

private:
  const AppendShape &shape;
  const int64_t dim;
  const bool isKey, isFixed;
  Val cache, row, batch, kvHead, kvHeads;
  Val before, total;  ///< tokens of the row, without and with the new ones
  Val block, where;   ///< the block at work, and where it lies
  Val dataOfRow, open;

  Val argument(AppendArgument which) { return e.wrap(function.getArgument(static_cast<unsigned>(which))); }
  void enterRow(Val number);
  /// Element `channel` of token `t`, as the cache's element type.
  Val element(Val t, Val channel);
  Val magnitudeLimit() { return real(shape.element.isF32() && !isFixed ? kHalfOverflow : INFINITY); }
  /// What planes hold of an element: 0 for one that is kept aside.
  Val kept(Val x) { return select(abs(x) < magnitudeLimit(), x, real(0)); }
  void raise(Val channel, Val magnitude);
  void listEscape(Val t, Val channel, Val x);
  /// The 16 bits that planes hold (i32), of finite x; `unit` is 2^15 / scale.
  Val encode(Val x, Val unit, Val t, Val channel);
  Val unitsOf(Val exponent) { return bitcast((number(250) - exponent) << 23, e.f32()) * 15.0; }
  void storeLayer(int64_t layer, Val words, int64_t groupWords, Val group, Val word);
  void splitKeys();
  void splitValues();
  void keepOpen();
};

void AppendKernel::enterRow(Val number) {
  row = number;
  kvHeads = convert(field(cache, offsetof(aligned_cache, kv_heads)), e.i32());
  batch = row / kvHeads;
  kvHead = row % kvHeads;
  before = tokensOf(cache, batch);
  total = before + e.loadGlobal(argument(AppendArgument::Counts), e.i32(), batch);
  dataOfRow = e.at(argument(AppendArgument::Data), shape.element,
                   wide(batch) * argument(AppendArgument::Stride0) + wide(kvHead) * argument(AppendArgument::Stride1));
  open = e.at(addressOf(cache, offsetof(aligned_cache, open)), shape.element, wide(row) * (ALIGNED_BLOCK * dim));
}

Val AppendKernel::element(Val t, Val channel) {
  return e.choose(
      t < before, [&]() -> Vals { return {e.loadGlobal(open, shape.element, (t & (ALIGNED_BLOCK - 1)) * dim + channel, /*constant=*/false)}; },
      [&]() -> Vals {
        return {e.loadGlobal(dataOfRow, shape.element, wide(t - before) * argument(AppendArgument::Stride2) + wide(channel) * argument(AppendArgument::Stride3))};
      })[0];
}

/// Magnitudes are ordered as integers.
void AppendKernel::raise(Val channel, Val magnitude) {
  e.when(magnitude > 0, [&] {
    e.atomicMax(bitcast(magnitude, e.i32()), e.at(addressOf(cache, offsetof(aligned_cache, channel_max)), e.i32(), wide(row) * dim), channel);
  });
}

void AppendKernel::listEscape(Val t, Val channel, Val x) {
  e.when((abs(x) < magnitudeLimit()) == e.constant(e.types.getI1Type(), 0), [&] {
    // What finds no room is counted all the same: the host sees that some is missing.
    Val slot = e.atomicAdd(e.constant(e.i64(), 1), e.at(cache, e.i8(), number(offsetof(aligned_cache, escapes))), number(0));
    e.when(slot < field(cache, offsetof(aligned_cache, escape_capacity)), [&] {
      Val entry = e.at(addressOf(cache, offsetof(aligned_cache, escape)), e.i8(), slot * sizeof(aligned_escape));
      auto set = [&](Val value, int64_t offset) { e.storeGlobal(value, e.at(entry, e.i8(), number(offset)), number(0)); };
      set(wide(row), offsetof(aligned_escape, row));
      set(wide(t), offsetof(aligned_escape, token));
      set(channel, offsetof(aligned_escape, channel));
      Val bits = bitcast(x, e.i32());
      if (!shape.element.isF32())
        bits = zext(bitcast(convert(x, shape.element), e.i16()), e.i32());
      set(bits, offsetof(aligned_escape, bits));
      set(x, offsetof(aligned_escape, value));
      set(number(0), offsetof(aligned_escape, reserved));
    });
  });
}

Val AppendKernel::encode(Val x, Val unit, Val t, Val channel) {
  if (!isFixed) {
    Type stored = shape.element.isF32() ? Type(e.types.getF16Type()) : shape.element;
    return zext(bitcast(convert(x, stored), e.i16()), e.i32());
  }
  // The product is exact but for elements of 24 bits, which take f64.
  Val rounded = shape.element.isF32() ? convert(e.roundEvenDouble(convert(x, e.types.getF64Type()) * convert(unit, e.types.getF64Type())), e.i32())
                                      : convert(roundEven(x * unit), e.i32());
  Val turn = t * 2531;
  if (isKey)
    turn = turn + (channel & 3) * 1092;
  return rounded + ((turn & 4095) - 2048) + 0x8000;
}

/// Words `word` of a layer's group of `groupWords`.
void AppendKernel::storeLayer(int64_t layer, Val words, int64_t groupWords, Val group, Val word) {
  LayerPlace at = placeOf(shape.split, layer);
  if (at.plane >= shape.split.getResident())
    return;
  Val base = field(cache, offsetof(aligned_cache, plane) + at.plane * sizeof(void *));
  e.when(base != e.constant(e.i64(), 0), [&] { // planes may have been dropped (S6)
    Val plane = blockOf(address(base), where, dim * 8 * shape.split.getWidths()[at.plane]);
    e.storeGlobal(words, plane, (group * at.planeLayers + at.index) * groupWords + word);
  });
}

/// A thread takes channels: exponents and integers, to shared memory; then groups of channels and words of them.
void AppendKernel::splitKeys() {
  Shared encoded = shared("encoded", e.i16(), ALIGNED_BLOCK * dim);
  Val first = block * ALIGNED_BLOCK, exponents = isFixed ? blockOf(addressOf(cache, offsetof(aligned_cache, exponent)), where, dim) : Val();
  forThreads(dim, [&](Val channel) {
    Vals most = e.loop(number(0), number(ALIGNED_BLOCK), 1, {real(0), real(0)}, [&](Val i, Vals most) -> Vals {
      Val x = convert(element(first + i, channel), e.f32()), magnitude = abs(x);
      listEscape(first + i, channel, x);
      return {e.largest(kept(magnitude), most[0]), e.largest(select(magnitude < INFINITY, magnitude, real(0)), most[1])};
    });
    raise(channel, most[1]);
    Val unit = real(0);
    if (isFixed) {
      Val exponent = exponentOf(most[0]);
      e.storeGlobal(convert(exponent, e.i8()), exponents, channel);
      unit = unitsOf(exponent);
    }
    e.loop(number(0), number(ALIGNED_BLOCK), 1, [&](Val i) {
      Val x = kept(convert(element(first + i, channel), e.f32()));
      e.store(convert(encode(x, unit, first + i, channel), e.i16()), encoded, i * dim + channel);
    });
  });
  e.barrier(); // all channels are there, and open tokens may be overwritten
  // A word: fixed, a token and the one 32 further on of four channels; float, four such pairs of one channel.
  int64_t channels = isFixed ? 4 : 1, words = isFixed ? kWords : kWords / 4;
  forThreads(dim / channels * words, [&](Val i) {
    Val group = i / words, word = i % words;
    Vals low, high;
    for (int64_t byte = 0; byte < 4; ++byte) {
      Val token = isFixed ? word : word * 4 + byte, channel = isFixed ? group * 4 + byte : group;
      low.push_back(zext(e.load(encoded, token * dim + channel), e.i32()));
      high.push_back(zext(e.load(encoded, (token + 32) * dim + channel), e.i32()));
    }
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      Val bytes = number(0);
      for (int64_t byte = 0; byte < 4; ++byte) {
        auto nibble = [&](Val x) { return shrLogical(x, number(12 - 4 * layer)) & 15; };
        bytes = bytes | ((nibble(low[byte]) | (nibble(high[byte]) << 4)) << (8 * byte));
      }
      storeLayer(layer, bytes, words, group, word);
    }
  });
}

/// Lanes share a row as in RowWords: each has eight of its channels, four of either half.
void AppendKernel::splitValues() {
  int64_t words = dim / 8, lanesPerRow = llvm::PowerOf2Ceil(words), rowsAtOnce = GpuEmitter::kWarp / lanesPerRow;
  Val first = block * ALIGNED_BLOCK, exponents = isFixed ? blockOf(addressOf(cache, offsetof(aligned_cache, exponent)), where, ALIGNED_BLOCK) : Val();
  Val word = lane & (lanesPerRow - 1), isWord = word < words, rowOfLane = shrLogical(lane, number(llvm::Log2_64(lanesPerRow)));
  e.loop(warp * rowsAtOnce, number(ALIGNED_BLOCK), kWarps * rowsAtOnce, [&](Val i) {
    Val within = i + rowOfLane, t = first + within, most = real(0);
    Vals channels, numbers;
    for (int64_t c = 0; c < 8; ++c) {
      channels.push_back(min(word, number(words - 1)) * 4 + (c < 4 ? c : c - 4 + dim / 2));
      Val x = convert(element(t, channels[c]), e.f32());
      e.when(isWord, [&] { listEscape(t, channels[c], x); });
      numbers.push_back(kept(x));
      most = e.largest(abs(numbers[c]), most);
    }
    Val unit = real(0);
    if (isFixed) {
      for (int64_t distance = lanesPerRow / 2; distance; distance /= 2)
        most = e.largest(most, e.shuffleXor(most, distance));
      Val exponent = exponentOf(most);
      e.when(word == 0, [&] { e.storeGlobal(convert(exponent, e.i8()), exponents, within); });
      unit = unitsOf(exponent);
    }
    Vals codes;
    for (int64_t c = 0; c < 8; ++c)
      codes.push_back(encode(numbers[c], unit, t, channels[c]));
    e.when(isWord, [&] {
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        Val bytes = number(0);
        for (int64_t c = 0; c < 8; ++c)
          bytes = bytes | ((shrLogical(codes[c], number(12 - 4 * layer)) & 15) << (c < 4 ? 8 * c : 8 * (c - 4) + 4));
        storeLayer(layer, bytes, words, within, word);
      }
    });
  });
  // Maxima and means of channels: a thread takes a channel.
  Val touched = e.blocks(gpu::Dimension::x), sums = e.at(argument(AppendArgument::Sums), e.f32(), (wide(row) * wide(touched) + wide(block - shrLogical(before, number(6)))) * dim);
  forThreads(dim, [&](Val channel) {
    Vals all = e.loop(number(0), number(ALIGNED_BLOCK), 1, {real(0), real(0)}, [&](Val i, Vals all) -> Vals {
      Val x = convert(element(first + i, channel), e.f32()), magnitude = abs(x);
      return {e.largest(select(magnitude < INFINITY, magnitude, real(0)), all[0]), fma(kept(x), real(1.0 / ALIGNED_BLOCK), all[1])};
    });
    raise(channel, all[0]);
    if (isFixed)
      e.storeGlobal(all[1], sums, channel);
  });
  e.barrier(); // open tokens have been read, and may be overwritten
}

/// Tokens of the block that stays open; those that were open already are in place unless their block is full now.
void AppendKernel::keepOpen() {
  Val first = shrLogical(total, number(6)) * ALIGNED_BLOCK, begin = max(first, before);
  forThreads(dim, [&](Val channel) {
    Val most = e.loop(begin, total, 1, {real(0)}, [&](Val t, Vals most) -> Vals {
      Val x = e.loadGlobal(dataOfRow, shape.element, wide(t - before) * argument(AppendArgument::Stride2) + wide(channel) * argument(AppendArgument::Stride3));
      e.storeGlobal(x, open, (t - first) * dim + channel);
      Val magnitude = abs(convert(x, e.f32()));
      return {e.largest(select(magnitude < INFINITY, magnitude, real(0)), most[0])};
    })[0];
    raise(channel, most);
  });
}

void AppendKernel::emitSplit() {
  enterRow(e.block(gpu::Dimension::y));
  Val number = e.block(gpu::Dimension::x);
  block = shrLogical(before, this->number(6)) + number;
  e.when((block + 1) * ALIGNED_BLOCK <= total, [&] {
    where = physical(field(cache, offsetof(aligned_cache, pages)), convert(shrLogical(field(cache, offsetof(aligned_cache, capacity)), e.constant(e.i64(), 6)), e.i32()), row,
                     batch, kvHeads, kvHead, block);
    isKey ? splitKeys() : splitValues();
  });
  e.when(number == 0, [&] { keepOpen(); });
  finish();
}

void AppendKernel::emitMeans() {
  enterRow(e.block(gpu::Dimension::y));
  e.when(e.block(gpu::Dimension::x) == 0, [&] { // the grid is that of `split`, whose means these are
    Val first = shrLogical(before, number(6)), end = shrLogical(total, number(6)), touched = e.blocks(gpu::Dimension::x);
    Val means = e.at(addressOf(cache, offsetof(aligned_cache, channel_mean)), e.f32(), wide(row) * dim);
    Val sums = e.at(argument(AppendArgument::Sums), e.f32(), wide(row) * wide(touched) * dim);
    e.when(end > first, [&] {
      forThreads(dim, [&](Val channel) {
        Val mean = e.loop(first, end, 1, {get(means, channel)}, [&](Val block, Vals mean) -> Vals {
          Val share = real(1) / convert(block + 1, e.f32()); // either product is no larger than the largest value
          return {fma(mean[0], real(1) - share, get(sums, (block - first) * dim + channel) * share)};
        })[0];
        e.storeGlobal(mean, means, channel);
      });
    });
  });
  finish();
}

void AppendKernel::emitAdvance() {
  e.when(thread == 0, [&] {
    Val lengths = field(cache, offsetof(aligned_cache, lengths)), counts = argument(AppendArgument::Counts);
    Val tokens = e.at(cache, e.i8(), number(offsetof(aligned_cache, tokens)));
    auto countOf = [&](Val n) { return wide(e.loadGlobal(counts, e.i32(), n)); };
    e.when(lengths == e.constant(e.i64(), 0), [&] { e.storeGlobal(e.loadGlobal(tokens, e.i64(), number(0), /*constant=*/false) + countOf(number(0)), tokens, number(0)); });
    e.when(lengths != e.constant(e.i64(), 0), [&] {
      Val batches = convert(field(cache, offsetof(aligned_cache, batch)), e.i32());
      Val longest = e.loop(number(0), batches, 1, {e.constant(e.i64(), 0)}, [&](Val n, Vals longest) -> Vals {
        Val length = e.loadGlobal(address(lengths), e.i64(), n, /*constant=*/false) + countOf(n);
        e.storeGlobal(length, address(lengths), n);
        return {max(longest[0], length)};
      })[0];
      e.storeGlobal(longest, tokens, number(0));
    });
  });
  finish();
}

} // namespace

DictionaryAttr aligned::emitAppend(ModuleOp program, StringRef prefix, const AppendShape &shape) {
  Builder b(program.getContext());
  Sidecar s(b);
  SmallVector<Attribute> launches;
  auto kernel = [&](StringRef phase, void (AppendKernel::*emit)(), ArrayRef<Sidecar::Extent> grid) {
    std::string name = (prefix + "_" + phase).str();
    (AppendKernel(program, name, shape).*emit)();
    launches.push_back(s.launch(name, grid));
  };
  kernel("split", &AppendKernel::emitSplit, {"touched", "rows"});
  if (shape.split.getRole() == CacheRole::Value && shape.split.getKind() == FormatKind::Fixed)
    kernel("means", &AppendKernel::emitMeans, {"touched", "rows"});
  kernel("advance", &AppendKernel::emitAdvance, {1, 1});
  Attribute arguments = b.getArrayAttr({s.cache("cache"), s.array("data", "input", shape.element, {}), s.array("counts", "input", b.getI32Type(), {"batch"}),
                                        s.scalar("stride0", "i64"), s.scalar("stride1", "i64"), s.scalar("stride2", "i64"), s.scalar("stride3", "i64"),
                                        s.array("sums", "scratch", b.getF32Type(), {"rows", "touched", shape.headDim})});
  return b.getDictionaryAttr({s.field("format", s.format(shape.split, shape.split.getRole(), shape.element)), s.field("head_dim", shape.headDim), s.field("arguments", arguments),
                              s.field("launch", b.getArrayAttr(launches))});
}
