// The rotation of K (S2): R = diag(signs) H, H a normalised Hadamard matrix, so that (q R).(k R) = q.k while no channel sticks out.
//
// Where head_dim is no power of two, H is block-diagonal: blocks of its powers of two, the largest first (96 = 64 + 32), and R with it.
#ifndef ALIGNED_STORAGE_ROTATION_H
#define ALIGNED_STORAGE_ROTATION_H

#include <cstdint>

namespace aligned::storage {

/// Sign of a channel: the top bit of a multiplicative hash.
constexpr float signOf(int64_t channel) {
  uint32_t x = (uint32_t(channel) + 1) * 0x9E3779B9u;
  x = (x ^ (x >> 15)) * 0x85EBCA6Bu;
  return (x >> 31) ? -1.0f : 1.0f;
}

/// The block that starts at `first`: the largest power of two that fits.
constexpr int64_t blockAt(int64_t first, int64_t headDim) {
  int64_t size = 1;
  while (size * 2 <= headDim - first)
    size *= 2;
  return size;
}

/// x R, in place, of one vector: signs, then butterflies within each block. Floats of any type; the compiler's vectors do for runs of 8 and more.
template <typename Float> void rotate(Float *x, int64_t headDim) {
  for (int64_t c = 0; c < headDim; ++c)
    x[c] *= Float(signOf(c));
  for (int64_t first = 0; first < headDim;) {
    const int64_t size = blockAt(first, headDim);
    for (int64_t half = 1; half < size; half *= 2)
      for (int64_t i = first; i < first + size; i += 2 * half)
        for (int64_t j = i; j < i + half; ++j) {
          const Float a = x[j], b = x[j + half];
          x[j] = a + b;
          x[j + half] = a - b;
        }
    const Float norm = Float(1 / __builtin_sqrt(double(size)));
    for (int64_t c = first; c < first + size; ++c)
      x[c] *= norm;
    first += size;
  }
}

/// x R^T = x R^-1, in place: butterflies first (H is symmetric), then signs.
template <typename Float> void rotateBack(Float *x, int64_t headDim) {
  for (int64_t c = 0; c < headDim; ++c)
    x[c] *= Float(signOf(c)); // undone by rotate's own signs
  rotate(x, headDim);
  for (int64_t c = 0; c < headDim; ++c)
    x[c] *= Float(signOf(c));
}

} // namespace aligned::storage

#endif // ALIGNED_STORAGE_ROTATION_H
