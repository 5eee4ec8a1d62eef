// One kv head of decode attention on the CPU where storage is dense or in float planes.
//
// A kernel works on one row, a kv head of one batch entry with the query rows that share it (P3), in stages:
//
//   queries  w[h, c] = scale * q[h, c] as f32
//   scores   s[h, t], from planes or dense tokens, capped (A12); -inf past the last token and where a mask (A11) hides it
//   softmax  p[h, t] = e^(s - max), max[h], sum[h]
//   values   out[h, c] = sum_t p[h, t] v[t, c], from planes or dense tokens
//   certify  where asked for: what scores and values may be off (P4), from what was read of them
//
// Formats differ in how scores and values are read.
//
// Tiles in which no query sees a token are left out of every loop (forTiles, forTokens): s and p hold nothing there.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ROWKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ROWKERNEL_H

#include "Step.h"

namespace aligned {

/// Tiles that are gone through together.
constexpr int64_t kTileLanes = 16;

/// The arguments of a kernel, `aligned_kernel_arguments`: one 8-byte slot each.
enum class Slot { Query, Key, Value, Acc, Max, Sum, Certificate, Scale, Tokens, Later, AttnMask, SinkLogits, Attention, Softcap, Window, Sinks };
constexpr int64_t kSlots = 16, kSlotBytes = 8;

class RowKernel {
public:
  RowKernel(Emitter &e, const KernelShape &shape) : e(e), shape(shape), lanes(lanesOf(shape.isa)) {}
  virtual ~RowKernel() = default;

  /// Emits the whole row. `arguments` points to the slots.
  void emit(Val arguments, Val row);

protected:
  /// Tokens in this row.
  virtual Val tokenCount() = 0;
  /// Asks for scratch of the format's own.
  virtual void allocate() {}
  /// Fills s[h, 0 .. tokens) and takes its softmax().
  virtual void scores() = 0;
  /// Adds to out[h, :].
  virtual void values() = 0;
  /// Calls tally(), and says more where more is known.
  virtual void reportReading() = 0;

  //===-- what the certificate rests on ----------------------------------===//

  /// Largest finite magnitudes of each channel of K over all tokens, and of V over all channels too.
  virtual Val keyChannelMax() = 0;
  virtual Val valueMax() = 0;
  /// Tiles that are not read as they were appended; what follows is asked of them only. All tokens behind them are exact.
  virtual Val inexactTiles() { return index(0); }
  /// Prepares what the following share.
  virtual void prepareCertificate() {}
  /// Sees to it that scoreError[h * tileStride + tile] holds the most that a score in this tile may be off, rounding included.
  virtual void boundScores(Val tile) {}
  /// What kTile tokens from t on bring into the output, in units of valueUnit().
  struct RowBounds {
    Val reach, error; ///< the largest magnitude of a row of V, and the most that one may be off as it was read
    std::optional<Val> variance = std::nullopt; ///< to expect of that error
    std::optional<Val> unread = std::nullopt;   ///< the reach of rows that are not read, 0 of others
  };
  virtual RowBounds boundValues(Val t) {
    Val none = e.constant(mlir::VectorType::get(kTile, e.f32()), 0);
    return {none, none};
  }
  virtual Val valueUnit() { return f32(1); }
  /// The most that out[h, :] is off because weights were rounded, in the same unit.
  virtual Val weightError(Val h) { return f32(0); }
  /// Sums in a row that add to one output or to one sum of weights.
  virtual Val additions() { return tokens; }
  /// Predicted variance of out[h, :] by scores, and the share of their errors that rows which are not read may have in common.
  virtual Val scoreVariance(Val h) { return f32(0); }
  virtual double commonShare() { return 0; }

  //===-- shared stages --------------------------------------------------===//

  /// All tiles begin .. end - 1 that any query sees, and the first of each kTile tokens in begin .. end - 1, where begin starts a tile.
  Vals forTiles(Val begin, Val end, Vals initial, llvm::function_ref<Vals(Val tile, Vals)> body);
  void forTiles(Val begin, Val end, llvm::function_ref<void(Val tile)> body);
  Vals forTokens(Val begin, Val end, Vals initial, llvm::function_ref<Vals(Val t, Vals)> body);
  void forTokens(Val begin, Val end, llvm::function_ref<void(Val t)> body);
  /// How many of the tiles 0 .. end - 1 any query sees.
  Val countTiles(Val end);
  /// Whether query row h sees token t, of any integer type; and lane by lane, whether any row sees the kTile tokens from t on. Only where there is a mask.
  Val sees(Val h, Val t) { return isVisible(t, h % index(shape.queries), newest, sight); }
  Val areSeen(Val t);
  /// Whether tokens may be hidden, by position or by numbers, and whether query row h sees token t: where not, not even 0 times its value takes part.
  bool mayHide() const { return shape.mask || shape.attnMask; }
  Val takesPart(Val h, Val t);
  /// Caps and masks the scores of a tile, and those behind the last token; every reader of scores ends with it.
  void finishScores(Val tile);

  /// Query head of query row h, of all.
  Val headOf(Val h) { return (row % index(shape.kvHeads)) * (shape.heads / shape.queries) + h / index(shape.queries); }
  /// What the mask that is an operand (P8) says of query row h: its memory, and where the tokens of the row begin.
  std::pair<Buffer, Val> maskOf(Val h);
  /// A tile's scores of query row h under it.
  Val underMask(Val score, Val h, Val tile);
  void softmax();
  /// Reports how many bits of K and V were read.
  void tally(Val keyBits, Val valueBits);

  /// Query rows in groups whose accumulators of `vectorsPerHead` registers fit the register file.
  void forHeadGroups(int64_t vectorsPerHead, llvm::function_ref<void(Val first, int64_t count)> body);
  void forHeads(llvm::function_ref<void(Val head)> body);

  /// The attention's number, i32: attention of one shape shares a kernel.
  mlir::Value attention() { return e.field(arguments, int64_t(Slot::Attention) * kSlotBytes, e.i32()).value; }
  Val index(int64_t n) { return e.index(n); }
  Val f32(double x) { return e.constant(e.f32(), x); }
  /// Reserves scratch memory; `buffer` is filled in once all requests are known.
  void scratch(Buffer &buffer, mlir::Type element, Val count) { requests.push_back({&buffer, element, count}); }

  Emitter &e;
  const KernelShape &shape;
  const int64_t lanes; ///< of a 32-bit vector register

  Val arguments, row, tokens, padded; ///< padded: tokens rounded up to whole tiles, the stride of s and p
  Val newest;                         ///< tokens up to the newest query
  Sight sight;
  Softcap cap;
  Buffer w, s, p, rowMax, rowSum, out;
  Val tileStride; ///< tiles, padded to whole vectors of kTileLanes
  Buffer scoreError, growthSum, certificate;

private:
  /// Tiles begin .. sinks - 1 and window .. end - 1.
  struct Stretches {
    Val begin, sinks, window, end;
  };
  Stretches stretchesOf(Val begin, Val end);
  VisibleTiles visible; ///< where there is a mask

  void resolveScratch();
  void loadQueries();
  void certify();
  void storeState();

  struct Request {
    Buffer *buffer;
    mlir::Type element;
    Val count;
  };
  llvm::SmallVector<Request> requests;
};

/// The kernels, by the storage that they read.
std::unique_ptr<RowKernel> makeDenseKernel(Emitter &e, const KernelShape &shape);
std::unique_ptr<RowKernel> makeFloatKernel(Emitter &e, const KernelShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ROWKERNEL_H
