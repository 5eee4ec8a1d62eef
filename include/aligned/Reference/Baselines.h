// Decode attention of one kv head over caches as others store them: what the policies are measured against.
#ifndef ALIGNED_REFERENCE_BASELINES_H
#define ALIGNED_REFERENCE_BASELINES_H

#include "aligned/Reference/Attention.h"

namespace aligned {

/// Sixteen-bit flash attention: float32 scores and sums; K, V, the probabilities in front of V and the output in the storage type.
PolicyResult decodeFlash(const HeadInputs &in);

/// K and V as 8-bit floats (sign, 4 bits of exponent, 3 of mantissa; no infinity, 448 at most), rounded to nearest even, saturating, without scales.
PolicyResult decodeFp8(const HeadInputs &in);

/// K and V as integers of `bits` bits. K: each channel over 64 tokens has a scale and a zero point; V: each token has a scale. Scales and zero points are of the
/// storage type, 16 bits each, and count as bits read. Tokens past the last full block stay as they are, dense.
PolicyResult decodeIntegers(const HeadInputs &in, int bits);

/// K and V as `q8_0` of GGUF: 8-bit integers, each 32 channels of a token with a 16-bit scale.
PolicyResult decodeQ8(const HeadInputs &in);

/// The value that an 8-bit float of decodeFp8 stands for after rounding; a NaN stays one.
double roundFp8(double value);

} // namespace aligned

#endif // ALIGNED_REFERENCE_BASELINES_H
