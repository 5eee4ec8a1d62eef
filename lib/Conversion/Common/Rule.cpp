// See the header for the idea.
#include "Rule.h"

#include <cmath>

using namespace aligned;

double aligned::misled(double sigma) {
  // Of the two terms that nearly cancel, expm1 keeps what is left.
  double square = sigma * sigma;
  return std::sqrt(std::expm1(std::min(2 * square, 300.0)) - 2 * std::expm1(std::min(square / 2, 75.0)));
}

Val aligned::log2Misled(Val sigma, llvm::function_ref<Val(Val)> exp2, llvm::function_ref<Val(Val)> log2) {
  Emitter &e = *sigma.e;
  auto number = [&](double x) { return e.constant(sigma.type(), x); };
  Val half = exp2(min(sigma * sigma * (kLog2e / 2), 20)), whole = half * half; // e^(s^2 / 2), e^(s^2)
  Val square = max(fma(whole, whole, fma(half, number(-2), number(1))), 0);
  return log2(max(square, sigma * sigma)) * 0.5; // where sigma is small they are the same, and the difference is lost
}

Val aligned::misledSquare(Val square) {
  Val factor = exp(square * 0.5), fourth = factor * factor * (factor * factor);
  return select(square < 0.0025, square, fourth - factor * 2 + 1); // where sigma is small they are the same, and the difference is lost
}

Buffer aligned::misledTable(Emitter &e) {
  llvm::SmallVector<float> numbers;
  for (int64_t i = 0; i < kMisledCount; ++i) {
    double octaves = double(kMisledFirst + i) / 8;
    // Where sigma is small they are the same, and the difference is lost even to expm1.
    numbers.push_back(octaves < -12 ? octaves : std::log2(std::min(misled(std::exp2(octaves)), 1e30)));
  }
  return e.table("aligned_misled", numbers);
}

Buffer aligned::leverTable(Emitter &e) {
  llvm::SmallVector<float> numbers;
  for (int64_t i = 0; i < kLeverCount; ++i)
    numbers.push_back(std::log2(1 + std::exp2(double(2 * i + 1 - kLeverCount) / 8)));
  return e.table("aligned_lever", numbers);
}
