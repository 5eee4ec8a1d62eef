// A program on a device: its module, its kernels, and the memory that they work in.
#ifndef ALIGNED_LIB_RUNTIME_CUDA_PROGRAM_H
#define ALIGNED_LIB_RUNTIME_CUDA_PROGRAM_H

#include "Device.h"
#include "Sidecar.h"

#include <memory>
#include <mutex>
#include <vector>

namespace aligned::cuda {

/// PTX that the driver has compiled. Programs with the same text share it.
class Module {
public:
  static std::shared_ptr<Module> load(const Context &context, const std::string &ptx);
  ~Module();
  Module(const Module &) = delete;

  const Context &context;
  ModuleHandle handle = nullptr;

private:
  explicit Module(const Context &context) : context(context) {}
};

/// Room for an array in a workspace.
inline int64_t paddedBytes(int64_t bytes) { return (bytes + 255) / 256 * 256; }

/// Memory that the launches of one site share, and their order.
struct Workspace {
  Memory memory;
  Order order;

  /// Grows it to `bytes`. What is in it is lost.
  bool reserve(const Context &context, int64_t bytes);
};

/// The values of a launch's parameters, as the driver takes them: pointers to each.
class Parameters {
public:
  explicit Parameters(size_t count) : values(count), pointers(count) {
    for (size_t i = 0; i < count; ++i)
      pointers[i] = &values[i];
  }
  Parameters(const Parameters &) = delete;
  template <typename T> void set(size_t at, T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    __builtin_memcpy(&values[at], &value, sizeof value);
  }
  /// A size of an argument's type.
  void setSize(size_t at, const Argument &argument, const Symbols &symbols) {
    int64_t value = argument.size.at(symbols);
    argument.elementBytes == 4 ? set(at, static_cast<int32_t>(value)) : set(at, value);
  }
  void **data() { return pointers.data(); }

private:
  std::vector<uint64_t> values;
  std::vector<void *> pointers;
};

class Program {
public:
  static std::shared_ptr<Program> load(const std::string &ptx, const std::string &json);

  const Context &context;
  const Sidecar sidecar;
  const std::shared_ptr<Module> module;

  const Site *site(int32_t number) const;
  /// The kernels that append to such a cache, or null.
  const Append *appendTo(const aligned_format &format, int64_t headDim) const;

  Workspace &workspace(const Site &site) { return siteWork[&site - sidecar.decode.data()]; }
  /// Of appends: tokens from the host, and what their kernels need.
  Workspace appendWork;
  /// Held while a call uses workspaces.
  std::mutex mutex;

  /// Whether the driver takes such grids.
  bool checkGrids(const std::vector<Launch> &launches, const Symbols &symbols) const;
  bool launch(const std::vector<Launch> &launches, const Symbols &symbols, Parameters &parameters, Stream stream) const;

private:
  Program(const Context &context, Sidecar sidecar, std::shared_ptr<Module> module)
      : context(context), sidecar(std::move(sidecar)), module(std::move(module)), siteWork(this->sidecar.decode.size()) {}

  std::vector<Function> functions; // of Sidecar::kernels
  std::vector<Workspace> siteWork;
};

} // namespace aligned::cuda

struct aligned_program {
  std::shared_ptr<aligned::cuda::Program> program;
};

#endif
