#ifndef ALIGNED_PYTHON_MODULES_H
#define ALIGNED_PYTHON_MODULES_H

#include "aligned/Runtime/Kernel.h"

#include <nanobind/nanobind.h>

/// What one attention read, as an entry of Module.reads.
nanobind::dict asDict(const aligned_tally &read);

/// Adds Module to the module, and what compiler.py needs of the compiler besides.
void bindModules(nanobind::module_ &m);

#endif
