// The native half of the package: compiler and caches of the C interface as Python objects.
#include "Caches.h"
#include "Compiling.h"
#include "Modules.h"
#include "Programs.h"

#include "aligned/Runtime/Kernel.h"

#include <nanobind/stl/string.h>

#include <string>

using namespace nb::literals;

NB_MODULE(_alignedkv, m) {
  nb::set_leak_warnings(false); // registries of other libraries keep functions of the package to the end of the process
  nb::exception<Error>(m, "Error", PyExc_ValueError).doc() =
      "What the compiler or the runtime refuses: MLIR's diagnostics, or what was expected of an argument and what was found.";
  m.def("_policy_tolerance", [](const std::string &policy) { return aligned_policy_tolerance(policy.c_str()); }, "policy"_a);
  m.def("_view", &viewAsNumpy, "object"_a.none(), "name"_a);
  m.def("set_threads", [](int64_t threads) {
    if (threads < 1 || threads > 1024)
      throw Error("expected 1 to 1024 threads, got " + std::to_string(threads));
    aligned_rt_set_threads(threads);
  }, "threads"_a, R"(Sets how many threads attention and appends use, the calling one included. At first they are as many as the machine has processors.

Takes effect with the next call, in the whole process. Raises Error unless threads is 1 to 1024.)");
  m.def("threads", [] { return aligned_rt_threads(); }, "How many threads attention and appends use.");
  bindPrograms(m);
  bindCaches(m);
  bindCompiling(m);
  bindModules(m);
}
