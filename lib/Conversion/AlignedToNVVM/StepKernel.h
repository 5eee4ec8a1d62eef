// A decode step over fixed planes on a GPU, in two launches, for one storage and number of query rows.
//
//   scan    the first plane of K of every token: coarse scores, and what they add up to      grid splits x rows      ScanKernel.cpp
//   attend  thresholds from the sums of all splits; finer K, then V, of the tokens above     grid splits x rows      AttendKernel.cpp
//           them; the last block of threads of a row joins what all have made
//   certify where asked for, what the result may be off by (P4)                            grid splits x rows      CertifyKernel.cpp
//
// A row is a kv head of one batch entry with the query rows that share it. A warp takes whole tiles of 64 tokens, every one of a row's warps the next; nothing that is decided
// depends on which. Grids don't depend on how many tokens there are, so that a captured step can be replayed while caches grow.
//
// Both products are mma.m16n8k32 of bytes: of planes as they lie (16 rows: tokens of K, or channels of V) with signed digits of weights. Columns 2 h and 2 h + 1 hold the two
// digits in base 256 of query row h, so that a *quad* of four rows is a product's width, and lane 4 g + q ends up with the sums of row q of the quad. A byte holds two
// values, hi and lo, of 4 bits. It is multiplied as it is, 16 hi + lo, with the weight of hi, and masked, lo, with what is missing: 16 W_lo - W_hi. That is one instruction a word.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_STEPKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_STEPKERNEL_H

#include "GpuKernel.h"

#include "../Common/HeadPolicies.h"
#include "../Common/Masks.h"
#include "aligned/Storage/Layout.h"

#include <cstddef>

namespace aligned {

/// Arguments, the same for both kernels. P: query rows, padded (paddedRows).
enum class StepArgument {
  Query,              ///< [rows, query rows, key_dim]
  Key, Value,         ///< aligned_cache in device memory
  Scale,              ///< f32
  Scores,             ///< f16, or f32 (hasWideScores): [rows][tiles][32][P][2]: of tokens 2 i and 2 i + 1 of a tile, in base 2, less the reference of the tile in Tops
  Tops,               ///< f32 [rows][tiles][P][2]: the reference, a multiple of 1/8, and the tile's largest score
  Stats,              ///< f32 [rows][splits][P][4]: the reference, the sum of 2^(x - reference), and what of it rows of V below the floor have (M3)
  Prepared,           ///< words [rows][...]: see PreparedRow
  Parts,              ///< f32 [rows][splits][P][value_dim + kMasses]: see Mass
  Counters,           ///< i32 [rows][blocks of threads that share the query rows]: how many splits are done
  KeyBits, ValueBits, ///< i8 [rows][capacity]: bits that were read of each token, or null where nobody asks
  Acc, Max, Sum,      ///< f32 [rows][query rows][value_dim], [rows][query rows] twice: the softmax state
  Optional,           ///< as far as the shape has them: sink_logits f32 [q_heads], attn_mask, and what a certificate takes
};
/// What a certificate (P4) takes; scores are f32 then.
enum class CertifyArgument {
  Finest,      ///< f32 [rows][capacity][P]: scores as finer bits of K made them, relative to the row's largest, where ValueBits is not 0
  Steps,       ///< f32 [rows][splits][P]: the largest step of weights of V, in units of codes
  Sums,        ///< f32 [rows][splits][P][CertifiedSum::Count]
  Done,        ///< i32 [rows]: blocks of threads that are done
  Certificate, ///< f32 [rows][query rows][kCertificateNumbers]
  Count
};
enum class CertifiedSum { Grown, GrownReach, Reach, Error, Variance, ScoreVariance, Unread, Scanned, Loudest, Count };
constexpr int64_t kQuad = 4, kStepWarps = 4;

/// What attend changes of the coarse masses: what finer scores add, what rows that are read have, and of both what is below the floor.
enum Mass { kMoved, kRead, kLowMoved, kLowRead, kMasses };

/// What is known of a query row, and of the row; f32 but for sums. Scales are in units of codes, 2^(code/8 - 16).
enum class HeadFact {
  Unit,      ///< a score is Unit * scale * (sum of 16 W n), n in steps of the first plane
  Sum,       ///< i32: of 16 W over channels
  Relative,  ///< log2 of |q'| beside the longest
  Shrink,    ///< log2 of what thresholds take Z times (P5)
  LogSeen,   ///< log2 of the tokens that it sees, of 1 where it sees none
  NotFinite, ///< NaN where the query is not finite, else 0
  Shift,     ///< what the offset takes off every score
  Norm, Mass, ///< |q'|, |q'|_1
  Count
};
enum class RowFact {
  LogUsual,  ///< log2 A + 16
  ValueUnit, ///< the scale of V that a code of 128 stands for
  LargestKey, LargestValue, ///< codes
  Floor,     ///< a code (M3)
  SomeLow,   ///< whether any token's code is below it
  KeyUnit,   ///< as ValueUnit
  Count
};

/// Quads that a block of attend takes: as many as registers hold the sums of, and shared memory the scores.
inline int64_t quadsTogether(const DecodeShape &shape) {
  auto isNarrow = [](int64_t dim) { return dim <= 64 || dim == 128; };
  return shape.heads > kQuad && !shape.certified && !shape.exact() && isNarrow(shape.keyDim) && isNarrow(shape.valueDim) ? 2 : 1;
}
/// Query rows, padded to what blocks of threads take together.
inline int64_t paddedRows(const DecodeShape &shape) { return llvm::alignTo(shape.heads, quadsTogether(shape) * kQuad); }

/// Whether scores are f32: where more is asked of them than thresholds.
inline bool hasWideScores(const DecodeShape &shape) { return shape.exact() || shape.certified; }

/// Where what scan makes ready of a row lies, in words.
struct PreparedRow {
  explicit PreparedRow(const DecodeShape &shape);
  int64_t columns;       ///< of weights
  int64_t raw, low;      ///< weights of rows of 4-bit planes: [columns][key_dim / 8]
  int64_t full;          ///< of rows of bytes: [columns][key_dim / 4]
  int64_t heads, row;    ///< facts
  int64_t mean;          ///< [value_dim]: what a row of V stands for that is not read, in units of ValueUnit
  int64_t keyTable;      ///< 256 f16: log2 misled(sigma) of the longest query by code of K, the first plane read
  int64_t valueTable;    ///< 256 f16: log2(1 + v / A) by code of V
  int64_t size;
};

/// A cache as a row sees it.
struct StepCache {
  Val planes[ALIGNED_MAX_PLANES]; ///< of all rows
  Val codes;
  Val scales;                     ///< the row's aligned_scales
  Val bias;                       ///< f32
  Val pages;                      ///< i64, 0 where there are none
  Val first;                      ///< i32: place of the row's first tile, where there are no pages
};

class StepKernel : public GpuKernel {
public:
  StepKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

protected:
  const DecodeShape &shape;
  const int64_t rows = shape.heads, allRows = paddedRows(shape); ///< allRows: with those that pad
  const int64_t keyWords = shape.keyDim / 8, valueWords = shape.valueDim / 8; ///< of a token's row of a plane of 4 bits
  const bool exact = shape.exact();
  const PreparedRow at{shape};

