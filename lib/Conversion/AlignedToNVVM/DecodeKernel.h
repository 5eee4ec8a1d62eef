// What the kernels of decode attention on a GPU share: their arguments, caches as a row sees them, and how weights lie in tiles.
//
// A *tile* is the 16 x 8 result of the integer tensor cores: unsigned bytes of planes (16 rows: tokens of K or channels of V) times signed digits of weights
// (8 columns: two query rows with four *places* each). A weight has three digits in base 256. The upper byte of a stored value is worth 256 of the lower one,
// so its product with digit d belongs to place d + 1, where the product of the lower byte with digit d + 1 goes: four places hold everything, and both bytes
// add to the same sums.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H

#include "GpuEmitter.h"

#include "../Common/HeadPolicies.h"
#include "../Common/Masks.h"
#include "../Common/Numerics.h"
#include "aligned/Runtime/Cache.h"

namespace aligned {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLowest = -3e38; ///< in the place of -infinity, so that no difference of two is NaN
constexpr int64_t kTileColumns = 8, kTileDepth = 32, kPlaces = 4, kTileHeads = kTileColumns / kPlaces;
constexpr int64_t kWords = 32; ///< of 32 bits in a unit of keys
constexpr int64_t kSharedBytes = 48 << 10; ///< that a block of threads has without asking for more
constexpr int64_t kWarpTiles = 2, kFloatTiles = 4; ///< that a warp takes before tiles are shared out; of float planes: the columns of a product

/// Arguments, the same for every kernel of an attention. `split` numbers the blocks of threads that share a row's tokens.
enum class Argument {
  Query,         ///< [rows, heads, key_dim] of the query's type
  Key, Value,    ///< `aligned_cache` in device memory
  Scale,         ///< f32
  Splits,        ///< i32
  Scores,        ///< f32 [rows, heads, capacity]
  Statistics,    ///< f32 [rows, splits, heads, 4]: see Statistic
  Blocks,        ///< f32 [rows, heads, blocks, 8]: see BlockNumber. Float planes: [rows, heads, blocks], the largest score
  KeyWeights,    ///< f32 [rows, heads]: the inverse of the step of K's weights
  Histogram,     ///< i32 [rows, splits, heads, 129]: tokens by p * scale, by how far they are below the loudest, see `bins`; and the number of its bin
  Partial,       ///< f32 [rows, splits, heads, value_dim + 4]: outputs of splits, and what the look saw
  Plan,          ///< f32 [rows, heads, 8]: see PlanOf. Float planes: [rows, heads], the margin of P1
  KeyLayers,     ///< i8 [rows, blocks, units]: nibble layers that were read; of float planes null where nobody asks
  ValueLayers,   ///< i8 [rows, capacity], or null where nobody asks
  Acc, Max, Sum, ///< f32 [rows, heads, value_dim], [rows, heads] twice: the softmax state
  // Of kernels that certify:
  Certificates,  ///< f32 [rows, splits, heads, 8]: see Certified
  Certificate,   ///< f32 [rows, heads, kCertificateNumbers]
};
constexpr int64_t kArguments = 17, kCertifyingArguments = 19;

/// What a split knows of its scores, and what all of a row's give together: the maximum and the sum of e^(s - maximum); the largest of log2 of p * scale, but for what
/// all tokens share; and the largest exponent of V, both of full blocks.
enum Statistic { kMaximum, kSum, kLoudest, kExponent, kStatistics };
/// What is known of a block's scores for a query row: their maximum, the sum of w = e^(s - maximum) and that of w^2; the largest a = log2 of p * scale, but for what all
/// tokens share, and the sum of 2^(2 (a - largest)); the largest exponent of V; and the variance of the scores' error.
enum BlockNumber { kBlockMaximum, kBlockSum, kBlockSquares, kBlockLoudest, kBlockReaches, kBlockExponent, kBlockVariance, kBlockNumbers = 8 };
/// What a plan says of a query row: the precision of K (infinite where scores are good), that of V; the power of the output and the fill of V's rows (P2, in
/// units of the loudest row's scale); the variance of the output by K as it was; how many plans there were; and for whom statistics of splits change meanwhile, log2 of
/// e^s / p, and the largest exponent of V.
enum PlanOf { kPrecisionK, kPrecisionV, kPower, kFill, kVaried, kRound, kNormal, kTop, kPlanNumbers };
/// What a look saw besides the output: p * v^2 of rows of planes and of open tokens, p, and p * scale^2 of rows of planes.
enum Seen { kSquares, kOpenSquares, kMass, kScales, kSeen };
/// Sums over a split for the certificate: see CertificateSums; and how many rows of V are read.
enum Certified { kGrown, kGrownReach, kReach, kError, kVariance, kUnreadReach, kLost, kReadRows, kCertified };
constexpr int64_t kBins = 128, kHistogramNumbers = kBins + 1; ///< bins at most, and behind them the number of the loudest token's
constexpr int64_t kBinOctaves = 32;                           ///< that the bins of a histogram span

/// A cache as the threads of a row see it.
struct CacheView {
  Val tokens, blocks, open; ///< i32: all, full blocks, those of the open block
  Val stride;               ///< i32: blocks that the capacity holds
  Val layers;               ///< i32: nibble layers that may be read
  Val plane[ALIGNED_MAX_PLANES], exponent, pages; ///< of all rows
  Val channelMax, channelMean, openTokens;        ///< of this row
  Val escape, escapes;
};

/// A kernel: what any thread of it says.
class GpuKernel {
public:
  GpuKernel(mlir::ModuleOp program, llvm::StringRef name, int64_t warps, llvm::ArrayRef<mlir::Type> arguments);

protected:
  mlir::OpBuilder builder;
  mlir::gpu::GPUModuleOp module; ///< of this kernel alone: kernels are compiled side by side
  std::string name;
  const int64_t warps, threads;
  mlir::gpu::GPUFuncOp function;
  GpuEmitter e;
  Val thread, lane, warp;

