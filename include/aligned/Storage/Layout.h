// Where every bit of a cache lies (S4, S6).
//
// A cache is a tensor [batch, kv_heads, tokens, head_dim]; batch and kv_heads fold into rows. A row is cut into tiles of 64 tokens, and each plane is an
// array of tiles. Tile i of a row stands at `place`, in every plane and in the array of scale codes alike:
//
//   place(row, i) = pages ? pages[batch * capacity/64 + i] * kv_heads + head : row * capacity/64 + i
//   plane[p] = [place][bytesPerTile(p)]         codes = [place][64] (fixed)
//
// Within a tile, of token t (0 .. 63) and channel c:
//
//   key, fixed, plane 0   made for integer dot products over all tokens: 32-bit words of 4 channels, a word of each token side by side.
//                         width 4: [head_dim/8][64][4]  byte (c/8, t, c%4), low half for c%8 < 4, high half else
//                         width 8: [head_dim/4][64][4]  byte (c/4, t, c%4)
//   other fixed planes    rows, one per token:
//                         width 4: [64][head_dim/2]     byte (t, c/2), low half for even c, high half for odd c
//                         width 8: [64][head_dim]       byte (t, c)
//   key, float            channels are decided one by one: [head_dim][width/4][32], byte (c, layer, t%32), low half for t < 32
//   value, float          rows: [64][width/4][head_dim/2], byte (t, layer, c % (head_dim/2)), low half for c < head_dim/2
//                         a plane of w bits is w/4 layers of 4 bits, the most significant first
//
// What is cut up: fixed keys n + 2^15, fixed values n in two's complement (so that each side meets its integer dot product as it lies), float formats the
// bits of the half or bfloat16.
//
// Example, fixed<4,4,8>, key, head_dim 64, token 70, channel 13, n + 2^15 = 0xA5C3: tile 1, t = 6; plane 0 byte (1 * 64 + 6) * 4 + 1, high half: A;
// plane 1 byte 6 * 32 + 6, high half: 5; plane 2 byte 6 * 64 + 13: C3.
//
// Arrays end with kSlack bytes that nobody writes, so that vectors may read past the last row.
#ifndef ALIGNED_STORAGE_LAYOUT_H
#define ALIGNED_STORAGE_LAYOUT_H

#include "aligned/Storage/Scale.h"

namespace aligned::storage {

constexpr int64_t kSlack = 64;

/// Bits in front of plane `plane`: how far a value is read by the planes before it.
constexpr int32_t bitsBefore(const aligned_format &format, int32_t plane) {
  int32_t bits = 0;
  for (int32_t p = 0; p < plane; ++p)
    bits += format.width[p];
  return bits;
}
/// The planes that hold the top `bits` bits.
constexpr int32_t planesFor(const aligned_format &format, int32_t bits) {
  int32_t plane = 0;
  for (int32_t read = 0; read < bits && plane < format.planes; ++plane)
    read += format.width[plane];
  return plane;
}
/// Bits of the 16 below plane `plane`: its least significant bit stands for 2^this.
constexpr int32_t bitsBelow(const aligned_format &format, int32_t plane) { return 16 - bitsBefore(format, plane) - format.width[plane]; }

constexpr bool isTiled(const aligned_format &format, int32_t plane) {
  return format.role == ALIGNED_ROLE_KEY && (plane == 0 || format.kind == ALIGNED_FORMAT_FLOAT);
}
/// Bytes of a token's row in a plane that is not tiled.
constexpr int64_t rowBytes(int32_t width, int64_t headDim) { return headDim * width / 8; }
constexpr int64_t bytesPerTile(int32_t width, int64_t headDim) { return kTile * rowBytes(width, headDim); }

/// A group of 4 bits of a value, or all 8 of a plane of that width: byte within the tile, and how far up in it.
struct Bits {
  int64_t byte;
  int32_t shift;
};

/// `layer` counts groups of 4 bits in a float plane, 0 elsewhere.
constexpr Bits bitsOf(const aligned_format &format, int32_t plane, int64_t headDim, int64_t token, int64_t channel, int32_t layer = 0) {
  const int32_t width = format.width[plane];
  if (format.kind == ALIGNED_FORMAT_FLOAT) {
    if (format.role == ALIGNED_ROLE_KEY)
      return {(channel * (width / 4) + layer) * (kTile / 2) + token % (kTile / 2), token < kTile / 2 ? 0 : 4};
    const int64_t half = headDim / 2;
    return {(token * (width / 4) + layer) * half + channel % half, channel < half ? 0 : 4};
  }
  if (isTiled(format, plane)) {
    const int64_t group = width == 4 ? 8 : 4;
    return {(channel / group * kTile + token) * 4 + channel % 4, channel % group < 4 ? 0 : 4};
  }
  return width == 4 ? Bits{token * (headDim / 2) + channel / 2, channel % 2 ? 4 : 0} : Bits{token * headDim + channel, 0};
}

/// What is cut up of n (fixed formats), and back.
constexpr uint16_t cutOf(const aligned_format &format, int32_t n) { return uint16_t(format.role == ALIGNED_ROLE_KEY ? n + 0x8000 : n); }
constexpr int32_t integerOf(const aligned_format &format, uint16_t cut) {
  return format.role == ALIGNED_ROLE_KEY ? int32_t(cut) - 0x8000 : int32_t(int16_t(cut));
}

} // namespace aligned::storage

#endif // ALIGNED_STORAGE_LAYOUT_H
