// A decode step over fixed planes on a GPU, for one storage and number of query rows.
//
//   scan    the first plane of K of every token: coarse scores, and what they add up to      grid splits x rows      ScanKernel.cpp
//   attend  thresholds from the sums of all splits; finer K, then V, of the tokens above     grid splits x rows x    AttendKernel.cpp
//           them; the last block of threads of a row joins what all have made                blocksPerSplit
//   certify where asked for, what the result may be off by (P4)                              grid splits x rows      CertifyKernel.cpp
//
// A warp takes whole tiles of 64 tokens, every one of a row's warps the next; nothing that is decided
// depends on which.
//
// Both products are mma.m16n8k32 of bytes: of planes as they lie (16 rows: tokens of K, or channels of V) with signed digits of weights. Columns 2 h and 2 h + 1 hold the two
// digits in base 256 of query row h, so that a *quad* of four rows is a product's width, and lane 4 g + q ends up with the sums of row q of the quad. A byte holds two
// values, hi and lo, of 4 bits. It is multiplied as it is, 16 hi + lo, with the weight of hi, and masked, lo, with what is missing: 16 W_lo - W_hi. That is one instruction a word.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_STEPKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_STEPKERNEL_H

#include "DecodeKernel.h"

#include "../Common/HeadPolicies.h"

namespace aligned {

/// What a certificate (P4) sums up over tokens; of Loudest the largest.
enum class CertifiedSum { Grown, GrownReach, Reach, Error, Variance, ScoreVariance, Unread, Scanned, Loudest, Count };
constexpr int64_t kQuad = 4, kStepWarps = 4;
constexpr double kNothing = -1e30; ///< the reference of no scores

/// What attend changes of the coarse masses: what finer scores add, what rows that are read have, and of both what is below the floor.
enum Mass { kMoved, kRead, kLowMoved, kLowRead, kMasses };

/// What is known of a query row, and of the row; f32 but for sums. Scales are in units of codes, 2^(code/8 - 16).
enum class HeadFact {
  Unit,      ///< a score is Unit * scale * (sum of 16 W n), n in steps of the first plane
  Sum,       ///< i32: of 16 W over channels
  Relative,  ///< log2 of |q'| beside the longest
  Shrink,    ///< log2 of what thresholds take Z times (P5)
  LogSeen,   ///< log2 of the tokens that it sees, of 1 where it sees none, less that of the square of a tolerance factor
  NotFinite, ///< NaN where the query is not finite, else 0
  Shift,     ///< what the offset takes off every score
  Norm, Mass, ///< |q'|, |q'|_1, where they are asked for
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

/// Whether a mask's numbers are added behind a cap: finer bits of K go in front of both.
inline bool hasCapAndMask(const DecodeShape &shape) { return shape.hasSoftcap() && addsMask(shape); }

/// Quads that a block of attend takes: as many as registers hold the sums of, and shared memory the scores.
inline int64_t quadsTogether(const DecodeShape &shape) {
  auto isNarrow = [](int64_t dim) { return dim <= 64 || dim == 128; };
  return shape.heads > kQuad && !shape.certified && !shape.exact() && !hasCapAndMask(shape) && isNarrow(shape.keyDim) && isNarrow(shape.valueDim) ? 2 : 1;
}
/// Query rows, padded to what blocks of threads take together.
inline int64_t paddedRows(const DecodeShape &shape) { return llvm::alignTo(shape.heads, quadsTogether(shape) * kQuad); }

/// Blocks of threads that a split of attend has.
inline int64_t blocksPerSplit(const DecodeShape &shape) { return paddedRows(shape) / (quadsTogether(shape) * kQuad); }

/// Whether scores are f32: where more is asked of them than thresholds.
inline bool hasWideScores(const DecodeShape &shape) { return shape.exact() || shape.certified; }
inline mlir::Type scoreType(mlir::Builder &b, const DecodeShape &shape) { return hasWideScores(shape) ? b.getF32Type() : b.getF16Type(); }

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

struct StepCache : PlaneCache {
  Val codes;  ///< of all rows
  Val scales; ///< the row's aligned_scales
  Val bias;   ///< f32
};

class StepKernel : public DecodeKernel {
public:
  StepKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

protected:
  const int64_t rows = shape.heads, allRows = paddedRows(shape); ///< allRows: with those that pad
  const int64_t keyWords = shape.keyDim / 8, valueWords = shape.valueDim / 8; ///< of a token's row of a plane of 4 bits
  const bool exact = shape.exact();
  const PreparedRow at{shape};

