#ifndef ALIGNED_PYTHON_MODULES_H
#define ALIGNED_PYTHON_MODULES_H

#include <nanobind/nanobind.h>

/// Adds Module and transform to the module.
void bindModules(nanobind::module_ &m);

#endif
