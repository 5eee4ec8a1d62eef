// What the kernels of decode attention take: stated once, for the kernels and for the sidecar that describes them.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_ARGUMENTS_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_ARGUMENTS_H

#include "../Common/DecodeShape.h"

#include "mlir/IR/Builders.h"

namespace aligned {

/// All kernels of an attention have the same arguments: those of `argumentsOf`, in its order. P: query rows, padded (paddedRows).
enum class Argument {
  Query,              ///< [rows][query rows][key_dim]
  Key, Value,         ///< aligned_cache in device memory; dense: [rows][capacity][key_dim or value_dim]
  Scale,              ///< f32
  Finished,           ///< i32: whether outputs are those of attention, not the softmax state
  Softcap, Window, Sinks, Later, ToleranceFactor, ///< f32, i32, i32, i32, f32: where the shape leaves them to the call
  SinkLogits,         ///< f32 [query heads], where the shape has them
  AttnMask,           ///< [batch or 1][query heads or 1][queries or 1][tokens], where the shape has one
  KeyBits, ValueBits, ///< i8 [rows][capacity], of float planes of K [rows][tiles][key_dim]: bits that were read, or null where nobody asks
  Acc, Max, Sum,      ///< f32 [rows][query rows][value_dim], [rows][query rows] twice: the softmax state

  // Of dense caches:
  Lengths,    ///< i64 [batch]
  Capacity,   ///< i32

  // Of dense caches and float planes:
  Splits,     ///< i32
  Statistics, ///< f32 [rows][splits][query rows][kStatistics]
  Partial,    ///< f32 [rows][splits][query rows][value_dim]: outputs, of dense caches relative to the split's maximum, of planes to the row's

  // Of float planes:
  Scores,     ///< f32 [rows][query rows][capacity], as the softmax takes them
  Tops,       ///< f32 [rows][query rows][tiles]: the largest score of each tile
  Margins,    ///< i32 [rows][query rows]: of the rule (P1)

  // Of fixed planes:
  TileScores, ///< f16, or f32 (hasWideScores): [rows][tiles][32][P][2]: of tokens 2 i and 2 i + 1 of a tile, in base 2, less the reference of the tile in TileTops
  TileTops,   ///< f32 [rows][tiles][P][2]: the reference, a multiple of 1/8, and the tile's largest score
  Stats,      ///< f32 [rows][splits][P][4]: the reference, the sum of 2^(x - reference), and what of it rows of V below the floor have (M3)
  Prepared,   ///< words [rows][...]: see PreparedRow
  Parts,      ///< f32 [rows][splits][P][value_dim + kMasses]: see Mass
  Counters,   ///< i32 [rows][blocks of threads that share the query rows]: how many splits are done
  // and of a certificate (P4):
  Finest,      ///< f32 [rows][capacity][P]: scores as finer bits of K made them, relative to the row's largest, where ValueBits is not 0
  Steps,       ///< f32 [rows][splits][P]: the largest step of weights of V, in units of codes
  Certified,   ///< f32 [rows][splits][P][CertifiedSum::Count]
  Done,        ///< i32 [rows]: blocks of threads that are done
  Certificate, ///< f32 [rows][query rows][kCertificateNumbers]
};

/// Whether attention is in stages: over fixed planes.
inline bool isStaged(const DecodeShape &shape) { return shape.keyPlanes && shape.keyPlanes.getKind() == FormatKind::Fixed; }

/// Each argument, and how the sidecar describes it.
llvm::SmallVector<std::pair<Argument, mlir::Attribute>> argumentsOf(mlir::Builder &b, const DecodeShape &shape);
/// What a kernel takes it as.
mlir::Type typeOf(mlir::Builder &b, Argument which);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_ARGUMENTS_H
