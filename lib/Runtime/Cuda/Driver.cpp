// See the header.
#include "Driver.h"

#include <cstdlib>
#include <dlfcn.h>

using namespace aligned::cuda;

namespace {

Driver find() {
  Driver found;
  const char *chosen = std::getenv("ALIGNED_LIBCUDA");
  const char *library = chosen && *chosen ? chosen : "libcuda.so.1";
  void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL); // never closed: the driver's threads live in it
  if (!handle) {
    found.why = std::string("no CUDA driver found: ") + dlerror();
    return found;
  }
  std::string missing;
#define ALIGNED_CUDA_FIND(member, name, parameters)                                                                              \
  if (!(found.member = reinterpret_cast<Result(*) parameters>(dlsym(handle, #name))))                                            \
    missing += (missing.empty() ? "" : ", ") + std::string(#name);
  ALIGNED_CUDA_ENTRY_POINTS(ALIGNED_CUDA_FIND)
#undef ALIGNED_CUDA_FIND
  found.launchKernelEx = reinterpret_cast<decltype(found.launchKernelEx)>(dlsym(handle, "cuLaunchKernelEx"));
  if (!missing.empty()) {
    found.why = std::string("CUDA driver too old: expected ") + library + " to have " + missing;
    return found;
  }
  if (Result result = found.init(0)) {
    found.why = "CUDA driver does not start: " + found.textOf(result);
    return found;
  }
  if (Result result = found.deviceGetCount(&found.devices))
    found.why = "CUDA driver does not count devices: " + found.textOf(result);
  else if (found.devices < 1)
    found.why = "no CUDA device found";
  return found;
}

} // namespace

std::string Driver::textOf(Result result) const {
  const char *text = nullptr;
  if (getErrorString && getErrorString(result, &text) == 0 && text)
    return text;
  return "error " + std::to_string(result);
}

const Driver &aligned::cuda::driver() {
  static const Driver *found = new Driver(find()); // outlives the threads' own streams
  return *found;
}
