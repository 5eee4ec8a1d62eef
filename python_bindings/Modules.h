#ifndef ALIGNED_PYTHON_MODULES_H
#define ALIGNED_PYTHON_MODULES_H

#include <nanobind/nanobind.h>

/// Adds Module to the module, and what compiler.py needs of the compiler besides.
void bindModules(nanobind::module_ &m);

#endif
