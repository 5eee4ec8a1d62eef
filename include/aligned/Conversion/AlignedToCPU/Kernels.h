// How compiled kernels are told from the functions of a model.
#ifndef ALIGNED_CONVERSION_ALIGNEDTOCPU_KERNELS_H
#define ALIGNED_CONVERSION_ALIGNEDTOCPU_KERNELS_H

namespace aligned {

/// An attribute of LLVM functions, passed through by func.func.
constexpr char kKernelAttribute[] = "aligned-kernel";

} // namespace aligned

#endif // ALIGNED_CONVERSION_ALIGNEDTOCPU_KERNELS_H
