// A decode step over fixed planes under P2, or exactly, on the CPU: one row, a kv head of one batch entry with the query rows that share it.
//
//   prepare   the query rows rotated, as integers; what is known of the row's scales                          once a row        Prepare.cpp
//   scan      the first plane of K of every token: coarse scores in base 2, their maxima, the softmax's sum   once a split      Scan.cpp
//   attend    thresholds from the sums of all splits; finer K, then V, of the tokens above them: a softmax    once a split      Attend.cpp
//             state, and where asked for the certificate (Certify.cpp)
//
// What passes between them lies in buffers of the row (StepBuffers). Splits are stretches of kSplitTiles tiles, whoever works on them, so that results don't depend on the
// number of threads. Tiles that no query sees are left out everywhere: buffers hold nothing for them.
//
// Weights. A query row w = scale log2(e) (q R) is written as integers, w_c = step * v_c with v = sum_i d_i 256^(digits - 1 - i), d_i signed bytes, so that the cut-up
// integers u = n + 2^15 of K go into integer dot products as they lie. With b bits of u read, `below` = 16 - b of them missing,
//
//   x = k step / 2^15 * (sum_c v_c top(u_c) 2^below + sum_c v_c * (middle(b) - 2^15 - dither))       middle(b) = 2^(15 - b), 0 for b = 16
//
// and reading on adds the next plane's dot product and the difference of the middles.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_STEP_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_STEP_H

#include "../Common/HeadPolicies.h"
#include "../Common/Masks.h"
#include "../Common/Rule.h"
#include "../Common/StoredBits.h"
#include "Aside.h"
#include "Simd.h"

namespace aligned {

/// What a kernel is specialised for.
struct KernelShape : DecodeShape {
  Isa isa;
  bool profile = false; ///< whether a kernel tells when it is done with a part
};

/// The score of what a query doesn't see, and where running maxima start: no score of its own is as low, and differences of any two stay floats.
constexpr double kHidden = -1e38, kLowest = -5e37;
/// What lower numbers of a mask count as, but for -inf: low enough that no score shows in the sum, and far from what is hidden.
constexpr double kLeastOfMask = -1e36;

/// Facts of a query row, f32 each.
enum class Fact { Unit, Sum, Norm, Mass, Shrink, NotFinite, LogSeen, Shift };
constexpr int64_t kFacts = kStepFacts;
/// Facts of the row, behind those of its query rows.
enum class RowFact { LogUsual, Usual, ValueUnit, LargestKey, FloorValue, Spread, Fill, Full };

/// What a step is given. Pointers to arrays and caches (aligned_cache) in memory.
struct StepInputs {
  Val query;      ///< [batch, q_heads, queries, keyDim]
  Val key, value;
  Val scale;      ///< f32
  Val later;      ///< index, where shape.later
  Val attention;  ///< i32, the number that what is read is told under
  Val attnMask;   ///< where shape.attnMask: its memory, contiguous
  Val sinkLogits; ///< where shape.sinkLogits: f32 [q_heads]
  Val toleranceFactor = {}; ///< of the first stage: f32 or none
  Val softcap = {}, window = {}, sinks = {}; ///< f32, index and index, where the shape leaves them open
};

/// Memory between the stages; sizes in elements.
struct StepBuffers {
  Buffer digits; ///< i8 [digits][query rows][keyDim]
  Buffer facts;  ///< f32 [query rows + 1][kFacts]
  Buffer mean;   ///< f32 [valueDim]: what a row of V stands for that is not read
  Buffer scores; ///< f32 [tiles of the split][query rows][kTile]; not capped
  Buffer tops;   ///< f32 [tiles of the split][query rows][kTopLanes]: maxima of score + max(log2 v, log2 A)
  Buffer parts;  ///< f32 [2][query rows], reference and sum of the split that is scanned; where it is attended to of all splits, [splits][2][query rows]
};

/// A cache as one row of it sees it.
struct RowCache {
  Val tokens, tiles;    ///< of this row, index
  Val held;             ///< of the longest row
  Val planes;           ///< resident ones, index
  Val bias;             ///< of scale codes, i64
  Val scales;           ///< the row's aligned_scales
  Val first;            ///< place of the row's first tile, where there are no pages
  Val pages, kvHeads, head; ///< where there are
  Val hasPages;
  Buffer codes;
  llvm::SmallVector<Buffer> plane; ///< i8
  AsideTokens aside;
  PlanesAttr attr;
  int64_t headDim;

  /// Where tile i of the row stands in every plane.
  Val placeOf(Val tile) const;
};

class Step {
public:
  /// `row` is an index.
  Step(Emitter &e, const KernelShape &shape, const StepInputs &in, Val row, const StepBuffers &buffers);

  /// The largest |v| of a query row's integers.
  double fullscale() const {
    double full = 127;
    for (int64_t d = 1; d < digits(); ++d)
      full = full * 256 + 127;
    return full;
  }
  int64_t digits() const { return exact ? kExactQueryDigits : kQueryDigits; }
  Val splits() { return (key.tiles + (kSplitTiles - 1)) / index(kSplitTiles); }

protected:
  Val index(int64_t n) { return e.index(n); }
  Val f32(double x) { return e.constant(e.f32(), x); }
  Val i32(int64_t n) { return e.constant(e.i32(), double(n)); }
  mlir::Type vectorOf(mlir::Type element, int64_t count) { return mlir::VectorType::get(count, element); }
  /// Of one register of 32-bit lanes.
  Val splatF(Val scalar) { return e.splat(scalar, lanes); }
  Val splatF(double number) { return e.constant(vectorOf(e.f32(), lanes), number); }
  Val splatI(Val scalar) { return e.splat(scalar, lanes); }
  Val splatI(int64_t number) { return e.constant(vectorOf(e.i32(), lanes), double(number)); }

