// The native half of the package: compiler and caches of the C interface as Python objects.
#include "Caches.h"
#include "Modules.h"

NB_MODULE(_alignedkv, m) {
  nb::exception<Error>(m, "Error", PyExc_ValueError).doc() =
      "What the compiler or the runtime refuses: MLIR's diagnostics, or what was expected of an argument and what was found.";
  bindCaches(m);
  bindModules(m);
}
