// A kernel on a GPU: a module of its own, and what any thread of it says.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_GPUKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_GPUKERNEL_H

#include "../Common/Rule.h"
#include "GpuEmitter.h"

#include "aligned/Runtime/Cache.h"

namespace aligned {

constexpr double kLowest = -3e38; ///< in the place of -infinity, so that no difference of two is NaN

/// Where the tiles of a row lie in every plane: one after another, or where a table says.
struct Places {
  Val pages;           ///< i64: address of the row's part of the table, 0 where there is none
  Val first;           ///< i32: without one, place of the row's first tile
  Val kvHeads, kvHead; ///< i32: a page holds a tile of all of them
};

/// A kernel: what any thread of it says.
class GpuKernel {
public:
  GpuKernel(mlir::ModuleOp program, llvm::StringRef name, int64_t warps, llvm::ArrayRef<mlir::Type> arguments);

protected:
  mlir::OpBuilder builder;
  mlir::gpu::GPUModuleOp module; ///< of this kernel alone: kernels are compiled side by side
  std::string name;
  const int64_t warps, threads;
  mlir::gpu::GPUFuncOp function;
  GpuEmitter e;
  Val thread, lane, warp;

  Val wide(Val number) { return convert(number, e.i64()); }
  Val real(double x) { return e.real(x); }
  Val number(int64_t n) { return e.number(n); }
  Val get(Val array, Val offset) { return e.loadGlobal(array, e.f32(), offset, /*constant=*/false); }
  /// A field of an `aligned_cache`; an address among them.
  Val field(Val cache, int64_t offset) { return e.loadGlobal(e.at(cache, e.i8(), number(offset)), e.i64(), number(0)); }
  Val address(Val number);
  Val addressOf(Val cache, int64_t offset) { return address(field(cache, offset)); }
  /// Tokens of a batch entry (i32).
  Val tokensOf(Val cache, Val batch);
  /// `capacity`: tiles that each row has room for.
  Places placesOf(Val cache, Val capacity, Val row, Val batch, Val kvHeads, Val kvHead);
  Val placeAt(const Places &places, Val tile);
  /// The bytes of a plane from a tile of `bytes` on.
  Val tileOf(Val plane, Val place, int64_t bytes) { return e.at(plane, e.i8(), wide(place) * bytes); }

  Shared shared(llvm::StringRef what, mlir::Type element, int64_t count) { return e.shared(module, name + "_" + what.str(), element, count); }
  /// Runs `body` for i = thread, thread + threads, ... below `count`.
  void forThreads(int64_t count, llvm::function_ref<void(Val)> body) { e.loop(thread, number(count), threads, body); }
  /// Runs `body` for the query rows h = warp, warp + warps, ...
  void forHeadsOfWarp(int64_t heads, llvm::function_ref<void(Val)> body) { e.loop(warp, number(heads), warps, body); }
  Val warpAdd(Val x) { return e.warpAdd(x, {16, 8, 4, 2, 1}); }
  Val warpMax(Val x) { return e.warpMax(x, {16, 8, 4, 2, 1}); }
  /// e^(s - max), from a score and its row's maximum.
  Val weightOf(Val score, Val maximum) { return e.exp2((score - max(maximum, real(kLowest))) * kLog2e); }
  /// A loop over splits first, first + step, ...: `load` is asked for several of them before `add` gets what the first one gave, so that their loads don't wait for one another.
  Val overSplits(Val first, Val splits, int64_t step, Val start, llvm::function_ref<Vals(Val split)> load, llvm::function_ref<Val(Val sum, Vals loaded)> add);
  static constexpr int64_t kVector = 4; ///< f32 of an output that a thread loads or stores at once
  /// What is left to add of the splits' arrays of `width` f32: one array from each group of threads, for all threads. `load` and `add` are those of overSplits, for the kVector
  /// elements from `offset` on.
  Shared addSplits(Val splits, int64_t width, llvm::function_ref<Vals(Val split, Val offset)> load, llvm::function_ref<Val(Val sum, Vals loaded)> add);
  /// Of those arrays, the sum of element `at`, or of `lanes` elements.
  Val sumOf(Shared parts, int64_t width, Val at, int64_t lanes = 0);
  void finish() { mlir::gpu::ReturnOp::create(e.b); }

private:
  int64_t groupsFor(int64_t width) const { return threads / (width / kVector); }
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_GPUKERNEL_H
