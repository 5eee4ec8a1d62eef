// Nibble rows of V as the depth of a tile: eight rows for each lane, of which it holds some words, transposed from words of four channels to words of four rows.
//
// A nibble row is head_dim / 8 words; word w holds channels 4 w .. 4 w + 3 in its low nibbles and those half a row further in its high ones. Lane 4 g + t has rows
// 4 t .. 4 t + 3 and 16 + 4 t .. of 32, and of each the words width * (g + 8 chunk) .. + width - 1, loaded at once.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_NIBBLEROWS_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_NIBBLEROWS_H

#include "GpuEmitter.h"

#include "../Common/DecodeShape.h"

namespace aligned {

struct NibbleRows {
  explicit NibbleRows(int64_t headDim);
  int64_t headDim, words, width, chunks;

  /// Registers of sums of a tile's columns: [chunk][word][byte][4].
  int64_t sums() const { return chunks * width * 4 * 4; }
  /// The lane's words of a row (its number among all rows), where `there`; else 0.
  Vals load(GpuEmitter &e, Val plane, Val row, const LayerPlace &at, Val g, int64_t chunk, Val there) const;
  /// Word v of rows first .. first + 3 as four words, one for each byte.
  Vals transpose(GpuEmitter &e, llvm::ArrayRef<Vals> rows, int64_t first, int64_t v) const;
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_NIBBLEROWS_H