  Val wide(Val number) { return convert(number, e.i64()); }
  Val real(double x) { return e.real(x); }
  Val number(int64_t n) { return e.number(n); }
  Val get(Val array, Val offset) { return e.loadGlobal(array, e.f32(), offset, /*constant=*/false); }
  /// A field of an `aligned_cache`; an address among them.
  Val field(Val cache, int64_t offset) { return e.loadGlobal(e.at(cache, e.i8(), number(offset)), e.i64(), number(0)); }
  Val address(Val number);
  Val addressOf(Val cache, int64_t offset) { return address(field(cache, offset)); }
  /// Tokens of a batch entry (i32).
  Val tokensOf(Val cache, Val batch);
  /// The bytes of a physical block that has `bytes` of them.
  Val blockOf(Val base, Val physical, int64_t bytes) { return e.at(base, e.i8(), wide(physical) * bytes); }
  /// Where a logical block lies: its number among all blocks of all rows. `pages` is the address of the table, i64; `stride` the blocks of the capacity.
  Val physical(Val pages, Val stride, Val row, Val batch, Val kvHeads, Val kvHead, Val block);

  Shared shared(llvm::StringRef what, mlir::Type element, int64_t count) { return e.shared(module, name + "_" + what.str(), element, count); }
  /// Runs `body` for i = thread, thread + threads, ... below `count`.
  void forThreads(int64_t count, llvm::function_ref<void(Val)> body) { e.loop(thread, number(count), threads, body); }
  /// Runs `body` for the query rows h = warp, warp + warps, ...
  void forHeadsOfWarp(int64_t heads, llvm::function_ref<void(Val)> body) { e.loop(warp, number(heads), warps, body); }
  Val warpAdd(Val x) { return e.warpAdd(x, {16, 8, 4, 2, 1}); }
  Val warpMax(Val x) { return e.warpMax(x, {16, 8, 4, 2, 1}); }
  /// e^(s - max), from a score and its row's maximum.
  Val weightOf(Val score, Val maximum) { return e.exp2((score - max(maximum, real(kLowest))) * kLog2e); }
  /// A loop over splits first, first + step, ...: `load` is asked for several of them before `add` gets what the first one gave, so that their loads don't wait for one another.
  Val overSplits(Val first, Val splits, int64_t step, Val start, llvm::function_ref<Vals(Val split)> load, llvm::function_ref<Val(Val sum, Vals loaded)> add);
  static constexpr int64_t kVector = 4; ///< f32 of an output that a thread loads or stores at once
  /// What is left to add of the splits' arrays of `width` f32: one array from each group of threads, for all threads. `load` and `add` are those of overSplits, for the kVector
  /// elements from `offset` on.
  Shared addSplits(Val splits, int64_t width, llvm::function_ref<Vals(Val split, Val offset)> load, llvm::function_ref<Val(Val sum, Vals loaded)> add);
  /// Of those arrays, the sum of element `at`, or of `lanes` elements.
  Val sumOf(Shared parts, int64_t width, Val at, int64_t lanes = 0);
  void finish() { mlir::gpu::ReturnOp::create(e.b); }

private:
  int64_t groupsFor(int64_t width) const { return threads / (width / kVector); }
};

class DecodeKernel : public GpuKernel {
public:
  DecodeKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape) : DecodeKernel(program, name, shape, warpsFor(shape)) {}
  DecodeKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape, int64_t warps);

  /// Warps of a block of threads that works on `shape`.
  static int64_t warpsFor(const DecodeShape &shape) { return shape.heads > (isWide(shape) ? 8 : 16) ? 8 : 4; }
  /// Whether one tile's sums are all that a warp has registers for.
  static bool isWide(const DecodeShape &shape) { return std::max(shape.keyDim, shape.valueDim) > 128; }
  static bool isFloat(const DecodeShape &shape) { return shape.keyPlanes.getKind() == FormatKind::Float; }