  Val row, split, splits, batch, kvHead;
  Val g, q; ///< lane = 4 g + q
  Val tokens, tiles, newest; ///< i32; newest: tokens up to the newest query
  Val stride;                ///< i32: tiles that scratch has room for, the key cache's capacity
  StepCache key, value;
  VisibleTiles visible;
  Val seenTiles; ///< how many there are of those that some query sees

  Val sinkLogits() { return argument(StepArgument::Optional); }
  /// Runs `body` in the block of threads that comes here last of a row's splits, when all others have written what they have. `counter[index]` counts them.
  void joinSplits(Val counter, Val index, Shared last, llvm::function_ref<void()> body);
  /// The number of the mask that is an operand (P8) for a query row and a token.
  Val maskNumber(Val h, Val token);
  /// A score under it.
  Val masked(Val score, Val number);
  /// cap tanh(score / cap) of a score in base 2, with what the offset took off (A12).
  Val capped(Val score, Val shift) { return softcapped(score + shift, shape.softcap * kLog2e); }
  Val small(StepArgument cache, int64_t offset) { return convert(field(argument(cache), offset), e.i32()); }
  /// Tokens of a cache that are kept aside (S7), of all rows.
  Val asidesOf(StepArgument cache) { return small(cache, offsetof(aligned_cache, asides)); }
  /// Those of this row: their tokens, and addresses of their values.
  void forAsides(StepArgument cache, int64_t headDim, llvm::function_ref<void(Val token, Val values)> body);

  Val argument(StepArgument which) { return e.wrap(function.getArgument(static_cast<unsigned>(which))); }
  /// The row's part of a buffer with so many elements for each.
  Val ofRow(StepArgument which, mlir::Type element, Val count) { return e.at(argument(which), element, wide(row) * wide(count)); }
  Val ofRow(StepArgument which, mlir::Type element, int64_t count) { return ofRow(which, element, number(count)); }
  Val isAsked(StepArgument record);
  mlir::Type vectorOf(mlir::Type element, int64_t count) { return mlir::VectorType::get(count, element); }
  Val argument(CertifyArgument which) { return e.wrap(function.getArgument(unsigned(StepArgument::Optional) + shape.sinkLogits + bool(shape.attnMask) + unsigned(which))); }
  mlir::Type scoreType() { return hasWideScores(shape) ? e.f32() : e.types.getF16Type(); }

  /// The `index`th tile that some query sees.
  Val tileAt(Val index) { return shape.mask ? index + select(index < visible.sinks, number(0), visible.begin - visible.sinks) : index; }
  /// Where a tile of the row lies in every plane.
  Val placeOf(const StepCache &cache, Val tile);
  /// The bytes of a plane from a tile of `bytes` on.
  Val tileOf(Val plane, Val place, int64_t bytes) { return e.at(plane, e.i8(), wide(place) * bytes); }
  /// Scale of byte `which` of a word of codes.
  Val scaleOf(Val codes, int which) { return e.exp2(fma(e.byteAsFloat(codes, which), real(0.125), real(-1048576.0 - 16))); }
  /// A multiple of 2^20: what the middle of dither's range is at the place of a token (S5), as a signed number of 2^-32 steps of 4 bits. `token` is shifted left by 20.
  Val ditherOf(Val shifted, int32_t factor) { return shifted * factor + number(INT32_MIN); }

private:
  StepCache view(StepArgument cache, PlanesAttr planes);
};

/// What these kernels can't do, said of `op`.
mlir::LogicalResult checkStep(mlir::Operation *op, const DecodeShape &shape);
void emitScanKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitAttendKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitCertifyKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_STEPKERNEL_H