  /// For every query row, unrolled while they are few.
  void forRows(llvm::function_ref<void(Val h)> body);
  /// The same for groups of at most `most` rows, `count` from h0 on: in a loop unless one group is all.
  void forRowGroups(int64_t most, llvm::function_ref<void(Val h0, int64_t count)> body);
  /// A test of lanes (i1), true where it is for any query row.
  Val anyRow(llvm::function_ref<Val(Val h)> test);
  /// The visible tiles of begin .. end - 1.
  void forTiles(Val begin, Val end, llvm::function_ref<void(Val tile)> body);
  /// The tiles of a split: [first, last).
  std::pair<Val, Val> tilesOf(Val split);

  Val fact(Val h, Fact which) { return e.load(buffers.facts, h * kFacts + int64_t(which)); }
  void setFact(Val h, Fact which, Val value) { e.store(value, buffers.facts, h * kFacts + int64_t(which)); }
  Val rowFact(RowFact which) { return e.load(buffers.facts, index(rows * kFacts + int64_t(which))); }
  void setRowFact(RowFact which, Val value) { e.store(value, buffers.facts, index(rows * kFacts + int64_t(which))); }

  Val scoreAt(Val tile, Val h) { return ((tile - origin) * rows + h) * kTile; }
  Val topAt(Val tile, Val h) { return ((tile - origin) * rows + h) * kTopLanes; }

  /// 2^(code / 8 - 16), for codes 1 .. 255 of any lanes as i32.
  Val scaleOf(Val codes);
  /// 2^(16 - bias / 8) of a cache, which scaleOf() leaves out.
  Val biasScale(const RowCache &cache);
  /// Codes as f32 in octaves.
  Val octaves(Val codes) { return convert(codes, e.f32()) * (1.0 / storage::kStepsPerOctave); }
  /// Scale codes of `lanes` tokens from one on, of the tile at `place`, as i32.
  Val codesAt(const RowCache &cache, Val place, Val token) { return zext(e.load(cache.codes, place * kTile + token, lanes), e.i32()); }
  Val codesAt(const RowCache &cache, Val place, int64_t token) { return codesAt(cache, place, index(token)); }
  /// Dither of tokens (i32), n's unit, as f32, plus 2048: m t mod 4096 (S5).
  Val ditherSteps(Val tokens, CacheRole side) {
    return convert(aligned::ditherSteps(tokens, side == CacheRole::Key ? ALIGNED_ROLE_KEY : ALIGNED_ROLE_VALUE), e.f32());
  }
  /// A score (base 2) as the softmax sees it (A12): where there is a cap, what lies in buffers is neither capped nor masked by a number, so that finer K can be added to it. A cap
  /// sees what the offset took off K. `token` is that of the first lane, or of the scalar; with `tokens` (i32 lanes) they are any.
  Val final(Val x, Val h, Val token);
  Val finalOf(Val x, Val h, Val tokens);
  /// What the mask that is an operand (P8) makes of the score of a token, or of `lanes` from one on: added to, or hidden where it says so.
  Val withMask(Val x, Val h, Val token);
  /// A score from the buffer, of any token: hidden where masks say so. Tiles that no query sees have none.
  Val shown(Val x, Val h, Val token);
  /// The logit without a value of a query row, in base 2, in the terms that scores are kept in.
  Val sinkOf(Val h);
  /// Query head and query of a query row.
  Val headOf(Val h) { return (row % index(shape.kvHeads)) * (rows / shape.queries) + h / index(shape.queries); }

  HeadPolicies policies() { return HeadPolicies(shape, row % index(shape.policies.size())); }
  bool isLimited(CacheRole side) const { return HeadPolicies::areLimited(shape.policies, side); }
  /// Degree of the polynomial for 2^x.
  int64_t degree() const { return exact || shape.certified ? 5 : leastTolerance(shape.policies) < 0x1p-10 ? 4 : 3; }
  /// 2^x for x <= 127, 0 where x is far below.
  Val power(Val x);

  /// Ends a part of the step (ALIGNED_PART_*), where it is profiled.
  void lap(int32_t part);

  Emitter &e;
  const KernelShape &shape;
  const int64_t rows;  ///< query rows
  const int64_t lanes; ///< of a 32-bit register
  const bool exact;
  const StepInputs in;
  Val row;
  StepBuffers buffers;
  RowCache key, value;
  Val newest;            ///< tokens up to the newest query
  Sight sight;
  Softcap cap;          ///< of scores in base 2
  VisibleTiles visible; ///< where there is a mask
  Val origin;            ///< first tile of the split
  Val isFull;            ///< whether the scan reads all of K, i1: of a row whose coarse scores may be off by more than floats have room for

private:
  Val capped(Val x, Val h);
  Val isTileSeen(Val tile);
  Buffer maskMemory();
  Val maskAt(Val h, Val token);
  Val masked(Val x, Val number);
  RowCache cacheOf(Val cache, PlanesAttr attr, int64_t headDim);
};

/// The stages. Each is emitted where the builder stands, for one row or one split of it.
void emitPrepare(Emitter &e, const KernelShape &shape, const StepInputs &in, Val row, const StepBuffers &buffers);
void emitScan(Emitter &e, const KernelShape &shape, const StepInputs &in, Val row, Val split, const StepBuffers &buffers);
/// The state of a split: acc f32 [query rows][valueDim], max and sum f32 [query rows], and where shape.certified certificate f32 [query rows][6].
struct StateBuffers {
  Buffer acc, max, sum, certificate;
};
void emitAttend(Emitter &e, const KernelShape &shape, const StepInputs &in, Val row, Val split, const StepBuffers &buffers, const StateBuffers &state);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_STEP_H
