// See the header.
#include "CallRuntime.h"

#include "aligned/Runtime/Call.h"

using namespace aligned;
using namespace llvm::orc;

llvm::ArrayRef<RuntimeFunction> aligned::runtimeFunctions() {
#define REPLACED(called, function) {called, #function, ExecutorAddr::fromPtr(&function)}
#define OWN(function) REPLACED(#function, function)
  static const RuntimeFunction functions[] = {
      REPLACED("malloc", aligned_rt_malloc),
      REPLACED("free", aligned_rt_free),
      REPLACED("puts", aligned_rt_say), // a failed assertion prints and calls abort
      REPLACED("abort", aligned_rt_fail),
      REPLACED("aligned_rt_parallel", aligned_rt_loop),
      REPLACED("aligned_cache_create", aligned_rt_cache_create),
      REPLACED("aligned_cache_fork", aligned_rt_cache_fork),
      REPLACED("aligned_cache_destroy", aligned_rt_cache_destroy),
      OWN(aligned_cache_drop_planes),
      OWN(aligned_cache_append),
      OWN(aligned_cache_overwrite),
      OWN(aligned_cache_unpack),
      OWN(aligned_rt_scratch),
      OWN(aligned_rt_tally),
      OWN(aligned_rt_bits),
      OWN(aligned_rt_recording),
      OWN(aligned_rt_lap),
      OWN(aligned_rt_reference_attention),
      OWN(aligned_rt_reference_state),
      OWN(aligned_rt_reference_prepare),
      OWN(aligned_rt_reference_scan),
      OWN(aligned_rt_reference_attend),
      REPLACED("__truncsfbf2", aligned_rt_truncsfbf2),
      REPLACED("__truncdfbf2", aligned_rt_truncdfbf2),
  };
#undef OWN
#undef REPLACED
  return functions;
}

SymbolMap aligned::runtimeSymbols(MangleAndInterner intern) {
  SymbolMap symbols;
  for (const RuntimeFunction &function : runtimeFunctions())
    symbols[intern(function.called)] = {function.address, llvm::JITSymbolFlags::Exported};
  return symbols;
}
