// Kernels for a GPU as Python objects: programs, which make caches there and attend to them.
#ifndef ALIGNED_PYTHON_PROGRAMS_H
#define ALIGNED_PYTHON_PROGRAMS_H

#include "Arrays.h"

#include "aligned/Runtime/Cuda.h"

#include <cstdint>
#include <memory>
#include <string>

class Program {
public:
  Program(const std::string &ptx, const std::string &sidecar);
  aligned_program *get() const { return program.get(); }

private:
  struct Destroy {
    void operator()(aligned_program *program) const { aligned_program_destroy(program); }
  };
  std::unique_ptr<aligned_program, Destroy> program;
};

/// What this thread queues while it lives goes to a stream of the caller's; 0: to the thread's own.
struct OnStream {
  explicit OnStream(uintptr_t stream) { aligned_cuda_set_stream(reinterpret_cast<void *>(stream)); }
  OnStream(const OnStream &) = delete;
  ~OnStream() { aligned_cuda_set_stream(nullptr); }
};

void bindPrograms(nb::module_ &m);

#endif
