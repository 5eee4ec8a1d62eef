// What is known of the values that a float may have: an element of the lattice that the analysis of precision goes forward over (P6).
//
// A range says of every value: it is finite and in [lower, upper], no closer to zero than `least` unless it is zero, and a multiple of 2^held; or it is
// an infinity or a NaN, where the range says that there may be one. Ranges without values are the bottom of the lattice, and all values of a type its top.
// Every function here is outward: the range it returns holds whatever can come of values in the ranges that it is given, as real numbers, and `in` makes
// of it a range that holds what comes of rounding those to a format, too.
#ifndef ALIGNED_ANALYSIS_RANGE_H
#define ALIGNED_ANALYSIS_RANGE_H

#include "mlir/IR/BuiltinTypes.h"

#include <cstdint>

namespace aligned {

/// What sets the values of a float type apart.
struct FloatFormat {
  int precision;  ///< bits of a significand, the hidden one included
  int finest;     ///< the smallest value is 2^finest
  double largest;
  bool infinite, nan; ///< whether the type has any

  /// Of a float type, or of the elements of a shaped one. Types wider than f64 are taken for f64 without an upper end.
  static std::optional<FloatFormat> of(mlir::Type type);
};

struct FloatRange {
  static constexpr int kHeldNothing = 1 << 20; ///< `held` where all values are zero, which is a multiple of anything
  static constexpr int kHeldAny = -kHeldNothing; ///< `held` of reals: multiples of nothing in particular

  double lower, upper;       ///< of finite values; lower > upper: there are none
  double least;              ///< magnitude of values that aren't zero
  int held = kHeldNothing;   ///< every finite value is a multiple of 2^held
  bool zero = false, infinite = false, nan = false;

  FloatRange(); ///< no values
  static FloatRange of(double lower, double upper); ///< all reals in between
  static FloatRange constant(const llvm::APFloat &value);
  static FloatRange all(const FloatFormat &format);

  bool isEmpty() const { return !hasFinite() && !infinite && !nan; }
  bool hasFinite() const { return lower <= upper; }
  /// Bounded on both ends, and nothing but finite values.
  bool isBounded() const;
  bool contains(double value) const;
  bool contains(const FloatRange &other) const;
  bool operator==(const FloatRange &other) const;
  bool operator!=(const FloatRange &other) const { return !(*this == other); }

  double magnitude() const; ///< the largest, of finite values; infinity where there may be one
  double smallest() const;  ///< the smallest magnitude, 0 where zero is among them

  FloatRange join(const FloatRange &other) const;
  /// What is in both, as far as it can be told.
  FloatRange meet(const FloatRange &other) const;
  /// What rounding to nearest makes of these reals in a format.
  FloatRange in(const FloatFormat &format) const;
  /// Any finite value moved by at most this share of itself.
  FloatRange within(double share) const;

  void print(llvm::raw_ostream &os) const;
};

FloatRange operator-(const FloatRange &a);
FloatRange operator+(const FloatRange &a, const FloatRange &b);
FloatRange operator-(const FloatRange &a, const FloatRange &b);
FloatRange operator*(const FloatRange &a, const FloatRange &b);
FloatRange operator/(const FloatRange &a, const FloatRange &b);
FloatRange abs(const FloatRange &a);
/// `number`: a NaN gives way to the other operand (maxnumf); else it wins (maximumf).
FloatRange maximum(const FloatRange &a, const FloatRange &b, bool number);
FloatRange minimum(const FloatRange &a, const FloatRange &b, bool number);
/// A rising function, `domain` where it is defined: NaN outside.
FloatRange rising(const FloatRange &a, double (*function)(double), double share, const FloatRange *domain = nullptr);
/// `init` and any number of up to `count` values of `a`, added in any order and rounded to the format after each addition; a negative count is unknown.
FloatRange sum(const FloatRange &init, const FloatRange &a, int64_t count, const FloatFormat &format);

/// The exponent of a value above 0: 2^exponent <= value < 2^(exponent + 1).
int exponentOf(double value);

} // namespace aligned

#endif // ALIGNED_ANALYSIS_RANGE_H