protected:
  const DecodeShape &shape;

  // Query rows share a tile; tiles are shared out among warps when one would need too many registers.
  const int64_t tiles = llvm::divideCeil(shape.heads, kTileHeads);
  const int64_t warpsPerBlock = std::min<int64_t>(warps, llvm::PowerOf2Ceil(llvm::divideCeil(tiles, isFloat(shape) ? kFloatTiles : isWide(shape) ? 1 : kWarpTiles))); ///< that share the tokens of a block
  const int64_t tilesPerWarp = llvm::divideCeil(tiles, warpsPerBlock);
  const int64_t paddedHeads = warpsPerBlock * tilesPerWarp * kTileHeads;
  // Warps count tokens beside the queries, in half as many bins where shared memory has no room for more.
  const int64_t bins = paddedHeads * (shape.keyDim + warps / warpsPerBlock * kBins) * 4 + (2 << 10) > kSharedBytes ? kBins / 2 : kBins;
  const double binsPerOctave = static_cast<double>(bins) / kBinOctaves;

  Val row, split, splits;
  Val g, t;           ///< the lane's place in a tile: lane = 4 g + t
  Val place;          ///< that of column g: g mod 4
  Val batch, kvHead;  ///< of the row
  CacheView key, value;
  HeadPolicies policies{shape, {}};

  Val argument(Argument which) { return e.wrap(function.getArgument(static_cast<unsigned>(which))); }
  /// An array of f32, or of `element`, behind a pointer argument, from this row's part of `count` elements per row on.
  Val rowOf(Argument which, Val count, mlir::Type element = {});
  Val rowOf(Argument which, int64_t count, mlir::Type element = {}) { return rowOf(which, number(count), element); }
  /// Head h's part of an array of this row with `perHead` (i32) elements for each.
  Val ofHead(Val array, Val h, Val perHead, mlir::Type element = {}) { return e.at(array, element ? element : e.f32(), wide(h) * wide(perHead)); }

  using GpuKernel::physical;
  Val physical(const CacheView &cache, Val block) { return physical(cache.pages, cache.stride, row, batch, number(shape.kvHeads), kvHead, block); }
  // Of the full blocks only those count that some query sees (A11); they are numbered from 0 on, and lie at blockAt of their number.
  Val seenBlocks;
  Val blockAt(Val number);
  /// What blockAt does to a block, done to a token.
  Val tokenAt(Val number);
  bool isMasked() const { return bool(shape.mask); }
  /// Whether a query row sees a token.
  Val isSeen(Val h, Val token) { return isVisible(token, h % shape.queries, key.tokens, shape); }
  /// A score as the softmax takes it: capped (A12), and -inf where the query row does not see the token (A11).
  Val seenScore(Val score, Val h, Val token);
  /// What a row of V stands for that is not read: the channel's mean. That is one of all tokens; where a mask hides some it goes no further than visible rows reach,
  /// the loudest of which has exponent `top` (f32).
  Val meanOf(Val channel, Val top);

  /// Seen blocks of this split: first and end.
  std::pair<Val, Val> stretch();
  Val isLastSplit() { return split == splits - 1; }

  /// First query row of the warp's tile `i`.
  Val firstHead(int64_t i) { return ((warp & (warpsPerBlock - 1)) * tilesPerWarp + i) * kTileHeads; }
  /// Runs `body` for the blocks that this warp takes of the split's. `next` is the one after, or the last once more.
  void forBlocksOfWarp(llvm::function_ref<void(Val block, Val next)> body);

  /// Waits for the warps that share this one's blocks, and for all lanes.
  void meetSharers();

  /// The whole row's statistics of a query row, by Statistic, once all splits have theirs; the same in all lanes of the warp.
  Vals statisticsOf(Val h);
  /// Who reads what a warp has computed for its query rows: all threads, or the same warp that works on the same query rows.
  enum class Readers { All, SameWarp };
  /// Puts those of all query rows into shared memory, [heads, kStatistics], for `statistic`.
  void shareStatistics(Readers readers = Readers::All);
  Shared statistics;
  Val statistic(Val h, Statistic which) { return e.load(statistics, h * kStatistics + which); }
  /// The first `width` numbers of what splits have in Partial of a query row, for sumOf.
  Shared addPartials(Val h, int64_t width);
  /// The loudest p * scale of a query row, in units of the loudest row's scale.
  Val loudestReach(Val h);
  /// Whether the plan asks for finer scores of any query row; true before there is one, whose precisions are 0.
  Val isPlanOpen();

  /// The scale of a row of V beside the loudest row's, whose exponent is `top` (f32), from its own (i32).
  Val relativeScale(Val exponent, Val top) { return bitcast(max(exponent - convert(top, e.i32()) + 127, number(0)) << 23, e.f32()); }

  /// A byte's digits as places are weighed: whole weights to bytes d0, d1, d2, 0.
  Val digitsOf(Val whole) { return (whole + 0x808080) ^ number(0x808080); }
  /// What the sums of columns 2 t, 2 t + 1 contribute to a query row's number; the neighbour t ^ 1 has the rest.
  Val ofColumns(Val even, Val odd);
  /// The upper (or lower) two layers of a word as bytes, for its low and its high nibbles.
  std::pair<Val, Val> bytesOf(Val upper, Val lower);

  /// The query row that a number stands for: those that pad tiles stand for the last one.
  Val clamped(Val h) { return min(h, number(shape.heads - 1)); }
  /// A query row's numbers of its blocks, see BlockNumber.
  Val blockNumbersOf(Val h) { return ofHead(rowOf(Argument::Blocks, key.stride * (shape.heads * kBlockNumbers)), h, key.stride * kBlockNumbers); }
  Val scoresOf(Val h) { return ofHead(rowOf(Argument::Scores, key.stride * (shape.heads * ALIGNED_BLOCK)), h, key.stride * ALIGNED_BLOCK); }
  /// Whether somebody asks for what a record argument holds.
  Val isAsked(Argument record);

  //===-- stages that storage formats share (DecodeStages.cpp) ------------===//

  /// scale * q of query rows, wherever a kernel keeps it.
  using QueryAt = llvm::function_ref<Val(Val h, Val channel)>;
  /// Scores of the open block.
  void scoreOpen(QueryAt query);
  /// Adds to a block's scores of `count` query rows from `firstHead` on, which this warp has written, what is kept aside of K (S7).
  void addKeyEscapes(QueryAt query, Val block, Val firstHead, int64_t count);
  /// Makes what the softmax takes of these scores, once all is added.
  void finishScores(Val block, Val firstHead, int64_t count);
  /// Says, where somebody asks, that blocks that no query sees are not read; `units` of K in a block.
  void recordUnseen(int64_t units);
  /// 0, or NaN for a query row that is not finite: it makes its row NaN.
  Val poisonOf(QueryAt query, Val h);
  /// {maximum, sum of e^(s - maximum)} with more scores. One that is NaN is no maximum, but its weight and the sum are NaN.
  Vals addScores(Val maximum, Val sum, llvm::ArrayRef<Val> scores);
  /// The split's statistics of a query row from those of the warp's lanes.
  void storeStatistics(Val h, Val maximum, Val sum, Val loudest, Val exponent);
  /// Adds the tokens of the open block, which are dense, to this split's share of the output. `weights` is room for f32 [heads, 64].
  void addOpenValues(Shared weights);

  /// Adds what is kept aside (S7): calls `body` with token, channel and value of each escape of this row in `cache`.
  void forEscapes(const CacheView &cache, llvm::function_ref<void(Val token, Val channel, Val value)> body);

private:
  VisibleBlocks visible;
  CacheView view(Argument cache, PlanesAttr split, int64_t headDim, mlir::Type element);
};

/// The kernels, by phase; see DecodeKernels.h.
void emitScores(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitLook(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitPlan(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitRefine(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitValues(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitCertify(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitConclude(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitMerge(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitFloatScores(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitProbe(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitFloatValues(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H