  const Val q = t; ///< the lane's query row of a quad: lane = 4 g + q
  StepCache key, value;
  Val prepared;    ///< what scan makes ready of the row

  /// Runs `body` in the block of threads that comes here last of a row's splits, when all others have written what they have. `counter[index]` counts them.
  void joinSplits(Val counter, Val index, Shared last, llvm::function_ref<void()> body);
  /// A score in base 2 under the number of the mask that is an operand.
  Val masked(Val score, Val number);
  /// cap tanh(score / cap) of a score in base 2, with what the offset took off (A12).
  Val capped(Val score, Val shift) { return softcapped(score + shift, cap); }

  // What scan has made ready.
  Val headFact(Val h, HeadFact which) {
    return e.loadGlobal(prepared, which == HeadFact::Sum ? e.i32() : e.f32(), h * int64_t(HeadFact::Count) + (at.heads + int64_t(which)), false);
  }
  Val rowFact(RowFact which) { return e.loadGlobal(prepared, e.f32(), number(at.row + int64_t(which)), false); }
  /// The logit without a value of a query row, in the terms of scores.
  Val sinkOf(Val h);

  mlir::Type vectorOf(mlir::Type element, int64_t count) { return mlir::VectorType::get(count, element); }
  mlir::Type scoreType() { return aligned::scoreType(e.types, shape); }
  // The row's part of arrays by tile and token, and of those with `count` f32 for each split and query row.
  Val tileScores() { return ofRow(Argument::TileScores, scoreType(), key.capacity * (kTile * allRows)); }
  Val tileTops() { return ofRow(Argument::TileTops, e.f32(), key.capacity * (allRows * 2)); }
  Val finestScores() { return ofRow(Argument::Finest, e.f32(), key.capacity * (kTile * allRows)); }
  Val bitsOf(Argument record) { return ofRow(record, e.i8(), key.capacity * kTile); }
  Val ofSplits(Argument which, int64_t count) { return ofRow(which, e.f32(), splits * (allRows * count)); }

  /// A query row's score of a token as scan left it, relative to `top`.
  Val coarseScore(Val h, Val token, Val top);

  /// log2 of the scale that a code stands for, and the scale, in units of codes.
  Val octavesOf(Val code) { return fma(convert(code, e.f32()), real(0.125), real(-16)); }
  Val scaleOf(Val code) { return e.exp2(octavesOf(code)); }
  /// Scale of byte `which` of a word of codes.
  Val scaleOf(Val codes, int which) { return e.exp2(fma(e.byteAsFloat(codes, which), real(0.125), real(-1048576.0 - 16))); }
  /// A multiple of 2^20: what the middle of dither's range is at the place of a token (S5), as a signed number of 2^-32 steps of 4 bits. `token` is shifted left by 20.
  Val ditherOf(Val shifted, int32_t factor) { return shifted * factor + number(INT32_MIN); }

  /// Where sums of products of a plane of 4 bits begin: 16 times 7.5 less, the middle of a plane's values. `sum`: of 16 W over channels, as f32.
  Val beginOf(Val sum) { return convert(roundEven(sum * -7.5), e.i32()); }

private:
  StepCache stepViewOf(Argument cache, PlanesAttr planes);
};

/// What these kernels can't do, said of `op`.
mlir::LogicalResult checkStep(mlir::Operation *op, const DecodeShape &shape);
void emitScanKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitAttendKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitCertifyKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_STEPKERNEL_H
