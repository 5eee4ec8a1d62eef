// How compiled kernels are told from the functions of a model.
#ifndef ALIGNED_CONVERSION_ALIGNEDTOCPU_KERNELS_H
#define ALIGNED_CONVERSION_ALIGNEDTOCPU_KERNELS_H

namespace aligned {

/// An attribute of LLVM functions, passed through by func.func.
constexpr char kKernelAttribute[] = "aligned-kernel";
/// Beside it: of kernels whose inner loops are short, so that they run faster once LLVM has unrolled them.
constexpr char kShortLoopsAttribute[] = "aligned-short-loops";

} // namespace aligned

#endif // ALIGNED_CONVERSION_ALIGNEDTOCPU_KERNELS_H
